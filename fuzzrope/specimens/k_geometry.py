"""Flaw: k is addressed with q's strides (seen in ColossalAI #6428 and comfy-kitchen #77).

Nothing shows while q and k have one layout.
"""

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
        strides = {f"{half}_{dim}": q.stride(i) for half in ("x1", "x2") for i, dim in enumerate("bhsd")}
        launch(self.kernel, k, cos, sin, out_k, **strides)
        return self.rotate(q, cos, sin), out_k, cos, sin
