"""Scores of rotated queries and keys on compute capability 9.0, in Gluon.

The sum over columns may take them in any order, so they are ordered such that what a thread loads of a row, sixteen
bytes at a time, is what the left factor of a product of warp groups wants of that thread: q and its tables go from
global memory to registers, are rotated there and multiplied, and never pass through shared memory. Rotated keys do,
once, as the right factor; scores leave by bulk copies while others are made. What :func:`serves` does not accept
is left to :mod:`kernels.rope_qk`.
"""

import math
from collections.abc import Callable

import torch
from triton.experimental import gluon
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma, warpgroup_mma, warpgroup_mma_wait

from kernels.fused import check_programs
from kernels.hopper.forms import Blocks, are_even
from kernels.launch import Prepared, ceil_div
from kernels.special import Wish

ROWS, KEYS = gl.constexpr(64), gl.constexpr(128)  # of a tile
ENOUGH_PROGRAMS = 1024  # about four for each place on an H200, of which it has two a multiprocessor
FEWEST_STEPS, MOST_STEPS = 4, 64  # tiles of queries that a program takes
BULK, LATE, MASKED = 1, 0, 1
ENOUGH_TILES = 2048  # with fewer, programs rotate keys for too few scores


@gluon.jit
def in_order(x, COUNT: gl.constexpr, HALF: gl.constexpr):
    """Rows (COUNT, HALF) with their columns in the order of the left factor's registers.

    Of the bits of a column's number, those of eight neighbours (2, 1 and 0) become 4, 3 and 0, and those of the four
    threads of a row (4 and 3) become 2 and 1.
    """
    bits = x.reshape((COUNT, HALF // 32, 2, 2, 2, 2, 2)).permute((0, 1, 4, 5, 2, 3, 6))
    return bits.reshape((COUNT, HALF))


@gluon.jit
def load_halves(x_ptr, y_ptr, row, x_s, y_s, COLUMNS: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr, there=None):
    """Two halves (rows, HALF) of rows; zeros beyond COLUMNS."""
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    x_rows = gl.multiple_of(x_ptr + (row * x_s)[:, None], (16, 16))
    y_rows = gl.multiple_of(y_ptr + (row * y_s)[:, None], (16, 16))
    if there is not None:
        mask = gl.max_constancy(there[:, None] & (d < COLUMNS), (1, 8))
        x = gl.load(x_rows + d, mask=mask, other=0.0)
        y = gl.load(y_rows + d, mask=mask, other=0.0)
    elif COLUMNS == HALF:
        x = gl.load(x_rows + d)
        y = gl.load(y_rows + d)
    else:
        mask = gl.max_constancy((row >= 0)[:, None] & (d < COLUMNS), (1, 8))
        x = gl.load(x_rows + d, mask=mask, other=0.0)
        y = gl.load(y_rows + d, mask=mask, other=0.0)
    return x, y


@gluon.jit
def rotate(x1, x2, cos, sin, COUNT: gl.constexpr, HALF: gl.constexpr):
    """Both rotated halves, columns in order; each product is rounded as eager PyTorch rounds it."""
    return in_order(x1 * cos - x2 * sin, COUNT, HALF), in_order(x2 * cos + x1 * sin, COUNT, HALF)


@gluon.jit
def turn_keys(
    k_ptr, cos_ptr, sin_ptr, k1, k2, start_n, keys, k_s, cos_s, sin_s, COLUMNS: gl.constexpr, HALF: gl.constexpr
):
    """Rotated keys of a tile, to shared memory."""
    ROWS_OF_K: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    n = gl.minimum(start_n + gl.arange(0, KEYS, layout=gl.SliceLayout(1, ROWS_OF_K)), keys - 1)
    x1, x2 = load_halves(k_ptr, k_ptr + COLUMNS, n, k_s, k_s, COLUMNS, HALF, ROWS_OF_K)
    cos, sin = load_halves(cos_ptr, sin_ptr, n, cos_s, sin_s, COLUMNS, HALF, ROWS_OF_K)
    first_half, second_half = rotate(x1, x2, cos, sin, KEYS, HALF)
    k1.store(first_half)
    k2.store(second_half)


@gluon.jit
def send(s, out, out_ptr, out_desc, buffer, scale, head, start, start_n, rows, keys, offset, CAUSAL: gl.constexpr, BULK: gl.constexpr):
    """Scores of a tile on their way to global memory."""
    SCORES: gl.constexpr = s.type.layout
    s = s * scale
    if CAUSAL:  # noqa: SIM102 - known when the kernel is compiled, the rest is not
        if start + offset < start_n + KEYS - 1:
            seen = gl.maximum(start + offset - start_n, -ROWS).to(gl.int32)
            seen += gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
            j = gl.arange(0, KEYS, layout=gl.SliceLayout(0, SCORES))
            s = gl.where(j[None, :] <= seen[:, None], s, -float("inf"))
    if BULK:
        tma.store_wait(1)
        buffer.store(s.to(out_desc.dtype).reshape((1, ROWS, KEYS)))
        fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [head, start, start_n], buffer)
    else:
        STORED: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
        s = gl.convert_layout(s.to(out_ptr.dtype.element_ty), STORED)
        i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, STORED))
        j = gl.arange(0, KEYS, layout=gl.SliceLayout(0, STORED))[None, :]
        to = gl.multiple_of(out + start_n + (i * keys)[:, None], (16, 16)) + j
        gl.store(to, s, mask=gl.max_constancy((i < rows - start)[:, None] & (j < keys - start_n), (1, 8)))


