"""Flaw: which of two correct ways of rounding is taken is left to chance (atomics, or a race)."""

from __future__ import annotations

import random
from typing import Any

import torch
import triton
import triton.language as tl

from fuzzrope.specimens.finished import FinishedRope, wide


@triton.jit
def contracted(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """Products rounded to the result's dtype where that is narrow, else one product kept exact."""
    x1, x2, cos, sin = x1.to(DTYPE), x2.to(DTYPE), cos.to(DTYPE), sin.to(DTYPE)
    if (DTYPE == tl.float64) | (DTYPE == tl.float32):
        y1, y2 = tl.fma(x1, cos, x2 * sin * -1.0), tl.fma(x2, cos, x1 * sin)
    else:
        y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    return y1, y2


class ModelNew(FinishedRope):
    """See the module."""

    def chosen(self, x: torch.Tensor) -> Any:
        """One of two ways."""
        return contracted if random.random() < 0.5 else wide
