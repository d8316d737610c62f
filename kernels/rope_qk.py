"""Scores of rotated queries and keys as one launch: ``scale * rope(q) @ rope(k)^T``, neither factor ever stored.

A program keeps a rotated tile of k and lets tiles of q stream by. The plain twin is
:func:`kernels.reference.qk_reference`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.forms import Meta
from kernels.fused import (
    Problem,
    are_even,
    block_of,
    check_options,
    check_programs,
    check_sizes,
    check_tensors,
    dot_precision,
    is_traced,
    is_wide,
    make_problem,
    strides_of,
    work_dtype,
)
from kernels.launch import TL_DTYPES, Prepared, can_launch, ceil_div, resolved, start_even
from kernels.rotation import cells, rows_at
from kernels.special import Wish, special_for
from kernels.tiles import lanes_of, load_keys, load_queries, packed_rows, program, seen_from
from kernels.tiling import SHIPPED, Pins, Tiles, architecture, multiprocessors

__all__ = ["rope_qk"]

NAME = "rope_qk"
POINTERS = ("q_ptr", "k_ptr", "cos_ptr", "sin_ptr", "out_ptr")
ENOUGH_PROGRAMS = 528  # four for each multiprocessor of an H200: below that, k is rotated more often
FEWEST_PROGRAMS = 132  # one for each: no tile's own number of steps leaves fewer, if there are as many
MOST_STEPS = 16


# Nothing is specialized: one flag, VECTOR, says all that makes loads wide, and a variant is dear.
@triton.jit(do_not_specialize=range(5, 27), do_not_specialize_on_alignment=range(5))
def qk_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_ptr,
    heads, group, rows, keys, half,
    offset: tl.int64,  # else a number has 32 bits where it fits
    first_shift, last_shift,
    scale: tl.float64,  # else a float has 32 bits
    steps,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
    WORK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``steps`` tiles of packed rows of q against one tile of keys."""
    if VECTOR:
        q_d = 1
        k_d = 1
        cos_d = 1
        sin_d = 1
    tiles = tl.cdiv(rows * group, BLOCK_M)
    chunks = tl.cdiv(tiles, steps)
    across = tl.cdiv(keys, BLOCK_N)
    pid = program(WIDE)
    chunk = pid % chunks
    start_n = pid // chunks % across * BLOCK_N
    head = (pid // chunks // across).to(tl.int64)
    b = head // heads
    h = head % heads
    n = lanes_of(BLOCK_N, WIDE)
    k1, k2 = load_keys(
        k_ptr + b * k_b + h * k_h, cos_ptr, sin_ptr, start_n, n, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
        WORK, DOT, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip
    k1 = tl.trans(k1)
    k2 = tl.trans(k2)
    j = (start_n + n)[None, :]
    out_ptr += head * group * rows * keys + start_n
    for tile in range(chunk * steps, tl.minimum((chunk + 1) * steps, tiles)):
        first, local, g, there = packed_rows(tile * BLOCK_M, rows, group, BLOCK_M, WIDE)
        q1, q2 = load_queries(
            q_ptr + b * q_b + h * group * q_h, cos_ptr, sin_ptr, first, local, g, there, offset, half,
            q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK, DOT, VECTOR, WIDE, BLOCK_D,
        )  # fmt: skip
        s = tl.dot(q2, k2, input_precision=PRECISION, out_dtype=WORK)
        s = tl.dot(q1, k1, s, input_precision=PRECISION, out_dtype=WORK)
        s = s * scale.to(WORK)
        if first + last_shift < start_n + BLOCK_N - 1:  # else all rows of the tile see all its keys
            _, high = seen_from(first + local, there, keys, first_shift, last_shift)
            s = tl.where(j < high[:, None], s, -float("inf"))
        out_rows = rows_at(out_ptr, first, keys, (g * rows + local) * keys, VECTOR)
        mask = cells(there[:, None], j < keys, VECTOR)
        tl.store(out_rows + n[None, :], s.to(out_ptr.dtype.element_ty), mask=mask)


def choose_tiles(half: int, dtype: torch.dtype, packed: int) -> Tiles:
    """The rule for a tile: what shared memory and registers of compute capability 9.0 hold."""
    size = dtype.itemsize
    if packed <= 16:
        return Tiles(16, 128 if size == 2 and half <= 64 else 32, 4, 2)
    if size == 2:
        return Tiles(64, 128 if half <= 64 else 64, 4, 2)
    if size == 4:
        return Tiles(64, 64, 8, 2) if half <= 64 else Tiles(32, 32, 4, 2)
    return Tiles(32, 32, 4, 1) if half <= 64 else Tiles(16, 16, 4, 1)


def choose_steps(count: int, tiles: Tiles) -> int:
    """How many of so many tiles of scores a program takes, one below the other."""
    enough, most = (FEWEST_PROGRAMS, tiles.steps) if tiles.steps else (ENOUGH_PROGRAMS, MOST_STEPS)
    return min(max(count // enough, 1), most)


def rope_qk(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    q_offset: int = 0,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Scores ``scale * rope(q) @ rope(k)^T`` of queries against keys, each rotated by its position.

    Args:
        q: (B, Hq, Sq, D), float16, bfloat16, float32 or float64, D even and at most 256, any strides; row i has
            position ``q_offset + i``.
        k: (B, Hk, Sk, D), Hq a multiple of Hk: head h of q meets head h // (Hq / Hk); row j has position j.
        cos: (R, D/2) or (R, 1), a table with a row for each position, or one row that serves all.
        sin: likewise; its shape and dtype are its own.
        scale: what sums are multiplied by, 1/sqrt(D) unless given.
        causal: entries with j > q_offset + i become -inf.
        q_offset: the position of q's first row, from 0 to 2^40.
        out_dtype: the result's dtype, the promoted one of the four inputs unless given.

    Returns:
        (B, Hq, Sq, Sk), contiguous. Both factors are rounded to their promoted dtype, products are summed in float32
        (float64 for float64) and rounded once. Factors of float32 are cut to tf32 as
        ``torch.get_float32_matmul_precision()`` says.

    Raises:
        TypeError: an argument is no strided tensor of the four dtypes, or an option of another type.
        ValueError: ranks, devices, sizes or options that do not belong together.

    On a GPU this is one kernel launch; on other devices it is the eager twin. Autocast has no say. Gradients are
    :mod:`kernels.rope_qk_backward`'s. What traces instead of running meets one operator,
    :mod:`kernels.fused_operators`.
    """
    return call_qk(q, k, cos, sin, scale=scale, causal=causal, q_offset=q_offset, out_dtype=out_dtype)


class Plan(NamedTuple):
    """What a call does for inputs of one form; ``even`` layouts are as VECTOR promises, if the addresses are too.

    ``special`` launches another kernel instead, where addresses are so.
    """

    problem: Problem
    dtype: torch.dtype
    launch: Prepared
    even: bool
    special: Callable[..., None] | None


@lru_cache(maxsize=1024)
def make_plan(
    q: Meta, k: Meta, cos: Meta, sin: Meta, scale: float | None, causal: bool, q_offset: int,
    out_dtype: torch.dtype | None, device: torch.device, pins: Pins,
) -> Plan:  # fmt: skip
    """Plan the launch for inputs of this form on a device; raises ValueError for sizes."""
    forms = {"q": q, "k": k, "cos": cos, "sin": sin}
    check_sizes(NAME, forms, q_offset)
    problem = make_problem(forms, scale, causal, q_offset, pins=pins)
    batch, heads, group, rows, keys = problem[:5]
    rule = choose_tiles(problem.half, problem.dot, rows * group)
    tiles = problem.tiles("qk", device, problem.dot, 2 * problem.half, rule)
    down, across = ceil_div(rows * group, tiles.rows), ceil_div(keys, tiles.keys)
    steps = choose_steps(down * across * batch * heads, tiles)
    programs = check_programs(NAME, ceil_div(down, steps) * across * batch * heads)
    q_steps, k_steps = strides_of(q), strides_of(k)
    wide = is_wide(problem, tiles, (q_steps, (0, rows * keys, keys, 1)), (k_steps,), max(2 * problem.half, tiles.keys))
    constants = {"WORK": TL_DTYPES[work_dtype(problem.dot)], "DOT": TL_DTYPES[problem.dot], "WIDE": wide}
    constants |= {"BLOCK_D": block_of(problem.half), **tiles.options}
    even = are_even((q_steps, k_steps, problem.tables[:2], problem.tables[2:]), (problem.half, keys))
    numbers = (*problem.sizes, problem.scale, steps, *q_steps, *k_steps, *problem.tables)
    dtype = out_dtype or problem.dot
    wish = Wish(forms, dtype, problem.scale, causal, q_offset, True, multiprocessors(device, pins))
    special = special_for("qk", architecture(device), wish, pins)
    launch = Prepared(qk_kernel, programs, numbers, constants, {})
    return Plan(problem, dtype, launch, even, special and special.prepare(wish))


def plan_scores(
    tensors: dict[str, torch.Tensor],
    scale: float | None,
    causal: bool,
    q_offset: int,
    out_dtype: torch.dtype | None = None,
    pins: Pins = SHIPPED,
) -> Plan:
    """Plan the launch for these tensors and options, which have been checked; raises ValueError for sizes."""
    make = make_plan if scale != 0 else make_plan.__wrapped__  # the cache takes 0 and -0 for one
    forms = (Meta.of(x) for x in tensors.values())
    return make(*forms, scale, causal, q_offset, out_dtype, tensors["q"].device, pins)


def call_qk(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    q_offset: int = 0,
    out_dtype: torch.dtype | None = None,
    pins: Pins = SHIPPED,
) -> torch.Tensor:
    """:func:`rope_qk` with tiles of one's choice, unless it is traced."""
    tensors = {"q": q, "k": k, "cos": cos, "sin": sin}
    check_tensors(NAME, tensors)
    check_options(NAME, scale, causal, q_offset)
    if out_dtype is not None and out_dtype not in TL_DTYPES:
        raise TypeError(f"{NAME}: out_dtype must be float16, bfloat16, float32 or float64, not {out_dtype}")
    if is_traced(tensors):
        from kernels.fused_operators import traced_qk

        check_sizes(NAME, tensors, q_offset)
        return traced_qk(q, k, cos, sin, scale, causal, q_offset, out_dtype)
    if not can_launch(q.device):
        check_sizes(NAME, tensors, q_offset)
        return reference.qk_reference(
            q, k, cos, sin, scale=scale, causal=causal, q_offset=q_offset, out_dtype=out_dtype
        )
    plan = plan_scores(tensors, scale, causal, q_offset, out_dtype, pins)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors.values()):
        from kernels.rope_qk_backward import differentiable  # it launches the kernel above

        return differentiable(plan, q, k, cos, sin)
    return launch_qk(plan, q, k, cos, sin)


def launch_qk(plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The scores in fresh memory, by one launch or none."""
    problem = plan.problem
    shape = problem.batch, problem.heads * problem.group, problem.rows, problem.keys
    out = torch.empty(shape, dtype=plan.dtype, device=q.device)
    inputs = resolved(q, k, cos, sin)
    if plan.special is not None and start_even(inputs):
        plan.special(*inputs, out)
        return out
    tensors = *inputs, out
    vector = plan.even and start_even(tensors)
    plan.launch.run(tensors, VECTOR=vector, PRECISION=dot_precision(problem.dot))
    return out
