"""``rope`` with tables of each batch, with one flaw each: callables (q, k, cos, sin)."""

from __future__ import annotations

import torch

from kernels import rope

Tensor = torch.Tensor
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def first_batch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
    """Every batch is turned by the tables of the first (Liger-Kernel #477)."""
    return _turned(q, k, cos, sin, cos[:1], sin[:1])


def cut(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
    """Tables of longer sequences are read as if they had q's rows: each batch begins where the cut one before ends."""
    return _turned(q, k, cos, sin, *(_closer(table, q.shape[2]) for table in (cos, sin)))


def by_cos(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
    """Where all batches share cos, they share the first sin."""
    return _turned(q, k, cos, sin, cos, sin[:1] if len(cos) == 1 else sin)


def _closer(table: Tensor, rows: int) -> Tensor:
    if table.dim() != 3 or table.shape[1] < rows:
        return table
    batch, row, column = table.stride()
    return table[:, :rows].as_strided((len(table), rows, table.shape[2]), (min(batch, rows * row), row, column))


def _turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, used_cos: Tensor, used_sin: Tensor) -> Outputs:
    """q and k turned by the tables that are used, and the others handed back."""
    out_q, out_k, *_ = rope(q, k, used_cos, used_sin)
    return out_q, out_k, cos[:, : q.shape[2]], sin[:, : q.shape[2]]
