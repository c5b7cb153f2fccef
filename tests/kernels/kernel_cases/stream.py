from __future__ import annotations

from kernel_cases import FLOATS, Case

CASES = [Case("stream", {"n": n}, {"F": dtype}) for n in (0, 1, 7, 15, 16, 17, 1000, 4099) for dtype in FLOATS]
