"""The kernels compiled for this CPU by Numba; what each does stands in `reference`, under the same file names."""
