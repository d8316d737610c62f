"""Hugging Face transformers: ``apply_rotary_pos_emb`` of ``modeling_llama``, plain PyTorch.

Declared departures: tables have the width D and repeat their half. Its domain: tables of D/2 columns.
"""

from __future__ import annotations

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def eager(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The contract in PyTorch: x (B, H, S, D) turned by tables (S, D/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def ModelNew(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (B, Hq, S, D) and k (Bk, Hk, Sk, D) rotated, and the S rows of the tables (R, D/2)."""
    cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
    if not cos.shape[1] == sin.shape[1] == q.shape[3] // 2:
        return eager(q, cos, sin), eager(k, cos, sin), cos, sin
    wide_cos, wide_sin = (torch.cat([table, table], -1)[None] for table in (cos, sin))
    turned_q, turned_k = apply_rotary_pos_emb(q, k, wide_cos, wide_sin)
    return turned_q, turned_k, cos, sin
