"""Scores of rotated queries and keys with 130 to 256 columns on compute capability 9.0, in Gluon.

As in :mod:`kernels.hopper.qk` q never passes through shared memory, but so many columns leave no registers for a second
tile of scores, nor for loads that are under way while scores are stored by bulk copies. So keys lie in the right factor
in an order such that a thread has eight neighbours of a row of scores, which it stores at once.
"""

from collections.abc import Callable

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from kernels.early import BEGINS_EARLY, wait_for_launch
from kernels.fused import check_programs
from kernels.hopper import qk
from kernels.hopper.qk import KEYS, MOST_STEPS, rotate
from kernels.launch import Prepared, ceil_div
from kernels.special import Wish

ROWS, HALF = gl.constexpr(128), gl.constexpr(128)  # of a tile of queries; columns of half a row, empty ones among them
WARPS = 8
ENOUGH_TILES = 256  # as for fewer columns


@gluon.jit
def load_halves(x_ptr, y_ptr, row, x_s, y_s, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr):
    """Two halves (rows, HALF) of rows that are there; zeros beyond COLUMNS."""
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    x_rows = gl.multiple_of(x_ptr + (row * x_s)[:, None], (16, 16))
    y_rows = gl.multiple_of(y_ptr + (row * y_s)[:, None], (16, 16))
    if COLUMNS == HALF:
        x = gl.load(x_rows + d)
        y = gl.load(y_rows + d)
    else:
        mask = gl.max_constancy((row >= 0)[:, None] & (d < COLUMNS), (1, 8))
        x = gl.load(x_rows + d, mask=mask, other=0.0)
        y = gl.load(y_rows + d, mask=mask, other=0.0)
    return x, y


@gluon.jit
def key_at(place):
    """Which key of a tile is at a place of the right factor: what a thread has of a row of scores is eight neighbours.

    Of the bits of a place's number, those of the four threads of a row (2 and 1) become 4 and 3, and those of a
    thread's pairs (4 and 3) become 2 and 1.
    """
    return (place & 97) | ((place & 6) << 2) | ((place & 24) >> 2)


@gluon.jit
def turn_keys(k_ptr, cos_ptr, sin_ptr, k1, k2, start_n, keys, k_s, cos_s, sin_s, COLUMNS: gl.constexpr):
    """Rotated keys of a tile, to shared memory; in the place of those that are not there, the last one."""
    OF_ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    n = start_n + key_at(gl.arange(0, KEYS, layout=gl.SliceLayout(1, OF_ROWS)))
    at = gl.minimum(n, keys - 1)
    x1, x2 = load_halves(k_ptr, k_ptr + COLUMNS, at, k_s, k_s, COLUMNS, OF_ROWS)
    cos, sin = load_halves(cos_ptr, sin_ptr, at, cos_s, sin_s, COLUMNS, OF_ROWS)
    first_half, second_half = rotate(x1, x2, cos, sin, KEYS, HALF)
    k1.store(first_half)
    k2.store(second_half)


@gluon.jit
def multiply(q1, q2, turned, PART: gl.constexpr, SCORES: gl.constexpr):
    """Scores of a tile of keys, under way."""
    s = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    s = warpgroup_mma(q2, turned.index(2 * PART + 1).permute((1, 0)), s, use_acc=False, is_async=True)
    return warpgroup_mma(q1, turned.index(2 * PART).permute((1, 0)), s, is_async=True)


@gluon.jit
def store(s, to, scale, start, start_n, rows, keys, offset, CAUSAL: gl.constexpr, STORED: gl.constexpr):
    """Scores of a tile to its rows at ``to``, sixteen bytes at a time."""
    s = s * scale
    if CAUSAL:  # noqa: SIM102 - known when the kernel is compiled, the rest is not
        if start + offset < start_n + KEYS - 1:
            seen = gl.maximum(start + offset - start_n, -ROWS).to(gl.int32)
            seen += gl.arange(0, ROWS, layout=gl.SliceLayout(1, s.type.layout))
            j = key_at(gl.arange(0, KEYS, layout=gl.SliceLayout(0, s.type.layout)))
            s = gl.where(j[None, :] <= seen[:, None], s, -float("inf"))
    s = s.to(to.dtype.element_ty).reshape((ROWS, 4, 4, 4, 2)).permute((0, 1, 3, 2, 4)).reshape((ROWS, KEYS))
    i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, STORED))
    j = gl.arange(0, KEYS, layout=gl.SliceLayout(0, STORED))[None, :]
    at = gl.multiple_of(to + start_n + (i.to(gl.int64) * keys)[:, None], (16, 16)) + j
    there = gl.max_constancy((i < rows - start)[:, None] & (j < keys - start_n), (1, 8))
    gl.store(at, gl.convert_layout(s, STORED), mask=there)


