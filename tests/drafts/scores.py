"""Scores of rotated queries and keys on compute capability 9.0: ``kernels/hopper/qk.py`` without bulk stores.

Keys lie in the right factor in an order such that a thread has eight neighbours of a row of scores, which it stores at
once: no shared memory, and no fence that waits for the loads of what comes next. Rows that are not there are read
where the last one is, so loads have no masks. Tables are loaded after the first scores have left, when registers are
free. One tile of keys is multiplied while scores of the one before leave; of four tiles, the compiler waits for the
last before scores of the third leave.

Predicted, scores in bfloat16 at (4,32,1024,128), in µs, where the shipped kernel takes 128: two tiles of keys and four
warps 105 (L2 traffic of 536 MB at its 5.1 TB/s), four tiles and eight warps 88 (402 MB; then memory's floor, 78, and
what begins and ends late). Instructions for 64 x 256 scores: 522, 571 before; causal 540, and no spilled registers.
At head_dim 256, which is left to the portable kernel's 442 so far, 130 to 150: 745 instructions, 86 µs of products.
"""

from collections.abc import Callable
from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from kernels.fused import check_programs
from kernels.hopper import qk
from kernels.hopper.qk import FEWEST_STEPS, KEYS, MOST_STEPS, rotate
from kernels.launch import INT32_MAX, Prepared, ceil_div
from kernels.pinned import pinned
from kernels.special import SPECIAL, Special, Wish
from kernels.tiling import HOPPER

PARTS, WARPS = 4, 8  # tiles of keys of a program, where there are so many; warps, of 16 rows each
ENOUGH_PROGRAMS = 1024  # of two tiles of keys and four warps: about four for each place on an H200


@gluon.jit
def load_halves(x_ptr, y_ptr, row, x_s, y_s, COLUMNS: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr):
    """Two halves (rows, HALF) of rows; zeros beyond COLUMNS."""
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
def turn_keys(
    k_ptr, cos_ptr, sin_ptr, k1, k2, start_n, keys, k_s, cos_s, sin_s, COLUMNS: gl.constexpr, HALF: gl.constexpr
):
    """Rotated keys of a tile, to shared memory."""
    ROWS_OF_K: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [gl.num_warps(), 1], [1, 0])
    n = start_n + key_at(gl.arange(0, KEYS, layout=gl.SliceLayout(1, ROWS_OF_K)))
    at = gl.minimum(n, keys - 1)
    x1, x2 = load_halves(k_ptr, k_ptr + COLUMNS, at, k_s, k_s, COLUMNS, HALF, ROWS_OF_K)
    cos, sin = load_halves(cos_ptr, sin_ptr, at, cos_s, sin_s, COLUMNS, HALF, ROWS_OF_K)
    first_half, second_half = rotate(x1, x2, cos, sin, KEYS, HALF)
    k1.store(first_half)
    k2.store(second_half)


@gluon.jit
def key_at(place):
    """Which key of a tile is at a place of the right factor: what a thread has of a row of scores is eight neighbours.

    Of the bits of a place's number, those of the four threads of a row (2 and 1) become 4 and 3, and those of a
    thread's pairs (4 and 3) become 2 and 1.
    """
    return (place & 97) | ((place & 6) << 2) | ((place & 24) >> 2)


@gluon.jit
def multiply(q1, q2, turned, PART: gl.constexpr, SCORES: gl.constexpr):
    """Scores of a tile of keys, under way."""
    s = gl.zeros([q1.shape[0], KEYS], gl.float32, SCORES)
    s = warpgroup_mma(q2, turned.index(2 * PART + 1).permute((1, 0)), s, use_acc=False, is_async=True)
    return warpgroup_mma(q1, turned.index(2 * PART).permute((1, 0)), s, is_async=True)


