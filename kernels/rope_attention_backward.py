"""Gradients of :func:`kernels.rope_attention.rope_attention`: rotation and weights are computed again, not stored.

With weights p = exp(s - lse), dp = do v^T and delta = Σ do o - dlse, ds = p (dp - delta) times the slope of softcap;
then dv = p^T do, and ds times scale is the gradient of the product of rotated q and k. One kernel takes a tile of
packed rows and all keys they see, another a tile of keys and all packed rows that see it, so heads of a group
are summed inside; each sum has one order. The plain twin is autograd through
:func:`kernels.reference.attention_reference`.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.attention_launch import NAME, Call, Plan, launch_attention, special_gradients
from kernels.forms import Meta
from kernels.fused import are_even, check_programs, dot_precision, is_wide, strides_of, work_dtype
from kernels.fused_backward import TableSums, differentiable_once, store_key_gradients, store_query_gradients
from kernels.launch import TL_DTYPES, ceil_div, enqueue, resolved, start_even
from kernels.rotation import cells, factor, rows_at
from kernels.softmax import LOG2_E, capped, finite_or_zero
from kernels.tiles import (
    columns,
    key_tiles,
    lanes_of,
    load_keys,
    load_queries,
    load_rows,
    packed_rows,
    program,
    row_tiles,
    seen_from,
    sees_all,
    whole_tiles,
)
from kernels.tiling import Tiles


@triton.jit
def weights_and_slopes(s, whole, seen, lse, scale, cap, WORK: tl.constexpr, CAP: tl.constexpr):
    """exp(score - lse) of products s, 0 where not seen; and the slope of a score by its scaled product.

    Where the ``whole`` tile is seen, nothing is looked up.
    """
    if CAP:
        t, slope = capped(s * scale.to(WORK), cap.to(WORK))
        s = t * (cap * LOG2_E).to(WORK)
    else:
        s = s * (scale * LOG2_E).to(WORK)
        slope = 1.0
    if not whole:
        s = tl.where(seen, s, -float("inf"))
    return tl.exp2(s - finite_or_zero(lse * LOG2_E)), slope


@triton.jit
def masked(ds, whole, seen):
    """ds, 0 where not seen."""
    if not whole:
        ds = tl.where(seen, ds, 0.0)
    return ds


@triton.jit(do_not_specialize=range(13, 47), do_not_specialize_on_alignment=range(13))
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, do_ptr, dlse_ptr, delta_ptr, dq_ptr, dcos_ptr, dsin_ptr,
    heads, group, rows, keys, half,
    offset: tl.int64,  # else a number has 32 bits where it fits
    first_shift, last_shift,
    scale: tl.float64, cap: tl.float64,  # else a float has 32 bits
    width_v,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, cos_s, cos_d, sin_s, sin_d,
    do_b, do_h, do_s, do_d, dlse_b, dlse_h, dlse_s,
    WORK: tl.constexpr, DOT: tl.constexpr, OUT: tl.constexpr, GRAD: tl.constexpr, PRECISION: tl.constexpr,
    CAP: tl.constexpr, USED: tl.constexpr, TABLES: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dq, delta and the tables' gradients of one tile of packed rows; without USED, o leads to none of them."""
    if VECTOR:
        q_d = 1
        k_d = 1
        v_d = 1
        cos_d = 1
        sin_d = 1
        do_d = 1
    tiles = tl.cdiv(rows * group, BLOCK_M)
    pid = program(WIDE)
    start = pid % tiles * BLOCK_M
    head = (pid // tiles).to(tl.int64)
    b = head // heads
    h = head % heads
    q_ptr += b * q_b + h * group * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    n = lanes_of(BLOCK_N, WIDE)
    first, local, g, there = packed_rows(start, rows, group, BLOCK_M, WIDE)
    q1, q2 = load_queries(
        q_ptr, cos_ptr, sin_ptr, first, local, g, there, offset, half,
        q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK, DOT, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip
    lanes = g * rows + local
    at = head * group * rows + first
    dlse_ptr += b * dlse_b + h * group * dlse_h + first.to(tl.int64) * dlse_s
    dlse = tl.load(dlse_ptr + (local * dlse_s + g * dlse_h), mask=there, other=0.0)
    lse = tl.load(lse_ptr + at + lanes, mask=there, other=0.0)
    delta = -dlse.to(GRAD)
    if USED:
        o = load_rows(o_ptr, at, lanes * width_v, there, width_v, width_v, 1, VECTOR, WIDE, BLOCK_V)
        do_ptr += b * do_b + h * group * do_h
        do = load_rows(do_ptr, first, local * do_s + g * do_h, there, width_v, do_s, do_d, VECTOR, WIDE, BLOCK_V)
        delta += tl.sum(do.to(GRAD) * o.to(GRAD), 1)
        do = factor(do, OUT)
    tl.store(delta_ptr + at + lanes, delta, mask=there)
    low, high = seen_from(first + local, there, keys, first_shift, last_shift)
    first_tile, last_tile = key_tiles(start, rows, group, keys, first_shift, last_shift, BLOCK_M, BLOCK_N)
    whole_from, whole_to = whole_tiles(
        start, rows, group, keys, first_shift, last_shift, first_tile, last_tile, BLOCK_M, BLOCK_N
    )
    dq1 = tl.zeros([BLOCK_M, BLOCK_D], WORK)
    dq2 = tl.zeros([BLOCK_M, BLOCK_D], WORK)
    for tile in range(first_tile, last_tile):
        start_n = tile * BLOCK_N
        k1, k2 = load_keys(
            k_ptr, cos_ptr, sin_ptr, start_n, n, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
            WORK, DOT, VECTOR, WIDE, BLOCK_D,
        )  # fmt: skip
        s = tl.dot(q2, tl.trans(k2), input_precision=PRECISION, out_dtype=WORK)
        s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION, out_dtype=WORK)
        j = (start_n + n)[None, :]
        seen = (j >= low[:, None]) & (j < high[:, None])
        whole = (tile >= whole_from) & (tile < whole_to)
        p, slope = weights_and_slopes(s, whole, seen, lse[:, None], scale, cap, WORK, CAP)
        dp = tl.zeros([BLOCK_M, BLOCK_N], GRAD)
        if USED:
            v = load_rows(v_ptr, start_n, n * v_s, start_n + n < keys, width_v, v_s, v_d, VECTOR, WIDE, BLOCK_V)
            dp = tl.dot(do, tl.trans(factor(v, OUT)), input_precision=PRECISION, out_dtype=GRAD)
        ds = masked(p * (dp - delta[:, None]) * slope, whole, seen).to(DOT)
        dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION, out_dtype=WORK)
        dq2 = tl.dot(ds, k2, dq2, input_precision=PRECISION, out_dtype=WORK)
    dq1 = dq1 * scale.to(WORK)
    dq2 = dq2 * scale.to(WORK)
    store_query_gradients(
        dq1, dq2, q_ptr, cos_ptr, sin_ptr, dq_ptr, dcos_ptr, dsin_ptr, head, first, local, g, there, offset,
        group, rows, half, q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK, TABLES, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip


@triton.jit(do_not_specialize=range(12, 43), do_not_specialize_on_alignment=range(12))
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, lse_ptr, do_ptr, delta_ptr, dk_ptr, dv_ptr, dcos_ptr, dsin_ptr,
    heads, group, rows, keys, half,
    offset: tl.int64,  # else a number has 32 bits where it fits
    first_shift, last_shift,
    scale: tl.float64, cap: tl.float64,  # else a float has 32 bits
    width_v,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, cos_s, cos_d, sin_s, sin_d,
    do_b, do_h, do_s, do_d,
    WORK: tl.constexpr, DOT: tl.constexpr, OUT: tl.constexpr, GRAD: tl.constexpr, PRECISION: tl.constexpr,
    CAP: tl.constexpr, USED: tl.constexpr, TABLES: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dk, dv and the tables' gradients of one tile of keys; everything inside is transposed."""
    if VECTOR:
        q_d = 1
        k_d = 1
        v_d = 1
        cos_d = 1
        sin_d = 1
        do_d = 1
    across = tl.cdiv(keys, BLOCK_N)
    pid = program(WIDE)
    start_n = pid % across * BLOCK_N
    head = (pid // across).to(tl.int64)
    b = head // heads
    h = head % heads
    q_ptr += b * q_b + h * group * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    do_ptr += b * do_b + h * group * do_h
    n = lanes_of(BLOCK_N, WIDE)
    k1, k2 = load_keys(
        k_ptr, cos_ptr, sin_ptr, start_n, n, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
        WORK, DOT, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip
    if USED:
        v = load_rows(v_ptr, start_n, n * v_s, start_n + n < keys, width_v, v_s, v_d, VECTOR, WIDE, BLOCK_V)
        v = factor(v, OUT)
    dk1 = tl.zeros([BLOCK_N, BLOCK_D], WORK)
    dk2 = tl.zeros([BLOCK_N, BLOCK_D], WORK)
    dv = tl.zeros([BLOCK_N, BLOCK_V], GRAD)
    j = (start_n + n)[:, None]
    first_tile, last_tile = row_tiles(start_n, rows, group, keys, first_shift, last_shift, BLOCK_M, BLOCK_N)
    for tile in range(first_tile, last_tile):
        first, local, g, there = packed_rows(tile * BLOCK_M, rows, group, BLOCK_M, WIDE)
        q1, q2 = load_queries(
            q_ptr, cos_ptr, sin_ptr, first, local, g, there, offset, half,
            q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK, DOT, VECTOR, WIDE, BLOCK_D,
        )  # fmt: skip
        lanes = g * rows + local
        at = head * group * rows + first
        lse = tl.load(lse_ptr + at + lanes, mask=there, other=0.0)
        delta = tl.load(delta_ptr + at + lanes, mask=there, other=0.0)
        s = tl.dot(k2, tl.trans(q2), input_precision=PRECISION, out_dtype=WORK)
        s = tl.dot(k1, tl.trans(q1), s, input_precision=PRECISION, out_dtype=WORK)
        low, high = seen_from(first + local, there, keys, first_shift, last_shift)
        seen = (j >= low[None, :]) & (j < high[None, :])
        whole = sees_all(tile * BLOCK_M, rows, group, start_n, first_shift, last_shift, BLOCK_M, BLOCK_N)
        p, slope = weights_and_slopes(s, whole, seen, lse[None, :], scale, cap, WORK, CAP)
        dp = tl.zeros([BLOCK_N, BLOCK_M], GRAD)
        if USED:
            do = load_rows(do_ptr, first, local * do_s + g * do_h, there, width_v, do_s, do_d, VECTOR, WIDE, BLOCK_V)
            do = factor(do, OUT)
            dv = tl.dot(p.to(OUT), do, dv, input_precision=PRECISION, out_dtype=GRAD)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION, out_dtype=GRAD)
        ds = masked(p * (dp - delta[None, :]) * slope, whole, seen).to(DOT)
        dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION, out_dtype=WORK)
        dk2 = tl.dot(ds, q2, dk2, input_precision=PRECISION, out_dtype=WORK)
    dk1 = dk1 * scale.to(WORK)
    dk2 = dk2 * scale.to(WORK)
    store_key_gradients(
        dk1, dk2, k_ptr, cos_ptr, sin_ptr, dk_ptr, dcos_ptr, dsin_ptr, head, start_n, n, keys, half,
        k_s, k_d, cos_s, cos_d, sin_s, sin_d, WORK, TABLES, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip
    d = columns(BLOCK_V, WIDE)
    mask = cells((start_n + n < keys)[:, None], d < width_v, VECTOR)
    if USED:
        dv_rows = rows_at(dv_ptr, head * keys + start_n, width_v, n * width_v, VECTOR)
        tl.store(dv_rows + d, dv.to(dv_ptr.dtype.element_ty), mask=mask)


def choose_tiles(half: int, width_v: int, dtype: torch.dtype) -> tuple[Tiles, Tiles]:
    """The rules for tiles of both kernels: what shared memory and registers of compute capability 9.0 hold."""
    size, narrow = dtype.itemsize, half <= 64 and width_v <= 128
    if size == 2 and narrow:  # what is kept through the loop is the longer side
        return Tiles(128, 64, 8, 3), Tiles(64, 128, 8, 2)
    if size == 2:
        rule = Tiles(32, 32, 8, 1)
    elif not narrow:
        rule = Tiles(16, 16, 8, 1)
    else:
        rule = Tiles(32, 32, 8, 1) if size == 4 else Tiles(16, 16, 4, 1)
    return rule, rule


def gradients(
    call: Call,
    precision: str,
    saved: tuple[torch.Tensor, ...],
    do: torch.Tensor | None,
    dlse: torch.Tensor,
    needs: tuple[bool, ...],
) -> list[torch.Tensor | None]:
    """The gradients of q, k, v, cos and sin that are needed; ``saved`` are these, o and lse.

    ``do`` is None where o is not used: then v, which may hold anything, has no part in them.
    """
    q, k, v, cos, sin, o, lse = saved
    used = do is not None
    needs = (*needs[:2], needs[2] and used, *needs[3:])
    problem = call.problem
    batch, heads, group, rows, keys = problem[:5]
    rules, width = choose_tiles(problem.half, call.width_v, call.out), max(2 * problem.half, call.width_v)
    by_q, by_k = (
        problem.tiles(f"attention_{name}", q.device, call.out, width, rule)
        for name, rule in zip(("dq", "dk"), rules, strict=True)
    )
    operands = resolved(q, k, v, cos, sin)
    do, dlse = o if do is None else do.resolve_neg(), dlse.resolve_neg()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if used and not (needs[3] or needs[4]):
        special = special_gradients(call, tuple(Meta.of(x) for x in (*operands, do, dlse)), q.device)
        if special is not None and start_even((*operands, do)):
            special(*operands, o, lse, do, dlse, dq, dk, dv, needs[1] or needs[2])
            return [x if need else None for x, need in zip((dq, dk, dv, None, None), needs, strict=True)]
    grad = work_dtype(call.out)
    delta = torch.empty(lse.shape, dtype=grad, device=q.device)
    sums = TableSums(problem, needs[3] or needs[4], q)
    steps = [strides_of(x) for x in (q, k, v)]
    do_steps, dlse_steps = strides_of(do), strides_of(dlse)
    packed = [(0, rows * size, size, 1) for size in (2 * problem.half, call.width_v)]
    own = (steps[0], do_steps, (*dlse_steps, 0), *packed), steps[1:], width
    wide = any(is_wide(problem, tiles, *own) for tiles in (by_q, by_k))
    tables = (problem.tables[:2], problem.tables[2:])
    made = (o, dq, dk, dv, *sums.of_q, *sums.of_k)
    constants = call.constants | {
        "OUT": TL_DTYPES[call.out], "GRAD": TL_DTYPES[grad], "PRECISION": precision, "USED": used,
        "TABLES": sums.wanted, "WIDE": wide,
        "VECTOR": are_even((*steps, *tables, do_steps), (problem.half, call.width_v))
        and start_even((*operands, do, *made)),
    }  # fmt: skip
    numbers = (*call.numbers, *steps[0], *steps[1], *steps[2], *problem.tables, *do_steps)
    # Where no row meets a key, gradients are zero times the tables, and those of tables zero times q and k.
    programs = check_programs(NAME, ceil_div(rows * group, by_q.rows) * batch * heads)
    tensors = [*operands, o, lse, do, dlse, delta, dq, *sums.of_q]
    enqueue(query_gradient_kernel, programs, tensors, (*numbers, *dlse_steps), constants | by_q.options)
    programs = check_programs(NAME, ceil_div(keys, by_k.keys) * batch * heads)
    if needs[1] or needs[2] or sums.wanted:
        tensors = [*operands, lse, do, delta, dk, dv, *sums.of_k]
        enqueue(key_gradient_kernel, programs, tensors, numbers, constants | by_k.options)
    found: list[torch.Tensor | None] = [x if need else None for x, need in zip((dq, dk, dv), needs, strict=False)]
    return found + [sums.gradient(i, table) if needs[3 + i] else None for i, table in enumerate((cos, sin))]


def attention_gradients(
    call: Call,
    precision: str,
    saved: tuple[torch.Tensor, ...],
    do: torch.Tensor | None,
    dlse: torch.Tensor | None,
    needs: tuple[bool, ...],
) -> list[torch.Tensor | None]:
    """:func:`gradients` where either output may not be used."""
    if do is None and dlse is None:
        return [None] * 5
    if dlse is None:  # one zero, which spreads
        lse = saved[6]
        dlse = torch.zeros((), dtype=lse.dtype, device=lse.device).expand(lse.shape)
    return gradients(call, precision, saved, do, dlse, needs)


class _RopeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        call = plan.call
        o, lse = launch_attention(plan, *inputs)
        ctx.save_for_backward(*inputs, o, lse)
        ctx.call, ctx.precision = call, dot_precision(call.problem.dot, call.out)
        ctx.set_materialize_grads(False)
        if not any(ctx.needs_input_grad[i] for i in (1, 2, 4, 5)):  # v alone: scores do not depend on it
            ctx.mark_non_differentiable(lse)
        return o, lse

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, do: torch.Tensor | None, dlse: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return None, *attention_gradients(
            ctx.call, ctx.precision, ctx.saved_tensors, do, dlse, ctx.needs_input_grad[1:]
        )


def differentiable(
    plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """o and lse with gradients of all five inputs, which may have any strides, as those of o and lse may.

    The same bits come back each time. Differentiating twice raises RuntimeError.
    """
    return _RopeAttention.apply(plan, q, k, v, cos, sin)
