"""Integers: arithmetic that wraps at its width, division as C does it, shifts, bits, high halves of products."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.values import INTEGERS, NAMES, generator, integer_pairs, integers

BLOCK = 128
COUNT = 256


def _run(kernel, names, *inputs, dtype=None):
    x = inputs[0]
    out = {name: torch.empty_like(x, dtype=dtype or x.dtype) for name in names}
    kernel[(triton.cdiv(x.numel(), BLOCK),)](*inputs, *out.values(), BLOCK=BLOCK)
    return out


def _exact(numbers, like):
    """Python integers, wrapped at the width of a dtype."""
    width = 8 * like.itemsize
    wrapped = np.array([int(n) & (2**width - 1) for n in numbers], np.uint64)
    return wrapped.astype(f"u{like.itemsize}").view(like)


def _ints(x):
    return [int(v) for v in x.numpy()]


@triton.jit
def wrap_kernel(x_ptr, y_ptr, add_ptr, sub_ptr, mul_ptr, neg_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(add_ptr + offsets, x + y)
    tl.store(sub_ptr + offsets, x - y)
    tl.store(mul_ptr + offsets, x * y)
    tl.store(neg_ptr + offsets, (-x).to(x.dtype))


def launch_wrap(x, y):
    return _run(wrap_kernel, ("add", "sub", "mul", "neg"), x, y)


def truth_wrap(x, y):
    pairs = list(zip(_ints(x), _ints(y), strict=True))
    kind = x.numpy().dtype
    return {
        "add": _exact((a + b for a, b in pairs), kind),
        "sub": _exact((a - b for a, b in pairs), kind),
        "mul": _exact((a * b for a, b in pairs), kind),
        "neg": _exact((-a for a, _ in pairs), kind),
    }


@triton.jit
def divide_kernel(x_ptr, y_ptr, quotient_ptr, remainder_ptr, cdiv_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(quotient_ptr + offsets, x // y)
    tl.store(remainder_ptr + offsets, x % y)
    tl.store(cdiv_ptr + offsets, tl.cdiv(x, y))


def launch_divide(x, y):
    return _run(divide_kernel, ("quotient", "remainder", "cdiv"), x, y)


def truth_divide(x, y):
    """As C divides: the quotient is cut toward zero, the remainder has the sign of the dividend."""
    kind, out = x.numpy().dtype, {"quotient": [], "remainder": [], "cdiv": []}
    width, signed = 8 * kind.itemsize, kind.kind == "i"

    def cut(a, b):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)

    def wrapped(a):
        a &= 2**width - 1
        return a - 2**width if signed and a >= 2 ** (width - 1) else a

    for a, b in zip(_ints(x), _ints(y), strict=True):
        out["quotient"].append(cut(a, b))
        out["remainder"].append(a - b * cut(a, b))
        out["cdiv"].append(cut(wrapped(wrapped(a + b) - 1), b))  # tl.cdiv(x, y) is (x + (y - 1)) // y, and wraps
    return {name: _exact(values, kind) for name, values in out.items()}


def divide_inputs(dtype):
    """No zero divisors, and the smallest number is not divided by -1, by any of the three: both are undefined."""
    x, y = integer_pairs(dtype, COUNT, 51)
    divisors = y.numpy().copy()  # torch has no where for unsigned integers
    divisors[divisors == 0] = 1
    if torch.iinfo(dtype).min < 0:
        divisors[divisors == -1] = 3
    return {"x": x, "y": torch.from_numpy(divisors)}


@triton.jit
def bitwise_kernel(x_ptr, y_ptr, and_ptr, or_ptr, xor_ptr, not_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(and_ptr + offsets, x & y)
    tl.store(or_ptr + offsets, x | y)
    tl.store(xor_ptr + offsets, x ^ y)
    tl.store(not_ptr + offsets, ~x)


def launch_bitwise(x, y):
    return _run(bitwise_kernel, ("and", "or", "xor", "not"), x, y)


def truth_bitwise(x, y):
    a, b = x.numpy(), y.numpy()
    return {"and": a & b, "or": a | b, "xor": a ^ b, "not": ~a}


@triton.jit
def shift_kernel(x_ptr, y_ptr, left_ptr, right_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(left_ptr + offsets, x << y)
    tl.store(right_ptr + offsets, x >> y)  # copies of the sign for signed integers, zeros for the others


def launch_shift(x, y):
    return _run(shift_kernel, ("left", "right"), x, y)


def truth_shift(x, y):
    pairs, kind = list(zip(_ints(x), _ints(y), strict=True)), x.numpy().dtype
    return {"left": _exact((a << b for a, b in pairs), kind), "right": _exact((a >> b for a, b in pairs), kind)}


def shift_inputs(dtype):
    """Amounts below the width; others are undefined."""
    x = integers(dtype, COUNT, 61)
    amounts = generator(62).integers(0, torch.iinfo(dtype).bits, COUNT)
    return {"x": x, "y": torch.from_numpy(amounts).to(dtype)}


@triton.jit
def umulhi_kernel(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.umulhi(tl.load(x_ptr + offsets), tl.load(y_ptr + offsets)))


def launch_umulhi(x, y):
    return _run(umulhi_kernel, ("out",), x, y)


def truth_umulhi(x, y):
    """The bits are unsigned, whatever the dtype."""
    kind = x.numpy().dtype
    width = 8 * kind.itemsize
    low = 2**width - 1
    return {"out": _exact(((a & low) * (b & low) >> width for a, b in zip(_ints(x), _ints(y), strict=True)), kind)}


@triton.jit
def order_kernel(x_ptr, y_ptr, min_ptr, max_ptr, clamp_ptr, lt_ptr, ge_ptr, abs_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(min_ptr + offsets, tl.minimum(x, y))
    tl.store(max_ptr + offsets, tl.maximum(x, y))
    tl.store(clamp_ptr + offsets, tl.minimum(tl.maximum(x, 3), 77))
    tl.store(lt_ptr + offsets, (x < y).to(x.dtype))
    tl.store(ge_ptr + offsets, (x >= y).to(x.dtype))
    tl.store(abs_ptr + offsets, tl.abs(x))


def launch_order(x, y):
    return _run(order_kernel, ("min", "max", "clamp", "lt", "ge", "abs"), x, y)


def truth_order(x, y):
    a, b = x.numpy(), y.numpy()
    with np.errstate(all="ignore"):
        return {
            "min": np.minimum(a, b),
            "max": np.maximum(a, b),
            "clamp": np.minimum(np.maximum(a, 3), 77).astype(a.dtype),
            "lt": (a < b).astype(a.dtype),
            "ge": (a >= b).astype(a.dtype),
            "abs": np.abs(a),  # of the smallest number, itself
        }


@triton.jit
def bool_kernel(x_ptr, y_ptr, and_ptr, or_ptr, xor_ptr, not_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(and_ptr + offsets, x & y)
    tl.store(or_ptr + offsets, x | y)
    tl.store(xor_ptr + offsets, x ^ y)
    tl.store(not_ptr + offsets, x == 0)


def launch_bool(x, y):
    return _run(bool_kernel, ("and", "or", "xor", "not"), x, y)


def truth_bool(x, y):
    return truth_bitwise(x, y)


def bool_inputs():
    sides = generator(71).integers(0, 2, (2, COUNT)).astype(bool)
    return {"x": torch.from_numpy(sides[0]), "y": torch.from_numpy(sides[1])}


@triton.jit
def mixed_kernel(x_ptr, y_ptr, sum_ptr, constant_ptr, product_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(sum_ptr + offsets, x + y)  # int8 and int32 make int32
    tl.store(constant_ptr + offsets, x + 100)  # int8 stays int8
    tl.store(product_ptr + offsets, x.to(tl.int64) * y)


def launch_mixed(x, y):
    out = {
        "sum": torch.empty_like(y),
        "constant": torch.empty_like(x),
        "product": torch.empty_like(y, dtype=torch.int64),
    }
    mixed_kernel[(COUNT // BLOCK,)](x, y, *out.values(), BLOCK=BLOCK)
    return out


def truth_mixed(x, y):
    a, b = x.numpy(), y.numpy()
    with np.errstate(all="ignore"):
        return {"sum": a + b, "constant": a + np.int8(100), "product": a.astype(np.int64) * b}


def _pairs(dtype, seed):
    return dict(zip(("x", "y"), integer_pairs(dtype, COUNT, seed), strict=True))


def _entries():
    for dtype in INTEGERS:
        # Triton's interpreter has no ~ for unsigned integers, and multiplies signed ones as signed for umulhi.
        name, signed = NAMES[dtype], torch.iinfo(dtype).min < 0
        yield Entry(f"wrap-{name}", "exact", partial(_pairs, dtype, 45), launch_wrap, truth_wrap)
        yield Entry(f"int_divide-{name}", "exact", partial(divide_inputs, dtype), launch_divide, truth_divide)
        yield Entry(f"bitwise-{name}", "exact", partial(_pairs, dtype, 55), launch_bitwise, truth_bitwise, None, signed)
        yield Entry(f"shift-{name}", "exact", partial(shift_inputs, dtype), launch_shift, truth_shift)
        yield Entry(f"order-{name}", "exact", partial(_pairs, dtype, 65), launch_order, truth_order)
        if dtype.itemsize >= 4:
            yield Entry(
                f"umulhi-{name}", "exact", partial(_pairs, dtype, 75), launch_umulhi, truth_umulhi, None, not signed
            )
    yield Entry("bool", "exact", bool_inputs, launch_bool, truth_bool)
    mixed = partial(lambda: {"x": integers(torch.int8, COUNT, 81), "y": integers(torch.int32, COUNT, 82)})
    yield Entry("mixed_widths", "exact", mixed, launch_mixed, truth_mixed)


ENTRIES = tuple(_entries())