@gluon.jit
def store(s, out_ptr, scale, start, start_n, rows, keys, offset, CAUSAL: gl.constexpr, STORED: gl.constexpr):
    """Scores of a tile to global memory, sixteen bytes of a row at a time."""
    ROWS: gl.constexpr = s.shape[0]
    s = s * scale
    if CAUSAL:  # noqa: SIM102 - known when the kernel is compiled, the rest is not
        if start + offset < start_n + KEYS - 1:
            seen = gl.maximum(start + offset - start_n, -ROWS).to(gl.int32)
            seen += gl.arange(0, ROWS, layout=gl.SliceLayout(1, s.type.layout))
            j = key_at(gl.arange(0, KEYS, layout=gl.SliceLayout(0, s.type.layout)))
            s = gl.where(j[None, :] <= seen[:, None], s, -float("inf"))
    s = s.to(out_ptr.dtype.element_ty).reshape((ROWS, 4, 4, 4, 2)).permute((0, 1, 3, 2, 4)).reshape((ROWS, KEYS))
    s = gl.convert_layout(s, STORED)
    i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, STORED))
    j = gl.arange(0, KEYS, layout=gl.SliceLayout(0, STORED))[None, :]
    to = gl.multiple_of(out_ptr + start_n + (i * keys)[:, None], (16, 16)) + j
    gl.store(to, s, mask=gl.max_constancy((i < rows - start)[:, None] & (j < keys - start_n), (1, 8)))


@gluon.jit(do_not_specialize=range(5, 20), do_not_specialize_on_alignment=range(5))
def hopper_qk_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_ptr,
    heads, group, rows, keys, offset, scale, steps,
    q_b, q_h, q_s, k_b, k_h, k_s, cos_s, sin_s,
    COLUMNS: gl.constexpr, HALF: gl.constexpr, CAUSAL: gl.constexpr, PARTS: gl.constexpr, QUERIES: gl.constexpr,
    STORED: gl.constexpr,
):  # fmt: skip
    """``steps`` tiles of queries, head by head of a group, against PARTS tiles of keys."""
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    ROWS: gl.constexpr = 16 * gl.num_warps()
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, KEYS, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SCORES, 2)
    RIGHT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, HALF], DOT)
    tiles = gl.cdiv(rows, ROWS)
    chunks = gl.cdiv(tiles * group, steps)
    across = gl.cdiv(keys, KEYS * PARTS)
    pid = gl.program_id(0)
    chunk = pid % chunks
    start_n = pid // chunks % across * (KEYS * PARTS)
    head = pid // chunks // across
    offset = offset.to(gl.int64)
    scale = scale.to(gl.float32)
    b = (head // heads).to(gl.int64)
    h = (head % heads).to(gl.int64)
    q_ptr += b * q_b + h * group * q_h
    k_ptr += b * k_b + h * k_h

    turned = gl.allocate_shared_memory(DOT, [2 * PARTS, KEYS, HALF], RIGHT)
    i = gl.arange(0, ROWS, layout=gl.SliceLayout(1, QUERIES))
    first = chunk * steps
    last = gl.minimum(first + steps, tiles * group)
    head *= group
    g = first // tiles
    tile = first % tiles
    row = gl.minimum(tile * ROWS + i, rows - 1)
    q = q_ptr + g.to(gl.int64) * q_h
    cos_of_q, sin_of_q = cos_ptr + offset * cos_s, sin_ptr + offset * sin_s
    x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, HALF, QUERIES)
    cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, HALF, QUERIES)
    for part in gl.static_range(PARTS):
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
        to = out_ptr + ((head + g).to(gl.int64) * rows + start) * keys
        if turn + 1 < last:  # else what is loaded next is not used
            tile += 1
            if tile == tiles:
                tile = 0
                g += 1
        row = gl.minimum(tile * ROWS + i, rows - 1)
        q = q_ptr + g.to(gl.int64) * q_h
        if HALF <= 64:
            x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, HALF, QUERIES)
        s = multiply(q1, q2, turned, 0, SCORES)
        for part in gl.static_range(PARTS - 1 if HALF <= 64 else 0):
            t = multiply(q1, q2, turned, part + 1, SCORES)
            s = warpgroup_mma_wait(2, deps=[s])  # products end in order: all but the last two have
            store(s, to, scale, start, start_n + part * KEYS, rows, keys, offset, CAUSAL, STORED)
            if part == PARTS - 2:
                cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, HALF, QUERIES)
            s = t
        for part in gl.static_range(0 if HALF <= 64 else PARTS - 1):  # too few registers for two tiles
            s, q1, q2 = warpgroup_mma_wait(0, deps=[s, q1, q2])
            store(s, to, scale, start, start_n + part * KEYS, rows, keys, offset, CAUSAL, STORED)
            s = multiply(q1, q2, turned, part + 1, SCORES)
        s, q1, q2 = warpgroup_mma_wait(0, deps=[s, q1, q2])  # left factors stay where they are until then
        if HALF > 64:
            x1, x2 = load_halves(q, q + COLUMNS, row, q_s, q_s, COLUMNS, HALF, QUERIES)
        store(s, to, scale, start, start_n + (PARTS - 1) * KEYS, rows, keys, offset, CAUSAL, STORED)
        if PARTS == 1 or HALF > 64:
            cos, sin = load_halves(cos_of_q, sin_of_q, row, cos_s, sin_s, COLUMNS, HALF, QUERIES)


