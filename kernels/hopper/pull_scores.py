"""Gradients of the rows that a program of :mod:`kernels.hopper.qk_backward` owns, and what they come of."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from kernels.hopper.rings import place_of
from kernels.hopper.rows import load_half, rows_in_lanes, seen_of, store_halves, turned_back
from kernels.hopper.streams import TILE, met_in, steps_of, unit_of
from kernels.hopper.units import ROWS


@gluon.jit
def bring_ds(
    ds_desc, ds_rings, work, OWN: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr, SPAN: gl.constexpr
):  # fmt: skip
    """Gradients of scores of own rows and a tile, in parts of ROWS own rows, as far ahead as there is room."""
    ring, full, room = ds_rings
    PARTS: gl.constexpr = OWN // ROWS
    STAGES: gl.constexpr = ring.shape[0] // PARTS
    mine = work[0]
    at = mine * 0
    for turn in range(mine):
        head, start, first, each = unit_of(turn, work, OWN, CAUSAL, OF_KEYS, SPAN)
        for step in range(steps_of(each, work, OF_KEYS)):
            b, h, row = met_in(step, head, first, each, work, OF_KEYS)
            h = h if OF_KEYS else head % work[1]
            place, parity = place_of(at, STAGES)
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
    if CAUSAL and (row < whole_from) | (row + TILE > whole_to):
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
            place, parity = place_of(at + step, ring.shape[0] // 2)
            ds_place, ds_parity = place_of(at + step, ds_ring.shape[0] * ROWS // OWN)
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
