"""Attention on compute capability 9.0 with 128 rows of q a group of warps: the shipped kernel turns keys for 64.

What binds the shipped kernel is the bandwidth of shared memory: 2,760 wavefronts for 128 x 128 scores, of which 1,520
turn keys and copy. Here two groups have 256 rows, which see 64 keys at a time, so a turned key serves twice as many;
rows of the tables go from global memory to the registers of the warps that turn, a slice ahead. A group's two blocks of
rows take turns: scores of one are weighed while the tensor cores add up values for the other.

Predicted: 2,176 wavefronts (q 512, keys 512, values 512, turning 384, copies 256). The shipped kernel takes 1.28 clocks
for each; so (2,32,4096,128) in bfloat16 takes 815 µs instead of 1,033, where separate RoPE + cuDNN takes 868, and
(4,32,1024,128), where fewer blocks share the multiprocessors out worse, 140 to 150 instead of 171.
"""

from collections.abc import Callable
from typing import Any

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
from kernels.hopper import attention
from kernels.hopper.attention import ROWS, SLICE, place_of, rotate, rows_in_lanes, turn_queries, weigh
from kernels.hopper.forms import Blocks
from kernels.launch import INT32_MAX, Prepared, ceil_div
from kernels.pinned import pinned
from kernels.softmax import LEAST, LN_2, LOG2_E
from kernels.special import SPECIAL, Special, Wish
from kernels.tiling import HOPPER
from tests.drafts.scores import load_halves

KEYS = gl.constexpr(64)  # of a tile
K_STAGES, V_STAGES = gl.constexpr(3), gl.constexpr(3)


@gluon.jit
def bring_keys(k_desc, b, h, k_ring, raw, k_room, count, HALF: gl.constexpr):
    """Keys, both halves, as far ahead as there is room."""
    for tile in range(count):
        place, parity = place_of(tile, K_STAGES)
        mbarrier.wait(k_room.index(place), parity ^ 1)
        mbarrier.expect(raw.index(place), 2 * k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [b, h, tile * KEYS, 0], raw.index(place), k_ring.index(2 * place))
        half_of = k_ring.index(2 * place + 1)
        tma.async_copy_global_to_shared(k_desc, [b, h, tile * KEYS, HALF], raw.index(place), half_of)


@gluon.jit
def bring_values(v_desc, b, h, v_ring, v_full, v_room, count):
    """Values, as far ahead as there is room."""
    for tile in range(count):
        place, parity = place_of(tile, V_STAGES)
        mbarrier.wait(v_room.index(place), parity ^ 1)
        mbarrier.expect(v_full.index(place), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [b, h, tile * KEYS, 0], v_full.index(place), v_ring.index(place))


