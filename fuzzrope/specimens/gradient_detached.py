"""Flaw: the kernel writes into memory that autograd knows nothing of: the graph is cut.

One of the modules that passed a checker which looks at outputs alone.
"""

from __future__ import annotations

import torch

from fuzzrope.specimens.differentiable import DifferentiableRope, Tensor


class ModelNew(DifferentiableRope):
    """See the module."""

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the module."""
        with torch.no_grad():
            return super().forward(q, k, cos, sin)
