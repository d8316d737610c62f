"""The kernel of :func:`kernels.rope_attention.rope_attention`, and its launch, planned once for all calls of a form.

A program keeps a rotated tile of q, rotates tiles of k as they come, and carries the largest score, the sum of
weights and the weighted sum along. Where few rows meet many keys, several programs share the keys of a tile and
a second kernel joins what they found. The plain twin is :func:`kernels.reference.attention_reference`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels.forms import Meta
from kernels.fused import (
    Problem,
    are_even,
    block_of,
    check_programs,
    check_sizes,
    dot_precision,
    is_wide,
    make_problem,
    strides_of,
    work_dtype,
)
from kernels.launch import TL_DTYPES, Prepared, ceil_div, resolved, start_even
from kernels.rotation import cells, factor, rows_at
from kernels.softmax import COMBINED_ROWS, LEAST, LN_2, LOG2_E, capped, choose_splits, combine_kernel, level
from kernels.special import Wish, special_for
from kernels.tiles import (
    columns,
    key_tiles,
    lanes_of,
    load_keys,
    load_queries,
    load_rows,
    packed_rows,
    program,
    seen_from,
    whole_tiles,
)
from kernels.tiling import SHIPPED, Pins, Tiles, architecture, multiprocessors

NAME = "rope_attention"


# Nothing is specialized: one flag, VECTOR, says all that makes loads wide, and a variant is dear.
@triton.jit(do_not_specialize=range(8, 37), do_not_specialize_on_alignment=range(8))
def attention_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, total_ptr,
    heads, group, rows, keys, half,
    offset: tl.int64,  # else a number has 32 bits where it fits
    first_shift, last_shift,
    scale: tl.float64, cap: tl.float64,  # else a float has 32 bits
    width_v, splits, batch,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, cos_s, cos_d, sin_s, sin_d,
    WORK: tl.constexpr, DOT: tl.constexpr, VALUE: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
    CAP: tl.constexpr, SPLIT: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One tile of packed rows against the keys they see, or a share of them.

    With SPLIT, o, lse and total (splits, ...) take the weighted sum, the largest score in units of log 2 and the
    sum of weights of each share.
    """
    if VECTOR:
        q_d = 1
        k_d = 1
        v_d = 1
        cos_d = 1
        sin_d = 1
    tiles = tl.cdiv(rows * group, BLOCK_M)
    pid = program(WIDE)
    start = pid % tiles * BLOCK_M
    split = pid // tiles % splits
    head = (pid // tiles // splits).to(tl.int64)
    b = head // heads
    h = head % heads
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    n = lanes_of(BLOCK_N, WIDE)
    first, local, g, there = packed_rows(start, rows, group, BLOCK_M, WIDE)
    q1, q2 = load_queries(
        q_ptr + b * q_b + h * group * q_h, cos_ptr, sin_ptr, first, local, g, there, offset, half,
        q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK, DOT, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip
    low, high = seen_from(first + local, there, keys, first_shift, last_shift)
    first_tile, last_tile = key_tiles(start, rows, group, keys, first_shift, last_shift, BLOCK_M, BLOCK_N)
    if SPLIT:
        share = tl.cdiv(tl.maximum(last_tile - first_tile, 0), splits)
        first_tile += split * share
        last_tile = tl.minimum(first_tile + share, last_tile)
    whole_from, whole_to = whole_tiles(
        start, rows, group, keys, first_shift, last_shift, first_tile, last_tile, BLOCK_M, BLOCK_N
    )
    if scale < 0:
        q1 = -q1
        q2 = -q2
    # Scores are subtracted before they are scaled to units of log 2, for exp2: a multiply-add that scaled first would
    # not round what is subtracted alike, which tells for scores beyond 2^30. No scale is 0: hidden scores are -inf.
    slope = tl.abs(scale)
    if CAP:
        slope = cap
    units = tl.maximum(slope * LOG2_E, LEAST).to(WORK)
    top = tl.full([BLOCK_M], -float("inf"), WORK)
    total = tl.zeros([BLOCK_M], WORK)
    o = tl.zeros([BLOCK_M, BLOCK_V], SUM)
    for EDGES in tl.static_range(2):  # tiles that are seen whole, then those that have to be masked
        begin = whole_from
        end = whole_to
        if EDGES:
            begin = first_tile
            end = last_tile - (whole_to - whole_from)
        for turn in range(begin, end):
            tile = turn
            if EDGES:
                tile = tl.where(turn < whole_from, turn, turn + (whole_to - whole_from))
            start_n = tile * BLOCK_N
            k1, k2 = load_keys(
                k_ptr, cos_ptr, sin_ptr, start_n, n, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
                WORK, DOT, VECTOR, WIDE, BLOCK_D,
            )  # fmt: skip
            s = tl.dot(q2, tl.trans(k2), input_precision=PRECISION, out_dtype=WORK)
            s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION, out_dtype=WORK)
            if CAP:
                s, _ = capped(s * tl.abs(scale).to(WORK), cap.to(WORK))
            if EDGES:
                j = (start_n + n)[None, :]
                s = tl.where((j >= low[:, None]) & (j < high[:, None]), s, -float("inf"))
            best = tl.maximum(top, tl.max(s, 1))
            known = level(best, units)
            p = tl.exp2((s - known[:, None]) * units)
            alpha = tl.exp2((top - known) * units)
            total = total * alpha + tl.sum(p, 1)
            v = load_rows(v_ptr, start_n, n * v_s, start_n + n < keys, width_v, v_s, v_d, VECTOR, WIDE, BLOCK_V)
            o = o * alpha[:, None].to(SUM)
            o = tl.dot(p.to(VALUE), factor(v, VALUE), o, input_precision=PRECISION, out_dtype=SUM)
            top = best
    if SPLIT:
        head += split.to(tl.int64) * batch * heads
        tl.store(total_ptr + head * group * rows + first + (g * rows + local), total, mask=there)
        lse = top * units
    else:
        whole = tl.where(total == 0, 1.0, total)  # a row without keys: o = 0, lse = -inf
        o = o / whole[:, None].to(SUM)
        lse = (top * units + tl.log2(whole)) * LN_2
    tl.store(lse_ptr + head * group * rows + first + (g * rows + local), lse, mask=there)
    dv = columns(BLOCK_V, WIDE)
    o_rows = rows_at(o_ptr + head * group * rows * width_v, first, width_v, (g * rows + local) * width_v, VECTOR)
    mask = cells(there[:, None], dv < width_v, VECTOR)
    tl.store(o_rows + dv, o.to(o_ptr.dtype.element_ty), mask=mask)


class Call(NamedTuple):
    """One checked call: the problem, and what attention alone has. ``cap`` is 0 where there is none."""

    problem: Problem
    width_v: int
    cap: float
    value: torch.dtype
    out: torch.dtype

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the kernels take after the tensors."""
        return (*self.problem.sizes, self.problem.scale, self.cap, self.width_v)

    @property
    def constants(self) -> dict[str, Any]:
        """The constants that the call decides."""
        dot = self.problem.dot
        return {
            "WORK": TL_DTYPES[work_dtype(dot)],
            "DOT": TL_DTYPES[dot],
            "CAP": self.cap > 0,
            "BLOCK_D": block_of(self.problem.half),
            "BLOCK_V": block_of(self.width_v),
        }


def choose_tiles(half: int, width_v: int, dtype: torch.dtype, packed: int) -> Tiles:
    """The rule for a tile: what shared memory and registers of compute capability 9.0 hold."""
    size, narrow = dtype.itemsize, half <= 64 and width_v <= 128
    if packed <= 16:
        return Tiles(16, 64 if size == 2 and narrow else 32 if size < 8 else 16, 4, 2 if size < 8 else 1)
    if size == 2:
        if not narrow:
            return Tiles(64, 32, 8, 2)
        return Tiles(128, 64, 4, 2) if half <= 32 else Tiles(128, 64, 8, 3)
    if size == 4:
        return Tiles(64, 32, 8, 2) if narrow else Tiles(32, 32, 8, 1)
    return Tiles(32, 16, 4, 1) if narrow else Tiles(16, 16, 4, 1)


class Plan(NamedTuple):
    """What a call does for inputs of one form; ``even`` layouts are as VECTOR promises, if the addresses are too.

    ``splits`` programs share the keys of a tile; where they are several, a second launch joins what they found.
    ``special`` launches another kernel instead, where addresses are as VECTOR promises.
    """

    call: Call
    splits: int
    launch: Prepared
    join: Prepared
    even: bool
    special: Callable[..., None] | None


@lru_cache(maxsize=1024)
def make_plan(
    q: Meta, k: Meta, v: Meta, cos: Meta, sin: Meta, scale: float | None, causal: bool, q_offset: int,
    window: int | None, softcap: float | None, device: torch.device, pins: Pins,
) -> Plan:  # fmt: skip
    """Plan the launch for inputs of this form on a device; raises ValueError for sizes."""
    forms = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin}
    check_sizes(NAME, forms, q_offset)
    problem = make_problem(forms, scale, causal, q_offset, window, pins)
    batch, heads, group, rows, keys = problem[:5]
    out = torch.promote_types(problem.dot, v.dtype)
    call = Call(problem, v.shape[3], 0.0 if softcap is None else float(softcap), v.dtype, out)
    rule, width = choose_tiles(problem.half, call.width_v, out, rows * group), max(2 * problem.half, call.width_v)
    tiles = problem.tiles("attention", device, out, width, rule)
    programs = ceil_div(rows * group, tiles.rows) * batch * heads
    splits = choose_splits(programs, ceil_div(keys, tiles.keys))
    steps = [strides_of(x) for x in (q, k, v)]
    packed = (0, rows * call.width_v, call.width_v, 1)
    constants = call.constants | {
        "VALUE": TL_DTYPES[call.value], "SUM": TL_DTYPES[work_dtype(call.value)], "SPLIT": splits > 1,
        "WIDE": is_wide(problem, tiles, (steps[0], packed), steps[1:], width), **tiles.options,
    }  # fmt: skip
    numbers = (*call.numbers, splits, batch, *steps[0], *steps[1], *steps[2], *problem.tables)
    even = are_even((*steps, problem.tables[:2], problem.tables[2:]), (problem.half, call.width_v))
    launch = Prepared(attention_kernel, check_programs(NAME, programs * splits), numbers, constants, {})
    count = batch * heads * group * rows
    constants = {"BLOCK_R": COMBINED_ROWS, "BLOCK_V": block_of(call.width_v)}
    numbers = count, call.width_v, splits
    join = Prepared(combine_kernel, ceil_div(count, COMBINED_ROWS), numbers, constants, {})
    plain = window is None and softcap is None
    wish = Wish(forms, out, problem.scale, causal, q_offset, plain, multiprocessors(device, pins))
    special = special_for("attention", architecture(device), wish, pins)
    return Plan(call, splits, launch, join, even, special and special.prepare(wish))


@lru_cache(maxsize=1024)
def find_gradients(call: Call, forms: tuple[Meta, ...], device: torch.device) -> Callable[..., None] | None:
    """:func:`special_gradients`, of those that were asked for before."""
    problem = call.problem
    named = dict(zip(("q", "k", "v", "cos", "sin", "do", "dlse"), forms, strict=True))
    causal, plain = problem.last < problem.keys, call.cap == 0 and problem.first < -problem.rows
    places = multiprocessors(device, problem.pins)
    wish = Wish(named, call.out, problem.scale, causal, problem.offset, plain, places)
    special = special_for("attention_gradients", architecture(device), wish, problem.pins)
    return special and special.prepare(wish)


def special_gradients(call: Call, forms: tuple[Meta, ...], device: torch.device) -> Callable[..., None] | None:
    """What another kernel launches (:mod:`kernels.special`) for inputs, do and dlse of these forms; None where none."""
    find = find_gradients if call.problem.scale != 0 else find_gradients.__wrapped__  # the cache takes 0 and -0 for one
    return find(call, forms, device)


def plan_attention(
    tensors: dict[str, torch.Tensor],
    scale: float | None,
    causal: bool,
    q_offset: int,
    window: int | None,
    softcap: float | None,
    pins: Pins = SHIPPED,
) -> Plan:
    """Plan the launch for these tensors and options, which have been checked; raises ValueError for sizes."""
    make = make_plan if scale != 0 else make_plan.__wrapped__  # the cache takes 0 and -0 for one
    forms = (Meta.of(x) for x in tensors.values())
    return make(*forms, scale, causal, q_offset, window, softcap, tensors["q"].device, pins)


def launch_attention(
    plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """o and lse in fresh memory."""
    call, splits = plan.call, plan.splits
    problem = call.problem
    shape, device = (problem.batch, problem.heads * problem.group, problem.rows), q.device
    o = torch.empty((*shape, call.width_v), dtype=call.out, device=device)
    lse = torch.empty(shape, dtype=work_dtype(problem.dot), device=device)
    if not plan.launch.programs:
        return o, lse
    inputs = resolved(q, k, v, cos, sin)
    if plan.special is not None and start_even(inputs):
        plan.special(*inputs, o, lse)
        return o, lse
    found: tuple[torch.Tensor, ...] = (o, lse, lse)
    if splits > 1:
        found = (
            torch.empty((splits, *o.shape), dtype=work_dtype(call.value), device=device),
            *(torch.empty((splits, *shape), dtype=lse.dtype, device=device) for _ in range(2)),
        )
    tensors = *inputs, *found
    vector = plan.even and start_even(tensors)
    plan.launch.run(tensors, VECTOR=vector, PRECISION=dot_precision(problem.dot, call.value))
    if splits > 1:
        plan.join.run((*found, o, lse))
    return o, lse
