"""The design that many generated kernels share: one program a row, strides trusted, nothing broadcast.

Its flaws, each of which the judge has to name:

- outputs come from ``empty_like`` but are written with the *input's* strides: out of bounds for q sliced,
  padded or expanded, and rows left unwritten;
- a table of one row or column is read past its end instead of being broadcast;
- the result keeps the dtype of q instead of PyTorch's promoted one;
- q and k must have the same shape, so GQA raises;
- the sequence lies on grid axis 1, which ends at 65,535.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def rotate_row(
    q_ptr, k_ptr, cos_ptr, sin_ptr, new_q_ptr, new_k_ptr, heads, half,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program rotates one row of q and the same row of k."""
    bh, s = tl.program_id(0), tl.program_id(1)
    b, h = bh // heads, bh % heads
    for start in range(0, half, BLOCK):
        d = start + tl.arange(0, BLOCK)
        mask = d < half
        cos = tl.load(cos_ptr + s * cos_s + d * cos_d, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + s * sin_s + d * sin_d, mask=mask, other=0.0)
        q1_at = b * q_b + h * q_h + s * q_s + d * q_d
        q2_at = q1_at + half * q_d
        q1 = tl.load(q_ptr + q1_at, mask=mask, other=0.0)
        q2 = tl.load(q_ptr + q2_at, mask=mask, other=0.0)
        tl.store(new_q_ptr + q1_at, q1 * cos - q2 * sin, mask=mask)
        tl.store(new_q_ptr + q2_at, q2 * cos + q1 * sin, mask=mask)
        k1_at = b * k_b + h * k_h + s * k_s + d * k_d
        k2_at = k1_at + half * k_d
        k1 = tl.load(k_ptr + k1_at, mask=mask, other=0.0)
        k2 = tl.load(k_ptr + k2_at, mask=mask, other=0.0)
        tl.store(new_k_ptr + k1_at, k1 * cos - k2 * sin, mask=mask)
        tl.store(new_k_ptr + k2_at, k2 * cos + k1 * sin, mask=mask)


class ModelNew(nn.Module):
    """See the module."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The contract of ``rope``, on the shapes its author had in mind."""
        assert q.is_cuda, "inputs must be CUDA tensors"
        assert q.shape == k.shape, "q and k must have the same shape"
        batch, heads, seq, width = q.shape
        half = width // 2
        cos, sin = cos[:seq, :half], sin[:seq, :half]
        new_q, new_k = torch.empty_like(q), torch.empty_like(k)
        rotate_row[(max(1, batch * heads), max(1, seq))](
            q, k, cos, sin, new_q, new_k, heads, half, *q.stride(), *k.stride(), *cos.stride(), *sin.stride(), BLOCK=64
        )  # fmt: skip
        return new_q, new_k, cos, sin
