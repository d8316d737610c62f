"""FlagGems' rotary embedding, ``flag_gems.fused.apply_rotary_pos_emb``: one launch for q and k.

Declared departures:

- results have the dtype of q and of k, eager's are promoted: where eager's type is another, they come in it;
- tensors are laid out (B, S, H, D), one token after another: others are copied.

Its domain, by its own asserts: q and k alike in batch, length and D, D > 0, tables of D/2 columns, with a row for each
position.
"""

from __future__ import annotations

import os

import torch

os.environ.setdefault("GEMS_VENDOR", "nvidia")  # it asks nvidia-smi otherwise, which is where a GPU is
from flag_gems.fused import apply_rotary_pos_emb


def eager(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The contract in PyTorch: x (B, H, S, D) turned by tables (S, D/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def ModelNew(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (B, Hq, S, D) and k (B, Hk, S, D) rotated, and the S rows of the tables (R, D/2)."""
    cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
    alike = q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:] and q.shape[3] > 0
    if not (alike and cos.shape == sin.shape == (q.shape[2], q.shape[3] // 2)):
        return eager(q, cos, sin), eager(k, cos, sin), cos, sin
    tokens = []
    for x in (q, k):
        result = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype)
        tokens.append(x.to(result).transpose(1, 2).contiguous())
    turned_q, turned_k = apply_rotary_pos_emb(*tokens, cos.contiguous(), sin.contiguous())
    return turned_q.transpose(1, 2), turned_k.transpose(1, 2), cos, sin
