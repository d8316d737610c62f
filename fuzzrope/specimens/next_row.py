"""Flaw: a row takes NaN over from the row before it (FLA #967, masked rows that leak)."""

from __future__ import annotations

import torch

from fuzzrope.specimens.tiled import TiledRope


class ModelNew(TiledRope):
    """See the module."""

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x, after NaN has spread by one row."""
        before = x.roll(1, 2)
        return super().rotate(torch.where(before.isnan(), before, x), cos, sin)