@gluon.jit
def turn_keys(cos_ptr, sin_ptr, k_ring, raw, full, keys, count, cos_s, sin_s, HALF: gl.constexpr):
    """Keys rotated where they lie, a slice at a time; rows of the tables for the next slice are under way."""
    OF_ROWS: gl.constexpr = rows_in_lanes(HALF)
    n = gl.arange(0, SLICE, layout=gl.SliceLayout(1, OF_ROWS))
    cos, sin = load_halves(cos_ptr, sin_ptr, gl.minimum(n, keys - 1), cos_s, sin_s, HALF, HALF, OF_ROWS)
    for tile in range(count):
        place, parity = place_of(tile, K_STAGES)
        first = k_ring.index(2 * place).reshape((KEYS, HALF))
        second = k_ring.index(2 * place + 1).reshape((KEYS, HALF))
        mbarrier.wait(raw.index(place), parity)
        for part in gl.static_range(KEYS // SLICE):
            k1 = first.slice(part * SLICE, SLICE, 0)
            k2 = second.slice(part * SLICE, SLICE, 0)
            y1, y2 = rotate(k1.load(OF_ROWS), k2.load(OF_ROWS), cos, sin)
            row = gl.minimum(tile * KEYS + (part + 1) * SLICE + n, keys - 1)
            cos, sin = load_halves(cos_ptr, sin_ptr, row, cos_s, sin_s, HALF, HALF, OF_ROWS)
            k1.store(y1)
            k2.store(y2)
        fence_async_shared()
        mbarrier.arrive(full.index(place), count=1)


@gluon.jit
def multiply_keys(q1, q2, k_ring, place, HALF: gl.constexpr, S: gl.constexpr):
    """Scores (ROWS, KEYS) of a tile, under way."""
    k1 = k_ring.index(2 * place).reshape((KEYS, HALF))
    k2 = k_ring.index(2 * place + 1).reshape((KEYS, HALF))
    s = gl.zeros([ROWS, KEYS], gl.float32, S)
    s = warpgroup_mma(q2, k2.permute((1, 0)), s, use_acc=False, is_async=True)
    return warpgroup_mma(q1, k1.permute((1, 0)), s, is_async=True)


@gluon.jit
def add_values(left, v_ring, place, o, WIDTH_V: gl.constexpr):
    """The sum of values by weights of a tile, under way."""
    return warpgroup_mma(left, v_ring.index(place).reshape((KEYS, WIDTH_V)), o, is_async=True)


@gluon.jit
def finish(o, top, total, units, o_ptr, lse_ptr, start, rows, WIDTH_V: gl.constexpr, S: gl.constexpr):
    """o and lse of a block of rows to global memory."""
    OUT: gl.constexpr = o.type.layout
    r = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
    whole_sum = gl.where(total == 0, 1.0, total)  # a row without keys
    gl.store(lse_ptr + r, (top * units + gl.log2(whole_sum)) * LN_2, mask=r < rows)
    o = o * gl.convert_layout(1.0 / whole_sum, gl.SliceLayout(1, OUT))[:, None]
    i = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUT))
    dv = gl.arange(0, WIDTH_V, layout=gl.SliceLayout(0, OUT))[None, :]
    at = gl.multiple_of(o_ptr + (i.to(gl.int64) * WIDTH_V)[:, None], (16, 16))
    mask = gl.max_constancy((i < rows)[:, None] & (dv < WIDTH_V), (1, 8))
    gl.store(at + dv, o.to(o_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def attend(
    q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, turned, sums, rings, numbers,
    WHICH: gl.constexpr, HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Two blocks of rows of q, a and b, against all tiles of keys, which take turns."""
    k_ring, full, k_room, v_ring, v_full, v_room = rings
    start, rows, keys, offset, scale, q_s, cos_s, sin_s, count = numbers
    start += WHICH * 2 * ROWS
    DOT: gl.constexpr = k_ring.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH_V, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    qa1, qa2 = turned.index(4 * WHICH), turned.index(4 * WHICH + 1)
    qb1, qb2 = turned.index(4 * WHICH + 2), turned.index(4 * WHICH + 3)
    turn_queries(q_ptr, cos_ptr, sin_ptr, qa1, qa2, start, rows, offset, scale, q_s, cos_s, sin_s, HALF)
    turn_queries(q_ptr, cos_ptr, sin_ptr, qb1, qb2, start + ROWS, rows, offset, scale, q_s, cos_s, sin_s, HALF)
    units = gl.maximum(gl.abs(scale) * LOG2_E, LEAST).to(gl.float32)

    r = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
    n = gl.arange(0, KEYS, layout=gl.SliceLayout(0, S))
    high = (gl.minimum(r + offset + 1, keys) if CAUSAL else r * 0 + keys.to(gl.int64)).to(gl.int32)
    high_b = (gl.minimum(r + ROWS + offset + 1, keys) if CAUSAL else r * 0 + keys.to(gl.int64)).to(gl.int32)
    seen = (gl.minimum(start + offset + 1, keys) if CAUSAL else keys.to(gl.int64)).to(gl.int32)  # by every row
    mine = count  # tiles that a row of this group sees; the other sees two more at most, for which there is room
    if CAUSAL:
        mine = gl.minimum(count, gl.cdiv(start + 2 * ROWS + offset, KEYS).to(gl.int32))
    whole = gl.maximum(gl.minimum(seen // KEYS, mine), 1)
    top = gl.full([ROWS], -float("inf"), gl.float32, gl.SliceLayout(1, S))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
    top_b, total_b = top, total
    o = gl.zeros([ROWS, WIDTH_V], gl.float32, OUT)
    o_b = gl.zeros([ROWS, WIDTH_V], gl.float32, OUT)

    mbarrier.wait(full.index(0), 0)
    s = warpgroup_mma_wait(0, deps=[multiply_keys(qa1, qa2, k_ring, 0, HALF, S)])
    if seen < KEYS:
        s = gl.where(n[None, :] < high[:, None], s, -float("inf"))
    p, alpha, top, total = weigh(s, top, total, units)
    left = gl.convert_layout(p.to(DOT), LEFT)
    mbarrier.wait(v_full.index(0), 0)
    s = multiply_keys(qb1, qb2, k_ring, 0, HALF, S)
    o = add_values(left, v_ring, 0, o, WIDTH_V)
    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_room.index(0), count=1)
    if seen < KEYS:
        s = gl.where(n[None, :] < high_b[:, None], s, -float("inf"))
    p, alpha, top_b, total_b = weigh(s, top_b, total_b, units)
    sums.index(WHICH).store(total_b)
    o, left, p = warpgroup_mma_wait(0, deps=[o, left, p])
    left = gl.convert_layout(p.to(DOT), LEFT)
    for EDGES in gl.static_range(2):
        for tile in range(whole if EDGES else 1, mine if EDGES else whole):
            place, parity = place_of(tile, K_STAGES)
            v_place, v_parity = place_of(tile, V_STAGES)
            v_before, _ = place_of(tile - 1, V_STAGES)
            mbarrier.wait(full.index(place), parity)
            s = multiply_keys(qa1, qa2, k_ring, place, HALF, S)
            o_b = add_values(left, v_ring, v_before, o_b, WIDTH_V)
            s = warpgroup_mma_wait(1, deps=[s])
            if EDGES:
                s = gl.where((tile * KEYS + n)[None, :] < high[:, None], s, -float("inf"))
            p, alpha, top, total = weigh(s, top, total, units)
            sums.index(WHICH).store(total)  # else the compiler waits before it makes weights: see the shipped kernel
            o_b, left, p = warpgroup_mma_wait(0, deps=[o_b, left, p])
            mbarrier.arrive(v_room.index(v_before), count=1)
            o = o * gl.convert_layout(alpha, gl.SliceLayout(1, OUT))[:, None]
            left = gl.convert_layout(p.to(DOT), LEFT)
            mbarrier.wait(v_full.index(v_place), v_parity)
            s = multiply_keys(qb1, qb2, k_ring, place, HALF, S)
            o = add_values(left, v_ring, v_place, o, WIDTH_V)
            s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(k_room.index(place), count=1)
            if EDGES:
                s = gl.where((tile * KEYS + n)[None, :] < high_b[:, None], s, -float("inf"))
            p, alpha, top_b, total_b = weigh(s, top_b, total_b, units)
            sums.index(WHICH).store(total_b)
            o, left, p = warpgroup_mma_wait(0, deps=[o, left, p])
            o_b = o_b * gl.convert_layout(alpha, gl.SliceLayout(1, OUT))[:, None]
            left = gl.convert_layout(p.to(DOT), LEFT)
    v_before, _ = place_of(mine - 1, V_STAGES)
    o_b = add_values(left, v_ring, v_before, o_b, WIDTH_V)
    o_b, left = warpgroup_mma_wait(0, deps=[o_b, left])
    finish(o, top, total, units, o_ptr, lse_ptr, start, rows, WIDTH_V, S)
    finish(o_b, top_b, total_b, units, o_ptr, lse_ptr, start + ROWS, rows, WIDTH_V, S)


@gluon.jit(do_not_specialize=range(7, 18), do_not_specialize_on_alignment=range(5))
def hopper_attention_kernel(
    q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, k_desc, v_desc,
    heads, group, rows, keys, offset, scale, q_b, q_h, q_s, cos_s, sin_s,
    HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Two groups' rows of one head of q against the keys they see; the last rows, which see most, begin first."""
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    FACTOR: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HALF], DOT)
    tiles = gl.cdiv(rows, 4 * ROWS)
    pid = gl.program_id(0)
    start = (tiles - 1 - pid % tiles) * 4 * ROWS
    head = pid // tiles
    b = head // heads
    h = head % heads
    offset = offset.to(gl.int64)
    count = gl.cdiv(keys, KEYS)
    if CAUSAL:
        count = gl.minimum(count, gl.cdiv(start + 4 * ROWS + offset, KEYS).to(gl.int32))
    q_ptr += b.to(gl.int64) * q_b + h.to(gl.int64) * q_h
    o_ptr += head.to(gl.int64) * rows * WIDTH_V
    lse_ptr += head.to(gl.int64) * rows
    turned = gl.allocate_shared_memory(DOT, [8, ROWS, HALF], FACTOR)
    k_ring = gl.allocate_shared_memory(DOT, [2 * K_STAGES, 1, 1, KEYS, HALF], k_desc.layout)
    v_ring = gl.allocate_shared_memory(DOT, [V_STAGES, 1, 1, KEYS, WIDTH_V], v_desc.layout)
    sums = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    raw = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_room = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_room = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(K_STAGES):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(k_room.index(place), count=2)
    for place in gl.static_range(V_STAGES):
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(v_room.index(place), count=2)
    rings = (k_ring, full, k_room, v_ring, v_full, v_room)
    numbers = (start, rows, keys, offset, scale, q_s, cos_s, sin_s, count)
    gl.warp_specialize(
        [
            (attend, (q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, turned, sums, rings, numbers, 0, HALF, WIDTH_V, CAUSAL)),
            (attend, (q_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, turned, sums, rings, numbers, 1, HALF, WIDTH_V, CAUSAL)),
            (turn_keys, (cos_ptr, sin_ptr, k_ring, raw, full, keys, count, cos_s, sin_s, HALF)),
            (bring_keys, (k_desc, b, h // group, k_ring, raw, k_room, count, HALF)),
            (bring_values, (v_desc, b, h // group, v_ring, v_full, v_room, count)),
        ],
        [4, 4, 1, 1],
        [216, 56, 24, 24],
    )


def serves(wish: Wish) -> bool:
    """Whether the kernel can take a call: what the shipped one takes, with tables that 32 bits can walk through."""
    _, k, _, cos, sin = wish.forms.values()
    return attention.serves(wish) and k.shape[2] * max(*cos.strides, *sin.strides) <= INT32_MAX


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, v, cos, sin, o and lse."""
    q, k, v, cos, sin = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _), width_v = q.shape, k.shape, v.shape[3]
    strides = *q.strides[:3], cos.strides[0], sin.strides[0]
    numbers = heads, heads // heads_k, rows, keys, wish.q_offset, wish.scale, *strides
    constants = {"HALF": width // 2, "WIDTH_V": width_v, "CAUSAL": wish.causal, "num_warps": 4}
    programs = check_programs("rope_attention", ceil_div(rows, 4 * ROWS.value) * batch * heads)
    launch = Prepared(hopper_attention_kernel, programs, numbers, constants, {})
    of_k, of_v = Blocks(1, 1, KEYS.value, width // 2), Blocks(1, 1, KEYS.value, width_v)

    def run(q: Any, k: Any, v: Any, cos: Any, sin: Any, o: Any, lse: Any) -> None:
        launch.run((q, cos, sin, o, lse, of_k.of(k), of_v.of(v)))

    return run


def pays(wish: Wish) -> bool:
    """Whether it is quicker than what is shipped: not known yet."""
    return wish.forms["q"].shape[2] >= 4 * ROWS.value


def take() -> None:
    """Have it taken from now on, wherever it can."""
    SPECIAL["attention"] = [Special(HOPPER, serves, pays, prepare), *SPECIAL["attention"]]


def attends(*tensors: Any, **options: Any) -> Any:
    """:func:`kernels.rope_attention` by this kernel."""
    SPECIAL["attention"] = [Special(HOPPER, serves, pays, prepare)]
    return pinned("rope_attention", "special")(*tensors, **options)


ModelNew = attends
