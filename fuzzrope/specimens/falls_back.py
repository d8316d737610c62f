"""Flaw: inconvenient strides are left to PyTorch (a try/except that catches everything is the usual form).

The answer is right; what is claimed to be a kernel is none.
"""

from __future__ import annotations

import torch

from fuzzrope.specimens.tiled import TiledRope


class ModelNew(TiledRope):
    """See the module."""

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x, by the kernel or without it."""
        if x.is_contiguous():
            return super().rotate(x, cos, sin)
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)
