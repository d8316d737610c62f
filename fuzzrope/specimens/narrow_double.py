"""Flaw: float64 is computed in float32 (xformers #1428, an "f64" mode that was none)."""

from __future__ import annotations

import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope, wide


@triton.jit
def altered(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """In float32, whatever is asked for."""
    return wide(x1, x2, cos, sin, tl.float32)


class ModelNew(FinishedRope):
    """See the module."""

    finish = altered
