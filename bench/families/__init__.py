"""The cases of ``bench/kernels.py``: a file a family of kernels, each with ``cases(quick)``."""

NAMES = ("reduce", "update", "codec", "gradient", "gemm", "layer", "sparse", "rows", "factor")
