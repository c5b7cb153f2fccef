"""Every kernel in plain NumPy, written to be read: the truth that the other back ends are tested against."""
