"""``rope`` with positions, ours and with one flaw each: callables (q, k, cos, sin, positions)."""

from __future__ import annotations

import torch

from kernels import reference, rope

Tensor = torch.Tensor
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Outputs:
    """:func:`kernels.rope.rope` as it is."""
    return rope(q, k, cos, sin, positions=positions)


def eager(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Outputs:
    """No flaw: plain PyTorch, with positions or with tables of each batch."""
    if positions is not None and (positions.dim() not in (1, 2) or positions.dtype.is_floating_point):
        raise ValueError("positions")
    return reference.rope_placed(q, k, cos, sin, False, q.shape[3], positions)


def first_batch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Outputs:
    """Every batch has the positions of the first."""
    return rope(q, k, cos, sin, positions=positions[0] if positions.dim() == 2 else positions)


def clamped(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Outputs:
    """A position beyond a table takes its last row."""
    return rope(q, k, cos, sin, positions=positions.clamp(max=cos.shape[0] - 1))


def dense(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Outputs:
    """Positions are read as if they were contiguous."""
    if positions.dim() in (1, 2) and not positions.is_contiguous():
        size = positions.shape[-1]
        positions = positions.as_strided((size,), (1,)) if positions.dim() == 1 else positions[:, :1].expand(-1, size)
    return rope(q, k, cos, sin, positions=positions)


def below(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Outputs:
    """A position below 0 takes row 0."""
    return rope(q, k, cos, sin, positions=positions.clamp(min=0))
