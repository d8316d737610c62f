"""A group's rows, loaded and rotated, which of a tile they meet, and what is stored of them."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.hopper.units import ROWS


@gluon.constexpr_function
def rows_in_lanes(columns):
    """The layout of rows of 16-bit numbers whose eight lanes at a time lie in different banks of shared memory."""
    return gl.BlockedLayout([1, 8], [256 // columns, columns // 8], [4, 1], [1, 0])


@gluon.jit
def rotate(x1, x2, cos, sin):
    """Both rotated halves, in arithmetic of 16 bits; a product may go into the sum unrounded."""
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@gluon.jit
def begin_of(x_ptr, head, heads, x_b, x_h):
    """Where a head begins, counted over all batches."""
    return x_ptr + (head // heads).to(gl.int64) * x_b + (head % heads).to(gl.int64) * x_h


@gluon.jit
def load_half(x_ptr, at, HALF: gl.constexpr):
    """The first half of rows that start at multiples of 16 bytes, ``at`` elements from the pointer."""
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, rows_in_lanes(HALF)))[None, :]
    return gl.load(gl.multiple_of(x_ptr + at[:, None], (16, 16)) + d)


@gluon.jit
def load_halves(x_ptr, at, HALF: gl.constexpr):
    """Both halves of such rows."""
    return load_half(x_ptr, at, HALF), load_half(x_ptr + HALF, at, HALF)


@gluon.jit
def load_rows(x_ptr, cos_ptr, sin_ptr, start, rows, offset, x_s, cos_s, sin_s, HALF: gl.constexpr):
    """Both halves (ROWS, HALF) of a group's rows of a head, and rows of the tables; beyond the last row, that again."""
    i = gl.minimum(start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, rows_in_lanes(HALF))), rows - 1).to(gl.int64)
    x1, x2 = load_halves(x_ptr, i * x_s, HALF)
    return x1, x2, load_half(cos_ptr, (i + offset) * cos_s, HALF), load_half(sin_ptr, (i + offset) * sin_s, HALF)


@gluon.jit
def turned_back(g1, g2, cos, sin):
    """Both halves of gradients of rotated rows."""
    return g1 * cos + g2 * sin, g2 * cos - g1 * sin


@gluon.jit
def seen_of(numbers, limit, others, row, S: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr):
    """Which rows of a tile that begins at ``row`` meet each own row: those below its limit, or, for keys, from it on.

    Numbers of columns come from shared memory, or they would take registers all along.
    """
    column = numbers.load(gl.SliceLayout(0, S))[None, :]
    seen = column < (limit - row)[:, None]
    if OF_KEYS:
        seen = column < others - row
        if CAUSAL:
            seen &= column >= (limit - row)[:, None]
    return seen


@gluon.jit
def store_halves(first, second, to, start, rows, room1, room2, HALF: gl.constexpr):
    """Both halves of a group's rows by way of shared memory, so that sixteen bytes are stored at once."""
    LAYOUT: gl.constexpr = rows_in_lanes(HALF)
    room1.store(first)
    room2.store(second)
    i = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    at = gl.multiple_of(to + (i.to(gl.int64) * (2 * HALF))[:, None], (16, 16)) + d
    there = gl.max_constancy((i < rows)[:, None] & (d < HALF), (1, 8))
    first, second = room1.load(LAYOUT), room2.load(LAYOUT)
    gl.store(at, first, mask=there)
    gl.store(at + HALF, second, mask=there)


@gluon.jit
def store_rows(o, to, start, rows, q1, q2, HALF: gl.constexpr, WIDTH_V: gl.constexpr):
    """A group's rows of o; if they fit, by way of the memory of rotated q."""
    if WIDTH_V == 2 * HALF:
        first, second = gl.split(o.reshape((ROWS, 2, HALF)).permute((0, 2, 1)))
        store_halves(first, second, to, start, rows, q1, q2, HALF)
    else:
        i = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, o.type.layout))
        d = gl.arange(0, WIDTH_V, layout=gl.SliceLayout(0, o.type.layout))[None, :]
        at = gl.multiple_of(to + (i.to(gl.int64) * WIDTH_V)[:, None], (16, 16)) + d
        gl.store(at, o, mask=gl.max_constancy((i < rows)[:, None] & (d < WIDTH_V), (1, 8)))
