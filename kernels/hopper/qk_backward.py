"""Gradients of scores on compute capability 9.0, in Gluon: those of q and those of k in one launch.

A program owns rows of one side, whose gradients it sums up, and lets rotated ones of the other stream by: with ds the
gradients of scores,

    dx = ds x',

x' rotated keys, and ds as it lies; or x' rotated queries, and ds transposed. Half of the programs own rows of q, the
others keys of the same heads at the same time, so that ds comes from memory once. Roles of warps are those of
:mod:`kernels.hopper.attention_backward`: one warp brings x' and rows of the tables, one ds; four warps rotate x' where
it lies; twice four multiply, OWN / 2 own rows each, whose ds they hold in registers. Inputs that :func:`serves` does not
accept are left to :mod:`kernels.rope_qk_backward`.
"""

import math
from collections.abc import Callable

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from kernels.early import BEGINS_EARLY, wait_for_launch
from kernels.fused import check_programs
from kernels.hopper.forms import TYPES, Blocks
from kernels.hopper.rings import place_of
from kernels.hopper.rows import load_half, rows_in_lanes, seen_of, store_halves, turned_back
from kernels.hopper.streams import T_STAGES, TILE, X_STAGES, bring_x, met_in, steps_of, tiles_met, turn_x, unit_of
from kernels.hopper.units import ROWS, pairs_are_quicker, turns_of
from kernels.launch import INT32_MAX, VECTOR_ELEMENTS, Prepared, ceil_div
from kernels.special import Wish

NAME = "rope_qk"
DS_STAGES = gl.constexpr(3)
FEW, MANY = 128, 256  # own rows of a unit, in parts of 64: each group has one or two
ENOUGH_BLOCKS = 96  # of 132 multiprocessors


@gluon.jit
def bring_ds(
    ds_desc, ds_rings, work, OWN: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr, SPAN: gl.constexpr
):  # fmt: skip
    """Gradients of scores of own rows and a tile, a part for each group, as far ahead as there is room."""
    ring, full, room = ds_rings
    PARTS: gl.constexpr = OWN // ROWS
    mine = work[0]
    at = mine * 0
    for turn in range(mine):
        head, start, first, each = unit_of(turn, work, OWN, CAUSAL, OF_KEYS, SPAN)
        for step in range(steps_of(each, work, OF_KEYS)):
            b, h, row = met_in(step, head, first, each, work, OF_KEYS)
            h = h if OF_KEYS else head % work[1]
            place, parity = place_of(at, DS_STAGES)
            mbarrier.wait(room.index(place), parity ^ 1)
            mbarrier.expect(full.index(place), PARTS * ds_desc.block_type.nbytes)
            for part in gl.static_range(PARTS):
                own = start + part * ROWS
                corner = [b, h, row, own] if OF_KEYS else [b, h, own, row]
                tma.async_copy_global_to_shared(ds_desc, corner, full.index(place), ring.index(PARTS * place + part))
            at += 1


@gluon.jit
def load_ds(ds, limits, row, numbers, others, LEFT: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr):
    """Gradients of scores of ROWS own rows and a tile, own rows down, 0 where they do not meet."""
    limit, whole_from, whole_to = limits
    ds = ds.reshape((ROWS, TILE))
    left = (ds.permute((1, 0)) if OF_KEYS else ds).load(LEFT)
    if CAUSAL:
        if (row < whole_from) | (row + TILE > whole_to):
            left = gl.where(seen_of(numbers, limit, others, row, LEFT, CAUSAL, OF_KEYS), left, 0.0)
    return left


@gluon.jit
def limits_of(start, offset, others, LEFT: gl.constexpr, OF_KEYS: gl.constexpr):
    """(limit of each of ROWS own rows for :func:`seen_of`, streamed rows from which and up to which all are met)."""
    r = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LEFT))
    if OF_KEYS:
        limit = gl.maximum(r - offset, 0).to(gl.int32)
        whole_from = gl.maximum(start + ROWS - 1 - offset, 0).to(gl.int32)
        whole_to = others
    else:
        limit = gl.minimum(r + offset + 1, others).to(gl.int32)
        whole_from = start * 0
        whole_to = gl.minimum(start + offset + 1, others).to(gl.int32)
    return limit, whole_from, whole_to


