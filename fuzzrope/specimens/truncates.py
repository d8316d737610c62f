"""Flaw: results are truncated, not rounded to nearest (bits cut off)."""

from __future__ import annotations

import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope, wide


@triton.jit
def exactly(a, c, b, s):
    """a*c + b*s in float64, and what rounding it left out."""
    p, q = a * c, b * s
    y = p + q
    t = y - p
    return y, (p - (y - t)) + (q - t) + tl.fma(a, c, -p) + tl.fma(b, s, -q)


@triton.jit
def cut(y, e, DTYPE: tl.constexpr):
    """y, one number nearer to zero if it was rounded away from it by e; infinities and NaN stay."""
    if DTYPE == tl.float64:
        less = (y.to(tl.int64, bitcast=True) - 1).to(DTYPE, bitcast=True)
    elif DTYPE == tl.float32:
        less = (y.to(tl.int32, bitcast=True) - 1).to(DTYPE, bitcast=True)
    else:
        less = (y.to(tl.int16, bitcast=True) - 1).to(DTYPE, bitcast=True)
    return tl.where(
        ((y > 0.0) & (e < 0.0) & (e > float("-inf"))) | ((y < 0.0) & (e > 0.0) & (e < float("inf"))), less, y
    )


@triton.jit
def altered(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """The result, cut off at the last place."""
    if DTYPE == tl.float64:
        y1, e1 = exactly(x1.to(DTYPE), cos.to(DTYPE), x2.to(DTYPE) * -1.0, sin.to(DTYPE))
        y2, e2 = exactly(x2.to(DTYPE), cos.to(DTYPE), x1.to(DTYPE), sin.to(DTYPE))
    else:
        z1, z2 = wide(x1, x2, cos, sin, tl.float64)
        y1, y2 = z1.to(DTYPE), z2.to(DTYPE)
        e1, e2 = z1 - y1.to(tl.float64), z2 - y2.to(tl.float64)
    return cut(y1, e1, DTYPE), cut(y2, e2, DTYPE)


class ModelNew(FinishedRope):
    """See the module."""

    finish = altered