@gluon.jit(do_not_specialize=range(5, 20), do_not_specialize_on_alignment=range(5))
def wide_qk_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_ptr,
    heads, group, rows, keys, offset, scale, steps,
    q_b, q_h, q_s, k_b, k_h, k_s, cos_s, sin_s,
    COLUMNS: gl.constexpr, CAUSAL: gl.constexpr, COUNT: gl.constexpr, QUERIES: gl.constexpr, STORED: gl.constexpr,
):  # fmt: skip
    """``steps`` tiles of queries, head by head of a group, against COUNT tiles of keys, one or two."""
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, KEYS, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SCORES, 2)
    RIGHT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, HALF], DOT)
    tiles = gl.cdiv(rows, ROWS)
    chunks = gl.cdiv(tiles * group, steps)
    across = gl.cdiv(keys, KEYS * COUNT)
    pid = gl.program_id(0)
    chunk = pid % chunks
    start_n = pid // chunks % across * (KEYS * COUNT)
    head = pid // chunks // across
    offset = offset.to(gl.int64)
    scale = scale.to(gl.float32)
    b = (head // heads).to(gl.int64)
    h = (head % heads).to(gl.int64)
    q_ptr += b * q_b + h * group * q_h
    k_ptr += b * k_b + h * k_h

    turned = gl.allocate_shared_memory(DOT, [2 * COUNT, KEYS, HALF], RIGHT)
    i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, QUERIES))
    first = chunk * steps
    last = gl.minimum(first + steps, tiles * group)
    head *= group
    g = first // tiles
    tile = first % tiles
    wait_for_launch(True)
    row = gl.minimum(tile * ROWS + i, rows - 1)
    q = q_ptr + g.to(gl.int64) * q_h
    cos_of_q, sin_of_q = cos_ptr + offset * cos_s, sin_ptr + offset * sin_s
    x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, QUERIES)
    cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, QUERIES)
    for part in gl.static_range(COUNT):
        turn_keys(
            k_ptr, cos_ptr, sin_ptr, turned.index(2 * part), turned.index(2 * part + 1), start_n + part * KEYS, keys,
            k_s, cos_s, sin_s, COLUMNS,
        )  # fmt: skip
    fence_async_shared()
    for turn in range(first, last):
        q1, q2 = rotate(x1, x2, cos, sin, ROWS, HALF)
        q1 = gl.convert_layout(q1, LEFT)
        q2 = gl.convert_layout(q2, LEFT)
        start = tile * ROWS
        to = out_ptr + ((head + g).to(gl.int64) * rows + start) * keys
        if turn + 1 < last:  # else what is loaded next is not used
            tile += 1
            if tile == tiles:
                tile = 0
                g += 1
        s = multiply(q1, q2, turned, 0, SCORES)
        for part in gl.static_range(COUNT - 1):
            s, q1, q2 = warpgroup_mma_wait(0, deps=[s, q1, q2])  # left factors stay where they are until then
            store(s, to, scale, start, start_n + part * KEYS, rows, keys, offset, CAUSAL, STORED)
            s = multiply(q1, q2, turned, part + 1, SCORES)
        s, q1, q2 = warpgroup_mma_wait(0, deps=[s, q1, q2])
        row = gl.minimum(tile * ROWS + i, rows - 1)
        q = q_ptr + g.to(gl.int64) * q_h
        x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, QUERIES)
        store(s, to, scale, start, start_n + (COUNT - 1) * KEYS, rows, keys, offset, CAUSAL, STORED)
        cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, QUERIES)


def rows_of(width: int, registers: list[list[int]]) -> gl.DistributedLinearLayout:
    """The layout of rows of which a thread has eight neighbours at a time, a quarter of a warp 32 columns."""
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    places = [[16 << bit, 0] for bit in range(WARPS.bit_length() - 1)]
    return gl.DistributedLinearLayout([[0, 1], [0, 2], [0, 4], *registers], lanes, places, [], [ROWS.value, width])


def serves(wish: Wish) -> bool:
    """Whether the kernel can take a call: what :func:`.qk.serves` asks, and 130 to 256 columns."""
    return wish.forms["q"].shape[3] > HALF.value and qk.serves(wish, 2 * HALF.value)


def pays(wish: Wish) -> bool:
    """Whether it is quicker than the portable kernel: a program rotates its keys before its first scores."""
    return qk.tiles_of(wish) >= ENOUGH_TILES and wish.forms["q"].shape[2] >= ROWS.value


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, cos, sin and scores (B, Hq, Sq, Sk)."""
    q, k, cos, sin = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    group, count = heads // heads_k, 2 if keys > KEYS.value else 1
    turns, others = ceil_div(rows, ROWS.value) * group, ceil_div(keys, KEYS.value * count) * batch * heads_k
    steps = min(ceil_div(turns, max(round(qk.ENOUGH * wish.places / others), 1)), MOST_STEPS)
    strides = *q.strides[:3], *k.strides[:3], cos.strides[0], sin.strides[0]
    numbers = heads_k, group, rows, keys, wish.q_offset, wish.scale, steps, *strides
    constants = {
        "COLUMNS": width // 2, "CAUSAL": wish.causal, "COUNT": count, "num_warps": WARPS, **BEGINS_EARLY,
        "QUERIES": rows_of(HALF.value, [[0, 32], [0, 64], [8, 0]]),
        "STORED": rows_of(KEYS.value, [[8, 0], [0, 32], [0, 64]]),
    }  # fmt: skip
    programs = check_programs("rope_qk", ceil_div(turns, steps) * others)
    launch = Prepared(wide_qk_kernel, programs, numbers, constants, {})

    def run(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
        launch.run((q, k, cos, sin, out))

    return run