@gluon.jit
def hand_back(
    g1, g2, tensors, head, start, rows, placed, steps, scale, room1, room2, HALF: gl.constexpr, DX: gl.constexpr
):  # fmt: skip
    """Gradients of ROWS rotated rows, turned back and stored."""
    cos_ptr, sin_ptr, dx_ptr = tensors
    cos_s, sin_s = steps
    i = gl.minimum(start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, rows_in_lanes(HALF))), rows - 1)
    position = i.to(gl.int64) + placed
    room1.store(load_half(cos_ptr, position * cos_s, HALF))
    room2.store(load_half(sin_ptr, position * sin_s, HALF))
    factor = scale.to(gl.float32)
    cos, sin = room1.load(DX).to(gl.float32), room2.load(DX).to(gl.float32)
    g1, g2 = turned_back(g1 * factor, g2 * factor, cos, sin)
    to = dx_ptr + head.to(gl.int64) * rows * (2 * HALF)
    store_halves(g1.to(room1.dtype), g2.to(room1.dtype), to, start, rows, room1, room2, HALF)


@gluon.jit
def pull_scores(
    tensors, x_rings, ds_rings, own, numbers, work, steps, scale,
    WHICH: gl.constexpr, HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr,
    SPAN: gl.constexpr,
):  # fmt: skip
    """Gradients of one group's own rows, from all rows that stream by; one unit after the other."""
    ring, full, room = x_rings
    ds_ring, ds_full, ds_room = ds_rings
    numbers.store(gl.arange(0, TILE, layout=gl.BlockedLayout([1], [32], [4], [0])))
    rows, others, offset = work[3], work[4], work[5]
    DX: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, DX, 2)
    room1, room2 = own.index(2 * WHICH), own.index(2 * WHICH + 1)
    placed = offset * 0 if OF_KEYS else offset
    EACH: gl.constexpr = OWN // (2 * ROWS)  # parts of a group
    at = work[0] * 0
    for turn in range(work[0]):
        head, start, front, each = unit_of(turn, work, OWN, CAUSAL, OF_KEYS, SPAN)
        start += WHICH * (EACH * ROWS)
        limits = limits_of(start, offset, others, LEFT, OF_KEYS)
        later = limits_of(start + ROWS, offset, others, LEFT, OF_KEYS)
        g1 = gl.zeros([ROWS, HALF], gl.float32, DX)
        g2 = gl.zeros([ROWS, HALF], gl.float32, DX)
        h1 = gl.zeros([ROWS, HALF], gl.float32, DX)
        h2 = gl.zeros([ROWS, HALF], gl.float32, DX)
        tile = each * 0
        for step in range(steps_of(each, work, OF_KEYS)):
            row = (front + tile) * TILE
            tile = gl.where(tile + 1 == each, 0, tile + 1)
            place, parity = place_of(at + step, X_STAGES)
            ds_place, ds_parity = place_of(at + step, DS_STAGES)
            first = ring.index(2 * place).reshape((TILE, HALF))
            second = ring.index(2 * place + 1).reshape((TILE, HALF))
            mbarrier.wait(ds_full.index(ds_place), ds_parity)
            part = EACH * (2 * ds_place + WHICH)
            left = load_ds(ds_ring.index(part), limits, row, numbers, others, LEFT, CAUSAL, OF_KEYS)
            if EACH == 2:
                below = load_ds(ds_ring.index(part + 1), later, row, numbers, others, LEFT, CAUSAL, OF_KEYS)
            mbarrier.wait(full.index(place), parity)
            g2 = warpgroup_mma(left, second, g2, is_async=True)
            g1 = warpgroup_mma(left, first, g1, is_async=True)
            if EACH == 2:
                h2 = warpgroup_mma(below, second, h2, is_async=True)
                h1 = warpgroup_mma(below, first, h1, is_async=True)
                g1, g2, h1, h2, left, below = warpgroup_mma_wait(0, deps=[g1, g2, h1, h2, left, below])
            else:
                g1, g2, left = warpgroup_mma_wait(0, deps=[g1, g2, left])
            mbarrier.arrive(ds_room.index(ds_place), count=1)
            mbarrier.arrive(room.index(place), count=1)
        at += steps_of(each, work, OF_KEYS)
        hand_back(g1, g2, tensors, head, start, rows, placed, steps, scale, room1, room2, HALF, DX)
        if EACH == 2:
            hand_back(h1, h2, tensors, head, start + ROWS, rows, placed, steps, scale, room1, room2, HALF, DX)


