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
