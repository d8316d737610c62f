"""Flaw: subnormal results become zero (fast arithmetic that flushes denormals)."""

from __future__ import annotations

import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope, wide


@triton.jit
def altered(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """The result, zero below the smallest normal number."""
    y1, y2 = wide(x1, x2, cos, sin, DTYPE)
    if DTYPE == tl.float64:
        least = 2.2250738585072014e-308
    elif DTYPE == tl.float16:
        least = 0.00006103515625
    else:
        least = 1.1754943508222875e-38
    return tl.where(tl.abs(y1) < least, y1 * 0.0, y1), tl.where(tl.abs(y2) < least, y2 * 0.0, y2)


class ModelNew(FinishedRope):
    """See the module."""

    finish = altered
