"""Flaw: the grid counts q's heads, so heads of k beyond them are never rotated (Unsloth, Hk > Hq)."""

from __future__ import annotations

import torch

from fuzzrope.specimens.tiled import TiledRope, launch, new_output


class ModelNew(TiledRope):
    """See the module."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The contract of ``rope``, with the flaw."""
        cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
        out_k = new_output(k, cos, sin)
        shared = min(q.shape[1], k.shape[1])
        launch(self.kernel, k[:, :shared], cos, sin, out_k[:, :shared])
        return self.rotate(q, cos, sin), out_k, cos, sin
