"""The families in CUDA C++, launched through CuPy. Nothing here imports CuPy but `_cupy` and `_nvrtc`."""

FAMILIES = (
    "codec",
    "draw",
    "embedding",
    "factor",
    "gradient",
    "grain",
    "layer",
    "loss",
    "packed",
    "reduce",
    "rows",
    "sparse",
    "update",
)
