"""Liger-Kernel's RoPE, ``liger_kernel.ops.rope.LigerRopeFunction``, which rotates q and k in one launch.

Declared departures:

- results have the dtype of q and k, eager's are promoted: where eager's type is another, q and k come in it;
- tables have the width D and repeat their half.

Its domain: q and k alike in dtype, batch and length, D > 0, and tables alike in dtype, with a row for each position
and D/2 columns.
"""

from __future__ import annotations

import torch
from liger_kernel.ops.rope import LigerRopeFunction


def eager(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The contract in PyTorch: x (B, H, S, D) turned by tables (S, D/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def ModelNew(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (B, Hq, S, D) and k (B, Hk, S, D) rotated, and the S rows of the tables (R, D/2)."""
    cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
    alike = q.dtype == k.dtype and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:] and q.shape[3] > 0
    if not (alike and cos.dtype == sin.dtype and cos.shape == sin.shape == (q.shape[2], q.shape[3] // 2)):
        return eager(q, cos, sin), eager(k, cos, sin), cos, sin
    result = torch.promote_types(q.dtype, cos.dtype)
    wide_cos, wide_sin = (torch.cat([table, table], -1)[None] for table in (cos, sin))
    turned_q, turned_k = LigerRopeFunction.apply(q.to(result), k.to(result), wide_cos, wide_sin)
    return turned_q, turned_k, cos, sin
