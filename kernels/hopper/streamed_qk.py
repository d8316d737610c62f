"""Scores of rotated queries and keys on compute capability 9.0, in Gluon, with queries that stream by.

A program owns 256 rotated keys, the right factor, and roles of warps bring and rotate the queries that meet them as
:mod:`kernels.hopper.streams` says. Two groups of four warps take their tiles in turn: while one stores its scores,
whole rows at a time, the other multiplies. What :func:`serves` does not accept is left to :mod:`kernels.hopper.qk`.
"""

from collections.abc import Callable

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.early import BEGINS_EARLY, wait_for_launch
from kernels.fused import check_programs
from kernels.hopper import qk
from kernels.hopper.forms import Blocks
from kernels.hopper.qk import finished
from kernels.hopper.rings import place_of
from kernels.hopper.rows import begin_of, load_half, load_halves, rotate, rows_in_lanes
from kernels.hopper.streams import T_STAGES, TILE, X_STAGES, bring_x, met_in, steps_of, turn_x, unit_of
from kernels.hopper.units import turns_of
from kernels.launch import Prepared, ceil_div
from kernels.special import Wish

KEYS, PART = gl.constexpr(256), gl.constexpr(128)  # that a program owns, and that a group of warps rotates
ENOUGH_UNITS = 0.75  # for each multiprocessor and round
FEWEST_STEPS = 4  # of a unit, where there is one round


@gluon.jit
def own_keys(tensors, head, start, keys, heads, places, HALF: gl.constexpr):
    """Keys from ``start`` on for a group, rotated; where there are no more, the last one again."""
    k_ptr, cos_ptr, sin_ptr, _out = tensors
    k_b, k_h, k_s, cos_s, sin_s = places
    k_ptr = begin_of(k_ptr, head, heads, k_b, k_h)
    n = start + gl.arange(0, PART, layout=gl.SliceLayout(1, rows_in_lanes(HALF)))
    i = gl.minimum(n, keys - 1).to(gl.int64)
    x1, x2 = load_halves(k_ptr, i * k_s, HALF)
    return rotate(x1, x2, load_half(cos_ptr, i * cos_s, HALF), load_half(sin_ptr, i * sin_s, HALF))


@gluon.jit
def put(s, buffer, out_ptr, scale, start, rows, offset, start_n, keys, CAUSAL: gl.constexpr):
    """Finished scores of half a tile to its rows of a head, which begins at the pointer, sixteen bytes at once."""
    OF_ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    buffer.store(finished(s, scale, start, start_n, offset, buffer.dtype, CAUSAL))
    i = start + gl.arange(0, TILE, layout=gl.SliceLayout(1, OF_ROWS))
    j = start_n + gl.arange(0, PART, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    at = gl.multiple_of(out_ptr + (i.to(gl.int64) * keys)[:, None], (16, 16)) + j
    there = gl.max_constancy((i < rows)[:, None] & (j < keys), (1, 8))
    gl.store(at, buffer.load(OF_ROWS), mask=there)


@gluon.jit
def score(given, first, second, WHICH: gl.constexpr, HALF: gl.constexpr, CAUSAL: gl.constexpr):
    """Every other tile of queries that streams by, against all keys that the program owns, by way of two buffers."""
    tensors, rings, turned, k_barriers, work, places, scale = given
    ring, full, room = rings
    k_ready, k_free = k_barriers
    mine, heads, group, keys, rows, offset = work
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PART, 16])
    scale = scale.to(gl.float32)
    at = mine * 0
    for turn in range(mine):
        head, start_n, front, each = unit_of(turn, work, KEYS, False, True, 1)
        y1, y2 = own_keys(tensors, head, start_n + WHICH * PART, keys, heads, places, HALF)
        k1, k2 = turned.index(0), turned.index(1)
        mbarrier.wait(k_free, (turn & 1) ^ 1)
        k1.slice(WHICH * PART, PART, 0).store(y1)
        k2.slice(WHICH * PART, PART, 0).store(y2)
        fence_async_shared()
        mbarrier.arrive(k_ready, count=1)
        mbarrier.wait(k_ready, turn & 1)
        steps = steps_of(each, work, True)
        for step in range((at & 1) ^ WHICH, steps, 2):
            b, h, start = met_in(step, head, front, each, work, True)
            place, parity = place_of(at + step, X_STAGES)
            mbarrier.wait(full.index(place), parity)
            q1 = ring.index(2 * place).reshape((TILE, HALF))
            q2 = ring.index(2 * place + 1).reshape((TILE, HALF))
            s = gl.zeros([TILE, PART], gl.float32, S)
            s = warpgroup_mma(q2, k2.slice(0, PART, 0).permute((1, 0)), s, use_acc=False, is_async=True)
            s = warpgroup_mma(q1, k1.slice(0, PART, 0).permute((1, 0)), s, is_async=True)
            t = gl.zeros([TILE, PART], gl.float32, S)
            t = warpgroup_mma(q2, k2.slice(PART, PART, 0).permute((1, 0)), t, use_acc=False, is_async=True)
            t = warpgroup_mma(q1, k1.slice(PART, PART, 0).permute((1, 0)), t, is_async=True)
            of_head = tensors[3] + (b * heads * group + h).to(gl.int64) * rows * keys
            s = warpgroup_mma_wait(2, deps=[s])  # products end in order: the first two have
            put(s, first, of_head, scale, start, rows, offset, start_n, keys, CAUSAL)
            t = warpgroup_mma_wait(0, deps=[t])
            mbarrier.arrive(room.index(place), count=1)
            put(t, second, of_head, scale, start, rows, offset, start_n + PART, keys, CAUSAL)
        at += steps
        mbarrier.arrive(k_free, count=1)


