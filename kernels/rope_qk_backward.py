"""Gradients of :func:`kernels.rope_qk.rope_qk`: rotation is computed again, not stored.

With the gradient ds of the scores, 0 where ``causal`` hides, scale * ds k and scale * ds^T q are those of rotated q and
k. One kernel takes a tile of packed rows and all keys they see, another a tile of keys and all packed rows that see
it, so heads of a group are summed inside; each sum has one order. The plain twin is autograd through
:func:`kernels.reference.qk_reference`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.forms import Meta
from kernels.fused import (
    Problem,
    are_even,
    block_of,
    check_programs,
    dot_precision,
    is_wide,
    strides_of,
    work_dtype,
)
from kernels.fused_backward import TableSums, differentiable_once, store_key_gradients, store_query_gradients
from kernels.launch import TL_DTYPES, ceil_div, enqueue, resolved, start_even
from kernels.rope_qk import NAME, Plan, launch_qk
from kernels.rotation import factor
from kernels.special import Wish, special_for
from kernels.tiles import key_tiles, lanes_of, load_keys, load_queries, packed_rows, program, row_tiles, seen_from
from kernels.tiling import Tiles, architecture, multiprocessors


@triton.jit
def load_score_gradients(
    ds_ptr, first, local, g, there, start_n, n, keys, first_shift, last_shift, ds_h, ds_s, ds_d, DOT: tl.constexpr
):  # fmt: skip
    """The gradients (BLOCK_M, BLOCK_N) of scores, 0 where rows do not see keys; ``ds_ptr`` is at the group's head."""
    low, high = seen_from(first + local, there, keys, first_shift, last_shift)
    j = (start_n + n)[None, :]
    seen = (j >= low[:, None]) & (j < high[:, None])
    ds_ptr += first.to(tl.int64) * ds_s + start_n.to(tl.int64) * ds_d
    ds = tl.load(ds_ptr + (local * ds_s + g * ds_h)[:, None] + (n * ds_d)[None, :], mask=seen, other=0.0)
    return factor(ds, DOT)


