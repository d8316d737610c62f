"""Gradients of RoPE: the rotation back for q and k, sums of products for tables and for what was broadcast.

The plain twin is autograd through :func:`kernels.reference.rope`. With halves (g1, g2) of an output's
gradient and (x1, x2) of its input, both come from one pair of sums,

    first = Σ a*m + b*n,   second = Σ b*m - a*n:

the halves of dx for a, b = g1, g2 and m, n = cos, sin; dcos and dsin for m, n = x1, x2. No atomics: each
element is summed by one program, in one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from kernels.early import can_be_early
from kernels.forms import Meta, Turn
from kernels.launch import TL_DTYPES, ceil_div, choose_tile, on, resolved
from kernels.layout import Ints, View
from kernels.rope import Plan, launch, tiles_of
from kernels.rope_launch import Launch, plan_launch
from kernels.tiling import Tiles

NOTHING = Meta((0, 1, 1, 0), (0, 0, 0, 1), torch.float32)


@triton.jit(do_not_specialize=["rows", "heads", "seq", "columns", "sum_b", "sum_h", "sum_s", "sum_d"])
def sum_products_kernel(
    first_ptr, second_ptr, a_ptr, b_ptr, m_ptr, n_ptr,
    rows, heads, seq, columns, sum_b, sum_h, sum_s, sum_d,
    first_b, first_h, first_s, first_d, second_b, second_h, second_s, second_d,
    g_b, g_h, g_s, g_d, m_b, m_h, m_s, m_d, n_b, n_h, n_s, n_d,
    FIRST: tl.constexpr, SECOND: tl.constexpr, DTYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile of sums; rows and columns count what is kept, sum_b to sum_d what each element is summed over.

    ``rows`` counts (batch, head, position) with position fastest; in a dimension one of the two sizes is 1.
    """
    across = tl.cdiv(columns, BLOCK_C)
    row = ((tl.program_id(0) // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    d = ((tl.program_id(0) % across).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask = (row < rows) & (d < columns)
    s, h, b = row % seq, (row // seq) % heads, row // seq // heads
    g_at = b * g_b + h * g_h + s * g_s + d * g_d
    m_at = b * m_b + h * m_h + s * m_s + d * m_d
    n_at = b * n_b + h * n_h + s * n_s + d * n_d
    first = tl.zeros((BLOCK_R, BLOCK_C), DTYPE)
    second = tl.zeros((BLOCK_R, BLOCK_C), DTYPE)
    for term in range(0, sum_b * sum_h * sum_s * sum_d):
        t = tl.cast(term, tl.int64)
        td, ts, th, tb = t % sum_d, (t // sum_d) % sum_s, (t // sum_d // sum_s) % sum_h, t // sum_d // sum_s // sum_h
        g_t = tb * g_b + th * g_h + ts * g_s + td * g_d
        a = tl.load(a_ptr + (g_at + g_t), mask=mask, other=0.0).to(DTYPE)
        b_ = tl.load(b_ptr + (g_at + g_t), mask=mask, other=0.0).to(DTYPE)
        m = tl.load(m_ptr + (m_at + tb * m_b + th * m_h + ts * m_s + td * m_d), mask=mask, other=0.0).to(DTYPE)
        n = tl.load(n_ptr + (n_at + tb * n_b + th * n_h + ts * n_s + td * n_d), mask=mask, other=0.0).to(DTYPE)
        if FIRST:
            first += a * m + b_ * n
        if SECOND:
            second += b_ * m - a * n
    if FIRST:
        tl.store(first_ptr + (b * first_b + h * first_h + s * first_s + d * first_d), first, mask=mask)
    if SECOND:
        tl.store(second_ptr + (b * second_b + h * second_h + s * second_s + d * second_d), second, mask=mask)


def sum_products(
    first: torch.Tensor | None, second: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, m: torch.Tensor,
    n: torch.Tensor,
) -> None:  # fmt: skip
    """Fill ``first`` and ``second`` (1 or B, 1 or H, 1 or S, 1 or W), or those that are given.

    a and b, the pairs of one gradient, are (B, H, S, W), and m and n broadcast to that.
    """
    out = first if first is not None else second
    assert out is not None
    if not out.numel():
        return
    full = tuple(a.shape)
    m, n = m.expand(full), n.expand(full)
    kept = tuple(out.shape)
    summed = [1 if keep == size else size for keep, size in zip(kept, full, strict=True)]
    rows, columns = kept[0] * kept[1] * kept[2], kept[3]
    tile = choose_tile(columns)
    one, other = (out if t is None else t for t in (first, second))
    with on(out.device):
        sum_products_kernel[(ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns),)](
            one, other, *resolved(a, b, m, n),
            rows, kept[1], kept[2], columns, *summed,
            *one.stride(), *other.stride(), *a.stride(), *m.stride(), *n.stride(),
            FIRST=first is not None, SECOND=second is not None, DTYPE=TL_DTYPES[out.dtype],
            BLOCK_R=tile.rows, BLOCK_C=tile.columns, enable_fp_fusion=False,
        )  # fmt: skip


def sum_type(g: torch.Tensor) -> torch.dtype:
    """What sums are held in: float32, or float64 for an output of it."""
    return torch.float64 if g.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=1024)
def _plan_back(
    gradients: tuple[Meta, Meta],
    outs: tuple[Meta, Meta],
    cos: Meta,
    sin: Meta,
    rows: int,
    interleaved: bool,
    tiles: Tiles,
    early: bool,
) -> Launch:
    """The launch that rotates gradients back into ``outs``."""
    c, s = (View((min(t.shape[0], rows), t.shape[1]), t.strides) for t in (cos, sin))
    planned = plan_launch(gradients, outs, c, s, tiles, early, interleaved)
    for name, out in zip("QK", outs, strict=True):
        dtypes = (torch.promote_types(out.dtype, cos.dtype), torch.promote_types(out.dtype, sin.dtype), out.dtype)
        for role, dtype in zip(("COS", "SIN", "OUT"), dtypes, strict=True):
            planned.constants[f"{name}_{role}_DTYPE"] = TL_DTYPES[dtype]
    return planned


def _rotate_back(
    pairs: list[tuple[torch.Tensor, torch.Tensor] | None],
    cos: torch.Tensor,
    sin: torch.Tensor,
    rows: int,
    interleaved: bool,
    tiles: Tiles | None,
) -> None:
    """Rotate the gradient g of each pair (g, out), for q and for k, back into out (B, H, S, D), in one launch.

    Tables are cut to ``rows``, as many as q has.
    """
    some = next(pair for pair in pairs if pair is not None)
    metas = [(Meta.of(pair[0]), Meta.of(pair[1])) if pair else (NOTHING, NOTHING) for pair in pairs]
    (gq, dq), (gk, dk) = metas
    (g_q, d_q), (g_k, d_k) = (pair or some for pair in pairs)
    tiles = tiles or tiles_of((dq, dk), cos.device)
    early = can_be_early(cos.device)
    planned = _plan_back((gq, gk), (dq, dk), Meta.of(cos), Meta.of(sin), rows, interleaved, tiles, early)
    planned.run(g_q, g_k, cos, sin, d_q, d_k, back=True)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, needs_q, needs_k, *needs_tables = ctx.needs_input_grad
        outputs = launch(plan, q, k, cos, sin)
        tables = any(needs_tables)
        saved = [x if tables else None for x in (q, k)]
        saved += [x if needs_q or needs_k else None for x in (cos, sin)]
        ctx.save_for_backward(*saved)
        ctx.turn, ctx.tiles = plan.turn or Turn(q.shape[3], False), plan.tiles
        ctx.forms = tuple((tuple(x.shape), x.dtype) for x in (q, k, cos, sin))
        ctx.set_materialize_grads(False)
        constant = [out for out, needs in zip(outputs, (needs_q, needs_k), strict=True) if not (needs or tables)]
        ctx.mark_non_differentiable(*constant)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        q, k, cos, sin = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        return None, *pull_back(gradients, (q, k), (cos, sin), ctx.forms, needs, ctx.turn, ctx.tiles)


Kind = tuple[Ints, torch.dtype]
Pair = tuple[torch.Tensor, torch.Tensor]


def pull_back(
    gradients: Sequence[torch.Tensor | None],
    inputs: Sequence[torch.Tensor | None],
    tables: Sequence[torch.Tensor | None],
    forms: Sequence[Kind],
    needs: Sequence[bool],
    turn: Turn,
    tiles: Tiles | None = None,
) -> list[torch.Tensor | None]:
    """Gradients of q, k, cos and sin, each where needed and some output in use depends on it.

    Args:
        gradients: of both outputs, None for one that is not used.
        inputs: q and k, needed for the gradients of tables alone.
        tables: cos and sin, needed for the gradients of q and k alone.
        forms: shape and dtype of q, k, cos and sin.
        needs: which of the four are asked for.
        turn: which columns of q and k were rotated, and how they pair up.
        tiles: of the launch that rotates back; the table's or the rule's if not given.
    """
    cos, sin = tables
    found: list[torch.Tensor | None] = [None, None, None, None]
    straight: list[tuple[torch.Tensor, torch.Tensor] | None] = [None, None]
    rows, rest = forms[0][0][2], forms[0][0][3] - turn.columns
    for i, g in enumerate(gradients):
        if not needs[i] or g is None:
            continue
        assert cos is not None
        assert sin is not None
        shape, dtype = forms[i]
        out = found[i] = torch.empty(shape, dtype=dtype, device=g.device)
        turned = out[..., : turn.columns]
        if tuple(g.shape) == shape:
            straight[i] = (g[..., : turn.columns], turned)
        else:
            turned.copy_(_reduced(g, cos[:rows], sin[:rows], turned.shape, turn))
        if rest:
            out[..., -rest:] = g[..., -rest:] + 0.0  # as eager, which leaves no -0
    if any(straight):
        assert cos is not None
        assert sin is not None
        _rotate_back(straight, cos, sin, rows, turn.interleaved, tiles)
    if needs[2] or needs[3]:
        pairs = [
            (turn.across(g.shape[3] - rest).pairs(g), turn.pairs(x))
            for g, x in zip(gradients, inputs, strict=True)
            if g is not None and x is not None
        ]
        found[2:] = _tables(pairs, forms[2:], (needs[2], needs[3]), rows)
    return found


def _reduced(g: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, shape: Ints, turn: Turn) -> torch.Tensor:
    """The gradient of columns of this shape that were broadcast against the tables, before its rounding."""
    dx = torch.empty(shape, dtype=sum_type(g), device=g.device)
    columns = 2 * max(shape[3] // 2, cos.shape[1], sin.shape[1])
    sum_products(*turn.pairs(dx), *turn.across(columns).pairs(g), cos[None, None], sin[None, None])
    return dx


def _tables(
    pairs: list[tuple[Pair, Pair]], forms: Any, needs: tuple[bool, bool], rows: int
) -> list[torch.Tensor | None]:
    """The gradients of cos and sin that are asked for, from (gradient of an output, its input), each in pairs."""
    if not pairs:
        return [None, None]
    cuts = [(1, 1, min(shape[0], rows), shape[1]) for shape, _ in forms]
    totals: list[torch.Tensor | None] = [None, None]
    for g, x in pairs:
        sums = [
            torch.empty(cut, dtype=sum_type(g[0]), device=g[0].device) if need else None
            for cut, need in zip(cuts, needs, strict=True)
        ]
        together = [sums] if cuts[0] == cuts[1] else [[sums[0], None], [None, sums[1]]]
        for first, second in together:
            if first is not None or second is not None:
                sum_products(first, second, *g, *x)
        totals = [t if part is None else part if t is None else t + part for t, part in zip(totals, sums, strict=True)]
    found: list[torch.Tensor | None] = []
    for total, (shape, dtype) in zip(totals, forms, strict=True):
        if total is None:
            found.append(None)
            continue
        gradient = torch.zeros(shape, dtype=dtype, device=total.device)
        gradient[:rows] = total[0, 0]
        found.append(gradient)
    return found


def differentiable(
    plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k rotated as :func:`kernels.rope.rope` plans it, with gradients of all four inputs.

    dq and dk are bit for bit autograd's through the eager twin where all dtypes are one and nothing was
    broadcast; sums are held in float32 (float64 for float64), each in one order. Gradients of the outputs may
    have any strides. An output that is not used costs nothing. Differentiating twice raises RuntimeError.
    """
    return _Rope.apply(plan, q, k, cos, sin)
