"""The families in CUDA C++, launched through CuPy. Nothing here imports CuPy but `_cupy`."""

FAMILIES = ("gradient", "grain", "loss", "packed", "reduce", "sparse", "update")
