"""What streams by where a program owns rows of one side and meets those of the other: brought, and rotated.

Rows of the own side come in blocks of OWN, one unit of work each; those of the other side in tiles. ``work`` is
(own units of this program, heads of the own side, heads of q to one of k, own rows, other rows, offset, number of this
program, programs that share the units).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from kernels.hopper.rings import place_of
from kernels.hopper.rows import rotate, rows_in_lanes
from kernels.hopper.units import COUNTED
from kernels.launch import ceil_div
from kernels.special import Wish

TILE = gl.constexpr(64)  # streamed rows at once


@gluon.jit
def unit_of(turn, work, OWN: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr, SPAN: gl.constexpr):
    """(own head in all batches, first own row, first tile met, tiles met in each head) of a program's unit.

    Where own rows meet unlike numbers of others, those that meet most come first, or go with the least as a pair.
    """
    _, _, _, rows, others, offset, pid, programs = work
    blocks = gl.cdiv(rows, OWN)
    unit = (turn // SPAN * programs + pid) * SPAN + turn % SPAN
    head, block = unit // blocks, unit % blocks
    each = gl.cdiv(others, TILE)
    first = each * 0
    if CAUSAL:
        meets_most = block % 2 == 0 if SPAN == 2 else block >= 0
        from_the_front = meets_most if OF_KEYS else meets_most ^ True
        block = gl.where(from_the_front, block // SPAN, blocks - 1 - block // SPAN)
        if OF_KEYS:
            first = gl.minimum(gl.maximum(block * OWN - offset, 0) // TILE, each).to(gl.int32)
            each -= first
        else:
            each = gl.minimum(each, gl.cdiv((block + 1) * OWN + offset, TILE)).to(gl.int32)
    return head, block * OWN, first, each


def tiles_met(wish: Wish, of_keys: bool, own: int) -> list[float]:
    """Tiles, counted as :mod:`kernels.hopper.units` does, that each block of ``own`` rows meets, least first."""
    (_, heads, rows, _), (_, heads_k, keys, _) = wish.forms["q"].shape, wish.forms["k"].shape
    tile, counts = TILE.value, []
    for start in range(0, keys if of_keys else rows, own):
        if of_keys:
            met = max(ceil_div(rows, tile) - max(start - wish.q_offset, 0) // tile, 0)
            counts.append(met * (heads // heads_k))
        else:
            counts.append(min(ceil_div(keys, tile), ceil_div(start + own + wish.q_offset, tile)))
    return sorted(count * tile / COUNTED for count in counts)


@gluon.jit
def met_in(step, head, first, each, work, OF_KEYS: gl.constexpr):
    """(batch, head, first row) of the tile that a unit meets in a step."""
    heads, group = work[1], work[2]
    b, h = head // heads, head % heads
    met, row = h // group, step * TILE
    if OF_KEYS:
        met, row = h * group + step // each, (first + step % each) * TILE
    return b, met, row


@gluon.jit
def steps_of(each, work, OF_KEYS: gl.constexpr):
    """Steps of a unit that meets so many tiles in each head."""
    return each * work[2] if OF_KEYS else each


@gluon.jit
def bring_x(
    x_desc, cos_desc, sin_desc, x_rings, t_rings, work,
    HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr, SPAN: gl.constexpr,
):  # fmt: skip
    """Streamed x, both halves, and rows of the tables, as far ahead as there is room."""
    ring, raw, _full, room = x_rings
    t_ring, t_full, t_room = t_rings
    STAGES: gl.constexpr = ring.shape[0] // 2
    T_STAGES: gl.constexpr = t_ring.shape[0] // 2
    mine, offset = work[0], work[5]
    at = mine * 0
    for turn in range(mine):
        head, _start, first, each = unit_of(turn, work, OWN, CAUSAL, OF_KEYS, SPAN)
        for step in range(steps_of(each, work, OF_KEYS)):
            b, h, row = met_in(step, head, first, each, work, OF_KEYS)
            position = (row + offset).to(gl.int32) if OF_KEYS else row
            place, parity = place_of(at, STAGES)
            mbarrier.wait(room.index(place), parity ^ 1)
            mbarrier.expect(raw.index(place), 2 * x_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(x_desc, [b, h, row, 0], raw.index(place), ring.index(2 * place))
            tma.async_copy_global_to_shared(x_desc, [b, h, row, HALF], raw.index(place), ring.index(2 * place + 1))
            slot, phase = place_of(at, T_STAGES)
            mbarrier.wait(t_room.index(slot), phase ^ 1)
            mbarrier.expect(t_full.index(slot), 2 * cos_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(cos_desc, [position, 0], t_full.index(slot), t_ring.index(2 * slot))
            tma.async_copy_global_to_shared(sin_desc, [position, 0], t_full.index(slot), t_ring.index(2 * slot + 1))
            at += 1


@gluon.jit
def bring_y(
    y_desc, sums_desc, y_rings, sums, work,
    HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr, SPAN: gl.constexpr,
):  # fmt: skip
    """Streamed y as far ahead as there is room; for keys, lse and delta of these rows too."""
    ring, full, room = y_rings
    STAGES: gl.constexpr = ring.shape[0] // 2
    mine, heads, group = work[0], work[1], work[2]
    at = mine * 0
    for turn in range(mine):
        head, _start, first, each = unit_of(turn, work, OWN, CAUSAL, OF_KEYS, SPAN)
        for step in range(steps_of(each, work, OF_KEYS)):
            b, h, row = met_in(step, head, first, each, work, OF_KEYS)
            place, parity = place_of(at, STAGES)
            mbarrier.wait(room.index(place), parity ^ 1)
            more: gl.constexpr = sums_desc.block_type.nbytes if OF_KEYS else 0
            mbarrier.expect(full.index(place), 2 * y_desc.block_type.nbytes + more)
            tma.async_copy_global_to_shared(y_desc, [b, h, row, 0], full.index(place), ring.index(2 * place))
            tma.async_copy_global_to_shared(y_desc, [b, h, row, HALF], full.index(place), ring.index(2 * place + 1))
            if OF_KEYS:
                pair = 2 * (b * heads * group + h)
                tma.async_copy_global_to_shared(sums_desc, [pair, row], full.index(place), sums.index(place))
            at += 1


@gluon.jit
def turn_x(
    x_rings, t_rings, work,
    SLICE: gl.constexpr, HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr,
    SPAN: gl.constexpr,
):  # fmt: skip
    """Streamed x rotated where it lies, SLICE rows at once, for which there must be registers.

    Rows that are not there are zeros, whatever the tables have for them.
    """
    ring, raw, full, _room = x_rings
    t_ring, t_full, t_room = t_rings
    STAGES: gl.constexpr = ring.shape[0] // 2
    T_STAGES: gl.constexpr = t_ring.shape[0] // 2
    mine, others = work[0], work[4]
    OF_ROWS: gl.constexpr = rows_in_lanes(HALF)
    r = gl.arange(0, SLICE, layout=gl.SliceLayout(1, OF_ROWS))
    at = mine * 0
    for turn in range(mine):
        head, _start, first, each = unit_of(turn, work, OWN, CAUSAL, OF_KEYS, SPAN)
        for step in range(steps_of(each, work, OF_KEYS)):
            row = met_in(step, head, first, each, work, OF_KEYS)[2]
            place, parity = place_of(at, STAGES)
            slot, phase = place_of(at, T_STAGES)
            half1 = ring.index(2 * place).reshape((TILE, HALF))
            half2 = ring.index(2 * place + 1).reshape((TILE, HALF))
            mbarrier.wait(raw.index(place), parity)
            mbarrier.wait(t_full.index(slot), phase)
            for part in gl.static_range(TILE // SLICE):
                x1 = half1.slice(part * SLICE, SLICE, 0)
                x2 = half2.slice(part * SLICE, SLICE, 0)
                cos = t_ring.index(2 * slot).slice(part * SLICE, SLICE, 0).load(OF_ROWS)
                sin = t_ring.index(2 * slot + 1).slice(part * SLICE, SLICE, 0).load(OF_ROWS)
                y1, y2 = rotate(x1.load(OF_ROWS), x2.load(OF_ROWS), cos, sin)
                if row + TILE > others:
                    there = (row + part * SLICE + r < others)[:, None]
                    y1 = gl.where(there, y1, 0.0)
                    y2 = gl.where(there, y2, 0.0)
                x1.store(y1)
                x2.store(y2)
            mbarrier.arrive(t_room.index(slot), count=1)
            fence_async_shared()
            mbarrier.arrive(full.index(place), count=1)
            at += 1
