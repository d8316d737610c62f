"""Flaw: the gradient is rotated on instead of back: the sign of sin is turned twice.

A loss that sums the squares of the output hides it, for rotations keep lengths.
"""

from __future__ import annotations

from fuzzrope.specimens.differentiable import DifferentiableRope, Tensor


class ModelNew(DifferentiableRope):
    """See the module."""

    def back_x(self, g: Tensor, x: Tensor, cos: Tensor, sin: Tensor, **changes: int) -> Tensor:
        """See the module."""
        return super().back_x(g, x, cos, -sin, **changes)
