"""Attention on compute capability 9.0, in Gluon: the rotation of keys hides behind products.

Warps of a block have roles. One warp brings keys and rows of the tables by bulk copies, one values. Four warps rotate
keys where they lie, ahead of two groups of four that multiply, each 64 rows of q against the same keys. A group weighs
the scores of one tile while the tensor cores add up the values of the tile before. Rotated q and k are in shared memory
alone. Inputs that :func:`serves` does not accept are left to :mod:`kernels.attention_launch`. The module is long: roles
that hand buffers to each other are read side by side.
"""

import math
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

from kernels.fused import check_programs
from kernels.hopper.forms import Blocks, are_even
from kernels.launch import Prepared, ceil_div
from kernels.softmax import LEAST, LN_2, LOG2_E
from kernels.special import Wish

ROWS, KEYS = gl.constexpr(64), gl.constexpr(128)  # of a group of warps, and of a tile of keys
SLICE = gl.constexpr(32)  # keys that are rotated at once
K_STAGES, V_STAGES, T_STAGES = gl.constexpr(3), gl.constexpr(2), gl.constexpr(4)
ENOUGH_KEYS = 512  # below, the portable kernel ends first
ENOUGH_BLOCKS = 96  # of 132 multiprocessors: the portable kernel shares keys out where there are few


