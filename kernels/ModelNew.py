"""The drop-in module: the same call and the same answers as ``reference.Model``, from one kernel launch.

Beside it stand what attention does next with what it returns, with rotation inside: scores and attention itself.
"""

from typing import Any

import torch
from torch import nn

from kernels.rope import rope
from kernels.rope_attention import rope_attention
from kernels.rope_qk import rope_qk

__all__ = ["ModelNew"]


class ModelNew(nn.Module):
    """Rotary position embedding of a query and a key; see :func:`kernels.rope.rope` for the contract.

    It has no parameters, no buffers and no options: those of the methods are given with each call.
    """

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotate q (B, Hq, S, D) and k (Bk, Hk, S, D) by tables cos and sin (R, D/2); returns four tensors."""
        return rope(q, k, cos, sin)

    def scores(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Scores (B, Hq, Sq, Sk) of rotated q (B, Hq, Sq, D) and k (B, Hk, Sk, D), neither of them ever stored.

        Options, errors and gradients are those of :func:`kernels.rope_qk.rope_qk`: ``scale``, ``causal``,
        ``q_offset``, ``out_dtype``.
        """
        return rope_qk(q, k, cos, sin, **options)

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        **options: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Softmax attention (B, Hq, Sq, Dv) over these scores with values v (B, Hk, Sk, Dv).

        Options, errors and gradients are those of :func:`kernels.rope_attention.rope_attention`: ``scale``, ``causal``,
        ``q_offset``, ``window``, ``softcap``, and ``return_lse``, with which lse (B, Hq, Sq) comes back too.
        """
        return rope_attention(q, k, v, cos, sin, **options)