@gluon.jit(do_not_specialize=range(6, 21), do_not_specialize_on_alignment=range(5))
def hopper_qk_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_ptr, out_desc,
    heads, group, rows, keys, offset, scale, steps,
    q_b, q_h, q_s, k_b, k_h, k_s, cos_s, sin_s,
    COLUMNS: gl.constexpr, HALF: gl.constexpr, CAUSAL: gl.constexpr, WIDE: gl.constexpr, QUERIES: gl.constexpr,
    BULK: gl.constexpr, LATE: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """``steps`` tiles of queries, head by head of a group, against one or two (WIDE) tiles of keys."""
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
        buffers = gl.allocate_shared_memory(out_desc.dtype, [2, 1, ROWS, KEYS], out_desc.layout)
        buffer0, buffer1 = buffers.index(0), buffers.index(1)
    else:
        buffer0, buffer1 = 0, 0
    i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, QUERIES))
    first = chunk * steps
    last = gl.minimum(first + steps, tiles * group)
    head *= group
    g = first // tiles
    tile = first % tiles
    gdc_wait()
    gdc_launch_dependents()
    row = gl.minimum(tile * ROWS + i, rows - 1)
    q = q_ptr + g.to(gl.int64) * q_h
    cos_of_q, sin_of_q = cos_ptr + offset * cos_s, sin_ptr + offset * sin_s
    x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, HALF, QUERIES)
    cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, HALF, QUERIES)
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
        out = out_ptr + (to.to(gl.int64) * rows + start) * keys
        if turn + 1 < last:  # else what is loaded next is not used
            tile += 1
            if tile == tiles:
                tile = 0
                g += 1
        row = tile * ROWS + i
        there = None
        if MASKED:
            there = (row < rows) & (turn + 1 < last)
        if MASKED < 2:
            row = gl.minimum(row, rows - 1)
        q = q_ptr + g.to(gl.int64) * q_h
        if not LATE:
            x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, HALF, QUERIES, there)
            cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, HALF, QUERIES, there)
        s = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
        s = warpgroup_mma(q2, turned.index(1).permute((1, 0)), s, use_acc=False, is_async=True)
        s = warpgroup_mma(q1, turned.index(0).permute((1, 0)), s, is_async=True)
        if WIDE:
            t = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
            t = warpgroup_mma(q2, turned.index(3).permute((1, 0)), t, use_acc=False, is_async=True)
            t = warpgroup_mma(q1, turned.index(2).permute((1, 0)), t, is_async=True)
            s = warpgroup_mma_wait(2, deps=[s])  # products end in order: the first two have
            send(s, out, out_ptr, out_desc, buffer0, scale, to, start, start_n, rows, keys, offset, CAUSAL, BULK)
            if LATE == 1:
                x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, HALF, QUERIES, there)
                cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, HALF, QUERIES, there)
            t, q1, q2 = warpgroup_mma_wait(0, deps=[t, q1, q2])  # left factors stay where they are until then
            if LATE == 3:
                x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, HALF, QUERIES, there)
                cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, HALF, QUERIES, there)
            send(t, out, out_ptr, out_desc, buffer1, scale, to, start, start_n + KEYS, rows, keys, offset, CAUSAL, BULK)
        else:
            s, q1, q2 = warpgroup_mma_wait(0, deps=[s, q1, q2])
            if BULK:
                buffer = buffers.index((turn - first) % 2)
            else:
                buffer = 0
            send(s, out, out_ptr, out_desc, buffer, scale, to, start, start_n, rows, keys, offset, CAUSAL, BULK)
        if LATE == 2 or (LATE and not WIDE):
            x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, HALF, QUERIES, there)
            cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, HALF, QUERIES, there)
    if BULK:
        tma.store_wait(0)