@gluon.constexpr_function
def rows_in_lanes(columns):
    """The layout of rows of 16-bit numbers whose eight lanes at a time lie in different banks of shared memory."""
    return gl.BlockedLayout([1, 8], [256 // columns, columns // 8], [4, 1], [1, 0])


@gluon.jit
def place_of(turn, STAGES: gl.constexpr):
    """(buffer, parity of its barrier's phase) of a turn around a ring."""
    return turn % STAGES, (turn // STAGES) & 1


@gluon.jit
def rotate(x1, x2, cos, sin):
    """Both rotated halves, each product rounded as eager PyTorch rounds it, two numbers an instruction."""
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@gluon.jit
def bring_keys(
    k_desc, cos_desc, sin_desc, b, h, k_ring, raw, k_room, t_ring, t_full, t_room, count, HALF: gl.constexpr
):
    """Keys, both halves, and their rows of the tables, as far ahead as there is room."""
    for tile in range(count):
        place, parity = place_of(tile, K_STAGES)
        mbarrier.wait(k_room.index(place), parity ^ 1)
        mbarrier.expect(raw.index(place), 2 * k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [b, h, tile * KEYS, 0], raw.index(place), k_ring.index(2 * place))
        half_of = k_ring.index(2 * place + 1)
        tma.async_copy_global_to_shared(k_desc, [b, h, tile * KEYS, HALF], raw.index(place), half_of)
        for part in gl.static_range(KEYS // SLICE):
            slot, phase = place_of(tile * (KEYS // SLICE) + part, T_STAGES)
            row = tile * KEYS + part * SLICE
            mbarrier.wait(t_room.index(slot), phase ^ 1)
            mbarrier.expect(t_full.index(slot), 2 * cos_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(cos_desc, [row, 0], t_full.index(slot), t_ring.index(2 * slot))
            tma.async_copy_global_to_shared(sin_desc, [row, 0], t_full.index(slot), t_ring.index(2 * slot + 1))


@gluon.jit
def bring_values(v_desc, b, h, v_ring, v_full, v_room, count):
    """Values, as far ahead as there is room."""
    for tile in range(count):
        place, parity = place_of(tile, V_STAGES)
        mbarrier.wait(v_room.index(place), parity ^ 1)
        mbarrier.expect(v_full.index(place), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [b, h, tile * KEYS, 0], v_full.index(place), v_ring.index(place))


@gluon.jit
def turn_keys(k_ring, raw, full, t_ring, t_full, t_room, count, HALF: gl.constexpr):
    """Keys rotated where they lie, a slice at a time."""
    OF_ROWS: gl.constexpr = rows_in_lanes(HALF)
    for tile in range(count):
        place, parity = place_of(tile, K_STAGES)
        first = k_ring.index(2 * place).reshape((KEYS, HALF))
        second = k_ring.index(2 * place + 1).reshape((KEYS, HALF))
        mbarrier.wait(raw.index(place), parity)
        for part in gl.static_range(KEYS // SLICE):
            slot, phase = place_of(tile * (KEYS // SLICE) + part, T_STAGES)
            k1 = first.slice(part * SLICE, SLICE, 0)
            k2 = second.slice(part * SLICE, SLICE, 0)
            x1 = k1.load(OF_ROWS)
            x2 = k2.load(OF_ROWS)
            mbarrier.wait(t_full.index(slot), phase)
            cos = t_ring.index(2 * slot).load(OF_ROWS)
            sin = t_ring.index(2 * slot + 1).load(OF_ROWS)
            y1, y2 = rotate(x1, x2, cos, sin)
            k1.store(y1)
            k2.store(y2)
            mbarrier.arrive(t_room.index(slot), count=1)  # not before all that was loaded has been used
        fence_async_shared()
        mbarrier.arrive(full.index(place), count=1)


@gluon.jit
def table_rows(ptr, row, there, stride, COUNT: gl.constexpr, HALF: gl.constexpr):
    """Rows (COUNT, HALF) of a table."""
    OF_ROWS: gl.constexpr = rows_in_lanes(HALF)
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    rows = gl.multiple_of(ptr + (row * stride)[:, None], (16, 16))
    return gl.load(rows + d, mask=gl.max_constancy(there[:, None] & (d < HALF), (1, 8)), other=0.0)


@gluon.jit
def turn_queries(q_ptr, cos_ptr, sin_ptr, q1, q2, start, rows, offset, scale, q_s, cos_s, sin_s, HALF: gl.constexpr):
    """A group's rows of q, rotated, to shared memory; their sign takes up the scale's."""
    OF_ROWS: gl.constexpr = rows_in_lanes(HALF)
    i = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OF_ROWS))
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    mask = gl.max_constancy((i < rows)[:, None] & (d < HALF), (1, 8))
    at = gl.multiple_of(q_ptr + (i.to(gl.int64) * q_s)[:, None], (16, 16))
    cos = table_rows(cos_ptr, i + offset, i < rows, cos_s, ROWS, HALF)
    sin = table_rows(sin_ptr, i + offset, i < rows, sin_s, ROWS, HALF)
    y1, y2 = rotate(gl.load(at + d, mask=mask, other=0.0), gl.load(at + HALF + d, mask=mask, other=0.0), cos, sin)
    if scale < 0:
        y1 = -y1
        y2 = -y2
    q1.store(y1)
    q2.store(y2)
    fence_async_shared()


@gluon.jit
def multiply_keys(q1, q2, k_ring, place, HALF: gl.constexpr, S: gl.constexpr):
    """Scores (ROWS, KEYS) of a tile, under way."""
    k1 = k_ring.index(2 * place).reshape((KEYS, HALF))
    k2 = k_ring.index(2 * place + 1).reshape((KEYS, HALF))
    s = gl.zeros([ROWS, KEYS], gl.float32, S)
    s = warpgroup_mma(q2, k2.permute((1, 0)), s, use_acc=False, is_async=True)
    return warpgroup_mma(q1, k1.permute((1, 0)), s, is_async=True)


@gluon.jit
def weigh(s, top, total, units):
    """(weights, factor of what was summed before, largest score, sum of weights) with the scores of a tile."""
    best = gl.maximum(top, gl.max(s, 1))
    scaled = best * units
    beyond = (scaled == float("inf")) | ((scaled == -float("inf")) & (best != -float("inf")))
    known = gl.where(best == -float("inf"), 0.0, best)
    known = gl.where(beyond, float("nan"), known)
    p = gl.exp2((s - known[:, None]) * units)
    alpha = gl.exp2((top - known) * units)
    return p, alpha, best, total * alpha + gl.sum(p, 1)


@gluon.jit
def attend(
    q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, q1, q2, sums, rings, numbers,
    WHICH: gl.constexpr, HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """One group's rows of q against all tiles of keys, with the softmax carried along."""
    k_ring, full, k_room, v_ring, v_full, v_room = rings
    start, rows, keys, offset, scale, q_s, cos_s, sin_s, count = numbers
    start += WHICH * ROWS
    DOT: gl.constexpr = k_ring.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH_V, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    turn_queries(q_ptr, cos_ptr, sin_ptr, q1, q2, start, rows, offset, scale, q_s, cos_s, sin_s, HALF)
    units = gl.maximum(gl.abs(scale) * LOG2_E, LEAST).to(gl.float32)

    r = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
    n = gl.arange(0, KEYS, layout=gl.SliceLayout(0, S))
    high = (gl.minimum(r + offset + 1, keys) if CAUSAL else r * 0 + keys.to(gl.int64)).to(gl.int32)
    seen = (gl.minimum(start + offset + 1, keys) if CAUSAL else keys.to(gl.int64)).to(gl.int32)  # by every row
    top = gl.full([ROWS], -float("inf"), gl.float32, gl.SliceLayout(1, S))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
    o = gl.zeros([ROWS, WIDTH_V], gl.float32, OUT)

    mbarrier.wait(full.index(0), 0)
    s = warpgroup_mma_wait(0, deps=[multiply_keys(q1, q2, k_ring, 0, HALF, S)])
    mbarrier.arrive(k_room.index(0), count=1)
    if seen < KEYS:
        s = gl.where(n[None, :] < high[:, None], s, -float("inf"))
    p, alpha, top, total = weigh(s, top, total, units)
    left = gl.convert_layout(p.to(DOT), LEFT)
    whole = gl.maximum(gl.minimum(seen // KEYS, count), 1)
    for EDGES in gl.static_range(2):
        for tile in range(whole if EDGES else 1, count if EDGES else whole):
            place, parity = place_of(tile, K_STAGES)
            v_place, v_parity = place_of(tile - 1, V_STAGES)
            mbarrier.wait(full.index(place), parity)
            mbarrier.wait(v_full.index(v_place), v_parity)
            s = multiply_keys(q1, q2, k_ring, place, HALF, S)
            o = warpgroup_mma(left, v_ring.index(v_place).reshape((KEYS, WIDTH_V)), o, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(k_room.index(place), count=1)
            if EDGES:
                s = gl.where((tile * KEYS + n)[None, :] < high[:, None], s, -float("inf"))
            p, alpha, top, total = weigh(s, top, total, units)
            # Weights are made while the tensor cores add up values. The compiler would wait for these before it makes
            # them, but for a store that needs them, which nobody reads.
            sums.index(WHICH).store(total)
            o, left, p = warpgroup_mma_wait(0, deps=[o, left, p])
            mbarrier.arrive(v_room.index(v_place), count=1)
            o = o * gl.convert_layout(alpha, gl.SliceLayout(1, OUT))[:, None]
            left = gl.convert_layout(p.to(DOT), LEFT)
    place, parity = place_of(count - 1, V_STAGES)
    mbarrier.wait(v_full.index(place), parity)
    o = warpgroup_mma(left, v_ring.index(place).reshape((KEYS, WIDTH_V)), o, is_async=True)
    o, left = warpgroup_mma_wait(0, deps=[o, left])

    whole_sum = gl.where(total == 0, 1.0, total)  # a row without keys
    lse = (top * units + gl.log2(whole_sum)) * LN_2
    gl.store(lse_ptr + r, lse, mask=r < rows)
    o = o * gl.convert_layout(1.0 / whole_sum, gl.SliceLayout(1, OUT))[:, None]
    i = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUT))
    dv = gl.arange(0, WIDTH_V, layout=gl.SliceLayout(0, OUT))[None, :]
    at = gl.multiple_of(o_ptr + (i.to(gl.int64) * WIDTH_V)[:, None], (16, 16))
    mask = gl.max_constancy((i < rows)[:, None] & (dv < WIDTH_V), (1, 8))
    gl.store(at + dv, o.to(DOT), mask=mask)


@gluon.jit(do_not_specialize=range(9, 20), do_not_specialize_on_alignment=range(5))
def hopper_attention_kernel(
    q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, k_desc, v_desc, cos_desc, sin_desc,
    heads, group, rows, keys, offset, scale, q_b, q_h, q_s, cos_s, sin_s,
    HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Two groups' rows of one head of q against the keys they see; the last rows, which see most, begin first."""
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    FACTOR: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HALF], DOT)
    tiles = gl.cdiv(rows, 2 * ROWS)
    pid = gl.program_id(0)
    start = (tiles - 1 - pid % tiles) * 2 * ROWS
    head = pid // tiles
    b = head // heads
    h = head % heads
    offset = offset.to(gl.int64)
    count = gl.cdiv(keys, KEYS)
    if CAUSAL:
        count = gl.minimum(count, gl.cdiv(start + 2 * ROWS + offset, KEYS).to(gl.int32))
    q_ptr += b.to(gl.int64) * q_b + h.to(gl.int64) * q_h
    o_ptr += head.to(gl.int64) * rows * WIDTH_V
    lse_ptr += head.to(gl.int64) * rows
    turned = gl.allocate_shared_memory(DOT, [4, ROWS, HALF], FACTOR)
    k_ring = gl.allocate_shared_memory(DOT, [2 * K_STAGES, 1, 1, KEYS, HALF], k_desc.layout)
    v_ring = gl.allocate_shared_memory(DOT, [V_STAGES, 1, 1, KEYS, WIDTH_V], v_desc.layout)
    t_ring = gl.allocate_shared_memory(DOT, [2 * T_STAGES, SLICE, HALF], cos_desc.layout)
    sums = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    raw = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_room = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_room = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    t_full = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    t_room = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(K_STAGES):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(k_room.index(place), count=2)
    for place in gl.static_range(V_STAGES):
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(v_room.index(place), count=2)
    for place in gl.static_range(T_STAGES):
        mbarrier.init(t_full.index(place), count=1)
        mbarrier.init(t_room.index(place), count=1)
    rings = (k_ring, full, k_room, v_ring, v_full, v_room)
    numbers = (start, rows, keys, offset, scale, q_s, cos_s, sin_s, count)
    q1, q2, q3, q4 = turned.index(0), turned.index(1), turned.index(2), turned.index(3)
    gl.warp_specialize(
        [
            (attend, (q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, q1, q2, sums, rings, numbers, 0, HALF, WIDTH_V, CAUSAL)),
            (attend, (q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, q3, q4, sums, rings, numbers, 1, HALF, WIDTH_V, CAUSAL)),
            (turn_keys, (k_ring, raw, full, t_ring, t_full, t_room, count, HALF)),
            (
                bring_keys,
                (k_desc, cos_desc, sin_desc, b, h // group, k_ring, raw, k_room, t_ring, t_full, t_room, count, HALF),
            ),
            (bring_values, (v_desc, b, h // group, v_ring, v_full, v_room, count)),
        ],
        [4, 4, 1, 1],
        [216, 56, 24, 24],
    )


def serves(wish: Wish) -> bool:
    """Whether the kernel can take a call: 64 or 128 columns, and what :func:`kernels.hopper.forms.are_even` asks."""
    q, k, v, cos, sin = wish.forms.values()
    needed = max(wish.q_offset + q.shape[2], k.shape[2])
    return (
        wish.plain
        and are_even(wish)
        and not any(stride <= 0 for x in (k, v, cos, sin) for stride in x.strides)
        and {q.shape[3], v.shape[3]} <= {64, 128}
        and cos.shape[1] == sin.shape[1] == q.shape[3] // 2
        and min(cos.shape[0], sin.shape[0]) >= needed
        and min(math.prod(x.shape) for x in (q, k, v)) > 0
    )


def pays(wish: Wish) -> bool:
    """Whether it is quicker than the portable kernel: a block takes long to begin, and sees all keys alone."""
    (batch, heads, rows, _), keys = wish.forms["q"].shape, wish.forms["k"].shape[2]
    blocks = ceil_div(rows, 2 * ROWS.value) * batch * heads
    return keys >= ENOUGH_KEYS and rows >= 2 * ROWS.value and blocks >= ENOUGH_BLOCKS


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, v, cos, sin, o and lse.

    o is (B, Hq, Sq, Dv) and lse (B, Hq, Sq), both contiguous.
    """
    q, k, v, cos, sin = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _), width_v = q.shape, k.shape, v.shape[3]
    steps = *q.strides[:3], cos.strides[0], sin.strides[0]
    numbers = heads, heads // heads_k, rows, keys, wish.q_offset, wish.scale, *steps
    constants = {"HALF": width // 2, "WIDTH_V": width_v, "CAUSAL": wish.causal, "num_warps": 4}
    programs = check_programs("rope_attention", ceil_div(rows, 2 * ROWS.value) * batch * heads)
    launch = Prepared(hopper_attention_kernel, programs, numbers, constants, {})
    of_k, of_v = Blocks(1, 1, KEYS.value, width // 2), Blocks(1, 1, KEYS.value, width_v)
    of_cos, of_sin = Blocks(SLICE.value, width // 2), Blocks(SLICE.value, width // 2)

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
        o: torch.Tensor, lse: torch.Tensor,
    ) -> None:  # fmt: skip
        launch.run((q, cos, sin, o, lse, of_k.of(k), of_v.of(v), of_cos.of(cos), of_sin.of(sin)))

    return run