@triton.jit(do_not_specialize=range(8, 33), do_not_specialize_on_alignment=range(8))
def query_gradient_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, ds_ptr, dq_ptr, dcos_ptr, dsin_ptr,
    heads, group, rows, keys, half,
    offset: tl.int64,  # else a number has 32 bits where it fits
    first_shift, last_shift,
    scale: tl.float64,  # else a float has 32 bits
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, cos_s, cos_d, sin_s, sin_d, ds_b, ds_h, ds_s, ds_d,
    WORK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr, TABLES: tl.constexpr,
    VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq and the tables' gradients of one tile of packed rows."""
    if VECTOR:
        q_d = 1
        k_d = 1
        cos_d = 1
        sin_d = 1
    tiles = tl.cdiv(rows * group, BLOCK_M)
    pid = program(WIDE)
    start = pid % tiles * BLOCK_M
    head = (pid // tiles).to(tl.int64)
    b = head // heads
    h = head % heads
    q_ptr += b * q_b + h * group * q_h
    k_ptr += b * k_b + h * k_h
    ds_ptr += b * ds_b + h * group * ds_h
    n = lanes_of(BLOCK_N, WIDE)
    first, local, g, there = packed_rows(start, rows, group, BLOCK_M, WIDE)
    first_tile, last_tile = key_tiles(start, rows, group, keys, first_shift, last_shift, BLOCK_M, BLOCK_N)
    dq1 = tl.zeros([BLOCK_M, BLOCK_D], SUM)
    dq2 = tl.zeros([BLOCK_M, BLOCK_D], SUM)
    for tile in range(first_tile, last_tile):
        start_n = tile * BLOCK_N
        k1, k2 = load_keys(
            k_ptr, cos_ptr, sin_ptr, start_n, n, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
            WORK, DOT, VECTOR, WIDE, BLOCK_D,
        )  # fmt: skip
        ds = load_score_gradients(
            ds_ptr, first, local, g, there, start_n, n, keys, first_shift, last_shift, ds_h, ds_s, ds_d, DOT
        )  # fmt: skip
        dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION, out_dtype=SUM)
        dq2 = tl.dot(ds, k2, dq2, input_precision=PRECISION, out_dtype=SUM)
    dq1 = (dq1 * scale.to(SUM)).to(WORK)
    dq2 = (dq2 * scale.to(SUM)).to(WORK)
    store_query_gradients(
        dq1, dq2, q_ptr, cos_ptr, sin_ptr, dq_ptr, dcos_ptr, dsin_ptr, head, first, local, g, there, offset,
        group, rows, half, q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK, TABLES, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip


@triton.jit(do_not_specialize=range(8, 33), do_not_specialize_on_alignment=range(8))
def key_gradient_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, ds_ptr, dk_ptr, dcos_ptr, dsin_ptr,
    heads, group, rows, keys, half,
    offset: tl.int64,  # else a number has 32 bits where it fits
    first_shift, last_shift,
    scale: tl.float64,  # else a float has 32 bits
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, cos_s, cos_d, sin_s, sin_d, ds_b, ds_h, ds_s, ds_d,
    WORK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr, TABLES: tl.constexpr,
    VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk and the tables' gradients of one tile of keys."""
    if VECTOR:
        q_d = 1
        k_d = 1
        cos_d = 1
        sin_d = 1
    across = tl.cdiv(keys, BLOCK_N)
    pid = program(WIDE)
    start_n = pid % across * BLOCK_N
    head = (pid // across).to(tl.int64)
    b = head // heads
    h = head % heads
    q_ptr += b * q_b + h * group * q_h
    k_ptr += b * k_b + h * k_h
    ds_ptr += b * ds_b + h * group * ds_h
    n = lanes_of(BLOCK_N, WIDE)
    first_tile, last_tile = row_tiles(start_n, rows, group, keys, first_shift, last_shift, BLOCK_M, BLOCK_N)
    dk1 = tl.zeros([BLOCK_N, BLOCK_D], SUM)
    dk2 = tl.zeros([BLOCK_N, BLOCK_D], SUM)
    for tile in range(first_tile, last_tile):
        first, local, g, there = packed_rows(tile * BLOCK_M, rows, group, BLOCK_M, WIDE)
        q1, q2 = load_queries(
            q_ptr, cos_ptr, sin_ptr, first, local, g, there, offset, half,
            q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK, DOT, VECTOR, WIDE, BLOCK_D,
        )  # fmt: skip
        ds = tl.trans(load_score_gradients(
            ds_ptr, first, local, g, there, start_n, n, keys, first_shift, last_shift, ds_h, ds_s, ds_d, DOT
        ))  # fmt: skip
        dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION, out_dtype=SUM)
        dk2 = tl.dot(ds, q2, dk2, input_precision=PRECISION, out_dtype=SUM)
    dk1 = (dk1 * scale.to(SUM)).to(WORK)
    dk2 = (dk2 * scale.to(SUM)).to(WORK)
    store_key_gradients(
        dk1, dk2, k_ptr, cos_ptr, sin_ptr, dk_ptr, dcos_ptr, dsin_ptr, head, start_n, n, keys, half,
        k_s, k_d, cos_s, cos_d, sin_s, sin_d, WORK, TABLES, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip


def choose_tiles(half: int, dtype: torch.dtype) -> Tiles:
    """The rule for a tile of either kernel: what shared memory and registers of compute capability 9.0 hold."""
    size, narrow = dtype.itemsize, half <= 64
    if size == 2:
        return Tiles(64, 64, 4 if narrow else 8, 2)
    if size == 4:
        return Tiles(32, 32, 4, 2 if narrow else 1)
    return Tiles(16, 16, 4, 1)


@lru_cache(maxsize=1024)
def find_gradients(problem: Problem, forms: tuple[Meta, ...], device: torch.device) -> Callable[..., None] | None:
    """:func:`special_gradients`, of those that were asked for before."""
    named = dict(zip(("q", "k", "cos", "sin", "ds"), forms, strict=True))
    causal, places = problem.last < problem.keys, multiprocessors(device, problem.pins)
    wish = Wish(named, problem.dot, problem.scale, causal, problem.offset, True, places)
    special = special_for("qk_gradients", architecture(device), wish, problem.pins)
    return special and special.prepare(wish)


def special_gradients(problem: Problem, forms: tuple[Meta, ...], device: torch.device) -> Callable[..., None] | None:
    """What another kernel launches (:mod:`kernels.special`) for inputs and ds of these forms; None where none does."""
    find = find_gradients if problem.scale != 0 else find_gradients.__wrapped__  # the cache takes 0 and -0 for one
    return find(problem, forms, device)


def qk_gradients(
    problem: Problem,
    precision: str,
    saved: tuple[torch.Tensor, ...],
    ds: torch.Tensor,
    needs: tuple[bool, ...],
) -> list[torch.Tensor | None]:
    """The gradients of q, k, cos and sin that are needed; ``saved`` are these."""
    batch, heads, group, rows, keys = problem[:5]
    q, k, cos, sin, ds = resolved(*saved, ds)
    if not (needs[2] or needs[3]):
        special = special_gradients(problem, tuple(Meta.of(x) for x in (q, k, cos, sin, ds)), q.device)
        if special is not None and start_even((q, k, cos, sin, ds)):
            wanted = [
                torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else None
                for x, need in zip((q, k), needs, strict=False)
            ]
            special(q, k, cos, sin, ds, *wanted)
            return [*wanted, None, None]
    dot = torch.promote_types(problem.dot, ds.dtype)
    rule, width = choose_tiles(problem.half, dot), 2 * problem.half
    by_q, by_k = (problem.tiles(name, q.device, dot, width, rule) for name in ("qk_dq", "qk_dk"))
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    sums = TableSums(problem, needs[2] or needs[3], q)
    q_steps, k_steps, ds_steps = strides_of(q), strides_of(k), strides_of(ds)
    packed = (0, rows * 2 * problem.half, 2 * problem.half, 1)
    own = (q_steps, ds_steps, packed), (k_steps,)
    wide = any(is_wide(problem, tiles, *own, max(width, tiles.keys)) for tiles in (by_q, by_k))
    steps = (q_steps, k_steps, problem.tables[:2], problem.tables[2:])
    made = (dq, dk, *sums.of_q, *sums.of_k)
    constants: dict[str, Any] = {
        "WORK": TL_DTYPES[work_dtype(problem.dot)], "DOT": TL_DTYPES[dot], "SUM": TL_DTYPES[work_dtype(dot)],
        "PRECISION": precision, "TABLES": sums.wanted, "WIDE": wide, "BLOCK_D": block_of(problem.half),
        "VECTOR": are_even(steps, (problem.half,)) and start_even((q, k, cos, sin, *made)),
    }  # fmt: skip
    numbers = (*problem.sizes, problem.scale, *q_steps, *k_steps, *problem.tables, *ds_steps)
    # Where no row meets a key, gradients are zero times the tables, and those of tables zero times q and k.
    programs = check_programs(NAME, ceil_div(rows * group, by_q.rows) * batch * heads)
    if needs[0] or sums.wanted:
        tensors = [q, k, cos, sin, ds, dq, *sums.of_q]
        enqueue(query_gradient_kernel, programs, tensors, numbers, constants | by_q.options)
    programs = check_programs(NAME, ceil_div(keys, by_k.keys) * batch * heads)
    if needs[1] or sums.wanted:
        tensors = [q, k, cos, sin, ds, dk, *sums.of_k]
        enqueue(key_gradient_kernel, programs, tensors, numbers, constants | by_k.options)
    found: list[torch.Tensor | None] = [dq if needs[0] else None, dk if needs[1] else None]
    return found + [sums.gradient(i, table) if needs[2 + i] else None for i, table in enumerate((cos, sin))]


class _RopeQK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*inputs)
        ctx.problem = plan.problem
        ctx.precision = dot_precision(torch.promote_types(plan.problem.dot, plan.dtype))
        return launch_qk(plan, *inputs)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, ds: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *qk_gradients(ctx.problem, ctx.precision, ctx.saved_tensors, ds, ctx.needs_input_grad[1:])


def differentiable(plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The scores with gradients of all four inputs, which may have any strides, as that of the scores may.

    Factors of products are rounded to the promoted dtype of inputs and scores. The same bits come back each time.
    Differentiating twice raises RuntimeError.
    """
    return _RopeQK.apply(plan, q, k, cos, sin)
