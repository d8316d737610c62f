"""Flaw: contiguous q and k are overwritten with the rotation (Unsloth #5001, Liger #342)."""

from __future__ import annotations

import torch

from fuzzrope.specimens.tiled import TiledRope, launch, new_output


class ModelNew(TiledRope):
    """See the module."""

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x, in x's own memory where it fits there."""
        fresh = new_output(x, cos, sin)
        fits = x.is_contiguous() and x.shape == fresh.shape and x.dtype == fresh.dtype
        out = x if fits else fresh
        launch(self.kernel, x, cos, sin, out)
        return out
