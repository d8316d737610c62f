"""Scores of rotated queries and keys on compute capability 9.0, in Gluon.

The sum over columns may take them in any order, so they are ordered such that what a thread loads of a row, sixteen
bytes at a time, is what the left factor of a product of warp groups wants of that thread: q and its tables go from
global memory to registers, are rotated there and multiplied, and never pass through shared memory. Rotated keys do,
once, as the right factor; scores leave while others are made. What :func:`serves` does not accept is left to
:mod:`kernels.rope_qk`.
"""

import math
from collections.abc import Callable

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma, warpgroup_mma, warpgroup_mma_wait

from kernels.early import BEGINS_EARLY, wait_for_launch
from kernels.fused import check_programs
from kernels.hopper.forms import Blocks, are_even
from kernels.launch import INT32_MAX, Prepared, ceil_div
from kernels.special import Wish

ROWS, KEYS = gl.constexpr(64), gl.constexpr(128)  # of a tile
AT_ONCE, ENOUGH = 2, 4  # programs of a multiprocessor: that it has room for, and that share work out well
FEWEST_STEPS, MOST_STEPS = 4, 64  # tiles of queries that a program takes, so that it rotates keys for enough scores
ENOUGH_TILES = 256  # with fewer, too few programs have anything to do


@gluon.jit
def in_order(x, COUNT: gl.constexpr, HALF: gl.constexpr):
    """Rows (COUNT, HALF) with their columns in the order of the left factor's registers.

    Of the bits of a column's number, those of eight neighbours (2, 1 and 0) become 4, 3 and 0, and those of the four
    threads of a row (4 and 3) become 2 and 1.
    """
    bits = x.reshape((COUNT, HALF // 32, 2, 2, 2, 2, 2)).permute((0, 1, 4, 5, 2, 3, 6))
    return bits.reshape((COUNT, HALF))


@gluon.jit
def load_rows(
    x_ptr, cos_ptr, sin_ptr, row, there, x_s, cos_s, sin_s,
    COLUMNS: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Both halves (rows, HALF) of rows of x and the same rows of tables; zeros beyond COLUMNS, and without rows."""
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    mask = gl.max_constancy(there[:, None] & (d < COLUMNS), (1, 8))
    x_rows = gl.multiple_of(x_ptr + (row * x_s)[:, None], (16, 16))
    cos_rows = gl.multiple_of(cos_ptr + (row * cos_s)[:, None], (16, 16))
    sin_rows = gl.multiple_of(sin_ptr + (row * sin_s)[:, None], (16, 16))
    x1 = gl.load(x_rows + d, mask=mask, other=0.0)
    x2 = gl.load(x_rows + COLUMNS + d, mask=mask, other=0.0)
    cos = gl.load(cos_rows + d, mask=mask, other=0.0)
    sin = gl.load(sin_rows + d, mask=mask, other=0.0)
    return x1, x2, cos, sin


@gluon.jit
def rotate(x1, x2, cos, sin, COUNT: gl.constexpr, HALF: gl.constexpr):
    """Both rotated halves, columns in order, in arithmetic of 16 bits; a product may go into the sum unrounded."""
    return in_order(x1 * cos - x2 * sin, COUNT, HALF), in_order(x2 * cos + x1 * sin, COUNT, HALF)


@gluon.jit
def turn_keys(
    k_ptr, cos_ptr, sin_ptr, k1, k2, start_n, keys, k_s, cos_s, sin_s, COLUMNS: gl.constexpr, HALF: gl.constexpr
):
    """Rotated keys of a tile, to shared memory."""
    ROWS_OF_K: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    n = start_n + gl.arange(0, KEYS, layout=gl.SliceLayout(1, ROWS_OF_K))
    x1, x2, cos, sin = load_rows(k_ptr, cos_ptr, sin_ptr, n, n < keys, k_s, cos_s, sin_s, COLUMNS, HALF, ROWS_OF_K)
    first_half, second_half = rotate(x1, x2, cos, sin, KEYS, HALF)
    k1.store(first_half)
    k2.store(second_half)


@gluon.jit
def finished(s, scale, start, start_n, offset, dtype: gl.constexpr, CAUSAL: gl.constexpr):
    """Scores of a tile as they are to be stored."""
    s = s * scale
    if CAUSAL:  # noqa: SIM102 - known when the kernel is compiled, the rest is not
        if start + offset < start_n + KEYS - 1:
            seen = gl.maximum(start + offset - start_n, -ROWS).to(gl.int32)
            seen += gl.arange(0, ROWS, layout=gl.SliceLayout(1, s.type.layout))
            j = gl.arange(0, KEYS, layout=gl.SliceLayout(0, s.type.layout))
            s = gl.where(j[None, :] <= seen[:, None], s, -float("inf"))
    return s.to(dtype)


@gluon.jit
def send(s, out_desc, buffer, head, start, start_n):
    """Finished scores on their way to global memory, by a bulk copy."""
    tma.store_wait(1)
    buffer.store(s.reshape((1, ROWS, KEYS)))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [head, start, start_n], buffer)


@gluon.jit
def store(s, to, start, start_n, rows, keys):
    """Finished scores to the tile's rows at ``to``, sixteen bytes at a time."""
    OF_ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, OF_ROWS))
    j = gl.arange(0, KEYS, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    at = gl.multiple_of(to + start_n + (i.to(gl.int64) * keys)[:, None], (16, 16)) + j
    there = gl.max_constancy((i < rows - start)[:, None] & (j < keys - start_n), (1, 8))
    gl.store(at, gl.convert_layout(s, OF_ROWS), mask=there)


@gluon.jit(do_not_specialize=range(6, 21), do_not_specialize_on_alignment=range(5))
def hopper_qk_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_ptr, out_desc,
    heads, group, rows, keys, offset, scale, steps,
    q_b, q_h, q_s, k_b, k_h, k_s, cos_s, sin_s,
    COLUMNS: gl.constexpr, HALF: gl.constexpr, CAUSAL: gl.constexpr, WIDE: gl.constexpr, QUERIES: gl.constexpr,
    BULK: gl.constexpr,
):  # fmt: skip
    """``steps`` tiles of queries, head by head of a group, against one or two (WIDE) tiles of keys.

    ``out_desc`` is for bulk copies (BULK), ``out_ptr`` for other stores.
    """
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    COUNT: gl.constexpr = 2 if WIDE else 1
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
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
    if BULK:
        buffers = gl.allocate_shared_memory(DOT, [2, 1, ROWS, KEYS], out_desc.layout)
    i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, QUERIES))
    first = chunk * steps
    last = gl.minimum(first + steps, tiles * group)
    head *= group
    g = first // tiles
    tile = first % tiles
    wait_for_launch(True)
    cos_of_q, sin_of_q = cos_ptr + offset * cos_s, sin_ptr + offset * sin_s
    row = tile * ROWS + i
    x1, x2, cos, sin = load_rows(
        q_ptr + g.to(gl.int64) * q_h, cos_of_q, sin_of_q, row, row < rows, q_s, cos_s, sin_s, COLUMNS, HALF, QUERIES
    )
    for part in gl.static_range(COUNT):
        turn_keys(
            k_ptr, cos_ptr, sin_ptr, turned.index(2 * part), turned.index(2 * part + 1), start_n + part * KEYS, keys,
            k_s, cos_s, sin_s, COLUMNS, HALF,
        )  # fmt: skip
    fence_async_shared()
    for turn in range(first, last):
        q1, q2 = rotate(x1, x2, cos, sin, ROWS, HALF)
        q1 = gl.convert_layout(q1, LEFT)
        q2 = gl.convert_layout(q2, LEFT)
        start = tile * ROWS
        to = head + g
        tile += 1
        if tile == tiles:
            tile = 0
            g += 1
        row = tile * ROWS + i
        x1, x2, cos, sin = load_rows(
            q_ptr + g.to(gl.int64) * q_h, cos_of_q, sin_of_q, row, (row < rows) & (turn + 1 < last), q_s, cos_s, sin_s,
            COLUMNS, HALF, QUERIES,
        )  # fmt: skip
        s = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
        s = warpgroup_mma(q2, turned.index(1).permute((1, 0)), s, use_acc=False, is_async=True)
        s = warpgroup_mma(q1, turned.index(0).permute((1, 0)), s, is_async=True)
        if WIDE:
            t = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
            t = warpgroup_mma(q2, turned.index(3).permute((1, 0)), t, use_acc=False, is_async=True)
            t = warpgroup_mma(q1, turned.index(2).permute((1, 0)), t, is_async=True)
            s = warpgroup_mma_wait(2, deps=[s])  # products end in order: the first two have
            s = finished(s, scale, start, start_n, offset, DOT, CAUSAL)
            if BULK:
                send(s, out_desc, buffers.index(0), to, start, start_n)
            else:
                store(s, out_ptr + (to.to(gl.int64) * rows + start) * keys, start, start_n, rows, keys)
            t, q1, q2 = warpgroup_mma_wait(0, deps=[t, q1, q2])  # left factors stay where they are until then
            t = finished(t, scale, start, start_n + KEYS, offset, DOT, CAUSAL)
            if BULK:
                send(t, out_desc, buffers.index(1), to, start, start_n + KEYS)
            else:
                store(t, out_ptr + (to.to(gl.int64) * rows + start) * keys, start, start_n + KEYS, rows, keys)
        else:
            s, q1, q2 = warpgroup_mma_wait(0, deps=[s, q1, q2])
            s = finished(s, scale, start, start_n, offset, DOT, CAUSAL)
            if BULK:
                send(s, out_desc, buffers.index((turn - first) % 2), to, start, start_n)
            else:
                store(s, out_ptr + (to.to(gl.int64) * rows + start) * keys, start, start_n, rows, keys)
    if BULK:
        tma.store_wait(0)


