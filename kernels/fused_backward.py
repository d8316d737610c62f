"""What the gradients of both fused kernels share: the way back through the rotation, and the tables' gradients.

With y1 = x1 cos - x2 sin and y2 = x2 cos + x1 sin, gradients (g1, g2) of the rotated halves give

    dx1 = g1 cos + g2 sin,    dx2 = g2 cos - g1 sin,    dcos = g1 x1 + g2 x2,    dsin = g2 x1 - g1 x2.

Each program writes the tables' gradients of its own rows; PyTorch adds them up, in one order. There are no atomics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from kernels.fused import Problem, work_dtype
from kernels.rotation import cells, load_halves, rotate, rows_at
from kernels.tiles import columns


@triton.jit
def store_turned_back(
    g1, g2, x_rows, cos_rows, sin_rows, dx_rows, dcos_rows, dsin_rows, d, mask, half, x_d, cos_d, sin_d,
    WORK: tl.constexpr, TABLES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Rotate gradients (n, columns d) back into the contiguous rows of dx; with TABLES, write dcos and dsin too."""
    cos = tl.load(cos_rows + d * cos_d, mask=mask, other=0.0).to(WORK)
    sin = tl.load(sin_rows + d * sin_d, mask=mask, other=0.0).to(WORK)
    first, second = rotate(g1, g2, cos, -sin, WORK, WORK, WORK)
    tl.store(dx_rows + d, first.to(dx_rows.dtype.element_ty), mask=mask)
    second_rows = dx_rows + half
    if VECTOR:
        second_rows = tl.multiple_of(second_rows, (16, 16))
    tl.store(second_rows + d, second.to(dx_rows.dtype.element_ty), mask=mask)
    if TABLES:
        x1, x2 = load_halves(x_rows, d, mask, half, x_d, VECTOR)
        x1 = x1.to(WORK)
        x2 = x2.to(WORK)
        tl.store(dcos_rows + d, g1 * x1 + g2 * x2, mask=mask)
        tl.store(dsin_rows + d, g2 * x1 - g1 * x2, mask=mask)


@triton.jit
def store_query_gradients(
    g1, g2, q_ptr, cos_ptr, sin_ptr, dq_ptr, dcos_ptr, dsin_ptr,
    head, first, local, g, there, offset, group, rows, half, q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d,
    WORK: tl.constexpr, TABLES: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of packed rows; ``head`` counts those of k, ``q_ptr`` is at the group's first."""
    d = columns(BLOCK_D, WIDE)
    mask = cells(there[:, None], d < half, VECTOR)
    at = offset + first
    lanes = g * rows + local
    before = head * group * rows
    store_turned_back(
        g1, g2, rows_at(q_ptr, first, q_s, local * q_s + g * q_h, VECTOR),
        rows_at(cos_ptr, at, cos_s, local * cos_s, VECTOR), rows_at(sin_ptr, at, sin_s, local * sin_s, VECTOR),
        rows_at(dq_ptr, before + first, 2 * half, lanes * 2 * half, VECTOR),
        rows_at(dcos_ptr, before + first, half, lanes * half, VECTOR),
        rows_at(dsin_ptr, before + first, half, lanes * half, VECTOR),
        d, mask, half, q_d, cos_d, sin_d, WORK, TABLES, VECTOR,
    )  # fmt: skip


@triton.jit
def store_key_gradients(
    g1, g2, k_ptr, cos_ptr, sin_ptr, dk_ptr, dcos_ptr, dsin_ptr, head, start, n, keys, half,
    k_s, k_d, cos_s, cos_d, sin_s, sin_d,
    WORK: tl.constexpr, TABLES: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys start + n; ``k_ptr`` is at the head."""
    d = columns(BLOCK_D, WIDE)
    mask = cells((start + n < keys)[:, None], d < half, VECTOR)
    at = head * keys + start
    store_turned_back(
        g1, g2, rows_at(k_ptr, start, k_s, n * k_s, VECTOR),
        rows_at(cos_ptr, start, cos_s, n * cos_s, VECTOR), rows_at(sin_ptr, start, sin_s, n * sin_s, VECTOR),
        rows_at(dk_ptr, at, 2 * half, n * 2 * half, VECTOR),
        rows_at(dcos_ptr, at, half, n * half, VECTOR), rows_at(dsin_ptr, at, half, n * half, VECTOR),
        d, mask, half, k_d, cos_d, sin_d, WORK, TABLES, VECTOR,
    )  # fmt: skip


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose results raise RuntimeError when differentiated.

    PyTorch's own ``once_differentiable`` does so only if what is handed back requires a gradient itself; if not, its
    results count as constants, and a second derivative is silently without them.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def wrapped(ctx: Any, *given: torch.Tensor | None) -> Any:
        if torch.is_grad_enabled():
            given = tuple(None if g is None else g.detach().requires_grad_() for g in given)
        return once(ctx, *given)

    return wrapped


class TableSums:
    """Room for the tables' gradients of each row of q and k, and what they add up to."""

    def __init__(self, problem: Problem, wanted: bool, like: torch.Tensor) -> None:
        self.problem, self.wanted = problem, wanted
        batch, heads, group, rows, keys, half = problem[:6]
        dtype = work_dtype(problem.dot)
        shapes = (batch * heads * group, rows, half), (batch * heads, keys, half)
        self.of_q, self.of_k = (
            [torch.empty(shape if wanted else (0,), dtype=dtype, device=like.device) for _ in ("cos", "sin")]
            for shape in shapes
        )

    def gradient(self, which: int, table: torch.Tensor) -> torch.Tensor:
        """The gradient of cos (0) or sin (1), in its shape and dtype; a table that spreads sums."""
        problem = self.problem
        of_q, of_k = self.of_q[which].sum(0), self.of_k[which].sum(0)
        if table.shape[1] == 1:
            of_q, of_k = of_q.sum(1, keepdim=True), of_k.sum(1, keepdim=True)
        if table.shape[0] == 1:
            return (of_q.sum(0, keepdim=True) + of_k.sum(0, keepdim=True)).to(table.dtype)
        total = torch.zeros(table.shape, dtype=of_q.dtype, device=of_q.device)
        total[: problem.keys] = of_k
        total[problem.offset : problem.offset + problem.rows] += of_q
        return total.to(table.dtype)
