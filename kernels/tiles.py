"""What programs of the fused kernels take: tiles of packed rows of q and tiles of keys, as device functions.

A program takes rows of q by the group: heads that share one head of k lie side by side, so that packed row r of
a head of k is row r // group of head r % group of its group. Row i of q has position ``offset + i`` and sees the
keys j with i + first_shift < j <= i + last_shift. Where a tile starts is told in 64 bits; within it, lanes have 64
bits with WIDE alone.
"""

import triton
import triton.language as tl

from kernels.rotation import cells, load_rotated, rows_at


@triton.jit
def packed_rows(start, rows, group, BLOCK_M: tl.constexpr, WIDE: tl.constexpr):
    """(first row i, rows counted from it, heads of the group, which are there) of packed rows from ``start``.

    Hardware divides in some twenty steps. Lanes that need no 64 bits are multiplied by 2^20 / group, rounded up, and
    cut: exact where (group + BLOCK_M) * group < 2^20, so :func:`kernels.fused.is_wide` says that others do need them.
    """
    first = start // group
    lane = (start - first * group) + lanes_of(BLOCK_M, WIDE)
    row = lane // group
    if not WIDE:
        row = lane * ((1048575 + group) // group) >> 20
    return first, row, lane - row * group, start + lanes_of(BLOCK_M, WIDE) < rows * group


@triton.jit
def columns(BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """The columns (1, BLOCK) of a tile."""
    d = tl.arange(0, BLOCK)[None, :]
    if WIDE:
        d = d.to(tl.int64)
    return d


@triton.jit
def load_queries(
    q_ptr, cos_ptr, sin_ptr, first, local, g, there, offset, half, q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d,
    WORK: tl.constexpr, DOT: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Both rotated halves (BLOCK_M, BLOCK_D) of packed rows; ``q_ptr`` is at the group's first head."""
    d = columns(BLOCK_D, WIDE)
    mask = cells(there[:, None], d < half, VECTOR)
    at = offset + first
    q_rows = rows_at(q_ptr, first, q_s, local * q_s + g * q_h, VECTOR)
    cos_rows = rows_at(cos_ptr, at, cos_s, local * cos_s, VECTOR)
    sin_rows = rows_at(sin_ptr, at, sin_s, local * sin_s, VECTOR)
    return load_rotated(q_rows, cos_rows, sin_rows, d, mask, half, q_d, cos_d, sin_d, WORK, DOT, VECTOR)


@triton.jit
def load_keys(
    k_ptr, cos_ptr, sin_ptr, start, n, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
    WORK: tl.constexpr, DOT: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Both rotated halves (BLOCK_N, BLOCK_D) of the keys start + n; ``k_ptr`` is at the head."""
    d = columns(BLOCK_D, WIDE)
    mask = cells((start + n < keys)[:, None], d < half, VECTOR)
    k_rows = rows_at(k_ptr, start, k_s, n * k_s, VECTOR)
    cos_rows = rows_at(cos_ptr, start, cos_s, n * cos_s, VECTOR)
    sin_rows = rows_at(sin_ptr, start, sin_s, n * sin_s, VECTOR)
    return load_rotated(k_rows, cos_rows, sin_rows, d, mask, half, k_d, cos_d, sin_d, WORK, DOT, VECTOR)


@triton.jit
def load_rows(
    x_ptr, start, lanes, there, width, x_s, x_d, VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows (n, BLOCK) from row ``start``, ``lanes`` away from it; zero where there are none."""
    d = columns(BLOCK, WIDE)
    mask = cells(there[:, None], d < width, VECTOR)
    return tl.load(rows_at(x_ptr, start, x_s, lanes, VECTOR) + d * x_d, mask=mask, other=0.0)


@triton.jit
def lanes_of(BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """0, 1, ... BLOCK - 1."""
    n = tl.arange(0, BLOCK)
    if WIDE:
        n = n.to(tl.int64)
    return n


@triton.jit
def program(WIDE: tl.constexpr):
    """The number of this program."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    return pid


@triton.jit
def seen_from(i, there, keys, first_shift, last_shift):
    """(lowest key seen, first key not seen any more) of rows i; rows that are not there see nothing."""
    return i + first_shift + 1, tl.where(there, tl.minimum(i + last_shift + 1, keys), 0)


@triton.jit
def key_tiles(start, rows, group, keys, first_shift, last_shift, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tiles of keys, from one up to another, of which rows of a tile of packed rows see any."""
    last_row = (tl.minimum(start + BLOCK_M, rows * group) - 1) // group
    low = tl.maximum(start // group + first_shift + 1, 0) // BLOCK_N
    high = tl.cdiv(tl.minimum(last_row + last_shift + 1, keys), BLOCK_N)
    return low, high


@triton.jit
def whole_tiles(
    start, rows, group, keys, first_shift, last_shift, first_tile, last_tile,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of these tiles of keys, from one up to another, those of which rows of a tile of packed rows see every key."""
    last_row = (tl.minimum(start + BLOCK_M, rows * group) - 1) // group
    low = tl.cdiv(tl.maximum(last_row + first_shift + 1, 0), BLOCK_N)
    high = tl.maximum(tl.minimum(start // group + last_shift + 1, keys), 0) // BLOCK_N
    low = tl.minimum(tl.maximum(low, first_tile), last_tile)
    return low, tl.maximum(tl.minimum(high, last_tile), low)


@triton.jit
def sees_all(start, rows, group, start_n, first_shift, last_shift, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile of packed rows is all there, and each of them sees every key of a tile that is there."""
    last_row = (start + BLOCK_M - 1) // group
    there = start + BLOCK_M <= rows * group
    return there & (start_n > last_row + first_shift) & (start_n + BLOCK_N - 1 <= start // group + last_shift)


@triton.jit
def row_tiles(start, rows, group, keys, first_shift, last_shift, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tiles of packed rows, from one up to another, of which rows see any of a tile of keys."""
    last_key = tl.minimum(start + BLOCK_N, keys) - 1
    low = tl.minimum(tl.maximum(start - last_shift, 0), rows) * group // BLOCK_M
    high = tl.cdiv(tl.maximum(tl.minimum(last_key - first_shift, rows), 0) * group, BLOCK_M)
    return low, high
