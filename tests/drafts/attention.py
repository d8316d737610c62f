"""Attention on compute capability 9.0 where all keys of a head fit into shared memory: rotated once, they stay there.

Two groups of four warps rotate the keys, a tile each in turn, then take 64 rows of q each, tile by tile and head by
head of a group; q goes from global memory to registers, is rotated there and is a product's left factor. One warp
brings values by bulk copies. A group weighs scores of one tile while the tensor cores add up values of the one before.

Predicted, (8,32,512,128) in bfloat16, in µs, where the shipped kernel takes 115, separate RoPE + cuDNN 99 and cuDNN
alone 66: 16 tiles of 128 x 128 a program at 2,300 clocks (the tensor cores' 2,048, and what a softmax leaves open),
3 µs to rotate, two programs after each other on each multiprocessor: 50 to 60.
"""

import math
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
from kernels.hopper import attention, qk
from kernels.hopper.attention import KEYS, ROWS, V_STAGES, place_of, weigh
from kernels.hopper.forms import Blocks
from kernels.launch import INT32_MAX, Prepared, ceil_div
from kernels.pinned import pinned
from kernels.softmax import LEAST, LN_2, LOG2_E
from kernels.special import SPECIAL, Special, Wish
from kernels.tiling import HOPPER
from tests.drafts.scores import load_halves, rows_of

MOST_COLUMNS = 512 * 128  # of all keys of a head: 128 KiB
PLACES = 132  # for programs, one a multiprocessor


@gluon.jit
def turn_keys(
    k_ptr, cos_ptr, sin_ptr, turned, full, keys, count, negative, k_s, cos_s, sin_s,
    WHICH: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """Every other tile of keys, rotated, to shared memory; their sign takes up the scale's."""
    OF_ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    for tile in range(WHICH, count, 2):
        n = gl.minimum(tile * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(1, OF_ROWS)), keys - 1)
        x1, x2 = load_halves(k_ptr, k_ptr + HALF, n, k_s, k_s, HALF, HALF, OF_ROWS)
        cos, sin = load_halves(cos_ptr, sin_ptr, n, cos_s, sin_s, HALF, HALF, OF_ROWS)
        y1, y2 = qk.rotate(x1, x2, cos, sin, KEYS, HALF)
        if negative:
            y1 = -y1
            y2 = -y2
        turned.index(2 * tile).store(y1)
        turned.index(2 * tile + 1).store(y2)
        fence_async_shared()
        mbarrier.arrive(full.index(tile), count=1)


@gluon.jit
def multiply_keys(q1, q2, turned, tile, S: gl.constexpr):
    """Scores (ROWS, KEYS) of a tile, under way."""
    s = gl.zeros([ROWS, KEYS], gl.float32, S)
    s = warpgroup_mma(q2, turned.index(2 * tile + 1).permute((1, 0)), s, use_acc=False, is_async=True)
    return warpgroup_mma(q1, turned.index(2 * tile).permute((1, 0)), s, is_async=True)


@gluon.jit
def tiles_seen(tile, rows, keys, offset, CAUSAL: gl.constexpr):
    """Tiles of keys that two groups' rows of q see, at least one."""
    count = gl.cdiv(keys, KEYS)
    if CAUSAL:
        count = gl.minimum(count, gl.cdiv((tile + 1) * 2 * ROWS + offset, KEYS).to(gl.int32))
    return gl.maximum(count, 1)


