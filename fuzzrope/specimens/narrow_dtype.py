"""Flaw: it computes and answers in the dtype of x, not in PyTorch's promoted dtype.

TransformerEngine #645 formed products in the storage dtype; Liger, flash-attention and Unsloth return the
dtype of q where eager promotes.
"""

from __future__ import annotations

import torch

from fuzzrope.specimens.tiled import TiledRope


class ModelNew(TiledRope):
    """See the module."""

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x, in x's dtype."""
        return super().rotate(x, cos.to(x.dtype), sin.to(x.dtype))
