"""Gradients of RoPE with positions, or with tables of each batch.

The plain twin is :func:`kernels.reference.pull_back`. No atomics: what a row of a table gets is summed over heads
first, then over the rows that it turned, each by one program, in one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from kernels.launch import TL_DTYPES, ceil_div, choose_tile, on
from kernels.placed import Call, launch_placed, turn_all
from kernels.rope_backward import Kind, sum_products, sum_type


@triton.jit(do_not_specialize=["count", "columns"])
def sum_places_kernel(out_ptr, terms_ptr, positions_ptr, count, columns, DTYPE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Row r of out (R, columns): the sum of those of terms (count, columns) whose position is r, in their order."""
    across = tl.cdiv(columns, BLOCK_C)
    row = (tl.program_id(0) // across).to(tl.int64)
    d = (tl.program_id(0) % across).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), DTYPE)
    for i in range(0, count):
        own = tl.load(positions_ptr + i).to(tl.int64) == row
        total += tl.load(terms_ptr + (tl.cast(i, tl.int64) * columns + d), mask=(d < columns) & own, other=0.0)
    tl.store(out_ptr + (row * columns + d), total, mask=d < columns)


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outs = launch_placed(call, q, k, cos, sin)
        needs = ctx.needs_input_grad[1:]
        tables, turned = needs[2] or needs[3], needs[0] or needs[1]
        saved = [x if tables else None for x in (q, k)] + [x if turned else None for x in (cos, sin)]
        ctx.save_for_backward(*saved, call.positions)
        ctx.turn, ctx.forms = call.turn, tuple((tuple(x.shape), x.dtype) for x in (q, k, cos, sin))
        ctx.set_materialize_grads(False)
        constant = [out for out, need in zip(outs, needs, strict=False) if not (need or tables)]
        ctx.mark_non_differentiable(*constant)
        return outs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        q, k, cos, sin, positions = ctx.saved_tensors
        call = Call(ctx.turn, positions)
        return None, *pull_back_placed(gradients, (q, k), (cos, sin), ctx.forms, ctx.needs_input_grad[1:], call)


def differentiable_placed(
    call: Call, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k rotated as ``call`` says, with gradients of all four inputs.

    Sums are held in float32 (float64 for float64). Gradients of the outputs may have any strides. An output that is
    not used costs nothing. Differentiating twice raises RuntimeError.
    """
    return _Placed.apply(call, q, k, cos, sin)


def pull_back_placed(
    gradients: Sequence[torch.Tensor | None],
    inputs: Sequence[torch.Tensor | None],
    tables: Sequence[torch.Tensor | None],
    forms: Sequence[Kind],
    needs: Sequence[bool],
    call: Call,
) -> list[torch.Tensor | None]:
    """:func:`kernels.rope_backward.pull_back` for calls that this module's are."""
    found: list[torch.Tensor | None] = [None] * 4
    turned = []
    for i, g in enumerate(gradients):
        if g is not None and needs[i]:
            out = found[i] = torch.empty(forms[i][0], dtype=forms[i][1], device=g.device)
            turned.append((g, out))
    if turned:
        _turn_back(turned, tables, call)
    pairs = [(g, x) for g, x in zip(gradients, inputs, strict=True) if g is not None and x is not None]
    for i in (2, 3):
        if needs[i] and pairs:
            found[i] = _table_gradient(pairs, i == 2, forms[i], call)
    return found


def _turn_back(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], tables: Sequence[torch.Tensor | None], call: Call
) -> None:
    """Rotate the gradient g of each pair (g, out) back into out, and copy that of columns that were copied."""
    cos, sin = tables
    assert cos is not None
    assert sin is not None
    (g, out), (other, other_out) = pairs[0], pairs[-1]
    if len(pairs) == 1:  # nothing to do for the other: a tensor without heads
        other, other_out = other[:, :0], other_out[:, :0]
    turn_all((g, other), (cos, sin), (out, other_out), call, True)
    columns = call.turn.columns
    for g, out in pairs:
        if columns < g.shape[3]:
            out[..., columns:] = g[..., columns:] + 0.0  # as eager, which leaves no -0


def _table_gradient(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], is_cos: bool, form: Kind, call: Call
) -> torch.Tensor:
    """The gradient of cos or sin from (gradient of an output, its input), rounded once."""
    positions, (shape, dtype) = call.positions, form
    seq, device = pairs[0][0].shape[2], pairs[0][0].device
    if positions is None:
        kept = shape[0], 1, min(shape[1], seq), shape[2]
    else:
        kept = (positions.shape[0] if positions.dim() == 2 else 1), 1, seq, shape[1]
    total = None
    for g, x in pairs:
        part = torch.zeros(kept, dtype=sum_type(g), device=device)
        first, second = (part, None) if is_cos else (None, part)
        sum_products(first, second, *call.turn.pairs(g), *call.turn.pairs(x))
        total = part if total is None else total + part
    assert total is not None
    gradient = torch.zeros(shape, dtype=dtype, device=device)
    if positions is None:
        gradient[:, :seq] = total[:, 0]
        return gradient
    count, (rows, columns) = positions.numel(), shape
    if not (count and rows and columns):
        return gradient
    tile = choose_tile(columns)
    sums = torch.empty(shape, dtype=total.dtype, device=device)
    with on(device):
        sum_places_kernel[(rows * ceil_div(columns, tile.columns),)](
            sums, total, positions.contiguous(), count, columns, DTYPE=TL_DTYPES[sums.dtype], BLOCK_C=tile.columns
        )
    return gradient.copy_(sums)
