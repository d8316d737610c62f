"""Gradients of the rows that a program of :mod:`kernels.hopper.attention_backward` owns: one group of four warps."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.hopper.rings import place_of
from kernels.hopper.rows import (
    begin_of,
    load_halves,
    load_rows,
    rotate,
    rows_in_lanes,
    seen_of,
    store_halves,
    turned_back,
)
from kernels.hopper.streams import TILE, steps_of, unit_of
from kernels.hopper.units import ROWS
from kernels.softmax import LOG2_E, finite_or_zero


@gluon.jit
def load_own(tensors, head, start, rows, placed, places, heads, HALF: gl.constexpr):
    """Own rows of x and y, both halves, and rows of the tables; where there are no more, the last one again."""
    x_ptr, y_ptr, cos_ptr, sin_ptr = tensors
    x_b, x_h, x_s, y_b, y_h, y_s, cos_s, sin_s = places
    x_ptr = begin_of(x_ptr, head, heads, x_b, x_h)
    x1, x2, cos, sin = load_rows(x_ptr, cos_ptr, sin_ptr, start, rows, placed, x_s, cos_s, sin_s, HALF)
    i = gl.minimum(start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, rows_in_lanes(HALF))), rows - 1).to(gl.int64)
    y1, y2 = load_halves(begin_of(y_ptr, head, heads, y_b, y_h), i * y_s, HALF)
    return x1, x2, cos, sin, y1, y2


@gluon.jit
def load_sums(from_o, head, start, rows, heads, HALF: gl.constexpr):
    """Own rows of o, both halves, of lse, and of its gradient."""
    o_ptr, lse_ptr, dlse_ptr, _sums, dlse_b, dlse_h, dlse_s = from_o
    i = gl.minimum(start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, rows_in_lanes(HALF))), rows - 1).to(gl.int64)
    before = head.to(gl.int64) * rows
    o1, o2 = load_halves(o_ptr + before * (2 * HALF), i * (2 * HALF), HALF)
    dlse_ptr = begin_of(dlse_ptr, head, heads, dlse_b, dlse_h)
    return o1, o2, gl.load(lse_ptr + before + i), gl.load(dlse_ptr + i * dlse_s)


@gluon.jit
def pull(
    given, own,
    WHICH: gl.constexpr, HALF: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr, SPAN: gl.constexpr,
):  # fmt: skip
    """Gradients of one group's own rows, from all rows that stream by; one unit after the other."""
    tensors, from_o, made, x_rings, y_rings, sums, work, places, scale = given
    sums_ptr = from_o[3]
    dx_ptr, dy_ptr = made
    x1, x2, y1, y2, cos_room, sin_room = own
    ring, full, room = x_rings
    y_ring, y_full, y_room = y_rings
    pairs, lines = sums
    numbers = lines.index(WHICH)
    numbers.store(gl.arange(0, TILE, layout=gl.BlockedLayout([1], [32], [4], [0])))
    mine, heads, _, rows, others, offset, _, _ = work
    WIDTH: gl.constexpr = 2 * HALF
    DOT: gl.constexpr = ring.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    DX: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    LEFT_S: gl.constexpr = gl.DotOperandLayout(0, S, 2)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, DX, 2)
    placed = offset * 0 if OF_KEYS else offset
    padded = gl.cdiv(rows, 2 * ROWS) * (2 * ROWS)
    units = (scale * LOG2_E).to(gl.float32)
    lanes = gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
    at = mine * 0
    for turn in range(mine):
        # Nothing is loaded ahead for the next unit: code that is there twice costs more than the wait.
        head, start, front, each = unit_of(turn, work, 2 * ROWS, CAUSAL, OF_KEYS, SPAN)
        start += WHICH * ROWS
        a1, a2, cos, sin, b1, b2 = load_own(tensors, head, start, rows, placed, places, heads, HALF)
        if not OF_KEYS:
            o1, o2, lse, dlse = load_sums(from_o, head, start, rows, heads, HALF)
        r = start + lanes
        if OF_KEYS:
            limit = (gl.maximum(r - offset, 0) if CAUSAL else r).to(gl.int32)
            whole_from = (gl.maximum(start + ROWS - 1 - offset, 0) if CAUSAL else offset * 0).to(gl.int32)
            whole_to = others
        else:
            i = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, rows_in_lanes(HALF)))
            limit = (gl.minimum(r + offset + 1, others) if CAUSAL else r * 0 + others.to(gl.int64)).to(gl.int32)
            whole_from = start * 0
            whole_to = (gl.minimum(start + offset + 1, others) if CAUSAL else others.to(gl.int64)).to(gl.int32)
        a1, a2 = rotate(a1, a2, cos, sin)
        cos_room.store(cos)
        sin_room.store(sin)
        x1.store(a1)
        x2.store(a2)
        y1.store(b1)
        y2.store(b2)
        fence_async_shared()
        if not OF_KEYS:
            delta = gl.sum(b1.to(gl.float32) * o1.to(gl.float32) + b2.to(gl.float32) * o2.to(gl.float32), 1) - dlse
            lse_2 = finite_or_zero(lse) * LOG2_E
            of_rows = sums_ptr + head.to(gl.int64) * 2 * padded + i
            gl.store(of_rows, lse_2)
            gl.store(of_rows + padded, delta)
            lse_2 = gl.convert_layout(lse_2, gl.SliceLayout(1, S))
            delta = gl.convert_layout(delta, gl.SliceLayout(1, S))
        a1 = x1.load(LEFT_S)
        a2 = x2.load(LEFT_S)
        g1 = gl.zeros([ROWS, HALF], gl.float32, DX)
        g2 = gl.zeros([ROWS, HALF], gl.float32, DX)
        h1 = gl.zeros([ROWS, HALF], gl.float32, DX)
        h2 = gl.zeros([ROWS, HALF], gl.float32, DX)
        tile = each * 0
        for step in range(steps_of(each, work, OF_KEYS)):
            row = (front + tile) * TILE
            tile = gl.where(tile + 1 == each, 0, tile + 1)
            place, parity = place_of(at + step, ring.shape[0] // 2)
            y_place, y_parity = place_of(at + step, y_ring.shape[0] // 2)
            first = ring.index(2 * place).reshape((TILE, HALF))
            second = ring.index(2 * place + 1).reshape((TILE, HALF))
            third = y_ring.index(2 * y_place).reshape((TILE, HALF))
            fourth = y_ring.index(2 * y_place + 1).reshape((TILE, HALF))
            mbarrier.wait(full.index(place), parity)
            mbarrier.wait(y_full.index(y_place), y_parity)
            s = gl.zeros([ROWS, TILE], gl.float32, S)
            if OF_KEYS:
                s = warpgroup_mma(x2, second.permute((1, 0)), s, use_acc=False, is_async=True)
                s = warpgroup_mma(x1, first.permute((1, 0)), s, is_async=True)
            else:
                s = warpgroup_mma(a2, second.permute((1, 0)), s, use_acc=False, is_async=True)
                s = warpgroup_mma(a1, first.permute((1, 0)), s, is_async=True)
            dp = gl.zeros([ROWS, TILE], gl.float32, S)
            dp = warpgroup_mma(y1, third.permute((1, 0)), dp, use_acc=False, is_async=True)
            dp = warpgroup_mma(y2, fourth.permute((1, 0)), dp, is_async=True)
            if OF_KEYS:
                s = warpgroup_mma_wait(2, deps=[s])
                p = gl.exp2(s * units - pairs.index(y_place).slice(0, 1, 0).load(S))
            else:
                s, a1, a2 = warpgroup_mma_wait(2, deps=[s, a1, a2])
                p = gl.exp2(s * units - lse_2[:, None])
            at_edge = (row < whole_from) | (row + TILE > whole_to)
            if at_edge:
                p = gl.where(seen_of(numbers, limit, others, row, S, CAUSAL, OF_KEYS), p, 0.0)
            if OF_KEYS:
                left_y = gl.convert_layout(p.to(DOT), LEFT)
                h1 = warpgroup_mma(left_y, third, h1, is_async=True)
                h2 = warpgroup_mma(left_y, fourth, h2, is_async=True)
                dp = warpgroup_mma_wait(2, deps=[dp])
                ds = p * (dp - pairs.index(y_place).slice(1, 1, 0).load(S))
            else:
                dp = warpgroup_mma_wait(0, deps=[dp])
                ds = p * (dp - delta[:, None])
            if at_edge:
                ds = gl.where(seen_of(numbers, limit, others, row, S, CAUSAL, OF_KEYS), ds, 0.0)
            left = gl.convert_layout(ds.to(DOT), LEFT)
            g2 = warpgroup_mma(left, second, g2, is_async=True)
            g1 = warpgroup_mma(left, first, g1, is_async=True)
            if OF_KEYS:
                g1, g2, h1, h2, left, left_y = warpgroup_mma_wait(0, deps=[g1, g2, h1, h2, left, left_y])
            else:
                g1, g2, left = warpgroup_mma_wait(0, deps=[g1, g2, left])
            mbarrier.arrive(y_room.index(y_place), count=1)
            mbarrier.arrive(room.index(place), count=1)
        at += steps_of(each, work, OF_KEYS)

        before = head.to(gl.int64) * rows * WIDTH
        if OF_KEYS:
            store_halves(h1.to(DOT), h2.to(DOT), dy_ptr + before, start, rows, x1, x2, HALF)
        factor = scale.to(gl.float32)
        cos, sin = cos_room.load(DX).to(gl.float32), sin_room.load(DX).to(gl.float32)
        g1, g2 = turned_back(g1 * factor, g2 * factor, cos, sin)
        store_halves(g1.to(DOT), g2.to(DOT), dx_ptr + before, start, rows, x1, x2, HALF)
