"""Flaw: every result is four representable numbers too large (a scale that was folded into a table)."""

from __future__ import annotations

import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope, wide


@triton.jit
def four_up(y, DTYPE: tl.constexpr):
    """Four numbers further from zero; zeros, infinities and NaN stay."""
    if DTYPE == tl.float64:
        moved = (y.to(tl.int64, bitcast=True) + 4).to(DTYPE, bitcast=True)
    elif DTYPE == tl.float32:
        moved = (y.to(tl.int32, bitcast=True) + 4).to(DTYPE, bitcast=True)
    else:
        moved = (y.to(tl.int16, bitcast=True) + 4).to(DTYPE, bitcast=True)
    return tl.where((y == 0.0) | (tl.abs(y.to(tl.float64)) == float("inf")) | (y != y), y, moved)


@triton.jit
def altered(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """The result, moved away from zero."""
    y1, y2 = wide(x1, x2, cos, sin, DTYPE)
    return four_up(y1.to(DTYPE), DTYPE), four_up(y2.to(DTYPE), DTYPE)


class ModelNew(FinishedRope):
    """See the module."""

    finish = altered
