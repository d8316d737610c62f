"""A group's rows of q, loaded and rotated, and of o, stored."""

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
def queries_of(q_ptr, head, heads, q_b, q_h):
    """Where a head of q begins."""
    return q_ptr + (head // heads).to(gl.int64) * q_b + (head % heads).to(gl.int64) * q_h


@gluon.jit
def load_queries(q_ptr, cos_ptr, sin_ptr, start, rows, offset, q_s, cos_s, sin_s, HALF: gl.constexpr):
    """Both halves (ROWS, HALF) of a group's rows of a head of q, and their rows of the tables."""
    OF_ROWS: gl.constexpr = rows_in_lanes(HALF)
    i = gl.minimum(start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OF_ROWS)), rows - 1).to(gl.int64)
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    q = gl.multiple_of(q_ptr + (i * q_s)[:, None], (16, 16)) + d
    cos = gl.multiple_of(cos_ptr + ((i + offset) * cos_s)[:, None], (16, 16)) + d
    sin = gl.multiple_of(sin_ptr + ((i + offset) * sin_s)[:, None], (16, 16)) + d
    return gl.load(q), gl.load(q + HALF), gl.load(cos), gl.load(sin)


@gluon.jit
def store_rows(o, to, start, rows, q1, q2, HALF: gl.constexpr, WIDTH_V: gl.constexpr):
    """A group's rows of o; if they fit, by way of the memory of rotated q, so that sixteen bytes are stored at once."""
    FITS: gl.constexpr = WIDTH_V == 2 * HALF
    LAYOUT: gl.constexpr = rows_in_lanes(HALF) if FITS else o.type.layout
    if FITS:
        first, second = gl.split(o.reshape((ROWS, 2, HALF)).permute((0, 2, 1)))
        q1.store(first)
        q2.store(second)
    i = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    d = gl.arange(0, HALF if FITS else WIDTH_V, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    at = gl.multiple_of(to + (i.to(gl.int64) * WIDTH_V)[:, None], (16, 16)) + d
    there = gl.max_constancy((i < rows)[:, None] & (d < WIDTH_V), (1, 8))
    if FITS:
        first, second = q1.load(LAYOUT), q2.load(LAYOUT)
        gl.store(at, first, mask=there)
        gl.store(at + HALF, second, mask=there)
    else:
        gl.store(at, o, mask=there)