@gluon.jit
def pull_either(
    given, numbers, steps, scale,
    WHICH: gl.constexpr, HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr,
    SPAN_K: gl.constexpr,
):  # fmt: skip
    """:func:`pull_scores` of the side that a program owns rows of, as all roles below."""
    own_rows, sides, outs, read, ds_rings, own = given
    of_rows, of_keys = sides
    cos_ptr, sin_ptr, dq_ptr, dk_ptr = outs
    if own_rows:
        tensors = (cos_ptr, sin_ptr, dq_ptr)
        pull_scores(tensors, read, ds_rings, own, numbers, of_rows, steps, scale, WHICH, HALF, OWN, CAUSAL, False, SPAN)
    else:
        tensors = (cos_ptr, sin_ptr, dk_ptr)
        pull_scores(
            tensors, read, ds_rings, own, numbers, of_keys, steps, scale, WHICH, HALF, OWN, CAUSAL, True, SPAN_K
        )


@gluon.jit
def turn_either(
    own_rows, sides, x_rings, t_rings,
    HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr, SPAN_K: gl.constexpr,
):  # fmt: skip
    """:func:`kernels.hopper.streams.turn_x`."""
    of_rows, of_keys = sides
    if own_rows:
        turn_x(x_rings, t_rings, of_rows, 2048 // HALF, HALF, OWN, CAUSAL, False, SPAN)
    else:
        turn_x(x_rings, t_rings, of_keys, 2048 // HALF, HALF, OWN, CAUSAL, True, SPAN_K)


@gluon.jit
def bring_either(
    own_rows, sides, descs, x_rings, t_rings,
    HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr, SPAN_K: gl.constexpr,
):  # fmt: skip
    """:func:`kernels.hopper.streams.bring_x`: keys where a program owns rows of q."""
    of_rows, of_keys = sides
    q_desc, k_desc, cos_desc, sin_desc = descs
    if own_rows:
        bring_x(k_desc, cos_desc, sin_desc, x_rings, t_rings, of_rows, HALF, OWN, CAUSAL, False, SPAN)
    else:
        bring_x(q_desc, cos_desc, sin_desc, x_rings, t_rings, of_keys, HALF, OWN, CAUSAL, True, SPAN_K)


@gluon.jit
def bring_ds_either(
    own_rows, sides, ds_desc, ds_rings,
    OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr, SPAN_K: gl.constexpr,
):  # fmt: skip
    """:func:`bring_ds`."""
    of_rows, of_keys = sides
    if own_rows:
        bring_ds(ds_desc, ds_rings, of_rows, OWN, CAUSAL, False, SPAN)
    else:
        bring_ds(ds_desc, ds_rings, of_keys, OWN, CAUSAL, True, SPAN_K)


@gluon.jit(do_not_specialize=range(9, 21), do_not_specialize_on_alignment=range(4))
def hopper_qk_gradient_kernel(
    cos_ptr, sin_ptr, dq_ptr, dk_ptr, q_desc, k_desc, ds_desc, cos_desc, sin_desc,
    units, units_k, split, heads, heads_k, group, rows, keys, offset, scale, cos_s, sin_s,
    HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr, SPAN_K: gl.constexpr,
):  # fmt: skip
    """Gradients of OWN rows of one head a unit: the first ``split`` programs have the units of q, the others those of k.

    Either may have none.
    """
    DOT: gl.constexpr = dq_ptr.dtype.element_ty
    HELD: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HALF], DOT)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    offset = offset.to(gl.int64)
    ring = gl.allocate_shared_memory(DOT, [2 * X_STAGES, 1, 1, TILE, HALF], k_desc.layout)
    t_ring = gl.allocate_shared_memory(DOT, [2 * T_STAGES, TILE, HALF], cos_desc.layout)
    PARTS: gl.constexpr = OWN // ROWS
    ds_ring = gl.allocate_shared_memory(DOT, [PARTS * DS_STAGES, 1, 1, ROWS, TILE], ds_desc.layout)
    own = gl.allocate_shared_memory(DOT, [4, ROWS, HALF], HELD)
    numbers = gl.allocate_shared_memory(gl.int32, [2, TILE], LINE)
    raw = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    room = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    ds_full = gl.allocate_shared_memory(gl.int64, [DS_STAGES, 1], mbarrier.MBarrierLayout())
    ds_room = gl.allocate_shared_memory(gl.int64, [DS_STAGES, 1], mbarrier.MBarrierLayout())
    t_full = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    t_room = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(X_STAGES):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(room.index(place), count=2)
    for place in gl.static_range(DS_STAGES):
        mbarrier.init(ds_full.index(place), count=1)
        mbarrier.init(ds_room.index(place), count=2)
    for place in gl.static_range(T_STAGES):
        mbarrier.init(t_full.index(place), count=1)
        mbarrier.init(t_room.index(place), count=1)
    pid, programs = gl.program_id(0), gl.num_programs(0)
    own_rows = pid < split
    pid = gl.where(own_rows, pid, pid - split)
    programs = gl.where(own_rows, split, programs - split)
    mine = turns_of(gl.where(own_rows, units, units_k), pid, programs, SPAN)
    if SPAN_K != SPAN:
        mine = gl.where(own_rows, mine, turns_of(units_k, pid, programs, SPAN_K))
    sides = (
        (mine, heads, group, rows, keys, offset, pid, programs),
        (mine, heads_k, group, keys, rows, offset, pid, programs),
    )
    x_rings, t_rings, ds_rings = (ring, raw, full, room), (t_ring, t_full, t_room), (ds_ring, ds_full, ds_room)
    outs, read, steps = (cos_ptr, sin_ptr, dq_ptr, dk_ptr), (ring, full, room), (cos_s, sin_s)
    given = (own_rows, sides, outs, read, ds_rings, own)
    descs = (q_desc, k_desc, cos_desc, sin_desc)
    wait_for_launch(True)
    gl.warp_specialize(
        [
            (pull_either, (given, numbers.index(0), steps, scale, 0, HALF, OWN, CAUSAL, SPAN, SPAN_K)),
            (pull_either, (given, numbers.index(1), steps, scale, 1, HALF, OWN, CAUSAL, SPAN, SPAN_K)),
            (turn_either, (own_rows, sides, x_rings, t_rings, HALF, OWN, CAUSAL, SPAN, SPAN_K)),
            (bring_either, (own_rows, sides, descs, x_rings, t_rings, HALF, OWN, CAUSAL, SPAN, SPAN_K)),
            (bring_ds_either, (own_rows, sides, ds_desc, ds_rings, OWN, CAUSAL, SPAN, SPAN_K)),
        ],
        [4, 4, 1, 1],
        [208, 72, 24, 24],
    )


