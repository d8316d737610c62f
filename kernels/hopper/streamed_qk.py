"""Scores of rotated queries and keys on compute capability 9.0, in Gluon, with queries that stream by.

A program owns units of 256 keys, which four warps rotate where they lie, while the unit before is multiplied; a warp
brings them, and the queries that meet them with their rows of the tables. Two groups of four warps take tiles of
queries in turn, rotate them in registers, where they are the left factor, and store scores, whole rows or bulk copies,
while the other multiplies. What :func:`serves` does not accept is left to :mod:`kernels.hopper.qk`.

``work`` is (units of this program, steps of each, heads of k, heads of q to one of k, keys, rows, offset).
"""

from collections.abc import Callable

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.early import BEGINS_EARLY, wait_for_launch
from kernels.fused import check_programs
from kernels.hopper import qk
from kernels.hopper.forms import Blocks
from kernels.hopper.rings import place_of
from kernels.hopper.rows import load_half, rotate, rows_in_lanes
from kernels.hopper.streams import TILE
from kernels.hopper.units import turns_of
from kernels.launch import INT32_MAX, Prepared, ceil_div
from kernels.special import Wish

KEYS, PART = gl.constexpr(256), gl.constexpr(128)  # that a program owns, and that are multiplied at once
STAGES = gl.constexpr(2)  # of queries, which leave for registers soon
AHEAD = gl.constexpr(STAGES.value + 1)  # the step of a unit at which no group is in the one before: next keys come
MANY_KEYS = 2048  # from which bulk copies store scores faster than threads do, as for causal rows and one unit a row
ENOUGH_UNITS, FEWEST_STEPS = 0.7, 3  # units for each multiprocessor and round, and steps of a unit, that pay


@gluon.jit
def keys_of(turn, work):
    """(head of k in all batches, first key) of a program's unit."""
    unit, blocks = turn * gl.num_programs(0) + gl.program_id(0), gl.cdiv(work[4], KEYS)
    return unit // blocks, unit % blocks * KEYS


@gluon.jit
def queries_of(step, head, work):
    """(batch, head, first row) of the tile that meets keys of a head in a step."""
    _mine, _steps, heads, group, _keys, rows, _offset = work
    tiles = gl.cdiv(rows, TILE)
    return head // heads, head % heads * group + step // tiles, step % tiles * TILE


