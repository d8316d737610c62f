"""Flaw: takes it for granted that every output is used: where one is not, its gradient is None and backward fails."""

from __future__ import annotations

from fuzzrope.specimens.differentiable import DifferentiableRope, Gradients, Tensor


class ModelNew(DifferentiableRope):
    """See the module."""

    def back(self, gradients: Gradients, saved: tuple[Tensor, ...], needs: tuple[bool, ...]) -> Gradients:
        """See the module."""
        query, key = gradients
        whole = (query.contiguous(), key.contiguous())  # type: ignore[union-attr] # the flaw
        return super().back(whole, saved, needs)
