"""Floating-point operations element by element that round once, or not at all."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import FORMATS, NATIVE, bits_of, encode_exactly, native, rounded, values_of
from tests.zoo.values import FLOATS, NAMES, hostile, hostile_pairs, normals

BLOCK = 256
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


def grid(n):
    return (triton.cdiv(n, BLOCK),)


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    y = tl.load(y_ptr + offsets, mask=mask)
    tl.store(out_ptr + offsets, x + y, mask=mask)


def launch_add(x, y):
    out = torch.full_like(x, 7.0)
    # The last three elements are nobody's: a mask that is off by one shows.
    add_kernel[grid(x.numel())](x, y, out, x.numel() - 3, BLOCK=BLOCK, enable_fp_fusion=False)
    return {"out": out}


def truth_add(x, y):
    with np.errstate(all="ignore"):
        out = x.numpy() + y.numpy()
    out[-3:] = 7
    return {"out": out}


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, sum_ptr, difference_ptr, product_ptr, chain_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(sum_ptr + offsets, x + y)
    tl.store(difference_ptr + offsets, x - y)
    tl.store(product_ptr + offsets, x * y)
    tl.store(chain_ptr + offsets, x * y + x)  # two roundings, unless a compiler contracts them


def launch_arithmetic(x, y):
    names = ("sum", "difference", "product", "chain")
    out = {name: torch.empty_like(x) for name in names}
    arithmetic_kernel[grid(x.numel())](x, y, *out.values(), BLOCK=BLOCK, enable_fp_fusion=False)
    return out


def truth_arithmetic(x, y):
    """Float64 rounded again is right for the narrower formats: 53 bits are more than twice theirs and two."""
    dtype = x.dtype
    with np.errstate(all="ignore"):
        a, b = values_of(x), values_of(y)
        product = rounded(a * b, dtype)
        again = values_of(torch.from_numpy(product)) if dtype in NATIVE else values_of(_bfloat16(product))
        return {
            "sum": rounded(a + b, dtype),
            "difference": rounded(a - b, dtype),
            "product": product,
            "chain": rounded(again + a, dtype),
        }


def _bfloat16(bits):
    return torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)


@triton.jit
def fma_kernel(x_ptr, y_ptr, z_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.fma(tl.load(x_ptr + offsets), tl.load(y_ptr + offsets), tl.load(z_ptr + offsets)))


def launch_fma(x, y, z):
    out = torch.empty_like(x)
    fma_kernel[grid(x.numel())](x, y, z, out, BLOCK=BLOCK)
    return {"out": out}


def truth_fma(x, y, z):
    """Rational arithmetic; where the exact result is zero or not finite, IEEE 754 as NumPy does it decides."""
    form = FORMATS[x.dtype]
    with np.errstate(all="ignore"):
        plain = values_of(x) * values_of(y) + values_of(z)
    bits = rounded(plain, x.dtype).view(form.bits).copy()
    for i, (a, b, c) in enumerate(zip(values_of(x), values_of(y), values_of(z), strict=True)):
        if np.isfinite(a) and np.isfinite(b) and np.isfinite(c):
            exact = Fraction(a) * Fraction(b) + Fraction(c)
            if exact:
                bits[i] = encode_exactly(exact, form)
        elif np.isfinite(a) and np.isfinite(b):  # the product must not overflow first
            bits[i] = rounded(np.array([c]), x.dtype).view(form.bits)[0]
    return {"out": bits.view(NATIVE[x.dtype]) if x.dtype in NATIVE else bits}


def fma_inputs(dtype):
    x, y = hostile_pairs(dtype, 512, 21)
    z = hostile_pairs(dtype, 512, 25)[0][torch.from_numpy(np.random.default_rng(3).permutation(512))]
    with np.errstate(all="ignore"):
        near = rounded(-values_of(x) * values_of(y), dtype)  # cancels: what is left is the rounding of the product
    z[384:] = (torch.from_numpy(near) if dtype in NATIVE else _bfloat16(near))[384:]
    return {"x": x, "y": y, "z": z}


@triton.jit
def minmax_kernel(x_ptr, y_ptr, min_ptr, min_nan_ptr, max_ptr, max_nan_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(min_ptr + offsets, tl.minimum(x, y, propagate_nan=tl.PropagateNan.NONE))
    tl.store(min_nan_ptr + offsets, tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL))
    tl.store(max_ptr + offsets, tl.maximum(x, y, propagate_nan=tl.PropagateNan.NONE))
    tl.store(max_nan_ptr + offsets, tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL))


def launch_minmax(x, y):
    out = {name: torch.empty_like(x) for name in ("min", "min_nan", "max", "max_nan")}
    minmax_kernel[grid(x.numel())](x, y, *out.values(), BLOCK=BLOCK)
    return out


def truth_minmax(x, y):
    """The zeros are ordered, -0 below +0, as PTX orders them (PTX ISA, min and max)."""
    a, b = values_of(x), values_of(y)
    out = {}
    for name, first in (("min", np.signbit), ("max", lambda v: ~np.signbit(v))):
        smaller = (a < b) if name == "min" else (a > b)
        chosen = np.where(smaller | ((a == b) & first(a)), a, b)
        number = np.where(np.isnan(a), b, np.where(np.isnan(b), a, chosen))
        out[name] = rounded(number, x.dtype)
        out[f"{name}_nan"] = rounded(np.where(np.isnan(a) | np.isnan(b), np.nan, chosen), x.dtype)
    return out


def minmax_inputs(dtype, zeros):
    x, y = hostile_pairs(dtype, 512, 31)
    if not zeros:
        y[(x == 0) & (y == 0)] = 1.0
    return (
        {"x": x, "y": y}
        if not zeros
        else {
            "x": torch.tensor([0.0, -0.0] * 128, dtype=dtype),
            "y": torch.tensor([0.0, 0.0, -0.0, -0.0] * 64, dtype=dtype),
        }
    )


@triton.jit
def clamp_kernel(x_ptr, low_ptr, high_ptr, out_ptr, out_nan_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    low = tl.load(low_ptr + offsets)
    high = tl.load(high_ptr + offsets)
    tl.store(out_ptr + offsets, tl.clamp(x, low, high, propagate_nan=tl.PropagateNan.NONE))
    tl.store(out_nan_ptr + offsets, tl.clamp(x, low, high, propagate_nan=tl.PropagateNan.ALL))


def launch_clamp(x, low, high):
    out = {"plain": torch.empty_like(x), "propagated": torch.empty_like(x)}
    clamp_kernel[grid(x.numel())](x, low, high, *out.values(), BLOCK=BLOCK)
    return out


def truth_clamp(x, low, high):
    """A NaN in x gives the lower end unless it propagates; the ends are finite, as tl.clamp asks."""
    a, low, high = values_of(x), values_of(low), values_of(high)
    inside = np.where(a < low, low, np.where(a > high, high, a))
    plain = np.where(np.isnan(a), low, inside)
    return {"plain": rounded(plain, x.dtype), "propagated": rounded(inside, x.dtype)}


def clamp_inputs(dtype):
    x = hostile(dtype, 256, 41)
    low = normals(dtype, 256, 42)
    return {"x": x, "low": low, "high": low + normals(dtype, 256, 43).abs() + 0.5}


@triton.jit
def compare_kernel(x_ptr, y_ptr, lt_ptr, le_ptr, gt_ptr, ge_ptr, eq_ptr, ne_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(lt_ptr + offsets, x < y)
    tl.store(le_ptr + offsets, x <= y)
    tl.store(gt_ptr + offsets, x > y)
    tl.store(ge_ptr + offsets, x >= y)
    tl.store(eq_ptr + offsets, x == y)
    tl.store(ne_ptr + offsets, x != y)


def launch_compare(x, y):
    out = {
        name: torch.empty(x.shape, dtype=torch.bool, device=x.device) for name in ("lt", "le", "gt", "ge", "eq", "ne")
    }
    compare_kernel[grid(x.numel())](x, y, *out.values(), BLOCK=BLOCK)
    return out


def truth_compare(x, y):
    a, b = native(x), native(y)
    return {"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b}


@triton.jit
def where_kernel(x_ptr, y_ptr, where_ptr, nested_ptr, scalar_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(where_ptr + offsets, tl.where(offsets % 3 == 0, x, y))
    tl.store(nested_ptr + offsets, tl.where(x != x, 0.0, tl.where(x > y, x, y)).to(x.dtype))
    tl.store(scalar_ptr + offsets, tl.where(tl.program_id(0) == 0, x, y))


def launch_where(x, y):
    out = {name: torch.empty_like(x) for name in ("where", "nested", "scalar")}
    where_kernel[grid(x.numel())](x, y, *out.values(), BLOCK=BLOCK)
    return out


def truth_where(x, y):
    a, b = values_of(x), values_of(y)
    i = np.arange(a.size)
    nested = np.where(np.isnan(a), 0.0, np.where(a > b, a, b))
    chosen = {"where": np.where(i % 3 == 0, a, b), "nested": nested, "scalar": np.where(i < BLOCK, a, b)}
    return {name: rounded(values, x.dtype) for name, values in chosen.items()}


@triton.jit
def sign_kernel(x_ptr, abs_ptr, neg_ptr, minus_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(abs_ptr + offsets, tl.abs(x))
    tl.store(neg_ptr + offsets, x * -1.0)
    tl.store(minus_ptr + offsets, -x)


def launch_sign(x):
    out = {name: torch.empty_like(x) for name in ("abs", "neg", "minus")}
    sign_kernel[grid(x.numel())](x, *out.values(), BLOCK=BLOCK, enable_fp_fusion=False)
    return out


def truth_sign(x):
    """Until 3.8 Triton negates by subtracting from 0, so no zero gives -0."""
    bits = bits_of(x)
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    out = {"abs": bits & ~top, "neg": bits ^ top, "minus": bits ^ top}
    if VERSION < (3, 8):
        out["minus"] = np.where(bits == 0, bits, bits ^ top)
    return {name: value.view(NATIVE.get(x.dtype, bits.dtype)) for name, value in out.items()}


@triton.jit
def floor_kernel(x_ptr, floor_ptr, ceil_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(floor_ptr + offsets, tl.floor(x))
    tl.store(ceil_ptr + offsets, tl.ceil(x))


def launch_floor(x):
    out = {"floor": torch.empty_like(x), "ceil": torch.empty_like(x)}
    floor_kernel[grid(x.numel())](x, *out.values(), BLOCK=BLOCK)
    return out


@np.errstate(invalid="ignore")  # signaling NaN
def truth_floor(x):
    """float32 by ``cvt.rmi.ftz`` and ``cvt.rpi.ftz``: a subnormal counts as zero (measured on an H200)."""
    numbers = x.numpy()
    if x.dtype == torch.float32:
        numbers = np.where(np.abs(numbers) < 2.0**-126, np.copysign(np.float32(0), numbers), numbers)
    with np.errstate(invalid="ignore"):
        return {"floor": np.floor(numbers), "ceil": np.ceil(numbers)}


@triton.jit
def divide_rn_kernel(x_ptr, y_ptr, quotient_ptr, root_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(quotient_ptr + offsets, tl.div_rn(x, tl.load(y_ptr + offsets)))
    tl.store(root_ptr + offsets, tl.sqrt_rn(x))


@triton.jit
def divide_double_kernel(x_ptr, y_ptr, quotient_ptr, root_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(quotient_ptr + offsets, x / tl.load(y_ptr + offsets))  # div.rn.f64: PTX has no other for float64
    tl.store(root_ptr + offsets, tl.sqrt(x))  # sqrt.rn.f64, likewise


def launch_divide(kernel, x, y):
    out = {"quotient": torch.empty_like(x), "root": torch.empty_like(x)}
    kernel[grid(x.numel())](x, y, *out.values(), BLOCK=BLOCK)
    return out


def truth_divide(x, y):
    with np.errstate(all="ignore"):
        return {"quotient": x.numpy() / y.numpy(), "root": np.sqrt(x.numpy())}


def _pairs(dtype, seed=11):
    return dict(zip(("x", "y"), hostile_pairs(dtype, 512, seed), strict=True))


def _entries():
    yield Entry("add-fp32", "exact", partial(_pairs, torch.float32), launch_add, truth_add)
    for dtype in FLOATS:
        name, right = NAMES[dtype], dtype != torch.bfloat16
        pairs, one = partial(_pairs, dtype), partial(lambda dtype: {"x": hostile(dtype, 256, 12)}, dtype)
        yield Entry(f"arithmetic-{name}", "exact", pairs, launch_arithmetic, truth_arithmetic, None, right)
        yield Entry(f"fma-{name}", "exact", partial(fma_inputs, dtype), launch_fma, truth_fma, None, False)
        minmax = partial(minmax_inputs, dtype, False)
        # In Triton's interpreter a NaN wins whatever propagate_nan says.
        yield Entry(f"minmax-{name}", "exact", minmax, launch_minmax, truth_minmax, None, False)
        zeros = partial(minmax_inputs, dtype, True)
        yield Entry(f"minmax_zeros-{name}", "exact", zeros, launch_minmax, truth_minmax, None, False)
        yield Entry(f"clamp-{name}", "exact", partial(clamp_inputs, dtype), launch_clamp, truth_clamp, None, False)
        yield Entry(f"compare-{name}", "exact", pairs, launch_compare, truth_compare, None, right)
        yield Entry(f"where-{name}", "exact", pairs, launch_where, truth_where, None, right)
        yield Entry(f"sign-{name}", "exact", one, launch_sign, truth_sign, None, right)
        if dtype in (torch.float32, torch.float64):
            right = dtype == torch.float64  # Triton's interpreter does not flush subnormals
            yield Entry(f"floor-{name}", "exact", one, launch_floor, truth_floor, None, right)
    for kernel, dtype in ((divide_rn_kernel, torch.float32), (divide_double_kernel, torch.float64)):
        launch = partial(launch_divide, kernel)
        yield Entry(f"divide_rn-{NAMES[dtype]}", "exact", partial(_pairs, dtype, 13), launch, truth_divide)


ENTRIES = tuple(_entries())