@gluon.jit
def bring_values(v_desc, b, h, v_ring, v_full, v_room, rows, keys, offset, first, last, tiles, CAUSAL: gl.constexpr):
    """Values, as far ahead as there is room, for one tile of q after the other."""
    step = first * 0
    for turn in range(first, last):
        for tile in range(0, tiles_seen(turn % tiles, rows, keys, offset, CAUSAL)):
            place, parity = place_of(step, V_STAGES)
            mbarrier.wait(v_room.index(place), parity ^ 1)
            mbarrier.expect(v_full.index(place), v_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(v_desc, [b, h, tile * KEYS, 0], v_full.index(place), v_ring.index(place))
            step += 1


@gluon.jit
def attend(
    q_ptr, k_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, turned, full, sums, v_ring, v_full, v_room,
    rows, keys, offset, scale, first, last, tiles, q_h, q_s, k_s, cos_s, sin_s,
    WHICH: gl.constexpr, HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr, QUERIES: gl.constexpr,
):  # fmt: skip
    """One group's rows of each tile of q against all keys they see, with the softmax carried along."""
    DOT: gl.constexpr = turned.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH_V, 16])
    Q: gl.constexpr = gl.DotOperandLayout(0, S, 2)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    i = WHICH * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, QUERIES))
    row = gl.minimum(first % tiles * 2 * ROWS + i, rows - 1)
    q = q_ptr + (first // tiles).to(gl.int64) * q_h
    cos_of_q, sin_of_q = cos_ptr + offset * cos_s, sin_ptr + offset * sin_s
    x1, x2 = load_halves(q, q + HALF, row, q_s, q_s, HALF, HALF, QUERIES)
    cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, HALF, HALF, QUERIES)
    turn_keys(
        k_ptr, cos_ptr, sin_ptr, turned, full, keys, gl.cdiv(keys, KEYS), scale < 0, k_s, cos_s, sin_s, WHICH, HALF
    )
    units = gl.maximum(gl.abs(scale) * LOG2_E, LEAST).to(gl.float32)
    n = gl.arange(0, KEYS, layout=gl.SliceLayout(0, S))
    step = first * 0
    for turn in range(first, last):
        start = turn % tiles * 2 * ROWS + WHICH * ROWS
        count = tiles_seen(turn % tiles, rows, keys, offset, CAUSAL)
        q1, q2 = qk.rotate(x1, x2, cos, sin, ROWS, HALF)
        q1 = gl.convert_layout(q1, Q)
        q2 = gl.convert_layout(q2, Q)
        r = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
        high = (gl.minimum(r + offset + 1, keys) if CAUSAL else r * 0 + keys.to(gl.int64)).to(gl.int32)
        seen = (gl.minimum(start + offset + 1, keys) if CAUSAL else keys.to(gl.int64)).to(gl.int32)  # by every row
        top = gl.full([ROWS], -float("inf"), gl.float32, gl.SliceLayout(1, S))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
        o = gl.zeros([ROWS, WIDTH_V], gl.float32, OUT)

        mbarrier.wait(full.index(0), 0)
        s, q1, q2 = warpgroup_mma_wait(0, deps=[multiply_keys(q1, q2, turned, 0, S), q1, q2])
        if seen < KEYS:
            s = gl.where(n[None, :] < high[:, None], s, -float("inf"))
        p, alpha, top, total = weigh(s, top, total, units)
        left = gl.convert_layout(p.to(DOT), LEFT)
        whole = gl.maximum(gl.minimum(seen // KEYS, count), 1)
        for EDGES in gl.static_range(2):
            for tile in range(whole if EDGES else 1, count if EDGES else whole):
                v_place, v_parity = place_of(step, V_STAGES)
                step += 1
                mbarrier.wait(full.index(tile), 0)
                mbarrier.wait(v_full.index(v_place), v_parity)
                s = multiply_keys(q1, q2, turned, tile, S)
                o = warpgroup_mma(left, v_ring.index(v_place).reshape((KEYS, WIDTH_V)), o, is_async=True)
                s, q1, q2 = warpgroup_mma_wait(1, deps=[s, q1, q2])
                if EDGES:
                    s = gl.where((tile * KEYS + n)[None, :] < high[:, None], s, -float("inf"))
                p, alpha, top, total = weigh(s, top, total, units)
                # The compiler waits for values before it makes weights, but for a store that needs these: see the
                # shipped kernel.
                sums.index(WHICH).store(total)
                o, left, p = warpgroup_mma_wait(0, deps=[o, left, p])
                mbarrier.arrive(v_room.index(v_place), count=1)
                o = o * gl.convert_layout(alpha, gl.SliceLayout(1, OUT))[:, None]
                left = gl.convert_layout(p.to(DOT), LEFT)
        v_place, v_parity = place_of(step, V_STAGES)
        step += 1
        mbarrier.wait(v_full.index(v_place), v_parity)
        o = warpgroup_mma(left, v_ring.index(v_place).reshape((KEYS, WIDTH_V)), o, is_async=True)
        following = gl.minimum(turn + 1, last - 1)  # loads of the next rows, which the last product hides
        row = gl.minimum(following % tiles * 2 * ROWS + i, rows - 1)
        q = q_ptr + (following // tiles).to(gl.int64) * q_h
        x1, x2 = load_halves(q, q + HALF, row, q_s, q_s, HALF, HALF, QUERIES)
        cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, HALF, HALF, QUERIES)
        o, left = warpgroup_mma_wait(0, deps=[o, left])
        mbarrier.arrive(v_room.index(v_place), count=1)

        whole_sum = gl.where(total == 0, 1.0, total)  # a row without keys
        lse = (top * units + gl.log2(whole_sum)) * LN_2
        above = (turn // tiles).to(gl.int64) * rows
        gl.store(lse_ptr + above + r, lse, mask=r < rows)
        o = o * gl.convert_layout(1.0 / whole_sum, gl.SliceLayout(1, OUT))[:, None]
        j = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUT))
        dv = gl.arange(0, WIDTH_V, layout=gl.SliceLayout(0, OUT))[None, :]
        at = gl.multiple_of(o_ptr + ((above + j) * WIDTH_V)[:, None], (16, 16))
        mask = gl.max_constancy((j < rows)[:, None] & (dv < WIDTH_V), (1, 8))
        gl.store(at + dv, o.to(DOT), mask=mask)


@gluon.jit(do_not_specialize=range(7, 22), do_not_specialize_on_alignment=range(6))
def hopper_attention_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, v_desc,
    heads, group, rows, keys, offset, scale, steps,
    q_b, q_h, q_s, k_b, k_h, k_s, cos_s, sin_s,
    TILES: gl.constexpr, HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr, QUERIES: gl.constexpr,
):  # fmt: skip
    """``steps`` tiles of two groups' rows of q, head by head of a group, against all keys, which are TILES tiles."""
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    RIGHT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, HALF], DOT)
    tiles = gl.cdiv(rows, 2 * ROWS)
    chunks = gl.cdiv(tiles * group, steps)
    pid = gl.program_id(0)
    head = pid // chunks
    first = pid % chunks * steps
    last = gl.minimum(first + steps, tiles * group)
    b = head // heads
    h = head % heads
    offset = offset.to(gl.int64)
    q_ptr += b.to(gl.int64) * q_b + (h * group).to(gl.int64) * q_h
    k_ptr += b.to(gl.int64) * k_b + h.to(gl.int64) * k_h
    o_ptr += (head * group).to(gl.int64) * rows * WIDTH_V
    lse_ptr += (head * group).to(gl.int64) * rows
    turned = gl.allocate_shared_memory(DOT, [2 * TILES, KEYS, HALF], RIGHT)
    v_ring = gl.allocate_shared_memory(DOT, [V_STAGES, 1, 1, KEYS, WIDTH_V], v_desc.layout)
    sums = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full = gl.allocate_shared_memory(gl.int64, [TILES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_room = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    for tile in gl.static_range(TILES):
        mbarrier.init(full.index(tile), count=1)
    for place in gl.static_range(V_STAGES):
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(v_room.index(place), count=2)
    gl.warp_specialize(
        [
            (attend, (q_ptr, k_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, turned, full, sums, v_ring, v_full, v_room,
                rows, keys, offset, scale, first, last, tiles, q_h, q_s, k_s, cos_s, sin_s,
                0, HALF, WIDTH_V, CAUSAL, QUERIES)),
            (attend, (q_ptr, k_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, turned, full, sums, v_ring, v_full, v_room,
                rows, keys, offset, scale, first, last, tiles, q_h, q_s, k_s, cos_s, sin_s,
                1, HALF, WIDTH_V, CAUSAL, QUERIES)),
            (bring_values, (v_desc, b, h, v_ring, v_full, v_room, rows, keys, offset, first, last, tiles, CAUSAL)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def serves(wish: Wish) -> bool:
    """Whether the kernel can take a call: what the shipped one takes, with keys that fit."""
    q, k, _, cos, sin = wish.forms.values()
    rows, keys = q.shape[2], k.shape[2]
    farthest = max(rows * q.strides[2], keys * k.strides[2], max(rows, keys) * max(*cos.strides, *sin.strides))
    return (
        attention.serves(wish)
        and ceil_div(keys, KEYS.value) * KEYS.value * k.shape[3] <= MOST_COLUMNS
        and farthest <= INT32_MAX
    )


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, v, cos, sin, o and lse."""
    q, k, v, cos, sin = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _), width_v = q.shape, k.shape, v.shape[3]
    group, half = heads // heads_k, width // 2
    turns = ceil_div(rows, 2 * ROWS.value) * group
    steps = max(turns // max(math.ceil(2 * PLACES / (batch * heads_k)), 1), 1)
    strides = *q.strides[:3], *k.strides[:3], cos.strides[0], sin.strides[0]
    numbers = heads_k, group, rows, keys, wish.q_offset, wish.scale, steps, *strides
    constants = {
        "TILES": 1 << (ceil_div(keys, KEYS.value) - 1).bit_length(), "HALF": half, "WIDTH_V": width_v,
        "CAUSAL": wish.causal, "QUERIES": rows_of(half, [*([[0, 32]] if half == 64 else []), [8, 0]], 4),
        "num_warps": 4,
    }  # fmt: skip
    programs = check_programs("rope_attention", ceil_div(turns, steps) * batch * heads_k)
    launch, of_v = (
        Prepared(hopper_attention_kernel, programs, numbers, constants, {}),
        Blocks(1, 1, KEYS.value, width_v),
    )

    def run(q: Any, k: Any, v: Any, cos: Any, sin: Any, o: Any, lse: Any) -> None:
        launch.run((q, k, cos, sin, o, lse, of_v.of(v)))

    return run


def pays(wish: Wish) -> bool:
    """Whether it is quicker than what is shipped: not known yet."""
    return wish.forms["q"].shape[2] >= 2 * ROWS.value


def take() -> None:
    """Have it taken from now on, wherever it can."""
    SPECIAL["attention"] = [Special(HOPPER, serves, pays, prepare), *SPECIAL["attention"]]


def attends(*tensors: Any, **options: Any) -> Any:
    """:func:`kernels.rope_attention` by this kernel."""
    SPECIAL["attention"] = [Special(HOPPER, serves, pays, prepare)]
    return pinned("rope_attention", "special")(*tensors, **options)


ModelNew = attends