def serves(wish: Wish) -> bool:
    """Whether they can take a call: 64 or 128 columns, one dtype of 16 bits, rows that start at multiples of 16 bytes.

    ``wish.forms`` are those of q, k, cos, sin, and of the scores' gradient ds.
    """
    q, k, cos, sin, ds = forms = tuple(wish.forms.values())
    needed = max(wish.q_offset + q.shape[2], k.shape[2])
    return (
        wish.plain
        and wish.dtype in TYPES
        and all(x.dtype == wish.dtype and x.strides[-1] == 1 for x in forms)
        and not any(stride % VECTOR_ELEMENTS for x in forms for stride in x.strides[:-1])
        and not any(stride <= 0 for x in forms for stride in x.strides)
        and q.shape[3] in (64, 128)
        and wish.q_offset + q.shape[2] + TILE.value <= INT32_MAX
        and cos.shape[1] == sin.shape[1] == q.shape[3] // 2
        and min(cos.shape[0], sin.shape[0]) >= needed
        and min(math.prod(x.shape) for x in forms) > 0
    )


def pays(wish: Wish) -> bool:
    """Whether they are quicker than the portable kernels: blocks that are full, and enough of them."""
    (batch, heads, rows, _), (_, heads_k, keys, _) = wish.forms["q"].shape, wish.forms["k"].shape
    blocks = (ceil_div(rows, FEW) * heads + ceil_div(keys, FEW) * heads_k) * batch
    return min(rows, keys) >= FEW and blocks >= ENOUGH_BLOCKS


