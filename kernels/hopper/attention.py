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

from kernels.early import BEGINS_EARLY, wait_for_launch
from kernels.fused import check_programs
from kernels.hopper.forms import Blocks, are_even
from kernels.hopper.rings import place_of
from kernels.hopper.rows import begin_of, load_rows, rotate, rows_in_lanes, store_rows
from kernels.hopper.units import ROWS, pairs_are_quicker, tiles_seen, turns_of, unit_of
from kernels.hopper.weights import NOTHING, PARTS, in_parts, log_of_sum, multiply_keys, wait_for_scores, weigh
from kernels.launch import Prepared, ceil_div
from kernels.softmax import LEAST, LN_2, LOG2_E
from kernels.special import Wish

SLICES = gl.constexpr(4)  # parts of a tile of keys that are rotated at once, each with a place for rows of the tables
V_STAGES = gl.constexpr(2)
ENOUGH_KEYS = 128  # below, most of a tile is empty
ENOUGH_BLOCKS = 96  # of 132 multiprocessors: the portable kernel shares keys out where there are few


@gluon.jit
def bring_keys(
    k_desc, cos_desc, sin_desc, k_ring, raw, k_room, tables, work,
    HALF: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr,
):  # fmt: skip
    """Keys, both halves, and their rows of the tables, as far ahead as there is room."""
    t_ring, t_full, t_room = tables
    KEYS: gl.constexpr = k_ring.shape[3]
    STAGES: gl.constexpr = k_ring.shape[0] // 2
    mine, heads, group, rows, keys, offset = work
    step = mine * 0
    for turn in range(mine):
        head, _, count = unit_of(turn, rows, keys, offset, KEYS, CAUSAL, SPAN)
        b, h = head // heads, head % heads // group
        for tile in range(count):
            place, parity = place_of(step, STAGES)
            mbarrier.wait(k_room.index(place), parity ^ 1)
            mbarrier.expect(raw.index(place), 2 * k_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(k_desc, [b, h, tile * KEYS, 0], raw.index(place), k_ring.index(2 * place))
            half_of = k_ring.index(2 * place + 1)
            tma.async_copy_global_to_shared(k_desc, [b, h, tile * KEYS, HALF], raw.index(place), half_of)
            for part in gl.static_range(SLICES):
                slot, phase = part, step & 1
                row = tile * KEYS + part * (KEYS // SLICES)
                mbarrier.wait(t_room.index(slot), phase ^ 1)
                mbarrier.expect(t_full.index(slot), 2 * cos_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(cos_desc, [row, 0], t_full.index(slot), t_ring.index(2 * slot))
                tma.async_copy_global_to_shared(sin_desc, [row, 0], t_full.index(slot), t_ring.index(2 * slot + 1))
            step += 1


@gluon.jit
def bring_values(v_desc, v_ring, v_full, v_room, work, CAUSAL: gl.constexpr, SPAN: gl.constexpr):
    """Values, as far ahead as there is room."""
    KEYS: gl.constexpr = v_ring.shape[3]
    mine, heads, group, rows, keys, offset = work
    step = mine * 0
    for turn in range(mine):
        head, _, count = unit_of(turn, rows, keys, offset, KEYS, CAUSAL, SPAN)
        b, h = head // heads, head % heads // group
        for tile in range(count):
            place, parity = place_of(step, V_STAGES)
            mbarrier.wait(v_room.index(place), parity ^ 1)
            mbarrier.expect(v_full.index(place), v_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(v_desc, [b, h, tile * KEYS, 0], v_full.index(place), v_ring.index(place))
            step += 1


@gluon.jit
def turn_keys(k_ring, raw, full, tables, work, HALF: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr):
    """Keys rotated where they lie, a slice at a time."""
    t_ring, t_full, t_room = tables
    KEYS: gl.constexpr = k_ring.shape[3]
    SLICE: gl.constexpr = KEYS // SLICES
    STAGES: gl.constexpr = k_ring.shape[0] // 2
    OF_ROWS: gl.constexpr = rows_in_lanes(HALF)
    mine, _, _, rows, keys, offset = work
    step = mine * 0
    for turn in range(mine):
        _, _, count = unit_of(turn, rows, keys, offset, KEYS, CAUSAL, SPAN)
        for _tile in range(count):
            place, parity = place_of(step, STAGES)
            first = k_ring.index(2 * place).reshape((KEYS, HALF))
            second = k_ring.index(2 * place + 1).reshape((KEYS, HALF))
            mbarrier.wait(raw.index(place), parity)
            for part in gl.static_range(SLICES):
                slot, phase = part, step & 1
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
            step += 1


@gluon.jit
def attend(
    tensors, q1, q2, rings, work, places, scale,
    WHICH: gl.constexpr, HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr,
):  # fmt: skip
    """One group's rows of q against all tiles of keys, with the softmax carried along; one unit after the other."""
    q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr = tensors
    k_ring, full, k_room, v_ring, v_full, v_room, lines = rings
    KEYS: gl.constexpr = k_ring.shape[3]
    STAGES: gl.constexpr = k_ring.shape[0] // 2
    AHEAD: gl.constexpr = HALF <= 64  # else neither the next unit's rows nor half of rotated q find registers
    numbers = lines.index(WHICH)  # of columns, in shared memory, or they would take registers all along
    numbers.store(gl.arange(0, KEYS, layout=gl.BlockedLayout([1], [32], [4], [0])))
    mine, heads, _, rows, keys, offset = work
    q_b, q_h, q_s, cos_s, sin_s = places
    DOT: gl.constexpr = k_ring.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    AT_ONCE: gl.constexpr = WIDTH_V if WIDTH_V <= 128 else 128  # no instruction may need all registers
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, AT_ONCE, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    units = gl.maximum(gl.abs(scale) * LOG2_E, LEAST).to(gl.float32)
    head, start, count = unit_of(0, rows, keys, offset, KEYS, CAUSAL, SPAN)
    start += WHICH * ROWS
    q = begin_of(q_ptr, head, heads, q_b, q_h)
    if AHEAD:
        x1, x2, cos, sin = load_rows(q, cos_ptr, sin_ptr, start, rows, offset, q_s, cos_s, sin_s, HALF)
    step = mine * 0
    for turn in range(mine):
        if AHEAD:
            y1, y2 = rotate(x1, x2, cos, sin)
        else:
            z1, z2, of_cos, of_sin = load_rows(q, cos_ptr, sin_ptr, start, rows, offset, q_s, cos_s, sin_s, HALF)
            y1, y2 = rotate(z1, z2, of_cos, of_sin)
        if scale < 0:  # their sign takes up the scale's
            y1 = -y1
            y2 = -y2
        q1.store(y1)
        q2.store(y2)
        fence_async_shared()
        r = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
        high = (gl.minimum(r + offset + 1, keys) if CAUSAL else r * 0 + keys.to(gl.int64)).to(gl.int32)
        seen = (gl.minimum(start + offset + 1, keys) if CAUSAL else keys.to(gl.int64)).to(gl.int32)  # by every row
        top = gl.full([ROWS], NOTHING, gl.float32, gl.SliceLayout(1, S))
        o = gl.zeros([ROWS, WIDTH_V], gl.float32, OUT)

        place, parity = place_of(step, STAGES)
        mbarrier.wait(full.index(place), parity)
        second = q2.load(gl.DotOperandLayout(0, S, 2)) if AHEAD else q2
        s = multiply_keys(q1, second, k_ring, place, HALF, S)
        next_head, next_start, next_count = unit_of(
            gl.minimum(turn + 1, mine - 1), rows, keys, offset, KEYS, CAUSAL, SPAN
        )
        next_start += WHICH * ROWS
        q = begin_of(q_ptr, next_head, heads, q_b, q_h)
        s, second = wait_for_scores(s, second, 0, AHEAD)
        mbarrier.arrive(k_room.index(place), count=1)
        if seen < KEYS:
            s = gl.where(numbers.load(gl.SliceLayout(0, S))[None, :] < high[:, None], s, -float("inf"))
        total = gl.zeros([ROWS, PARTS], gl.float32, gl.SliceLayout(1, in_parts(s).type.layout))
        nowhere = gl.full([ROWS, PARTS], rows, gl.int32, total.type.layout)
        p, alpha, top, total = weigh(s, top, total, units)
        left = gl.convert_layout(p.to(DOT), LEFT)
        whole = gl.maximum(gl.minimum(seen // KEYS, count), 1)
        for tile in range(1, count):
            place, parity = place_of(step + tile, STAGES)
            v_place, v_parity = place_of(step + tile - 1, V_STAGES)
            mbarrier.wait(full.index(place), parity)
            mbarrier.wait(v_full.index(v_place), v_parity)
            s = multiply_keys(q1, second, k_ring, place, HALF, S)
            o = warpgroup_mma(left, v_ring.index(v_place).reshape((KEYS, WIDTH_V)), o, is_async=True)
            s, second = wait_for_scores(s, second, 1, AHEAD)
            mbarrier.arrive(k_room.index(place), count=1)
            if tile >= whole:
                column = numbers.load(gl.SliceLayout(0, S))[None, :]
                s = gl.where(column < (high - tile * KEYS)[:, None], s, -float("inf"))
            p, alpha, top, total = weigh(s, top, total, units)
            # Weights are made while the tensor cores add up values. The compiler would wait for these before it
            # makes them, but for a store that needs them; it never happens, which the compiler does not know.
            gl.store(lse_ptr + nowhere, total, mask=nowhere < 0)
            o, left, p = warpgroup_mma_wait(0, deps=[o, left, p])
            mbarrier.arrive(v_room.index(v_place), count=1)
            o = o * gl.convert_layout(alpha, gl.SliceLayout(1, OUT))[:, None]
            left = gl.convert_layout(p.to(DOT), LEFT)
        step += count
        place, parity = place_of(step - 1, V_STAGES)
        mbarrier.wait(v_full.index(place), parity)
        o = warpgroup_mma(left, v_ring.index(place).reshape((KEYS, WIDTH_V)), o, is_async=True)
        if AHEAD:
            x1, x2, cos, sin = load_rows(q, cos_ptr, sin_ptr, next_start, rows, offset, q_s, cos_s, sin_s, HALF)
        o, left = warpgroup_mma_wait(0, deps=[o, left])
        mbarrier.arrive(v_room.index(place), count=1)

        whole_sum = gl.convert_layout(gl.sum(total, 1), gl.SliceLayout(1, S))
        lse, whole_sum = log_of_sum(top, whole_sum, units)
        gl.store(lse_ptr + head.to(gl.int64) * rows + r, lse * LN_2, mask=r < rows)
        o = o * gl.convert_layout(1.0 / whole_sum, gl.SliceLayout(1, OUT))[:, None]
        store_rows(o.to(DOT), o_ptr + head.to(gl.int64) * rows * WIDTH_V, start, rows, q1, q2, HALF, WIDTH_V)
        head, start, count = next_head, next_start, next_count


@gluon.jit(do_not_specialize=range(9, 21), do_not_specialize_on_alignment=range(5))
def hopper_attention_kernel(
    q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, k_desc, v_desc, cos_desc, sin_desc,
    units, heads, group, rows, keys, offset, scale, q_b, q_h, q_s, cos_s, sin_s,
    HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr,
):  # fmt: skip
    """A program's units one after the other: two groups' rows of one head of q against the keys they see."""
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    FACTOR: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HALF], DOT)
    KEYS: gl.constexpr = k_desc.block_type.shape[2]
    K_STAGES: gl.constexpr = 3 if HALF <= 64 else 2
    offset = offset.to(gl.int64)
    turned = gl.allocate_shared_memory(DOT, [4, ROWS, HALF], FACTOR)
    k_ring = gl.allocate_shared_memory(DOT, [2 * K_STAGES, 1, 1, KEYS, HALF], k_desc.layout)
    v_ring = gl.allocate_shared_memory(DOT, [V_STAGES, 1, 1, KEYS, WIDTH_V], v_desc.layout)
    t_ring = gl.allocate_shared_memory(DOT, [2 * SLICES, KEYS // SLICES, HALF], cos_desc.layout)
    raw = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_room = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_room = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    t_full = gl.allocate_shared_memory(gl.int64, [SLICES, 1], mbarrier.MBarrierLayout())
    t_room = gl.allocate_shared_memory(gl.int64, [SLICES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(K_STAGES):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(k_room.index(place), count=2)
    for place in gl.static_range(V_STAGES):
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(v_room.index(place), count=2)
    for place in gl.static_range(SLICES):
        mbarrier.init(t_full.index(place), count=1)
        mbarrier.init(t_room.index(place), count=1)
    work = (turns_of(units, gl.program_id(0), gl.num_programs(0), SPAN), heads, group, rows, keys, offset)
    places = (q_b, q_h, q_s, cos_s, sin_s)
    numbers = gl.allocate_shared_memory(gl.int32, [2, KEYS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    rings = (k_ring, full, k_room, v_ring, v_full, v_room, numbers)
    tables = (t_ring, t_full, t_room)
    tensors = (q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr)
    q1, q2, q3, q4 = turned.index(0), turned.index(1), turned.index(2), turned.index(3)
    wait_for_launch(True)
    gl.warp_specialize(
        [
            (attend, (tensors, q1, q2, rings, work, places, scale, 0, HALF, WIDTH_V, CAUSAL, SPAN)),
            (attend, (tensors, q3, q4, rings, work, places, scale, 1, HALF, WIDTH_V, CAUSAL, SPAN)),
            (turn_keys, (k_ring, raw, full, tables, work, HALF, CAUSAL, SPAN)),
            (bring_keys, (k_desc, cos_desc, sin_desc, k_ring, raw, k_room, tables, work, HALF, CAUSAL, SPAN)),
            (bring_values, (v_desc, v_ring, v_full, v_room, work, CAUSAL, SPAN)),
        ],
        [4, 4, 1, 1],
        [216, 56, 24, 24],
    )


def serves(wish: Wish) -> bool:
    """Whether the kernel can take a call: certain columns, and what :func:`kernels.hopper.forms.are_even` asks."""
    q, k, v, cos, sin = wish.forms.values()
    needed = max(wish.q_offset + q.shape[2], k.shape[2])
    return (
        wish.plain
        and are_even(wish)
        and not any(stride <= 0 for x in (k, v, cos, sin) for stride in x.strides)
        and ({q.shape[3], v.shape[3]} <= {64, 128} or q.shape[3] == v.shape[3] == 256)
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
    units = check_programs("rope_attention", ceil_div(rows, 2 * ROWS.value) * batch * heads)
    steps = *q.strides[:3], cos.strides[0], sin.strides[0]
    numbers = units, heads, heads // heads_k, rows, keys, wish.q_offset, wish.scale, *steps
    tile = 128 if width <= 128 else 64  # keys
    counts = tiles_seen(wish, ceil_div(rows, 2 * ROWS.value), tile)
    span = 2 if wish.causal and pairs_are_quicker(units, counts, wish.places) else 1
    constants = {
        "HALF": width // 2,
        "WIDTH_V": width_v,
        "CAUSAL": wish.causal,
        "SPAN": span,
        "num_warps": 4,
        **BEGINS_EARLY,
    }
    programs = min(ceil_div(units, span), wish.places)
    launch = Prepared(hopper_attention_kernel, programs, numbers, constants, {})
    of_k, of_v = Blocks(1, 1, tile, width // 2), Blocks(1, 1, tile, width_v)
    of_cos, of_sin = (Blocks(tile // SLICES.value, width // 2) for _ in range(2))

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
        o: torch.Tensor, lse: torch.Tensor,
    ) -> None:  # fmt: skip
        launch.run((q, cos, sin, o, lse, of_k.of(k), of_v.of(v), of_cos.of(cos), of_sin.of(sin)))

    return run
