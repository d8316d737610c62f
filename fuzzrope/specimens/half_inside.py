"""Flaw: everything is computed in float16 (quick, and near enough for values around one)."""

from __future__ import annotations

import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope


@triton.jit
def altered(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """Operands, products and sums in float16."""
    x1, x2, cos, sin = x1.to(tl.float16), x2.to(tl.float16), cos.to(tl.float16), sin.to(tl.float16)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


class ModelNew(FinishedRope):
    """See the module."""

    finish = altered
