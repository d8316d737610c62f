"""Flaw: cos is scaled in place after use (a cheat that passes a checker which shares its inputs).

``Model`` returns cos unchanged, so a judge that compares a mutated cos with itself sees nothing.
"""

from __future__ import annotations

import torch

from fuzzrope.specimens.tiled import TiledRope


class ModelNew(TiledRope):
    """See the module."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The contract of ``rope``, with the flaw."""
        outputs = super().forward(q, k, cos, sin)
        cos.mul_(2)
        return outputs
