"""The families in CUDA C++, launched through CuPy. Nothing here imports CuPy but `_cupy`."""

FAMILIES = ("embedding", "gradient", "grain", "layer", "loss", "packed", "reduce", "rows", "sparse", "update")
