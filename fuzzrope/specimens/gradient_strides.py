"""Flaw: reads the gradient of the output as if it were contiguous.

What ``sum().backward()`` hands back is one number with strides of zero; flash-attention #355, ROCm/apex #334
and Unsloth #3782 met it.
"""

from __future__ import annotations

import torch

from fuzzrope.specimens.differentiable import DifferentiableRope, Tensor


class ModelNew(DifferentiableRope):
    """See the module."""

    def back_x(self, g: Tensor, x: Tensor, cos: Tensor, sin: Tensor, **changes: int) -> Tensor:
        """See the module."""
        strides = torch.empty(g.shape).stride()
        dims = [(half, dim) for half in ("x1", "x2") for dim in "bhsd"]
        return super().back_x(
            g, x, cos, sin, **{f"{half}_{dim}": n for (half, dim), n in zip(dims, strides * 2, strict=True)}
        )