def rows_of_q(half: int) -> gl.DistributedLinearLayout:
    """The layout in which queries are loaded: of a row, eight columns a thread, 32 a quarter of a warp."""
    registers = [[0, 1], [0, 2], [0, 4], *([[0, 32]] if half == 64 else []), [8, 0]]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [ROWS.value, half])


def serves(wish: Wish, most: int = 128) -> bool:
    """Whether the kernel can take a call: up to so many columns, and what :func:`.forms.are_even` asks.

    32 bits walk through a head and its rows of the tables, with rows to spare that are never there.
    """
    q, k, cos, sin = wish.forms.values()
    needed = max(wish.q_offset + q.shape[2], k.shape[2])
    farthest = max(q.shape[2], k.shape[2]) + 2 * KEYS.value
    return (
        are_even(wish)
        and q.shape[3] <= most
        and q.shape[3] % 16 == 0
        and cos.shape[1] == sin.shape[1] == q.shape[3] // 2
        and k.shape[2] % 8 == 0
        and min(cos.shape[0], sin.shape[0]) >= needed
        and farthest * max(q.strides[2], k.strides[2], cos.strides[0], sin.strides[0]) <= INT32_MAX
        and min(math.prod(x.shape) for x in (q, k)) > 0
    )


def tiles_of(wish: Wish) -> int:
    """Pairs of tiles of keys, each with every tile of queries."""
    q, k = wish.forms["q"].shape, wish.forms["k"].shape
    return ceil_div(q[2], ROWS.value) * ceil_div(k[2], 2 * KEYS.value) * q[0] * q[1]


