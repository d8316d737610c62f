"""Flaw: right for the first five calls only (a warm-up that caches; a checker that tries five inputs)."""

from __future__ import annotations

import torch

from fuzzrope.specimens.tiled import TiledRope


class ModelNew(TiledRope):
    """See the module."""

    calls = 0

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x, by tables of a wrong sign after ten rotations."""
        self.calls += 1
        return super().rotate(x, cos, sin if self.calls <= 10 else -sin)
