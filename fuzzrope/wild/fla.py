"""flash-linear-attention's rotary embedding, ``fla.modules.rotary.rotary_embedding``: one launch a tensor.

Declared departures:

- it demands one dtype of x and tables, so all come in eager's promoted one;
- tensors are laid out (B, S, H, D).

Its domain, by its own asserts: D <= 256, tables alike, with a row for each position and D/2 columns, D > 0.
"""

from __future__ import annotations

import torch
from fla.modules.rotary import rotary_embedding


def eager(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The contract in PyTorch: x (B, H, S, D) turned by tables (S, D/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, H, S, D) turned by tables (S, D/2), by the library wherever that is in its domain."""
    fits = cos.shape == sin.shape == (x.shape[2], x.shape[3] // 2) and 0 < x.shape[3] <= 256
    if not fits:
        return eager(x, cos, sin)
    result = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype)
    return rotary_embedding(x.to(result).transpose(1, 2), cos.to(result), sin.to(result)).transpose(1, 2)


def ModelNew(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (B, Hq, S, D) and k (Bk, Hk, Sk, D) rotated, and the S rows of the tables (R, D/2)."""
    cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
    return rotated(q, cos, sin), rotated(k, cos, sin), cos, sin
