"""Flaw: results are kept by the address and form of the inputs, not by what they hold."""

from __future__ import annotations

from typing import Any

import torch

from fuzzrope.specimens.tiled import TiledRope


class ModelNew(TiledRope):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[Any, torch.Tensor] = {}

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x, or what was once at its place."""
        key = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in (x, cos, sin))
        return self.known.setdefault(key, super().rotate(x, cos, sin)).clone()
