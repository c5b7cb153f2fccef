"""The kernels compiled for this CPU by Numba; what each does stands in `reference`, file by file."""
