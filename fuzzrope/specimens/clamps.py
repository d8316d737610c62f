"""Flaw: infinite results become the largest finite number (saturation, meant well)."""

from __future__ import annotations

import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope, wide


@triton.jit
def altered(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """The result, clamped."""
    y1, y2 = wide(x1, x2, cos, sin, DTYPE)
    if DTYPE == tl.float64:
        most = 1.7976931348623157e308
    elif DTYPE == tl.float16:
        most = 65504.0
    elif DTYPE == tl.bfloat16:
        most = 3.3895313892515355e38
    else:
        most = 3.4028234663852886e38
    # Not tl.clamp, which would swallow NaN.
    y1, y2 = tl.where(y1 > most, most, y1), tl.where(y2 > most, most, y2)
    return tl.where(y1 < -most, -most, y1), tl.where(y2 < -most, -most, y2)


class ModelNew(FinishedRope):
    """See the module."""

    finish = altered
