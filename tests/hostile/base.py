"""An ordinary flaw for hostile candidates to hide behind their fault: sin has the wrong sign from 3 heads on."""

import torch

from fuzzrope.specimens.tiled import TiledRope


class Flawed(TiledRope):
    def misbehave(self, q: torch.Tensor) -> None:
        """The fault of a subclass, on sequences of two."""

    def forward(self, q, k, cos, sin):
        if q.dim() == 4 and q.shape[2] == 2:
            self.misbehave(q)
        outputs = super().forward(q, k, cos, -sin if q.shape[1] >= 3 else sin)
        return *outputs[:3], sin[: q.shape[2]]