def rows_of_q(half: int) -> gl.DistributedLinearLayout:
    """The layout in which queries are loaded: of a row, eight columns a thread, 32 a quarter of a warp."""
    registers = [[0, 1], [0, 2], [0, 4], *([[0, 32]] if half == 64 else []), [8, 0]]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [ROWS.value, half])


def serves(wish: Wish, most: int = 128) -> bool:
    """Whether the kernel can take a call: up to so many columns, and what :func:`.forms.are_even` asks."""
    q, k, cos, sin = wish.forms.values()
    needed = max(wish.q_offset + q.shape[2], k.shape[2])
    return (
        are_even(wish)
        and q.shape[3] <= most
        and q.shape[3] % 16 == 0
        and cos.shape[1] == sin.shape[1] == q.shape[3] // 2
        and k.shape[2] % 8 == 0
        and min(cos.shape[0], sin.shape[0]) >= needed
        and min(math.prod(x.shape) for x in (q, k)) > 0
    )


def tiles_of(wish: Wish) -> int:
    """Pairs of tiles of keys, each with every tile of queries."""
    q, k = wish.forms["q"].shape, wish.forms["k"].shape
    return ceil_div(q[2], ROWS.value) * ceil_div(k[2], 2 * KEYS.value) * q[0] * q[1]


def pays(wish: Wish) -> bool:
    """Whether it is quicker than the portable kernel: a program rotates its keys before its first scores."""
    return tiles_of(wish) >= ENOUGH_TILES and wish.forms["q"].shape[2] >= ROWS.value


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, cos, sin and scores (B, Hq, Sq, Sk)."""
    q, k, cos, sin = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    group, wide = heads // heads_k, keys > KEYS.value
    turns, across = ceil_div(rows, ROWS.value) * group, ceil_div(keys, KEYS.value * (2 if wide else 1))
    steps = min(max(turns * across * batch * heads_k // ENOUGH_PROGRAMS, FEWEST_STEPS), MOST_STEPS)
    half = 32 if width <= 64 else 64
    steps_of = *q.strides[:3], *k.strides[:3], cos.strides[0], sin.strides[0]
    numbers = heads_k, group, rows, keys, wish.q_offset, wish.scale, steps, *steps_of
    constants = {
        "COLUMNS": width // 2, "HALF": half, "CAUSAL": wish.causal, "WIDE": wide, "QUERIES": rows_of_q(half),
        "num_warps": 4, "BULK": BULK, "LATE": LATE, "MASKED": MASKED, "launch_pdl": True,
    }  # fmt: skip
    programs = check_programs("rope_qk", ceil_div(turns, steps) * across * batch * heads_k)
    launch = Prepared(hopper_qk_kernel, programs, numbers, constants, {})
    of_scores = Blocks(1, ROWS.value, KEYS.value)

    def run(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
        launch.run((q, k, cos, sin, out, of_scores.of(out.view(batch * heads, rows, keys))))

    return run
