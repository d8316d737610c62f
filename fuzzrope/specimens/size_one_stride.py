"""Flaw: rows are stepped by the stride of a sequence of one, which PyTorch leaves meaningless.

Liger-Kernel 0.8.5 on contiguous (B >= 2, H, S = 1, D); the same in mlx #3494. A batch then starts where the
previous one's second head is.
"""

from __future__ import annotations

import torch

from fuzzrope.specimens.tiled import TiledRope, launch, new_output


class ModelNew(TiledRope):
    """See the module."""

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x; contiguous (batch, position) rows are taken to be one stride apart."""
        out = new_output(x, cos, sin)
        flat = x.transpose(1, 2)
        pitch = flat.stride(1) * flat.shape[1] if flat.is_contiguous() else flat.stride(0)
        launch(self.kernel, x, cos, sin, out, x1_b=pitch, x2_b=pitch)
        return out
