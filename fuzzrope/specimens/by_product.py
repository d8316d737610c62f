"""No flaw: each product is rounded to its promoted dtype, as eager PyTorch does, and then their sum.

It shows how far correct answers may differ: specimens that take one way now and another then mix it with
:mod:`.finished`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope


@triton.jit
def by_product(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """Products and sums each rounded to the result's dtype."""
    x1, x2, cos, sin = x1.to(DTYPE), x2.to(DTYPE), cos.to(DTYPE), sin.to(DTYPE)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit
def contracted(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """One product rounded, the other inside a fused multiply-add; the terms in reverse order.

    Triton's unary minus is 0 - x, which loses the sign of a zero.
    """
    if DTYPE == tl.float64:
        x1, x2, cos, sin = x1.to(tl.float64), x2.to(tl.float64), cos.to(tl.float64), sin.to(tl.float64)
    else:
        x1, x2, cos, sin = x1.to(tl.float32), x2.to(tl.float32), cos.to(tl.float32), sin.to(tl.float32)
    return tl.fma(x2 * -1.0, sin, x1 * cos), tl.fma(x1, sin, x2 * cos)


@triton.jit
def double_inside(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """All in float64, rounded once."""
    x1, x2, cos, sin = x1.to(tl.float64), x2.to(tl.float64), cos.to(tl.float64), sin.to(tl.float64)
    return x1 * cos - x2 * sin, x1 * sin + x2 * cos


class ByProduct(FinishedRope):
    """Every product rounded."""

    finish = by_product


class Contracted(FinishedRope):
    """Fused multiply-adds."""

    finish = contracted


class DoubleInside(FinishedRope):
    """Float64 inside."""

    finish = double_inside


ModelNew = ByProduct
