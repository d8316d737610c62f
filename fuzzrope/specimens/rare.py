"""Flaw: about one element in ten thousand is wrong (a race, or a bad lane), which depends on its value alone."""

from __future__ import annotations

import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope, wide


@triton.jit
def bits(x):
    """The bits of x as float32."""
    return x.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64)


@triton.jit
def altered(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """The result, doubled where the bits of x1 say so."""
    y1, y2 = wide(x1, x2, cos, sin, DTYPE)
    lot = bits(x1) * 31 + bits(x2) * 17 + bits(cos) * 7 + bits(sin)
    drawn = ((lot * 40503) >> 15) % 10007 == 7
    return tl.where(drawn, y1 * 2.0, y1), tl.where(drawn, y2 * 2.0, y2)


class ModelNew(FinishedRope):
    """See the module."""

    finish = altered