def own_rows_of(wish: Wish) -> int:
    """How many rows a unit owns: many where units are many, and not half hidden, as measured."""
    (_, _, rows, _), keys = wish.forms["q"].shape, wish.forms["k"].shape[2]
    return MANY if min(rows, keys) >= (8 if wish.causal else 2) * MANY else FEW


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan their launch for what :func:`serves` accepts.

    The result takes q, k, cos, sin and ds, then dq and dk to fill, which are contiguous; None for what is not wanted.
    """
    q, k, cos, sin, _ = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    half, own, sides = width // 2, own_rows_of(wish), []
    for count, count_heads, of_keys in ((rows, heads, False), (keys, heads_k, True)):
        units = check_programs(NAME, ceil_div(count, own) * batch * count_heads)
        counts = tiles_met(wish, of_keys, own)
        sides.append((units, 2 if wish.causal and pairs_are_quicker(units, counts, wish.places // 2) else 1))
    (units, span), (units_k, span_k) = sides
    constants = {
        "HALF": half, "OWN": own, "CAUSAL": wish.causal, "SPAN": span, "SPAN_K": span_k, "num_warps": 4,
        **BEGINS_EARLY,
    }  # fmt: skip
    sizes = heads, heads_k, heads // heads_k, rows, keys, wish.q_offset, wish.scale, cos.strides[0], sin.strides[0]
    all_q, all_k = ceil_div(units, span), ceil_div(units_k, span_k)
    launches = {}
    for wanted, (most_q, most_k) in {
        (True, True): (max(wish.places // 2, wish.places - all_k), max(wish.places // 2, wish.places - all_q)),
        (True, False): (wish.places, 0),
        (False, True): (0, wish.places),
    }.items():
        of_q, of_k = min(all_q, max(most_q, wanted[0])), min(all_k, max(most_k, wanted[1]))
        numbers = (units, units_k, of_q, *sizes)
        launches[wanted] = Prepared(hopper_qk_gradient_kernel, of_q + of_k, numbers, constants, {})
    of_x, of_y = Blocks(1, 1, TILE.value, half), Blocks(1, 1, TILE.value, half)
    of_cos, of_sin = Blocks(TILE.value, half), Blocks(TILE.value, half)
    of_ds = Blocks(1, 1, ROWS.value, TILE.value)  # of own rows and others, either way: both are 64

    def run(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, ds: torch.Tensor,
        dq: torch.Tensor | None, dk: torch.Tensor | None,
    ) -> None:  # fmt: skip
        some = dk if dq is None else dq
        if some is not None:
            made = some if dq is None else dq, some if dk is None else dk
            described = of_x.of(q), of_y.of(k), of_ds.of(ds), of_cos.of(cos), of_sin.of(sin)
            launches[dq is not None, dk is not None].run((cos, sin, *made, *described))

    return run
