"""The rotation itself, as Triton device functions that every kernel shares."""

import triton
import triton.language as tl


@triton.jit
def rounded_product(x, table, DTYPE: tl.constexpr):
    """x * table, rounded once to DTYPE, the type PyTorch promotes the pair to.

    16-bit operands are multiplied in float32, where their product is exact, so one rounding is left.
    """
    if DTYPE == tl.float64:
        product = x.to(tl.float64) * table.to(tl.float64)
    else:
        product = (x.to(tl.float32) * table.to(tl.float32)).to(DTYPE)
    return product


@triton.jit
def rotate(x1, x2, cos, sin, COS_DTYPE: tl.constexpr, SIN_DTYPE: tl.constexpr, OUT_DTYPE: tl.constexpr):
    """(x1*cos - x2*sin, x2*cos + x1*sin), rounded where eager PyTorch rounds.

    COS_DTYPE and SIN_DTYPE are the promoted types of x with each table, OUT_DTYPE that of both products.
    Bitwise equality with eager needs a launch with ``enable_fp_fusion=False``: a contracted multiply-add
    would skip one rounding.
    """
    c1 = rounded_product(x1, cos, COS_DTYPE)
    c2 = rounded_product(x2, cos, COS_DTYPE)
    s1 = rounded_product(x1, sin, SIN_DTYPE)
    s2 = rounded_product(x2, sin, SIN_DTYPE)
    if OUT_DTYPE == tl.float64:
        first = c1.to(tl.float64) - s2.to(tl.float64)
        second = c2.to(tl.float64) + s1.to(tl.float64)
    else:
        first = (c1.to(tl.float32) - s2.to(tl.float32)).to(OUT_DTYPE)
        second = (c2.to(tl.float32) + s1.to(tl.float32)).to(OUT_DTYPE)
    return first, second


@triton.jit
def cells(rows, columns, VECTOR: tl.constexpr):
    """The mask (rows, columns) of both; with VECTOR it is known that groups of eight columns share a value.

    Such hints cling to the operation that made a value: none made elsewhere, an argument, takes any.
    """
    mask = rows & columns
    if VECTOR:
        mask = tl.max_constancy(mask, (1, 8))
    return mask


@triton.jit
def rows_at(ptr, start, stride, lanes, VECTOR: tl.constexpr):
    """Pointers (n, 1) to rows: ``start`` rows away, told in 64 bits, and ``lanes`` elements from there.

    With VECTOR it is known that they are multiples of 16 bytes.
    """
    rows = ptr + start.to(tl.int64) * stride + lanes[:, None]
    if VECTOR:
        rows = tl.multiple_of(rows, (16, 16))
    return rows


@triton.jit
def factor(x, DOT: tl.constexpr):
    """x (rows, columns), rounded to DOT: a factor of a product.

    Triton lays factors out by the narrowest type that they were loaded as, through all that is elementwise, and
    then has no product of float64 for 16 bits. A sum of one term is not elementwise.
    """
    x = x.to(DOT)
    if DOT == tl.float64:
        x = tl.sum(x[:, None, :], 1)
    return x


@triton.jit
def load_halves(x_rows, d, mask, half, x_d, VECTOR: tl.constexpr):
    """Both halves (rows, columns d) of rows, zero where masked."""
    x2_rows = x_rows + half.to(tl.int64) * x_d
    if VECTOR:
        x2_rows = tl.multiple_of(x2_rows, (16, 16))
    x1 = tl.load(x_rows + d * x_d, mask=mask, other=0.0)
    x2 = tl.load(x2_rows + d * x_d, mask=mask, other=0.0)
    return x1, x2


@triton.jit
def load_rotated(
    x_rows, cos_rows, sin_rows, d, mask, half, x_d, cos_d, sin_d, WORK: tl.constexpr, DOT: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Both halves (rows, columns d) of rotated rows: computed in WORK, rounded once to DOT, zero where masked."""
    x1, x2 = load_halves(x_rows, d, mask, half, x_d, VECTOR)
    cos = tl.load(cos_rows + d * cos_d, mask=mask, other=0.0)
    sin = tl.load(sin_rows + d * sin_d, mask=mask, other=0.0)
    first, second = rotate(x1, x2, cos, sin, WORK, WORK, WORK)
    return factor(first, DOT), factor(second, DOT)