def pays(wish: Wish) -> bool:
    """Whether it is quicker than the portable kernel: a program rotates its keys before its first scores."""
    return tiles_of(wish) >= ENOUGH_TILES and wish.forms["q"].shape[2] >= ROWS.value


def steps_of(turns: int, others: int, places: int) -> int:
    """Tiles of queries of a program.

    Args:
        turns: tiles of queries that see the same keys.
        others: how many times there are as many, with other keys.
        places: multiprocessors.
    """
    steps = ceil_div(turns, max(round(ENOUGH * places / others), 1))
    fewest = min(FEWEST_STEPS, ceil_div(turns * others, AT_ONCE * places))
    return min(max(steps, fewest), MOST_STEPS)


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, cos, sin and scores (B, Hq, Sq, Sk)."""
    q, k, cos, sin = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    group, wide = heads // heads_k, keys > KEYS.value
    turns, across = ceil_div(rows, ROWS.value) * group, ceil_div(keys, KEYS.value * (2 if wide else 1))
    steps = steps_of(turns, across * batch * heads_k, wish.places)
    half = 32 if width <= 64 else 64
    strides = *q.strides[:3], *k.strides[:3], cos.strides[0], sin.strides[0]
    numbers = heads_k, group, rows, keys, wish.q_offset, wish.scale, steps, *strides
    constants = {
        "COLUMNS": width // 2, "HALF": half, "CAUSAL": wish.causal, "WIDE": wide, "QUERIES": rows_of_q(half),
        "BULK": half == 64, "num_warps": 4, **BEGINS_EARLY,
    }  # fmt: skip
    programs = check_programs("rope_qk", ceil_div(turns, steps) * across * batch * heads_k)
    launch = Prepared(hopper_qk_kernel, programs, numbers, constants, {})
    of_scores = Blocks(1, ROWS.value, KEYS.value)

    def run(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
        described = of_scores.of(out.view(batch * heads, rows, keys)) if half == 64 else None
        launch.run((q, k, cos, sin, out, described))

    return run