@gluon.jit
def bring_keys(k_desc, k_rings, turn, work, HALF: gl.constexpr):
    """Keys of a unit, both halves of each part, once the unit before the last is over."""
    turned, raw, _ready, free = k_rings
    head, start_n = keys_of(turn, work)
    heads, side = work[2], turn % 2
    mbarrier.wait(free.index(side), (turn // 2 & 1) ^ 1)
    for part in gl.static_range(KEYS // PART):
        place = side * (KEYS // PART) + part
        b, h, row = head // heads, head % heads, start_n + part * PART
        mbarrier.expect(raw.index(place), 2 * k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [b, h, row, 0], raw.index(place), turned.index(2 * place))
        tma.async_copy_global_to_shared(k_desc, [b, h, row, HALF], raw.index(place), turned.index(2 * place + 1))


@gluon.jit
def bring(descs, x_rings, k_rings, work, HALF: gl.constexpr):
    """Queries and their rows of the tables as far ahead as there is room, and in between the next unit's keys."""
    q_desc, k_desc, cos_desc, sin_desc = descs
    ring, tables, full, room = x_rings
    mine, steps, offset = work[0], work[1], work[6]
    at = mine * 0
    bring_keys(k_desc, k_rings, at, work, HALF)
    for turn in range(mine):
        head, _start_n = keys_of(turn, work)
        for step in range(steps):
            b, h, row = queries_of(step, head, work)
            position = (row + offset).to(gl.int32)
            place, parity = place_of(at, STAGES)
            landed = full.index(place)
            mbarrier.wait(room.index(place), parity ^ 1)
            mbarrier.expect(landed, 2 * q_desc.block_type.nbytes + 2 * cos_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(q_desc, [b, h, row, 0], landed, ring.index(2 * place))
            tma.async_copy_global_to_shared(q_desc, [b, h, row, HALF], landed, ring.index(2 * place + 1))
            tma.async_copy_global_to_shared(cos_desc, [position, 0], landed, tables.index(2 * place))
            tma.async_copy_global_to_shared(sin_desc, [position, 0], landed, tables.index(2 * place + 1))
            at += 1
            if (turn + 1 < mine) & (step == gl.minimum(AHEAD, steps - 1)):
                bring_keys(k_desc, k_rings, turn + 1, work, HALF)


@gluon.jit
def turn_keys(table_ptrs, k_rings, work, strides, HALF: gl.constexpr):
    """Keys rotated where they lie, those that are not there by the last one's rows of the tables."""
    cos_ptr, sin_ptr = table_ptrs
    cos_s, sin_s = strides
    turned, raw, ready, _free = k_rings
    OF_ROWS: gl.constexpr = rows_in_lanes(HALF)
    mine, keys = work[0], work[4]
    for turn in range(mine):
        _head, start_n = keys_of(turn, work)
        side = turn % 2
        for part in range(KEYS // PART):
            place = side * (KEYS // PART) + part
            half1 = turned.index(2 * place).reshape((PART, HALF))
            half2 = turned.index(2 * place + 1).reshape((PART, HALF))
            for tile in gl.static_range(PART // TILE):
                n = start_n + part * PART + tile * TILE + gl.arange(0, TILE, layout=gl.SliceLayout(1, OF_ROWS))
                n = gl.minimum(n, keys - 1).to(gl.int64)
                cos, sin = load_half(cos_ptr, n * cos_s, HALF), load_half(sin_ptr, n * sin_s, HALF)
                if tile == 0:
                    mbarrier.wait(raw.index(place), turn // 2 & 1)
                x1, x2 = half1.slice(tile * TILE, TILE, 0), half2.slice(tile * TILE, TILE, 0)
                y1, y2 = rotate(x1.load(OF_ROWS), x2.load(OF_ROWS), cos, sin)
                x1.store(y1)
                x2.store(y2)
            fence_async_shared()
            mbarrier.arrive(ready.index(place), count=1)


@gluon.jit
def finished(s, numbers, scale, visible, dtype: gl.constexpr, CAUSAL: gl.constexpr):
    """Scores of half a tile as they are to be stored; the first row sees ``visible`` keys, each further one, one more.

    Numbers of columns come from shared memory, or they would take registers all along.
    """
    s = s * scale
    if CAUSAL:  # noqa: SIM102 - known when the kernel is compiled, the rest is not
        if visible < PART:
            column = numbers.load(gl.SliceLayout(0, s.type.layout))[None, :]
            row = gl.arange(0, TILE, layout=gl.SliceLayout(1, s.type.layout))[:, None]
            s = gl.where(column < gl.maximum(visible, -TILE).to(gl.int32) + row, s, -float("inf"))
    return s.to(dtype)


@gluon.jit
def put(s, buffer, out_ptr, start, rows, start_n, keys):
    """Finished scores of half a tile to rows of a head, which begins at the pointer, sixteen bytes at once."""
    OF_ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    buffer.store(s)
    i = start + gl.arange(0, TILE, layout=gl.SliceLayout(1, OF_ROWS))
    j = start_n + gl.arange(0, PART, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    at = gl.multiple_of(out_ptr + (i.to(gl.int64) * keys)[:, None], (16, 16)) + j
    there = gl.max_constancy((i < rows)[:, None] & (j < keys), (1, 8))
    gl.store(at, buffer.load(OF_ROWS), mask=there)


@gluon.jit
def send(s, buffers, out_desc, head, start, start_n, WHICH: gl.constexpr):
    """Finished scores of half a tile by two bulk copies, while the one before is read at most."""
    BULK: gl.constexpr = PART // 2
    first, second = gl.split(s.reshape((TILE, 2, BULK)).permute((0, 2, 1)))
    tma.store_wait(1)
    buffers.index(2 * WHICH).store(first.reshape((1, TILE, BULK)))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [head, start, start_n], buffers.index(2 * WHICH))
    tma.store_wait(1)
    buffers.index(2 * WHICH + 1).store(second.reshape((1, TILE, BULK)))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [head, start, start_n + BULK], buffers.index(2 * WHICH + 1))


@gluon.jit
def score(
    out_ptr, out_desc, x_rings, k_rings, rooms, work, scale, WHICH: gl.constexpr, HALF: gl.constexpr,
    CAUSAL: gl.constexpr, BULK: gl.constexpr,
):  # fmt: skip
    """Every other tile of queries, rotated in registers, against all keys of the unit."""
    ring, tables, full, room = x_rings
    turned, _raw, ready, free = k_rings
    buffers, lines = rooms
    numbers = lines.index(WHICH)
    mine, steps, heads, group, keys, rows, offset = work
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PART, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, S, 2)
    numbers.store(gl.arange(0, PART, layout=gl.BlockedLayout([1], [32], [4], [0])))
    scale = scale.to(gl.float32)
    at = mine * 0
    for turn in range(mine):
        head, start_n = keys_of(turn, work)
        side = turn % 2
        k1 = turned.index(4 * side).reshape((PART, HALF)).permute((1, 0))
        k2 = turned.index(4 * side + 1).reshape((PART, HALF)).permute((1, 0))
        k3 = turned.index(4 * side + 2).reshape((PART, HALF)).permute((1, 0))
        k4 = turned.index(4 * side + 3).reshape((PART, HALF)).permute((1, 0))
        for step in range((at & 1) ^ WHICH, steps, 2):
            b, h, start = queries_of(step, head, work)
            place, parity = place_of(at + step, STAGES)
            mbarrier.wait(full.index(place), parity)
            x1 = ring.index(2 * place).reshape((TILE, HALF)).load(LEFT)
            x2 = ring.index(2 * place + 1).reshape((TILE, HALF)).load(LEFT)
            q1, q2 = rotate(x1, x2, tables.index(2 * place).load(LEFT), tables.index(2 * place + 1).load(LEFT))
            mbarrier.wait(ready.index(2 * side), turn // 2 & 1)
            s = gl.zeros([TILE, PART], gl.float32, S)
            s = warpgroup_mma(q2, k2, s, use_acc=False, is_async=True)
            mbarrier.arrive(room.index(place), count=1)  # not before q2 is made: what it is made of is loaded then
            s = warpgroup_mma(q1, k1, s, is_async=True)
            mbarrier.wait(ready.index(2 * side + 1), turn // 2 & 1)
            t = gl.zeros([TILE, PART], gl.float32, S)
            t = warpgroup_mma(q2, k4, t, use_acc=False, is_async=True)
            t = warpgroup_mma(q1, k3, t, is_async=True)
            in_all = b * heads * group + h
            of_head = out_ptr + in_all.to(gl.int64) * rows * keys
            s, t, q1, q2 = warpgroup_mma_wait(0, deps=[s, t, q1, q2])
            visible = start + offset + 1 - start_n
            s = finished(s, numbers, scale, visible, ring.dtype, CAUSAL)
            if BULK:
                send(s, buffers, out_desc, in_all, start, start_n, WHICH)
            else:
                put(s, buffers.index(WHICH), of_head, start, rows, start_n, keys)
            t = finished(t, numbers, scale, visible - PART, ring.dtype, CAUSAL)
            if BULK:
                send(t, buffers, out_desc, in_all, start, start_n + PART, WHICH)
            else:
                put(t, buffers.index(WHICH), of_head, start, rows, start_n + PART, keys)
        at += steps
        mbarrier.wait(ready.index(2 * side + 1), turn // 2 & 1)  # without a step, or it may run two units ahead
        mbarrier.arrive(free.index(side), count=1)
    if BULK:
        tma.store_wait(0)


@gluon.jit(do_not_specialize=range(8, 17), do_not_specialize_on_alignment=range(3))
def streamed_qk_kernel(
    out_ptr, cos_ptr, sin_ptr, out_desc, q_desc, k_desc, cos_desc, sin_desc,
    units, heads, group, rows, keys, offset, scale, cos_s, sin_s,
    HALF: gl.constexpr, CAUSAL: gl.constexpr, BULK: gl.constexpr,
):  # fmt: skip
    """A program's units one after the other: KEYS keys of one head against all queries of the heads that meet them.

    ``out_desc`` is for bulk copies (BULK), ``out_ptr`` for other stores.
    """
    DOT: gl.constexpr = out_ptr.dtype.element_ty
    offset = offset.to(gl.int64)
    turned = gl.allocate_shared_memory(DOT, [8, 1, 1, PART, HALF], k_desc.layout)  # both halves of two parts, twice
    ring = gl.allocate_shared_memory(DOT, [2 * STAGES, 1, 1, TILE, HALF], q_desc.layout)
    tables = gl.allocate_shared_memory(DOT, [2 * STAGES, TILE, HALF], cos_desc.layout)
    if BULK:
        buffers = gl.allocate_shared_memory(DOT, [4, 1, TILE, PART // 2], out_desc.layout)
    else:
        ROWS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE, PART], DOT)
        buffers = gl.allocate_shared_memory(DOT, [2, TILE, PART], ROWS)
    lines = gl.allocate_shared_memory(gl.int32, [2, PART], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    raw = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    room = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(4):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(ready.index(place), count=1)
    for side in gl.static_range(2):
        mbarrier.init(free.index(side), count=2)
    for place in gl.static_range(STAGES):
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(room.index(place), count=1)
    work = (
        turns_of(units, gl.program_id(0), gl.num_programs(0), 1),
        gl.cdiv(rows, TILE) * group,
        heads,
        group,
        keys,
        rows,
        offset,
    )
    descs = (q_desc, k_desc, cos_desc, sin_desc)
    x_rings, k_rings, rooms = (ring, tables, full, room), (turned, raw, ready, free), (buffers, lines)
    wait_for_launch(True)
    gl.warp_specialize(
        [
            (score, (out_ptr, out_desc, x_rings, k_rings, rooms, work, scale, 0, HALF, CAUSAL, BULK)),
            (score, (out_ptr, out_desc, x_rings, k_rings, rooms, work, scale, 1, HALF, CAUSAL, BULK)),
            (turn_keys, ((cos_ptr, sin_ptr), k_rings, work, (cos_s, sin_s), HALF)),
            (bring, (descs, x_rings, k_rings, work, HALF)),
        ],
        [4, 4, 1],
        [200, 96, 24],
    )


def serves(wish: Wish) -> bool:
    """Whether the kernel can take a call: 128 columns, rows that bulk copies can bring, and what others ask."""
    forms = wish.forms.values()
    return (
        qk.serves(wish)
        and wish.forms["q"].shape[3] == 128
        and wish.q_offset + wish.forms["q"].shape[2] + TILE.value <= INT32_MAX
        and not any(stride <= 0 for x in forms for stride in x.strides)
    )


def units_of(wish: Wish) -> int:
    """Blocks of keys of all heads."""
    batch, heads, keys, _ = wish.forms["k"].shape
    return ceil_div(keys, KEYS.value) * batch * heads


def pays(wish: Wish) -> bool:
    """Whether it is quicker than the other kernels: few multiprocessors are left without a unit in the last round."""
    (_, heads, rows, _), (_, heads_k, keys, _) = wish.forms["q"].shape, wish.forms["k"].shape
    rounds = ceil_div(units_of(wish), wish.places)
    full = units_of(wish) >= ENOUGH_UNITS * wish.places * rounds
    return full and keys > PART.value and ceil_div(rows, TILE.value) * (heads // heads_k) >= FEWEST_STEPS


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, cos, sin and scores (B, Hq, Sq, Sk)."""
    q, k, cos, sin = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    units, half = check_programs("rope_qk", units_of(wish)), width // 2
    numbers = units, heads_k, heads // heads_k, rows, keys, wish.q_offset, wish.scale, cos.strides[0], sin.strides[0]
    bulk = wish.causal or keys >= MANY_KEYS or keys <= KEYS.value
    constants = {"HALF": half, "CAUSAL": wish.causal, "BULK": bulk, "num_warps": 4, **BEGINS_EARLY}
    launch = Prepared(streamed_qk_kernel, min(units, wish.places), numbers, constants, {})
    of_q, of_k = Blocks(1, 1, TILE.value, half), Blocks(1, 1, PART.value, half)
    of_cos, of_sin = Blocks(TILE.value, half), Blocks(TILE.value, half)
    of_scores = Blocks(1, TILE.value, PART.value // 2)

    def run(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
        described = of_scores.of(out.view(batch * heads, rows, keys)) if bulk else None
        launch.run((out, cos, sin, described, of_q.of(q), of_k.of(k), of_cos.of(cos), of_sin.of(sin)))

    return run