def rows_of(width: int, registers: list[list[int]], warps: int) -> gl.DistributedLinearLayout:
    """The layout of rows of which a thread has eight neighbours at a time, a quarter of a warp 32 columns."""
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    places = [[16 << bit, 0] for bit in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout([[0, 1], [0, 2], [0, 4], *registers], lanes, places, [], [16 * warps, width])


def serves(wish: Wish) -> bool:
    """Whether the kernel can take a call: what the shipped one takes, with heads that 32 bits can walk through."""
    q, k, cos, sin = wish.forms.values()
    by_row, by_key = (
        (q.strides[2], k.shape[2], cos.strides[0], sin.strides[0]),
        (k.strides[2], *cos.strides, *sin.strides),
    )
    return qk.serves(wish, 256) and max(q.shape[2] * max(by_row), k.shape[2] * max(by_key)) <= INT32_MAX


def pays(wish: Wish) -> bool:
    """Whether it is quicker than the portable kernel: not known yet."""
    return True


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan its launch for what :func:`serves` accepts; the result takes q, k, cos, sin and scores (B, Hq, Sq, Sk)."""
    q, k, cos, sin = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    half = 32 if width <= 64 else 64 if width <= 128 else 128
    most = PARTS if half <= 64 else PARTS // 2
    group, parts = heads // heads_k, min(most, 1 << (ceil_div(keys, KEYS.value) - 1).bit_length())
    turns, across = ceil_div(rows, 16 * WARPS) * group, ceil_div(keys, KEYS.value * parts)
    steps = min(
        max(turns * across * batch * heads_k * parts * WARPS // 16 // ENOUGH_PROGRAMS, FEWEST_STEPS), MOST_STEPS
    )
    steps_of = *q.strides[:3], *k.strides[:3], cos.strides[0], sin.strides[0]
    numbers = heads_k, group, rows, keys, wish.q_offset, wish.scale, steps, *steps_of
    constants = {
        "COLUMNS": width // 2, "HALF": half, "CAUSAL": wish.causal, "PARTS": parts, "num_warps": WARPS,
        "QUERIES": rows_of(half, [*([0, columns] for columns in (32, 64) if columns < half), [8, 0]], WARPS),
        "STORED": rows_of(KEYS.value, [[8, 0], [0, 32], [0, 64]], WARPS),
    }  # fmt: skip
    programs = check_programs("rope_qk", ceil_div(turns, steps) * across * batch * heads_k)
    launch = Prepared(hopper_qk_kernel, programs, numbers, constants, {})
    return lambda *tensors: launch.run(tensors)


def take() -> None:
    """Have it taken from now on, wherever it can."""
    SPECIAL["qk"] = [Special(HOPPER, serves, pays, prepare)]


def scores(*tensors: Any, **options: Any) -> Any:
    """:func:`kernels.rope_qk` by this kernel."""
    take()
    return pinned("rope_qk", "special")(*tensors, **options)


ModelNew = scores