@gluon.jit(do_not_specialize=range(7, 19), do_not_specialize_on_alignment=range(4))
def streamed_qk_kernel(
    k_ptr, cos_ptr, sin_ptr, out_ptr, q_desc, cos_desc, sin_desc,
    units, heads, group, rows, keys, offset, scale, k_b, k_h, k_s, cos_s, sin_s,
    HALF: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """A program's units one after the other: KEYS keys of one head against all queries of the heads that meet them."""
    DOT: gl.constexpr = k_ptr.dtype.element_ty
    offset = offset.to(gl.int64)
    RIGHT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, HALF], DOT)
    turned = gl.allocate_shared_memory(DOT, [2, KEYS, HALF], RIGHT)
    ring = gl.allocate_shared_memory(DOT, [2 * X_STAGES, 1, 1, TILE, HALF], q_desc.layout)
    t_ring = gl.allocate_shared_memory(DOT, [2 * T_STAGES, TILE, HALF], cos_desc.layout)
    buffers = gl.allocate_shared_memory(DOT, [4, TILE, PART], gl.NVMMASharedLayout.get_default_for([TILE, PART], DOT))
    k_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    raw = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    room = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    t_full = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    t_room = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(k_ready, count=2)
    mbarrier.init(k_free, count=2)
    for place in gl.static_range(X_STAGES):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(room.index(place), count=1)
    for place in gl.static_range(T_STAGES):
        mbarrier.init(t_full.index(place), count=1)
        mbarrier.init(t_room.index(place), count=1)
    work = (turns_of(units, 1), heads, group, keys, rows, offset)
    places = (k_b, k_h, k_s, cos_s, sin_s)
    x_rings, t_rings = (ring, raw, full, room), (t_ring, t_full, t_room)
    tensors = (k_ptr, cos_ptr, sin_ptr, out_ptr)
    given = (tensors, (ring, full, room), turned, (k_ready, k_free), work, places, scale)
    wait_for_launch(True)
    gl.warp_specialize(
        [
            (score, (given, buffers.index(0), buffers.index(1), 0, HALF, CAUSAL)),
            (score, (given, buffers.index(2), buffers.index(3), 1, HALF, CAUSAL)),
            (turn_x, (x_rings, t_rings, work, TILE, HALF, KEYS, False, True, 1)),
            (bring_x, (q_desc, cos_desc, sin_desc, x_rings, t_rings, work, HALF, KEYS, False, True, 1)),
        ],
        [4, 4, 1],
        [184, 120, 24],
    )


def serves(wish: Wish) -> bool:
    """Whether the kernel can take a call: 64 or 128 columns, rows that bulk copies can bring, and what others ask."""
    brought = [wish.forms[name] for name in ("q", "cos", "sin")]
    return (
        qk.serves(wish)
        and brought[0].shape[3] in (64, 128)
        and not any(stride <= 0 for x in brought for stride in x.strides)
    )


def units_of(wish: Wish) -> int:
    """Blocks of keys of all heads."""
    batch, heads, keys, _ = wish.forms["k"].shape
    return ceil_div(keys, KEYS.value) * batch * heads


def pays(wish: Wish) -> bool:
    """Whether it is quicker than the other kernels: few multiprocessors are left without a unit in the last round."""
    (_, heads, rows, width), (_, heads_k, keys, _) = wish.forms["q"].shape, wish.forms["k"].shape
    rounds = ceil_div(units_of(wish), wish.places)
    full = units_of(wish) >= ENOUGH_UNITS * wish.places * rounds
    steps = ceil_div(rows, TILE.value) * (heads // heads_k)
    return (
        full
        and not wish.causal
        and width == 128
        and keys > PART.value
        and steps >= (FEWEST_STEPS if rounds == 1 else 2 * FEWEST_STEPS)
    )


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, cos, sin and scores (B, Hq, Sq, Sk)."""
    q, k, cos, sin = wish.forms.values()
    (_, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    units, half = check_programs("rope_qk", units_of(wish)), width // 2
    strides = *k.strides[:3], cos.strides[0], sin.strides[0]
    numbers = units, heads_k, heads // heads_k, rows, keys, wish.q_offset, wish.scale, *strides
    constants = {"HALF": half, "CAUSAL": wish.causal, "num_warps": 4, **BEGINS_EARLY}
    launch = Prepared(streamed_qk_kernel, min(units, wish.places), numbers, constants, {})
    of_q, of_cos, of_sin = Blocks(1, 1, TILE.value, half), Blocks(TILE.value, half), Blocks(TILE.value, half)

    def run(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
        launch.run((k, cos, sin, out, of_q.of(q), of_cos.of(cos), of_sin.of(sin)))

    return run
