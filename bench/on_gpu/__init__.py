"""The GPU kernels beside a copy on the device, CuPy's own expressions, and PyTorch."""
