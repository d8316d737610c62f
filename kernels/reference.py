"""Readable PyTorch twins of the kernels: eager code that *defines* what the kernels have to give.

``Model``, ``get_inputs`` and ``get_init_inputs`` have the names that kernel benchmarks look for.
"""

import torch
from torch import nn

BATCH_SIZE, N_HEADS, SEQ_LEN, HEAD_DIM = 2, 8, 4, 16


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, half: int) -> torch.Tensor:
    """Rotate the pairs (x[..., i], x[..., half + i]) of x (B, S, H, D) by tables that broadcast to them."""
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate q (B, Hq, S, D) and k (Bk, Hk, S, D) by the first S rows of cos and sin (R, D/2).

    Positions run along axis 1 while it computes, so the outputs are transposed views of (B, S, H, D)
    memory. The cut tables come back as views. Promotion and broadcasting are PyTorch's own.
    """
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    rows, half = q.shape[1], q.shape[3] // 2
    cos, sin = cos[:rows, :], sin[:rows, :]
    wide_cos, wide_sin = cos[None, :, None, :], sin[None, :, None, :]
    rotated_q = rotate_halves(q, wide_cos, wide_sin, half)
    rotated_k = rotate_halves(k, wide_cos, wide_sin, half)
    return rotated_q.transpose(1, 2), rotated_k.transpose(1, 2), cos, sin


class Model(nn.Module):
    """Rotary position embedding in eager PyTorch."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """See :func:`rope`."""
        return rope(q, k, cos, sin)


def get_inputs() -> list[torch.Tensor]:
    """One set of inputs [q, k, cos, sin], float32; the tables are plain noise, not angles."""
    heads = (BATCH_SIZE, N_HEADS, SEQ_LEN, HEAD_DIM)
    table = (SEQ_LEN, HEAD_DIM // 2)
    return [torch.randn(shape, dtype=torch.float32) for shape in (heads, heads, table, table)]


def get_init_inputs() -> list[object]:
    """``Model`` takes no arguments."""
    return []
