"""Reductions: exact where the order cannot matter, and sums of real numbers within the bound for any order.

The bound of a sum of n numbers in any order is gamma(n - 1) times the sum of sizes, gamma(k) = (1 + u)^k - 1
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2, before it is simplified).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import FORMATS, FP32, rounded, values_of
from tests.zoo.values import FLOATS, INTEGERS, NAMES, generator, integers, normals, numbered, small_integers

R, C = 8, 32


def gamma(k, unit):
    return np.expm1(k * np.log1p(unit))


@triton.jit
def sums_kernel(x_ptr, all_ptr, rows_ptr, columns_ptr, keep_ptr, R: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, R)
    j = tl.arange(0, C)
    x = tl.load(x_ptr + i[:, None] * C + j[None, :])
    tl.store(all_ptr, tl.sum(x))
    tl.store(rows_ptr + i, tl.sum(x, 1))
    tl.store(columns_ptr + j, tl.sum(x, axis=0))
    tl.store(keep_ptr + i[:, None], tl.sum(x, axis=1, keep_dims=True))


def launch_sums(x):
    like = partial(torch.empty, dtype=sum_dtype(x.dtype), device=x.device)
    out = {"all": like(1), "rows": like(R), "columns": like(C), "keep": like(R, 1)}
    sums_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def sum_dtype(dtype):
    """Integers narrower than 32 bits are summed in 32, of their own signedness."""
    if dtype in FORMATS or dtype.itemsize >= 4:
        return dtype
    return torch.int32 if dtype.is_signed else torch.uint32


def truth_sums(x, exact=True):
    kind = x.numpy().dtype if x.dtype not in FORMATS else np.float64
    values = values_of(x)
    if x.dtype not in FORMATS:
        kind = np.dtype(NAMES[sum_dtype(x.dtype)])
        values = values.astype(kind)
    out = {"all": values.sum(dtype=kind).reshape(1), "rows": values.sum(1, dtype=kind)}
    out |= {"columns": values.sum(0, dtype=kind), "keep": values.sum(1, dtype=kind)[:, None]}
    if x.dtype in FORMATS and exact:
        return {name: rounded(value, x.dtype) for name, value in out.items()}
    return out


def bound_sums(x):
    """``tl.sum`` adds in the format of its input, bfloat16 too."""
    unit = FORMATS[x.dtype].unit
    size = np.abs(values_of(x))
    sizes = {"all": (size.sum().reshape(1), R * C), "rows": (size.sum(1), C), "columns": (size.sum(0), R)}
    sizes["keep"] = (size.sum(1)[:, None], C)
    errors = {name: gamma(n, unit) * total for name, (total, n) in sizes.items()}
    return {name: error * 1.001 for name, error in errors.items()}  # the truth is itself rounded, in float64


@triton.jit
def extremes_kernel(
    x_ptr, max_ptr, min_ptr, argmax_ptr, argmin_ptr, value_ptr, index_ptr, R: tl.constexpr, C: tl.constexpr
):
    i = tl.arange(0, R)
    x = tl.load(x_ptr + i[:, None] * C + tl.arange(0, C)[None, :])
    tl.store(max_ptr + i, tl.max(x, 1))
    tl.store(min_ptr + i, tl.min(x, 1))
    tl.store(argmax_ptr + i, tl.argmax(x, 1))
    tl.store(argmin_ptr + i, tl.argmin(x, 1))
    value, index = tl.max(x, 1, return_indices=True)
    tl.store(value_ptr + i, value)
    tl.store(index_ptr + i, index)


def launch_extremes(x):
    out = {name: torch.empty(R, dtype=x.dtype, device=x.device) for name in ("max", "min")}
    out |= {name: torch.empty(R, dtype=torch.int32, device=x.device) for name in ("argmax", "argmin")}
    out |= {"value": torch.empty_like(out["max"]), "index": torch.empty_like(out["argmax"])}
    extremes_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def truth_extremes(x):
    """Of equal elements the first counts."""
    values = values_of(x)

    def kept(v):
        return rounded(v, x.dtype) if x.dtype in FORMATS else v

    top, bottom = kept(values.max(1)), kept(values.min(1))
    first, last = values.argmax(1).astype(np.int32), values.argmin(1).astype(np.int32)
    return {"max": top, "min": bottom, "argmax": first, "argmin": last, "value": top, "index": first}


@triton.jit
def distinct_kernel(x_ptr, argmax_ptr, argmin_ptr, R: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, R)
    x = tl.load(x_ptr + i[:, None] * C + tl.arange(0, C)[None, :])
    tl.store(argmax_ptr + i, tl.argmax(x, 1, tie_break_left=False))  # any of equals: here there are none
    tl.store(argmin_ptr + i, tl.argmin(x, 1, tie_break_left=False))


def launch_distinct(x):
    out = {name: torch.empty(R, dtype=torch.int32, device=x.device) for name in ("argmax", "argmin")}
    distinct_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def truth_distinct(x):
    return {"argmax": x.numpy().argmax(1).astype(np.int32), "argmin": x.numpy().argmin(1).astype(np.int32)}


@triton.jit
def nan_kernel(x_ptr, max_ptr, min_ptr, R: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, R)
    x = tl.load(x_ptr + i[:, None] * C + tl.arange(0, C)[None, :])
    tl.store(max_ptr + i, tl.max(x, 1))
    tl.store(min_ptr + i, tl.min(x, 1))


def launch_nan(x):
    out = {name: torch.empty(R, device=x.device) for name in ("max", "min")}
    nan_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def nan_inputs():
    """Rows with some NaN, with infinities, and of nothing but NaN."""
    x = normals(torch.float32, (R, C), 150)
    x[0, ::3] = x[1, 1:] = x[2] = torch.nan
    x[3, 5], x[4, 6], x[5] = torch.inf, -torch.inf, -torch.inf
    return {"x": x}


@triton.jit
def bits_kernel(x_ptr, xor_ptr, or_ptr, all_ptr, R: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, R)
    x = tl.load(x_ptr + i[:, None] * C + tl.arange(0, C)[None, :])
    tl.store(xor_ptr + i, tl.xor_sum(x, 1))
    tl.store(or_ptr + i, tl.reduce_or(x, 1))
    tl.store(all_ptr, tl.xor_sum(tl.xor_sum(x, 0), 0))


def launch_bits(x):
    out = {name: torch.empty(R, dtype=x.dtype, device=x.device) for name in ("xor", "or")}
    out["all"] = torch.empty(1, dtype=x.dtype, device=x.device)
    bits_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def truth_bits(x):
    x = x.numpy()
    xor, every = np.bitwise_xor.reduce(x, 1), np.bitwise_xor.reduce(x.ravel()).reshape(1)
    return {"xor": xor, "or": np.bitwise_or.reduce(x, 1), "all": every}


@triton.jit
def add_modulo(a, b):
    return (a + b) % 65521


@triton.jit
def smallest_with_sum(a_key, a_sum, b_key, b_sum):
    return tl.minimum(a_key, b_key), a_sum + b_sum


@triton.jit
def combine_kernel(x_ptr, modulo_ptr, key_ptr, sum_ptr, cube_ptr, R: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, R)
    x = tl.load(x_ptr + i[:, None] * C + tl.arange(0, C)[None, :])
    tl.store(modulo_ptr + i, tl.reduce(x, 1, add_modulo))
    key, total = tl.reduce((x, x.to(tl.int64)), 1, smallest_with_sum)
    tl.store(key_ptr + i, key)
    tl.store(sum_ptr + i, total)
    cube = tl.reshape(x, (R, 4, C // 4))
    tl.store(cube_ptr + i[:, None] * (C // 4) + tl.arange(0, C // 4)[None, :], tl.max(cube, 1))


def launch_combine(x):
    out = {name: torch.empty(R, dtype=torch.int32, device=x.device) for name in ("modulo", "key")}
    out["sum"] = torch.empty(R, dtype=torch.int64, device=x.device)
    out["cube"] = torch.empty((R, C // 4), dtype=torch.int32, device=x.device)
    combine_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def truth_combine(x):
    x = x.numpy()
    total = x.astype(np.int64).sum(1)
    modulo = (total % 65521).astype(np.int32)
    return {"modulo": modulo, "key": x.min(1), "sum": total, "cube": x.reshape(R, 4, -1).max(1)}


@triton.jit
def welford(mean_a, m2_a, count_a, mean_b, m2_b, count_b):
    delta = mean_b - mean_a
    count = count_a + count_b
    part = tl.div_rn(count_b, count)
    return mean_a + delta * part, m2_a + m2_b + delta * delta * count_a * part, count


@triton.jit
def welford_kernel(x_ptr, mean_ptr, variance_ptr, R: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, R)
    x = tl.load(x_ptr + i[:, None] * C + tl.arange(0, C)[None, :])
    mean, m2, count = tl.reduce((x, tl.zeros_like(x), tl.full((R, C), 1.0, tl.float32)), 1, welford)
    tl.store(mean_ptr + i, mean)
    tl.store(variance_ptr + i, tl.div_rn(m2, count))


def launch_welford(x):
    out = {name: torch.empty(R, device=x.device) for name in ("mean", "variance")}
    welford_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def truth_welford(x):
    return {"mean": values_of(x).mean(1), "variance": values_of(x).var(1)}


def bound_welford(x):
    """An error analysis of one combination, through at most C - 1 of them, one after another.

    A mean takes four roundings (delta, part, their product, the sum), each of something no larger than
    twice the largest |x|; M2 takes two sums and five operations on delta**2 * count_a * part, which is no
    larger than M2 itself, and the errors of the means enter delta twice. To first order, and with a factor
    of two for what is beyond.
    """
    top, unit = np.abs(values_of(x)).max(1), FP32.unit
    mean = 2 * (C - 1) * 8 * unit * top
    variance = values_of(x).var(1)
    return {"mean": mean, "variance": 2 * (C * 8 * unit * variance + 4 * mean * np.sqrt(variance) + mean**2)}


def table(dtype, seed):
    return {"x": integers(dtype, R * C, seed).reshape(R, C)}


def _entries():
    for dtype in INTEGERS:
        name = NAMES[dtype]
        # Triton's interpreter sums int32 as Python integers, and they do not fit.
        right = dtype != torch.int32
        yield Entry(f"sum-{name}", "exact", partial(table, dtype, 151), launch_sums, truth_sums, None, right)
        yield Entry(f"extremes-{name}", "exact", partial(table, dtype, 152), launch_extremes, truth_extremes)
    for dtype in FLOATS:
        name, right = NAMES[dtype], dtype != torch.bfloat16
        # Whole numbers: 256 of size 7 at most, whose sums all these formats hold, but for bfloat16 at the end.
        exact = partial(lambda d: {"x": small_integers(d, (R, C), 153, 7)}, dtype)
        yield Entry(f"sum_exact-{name}", "exact", exact, launch_sums, truth_sums, None, right)
        real = partial(lambda d: {"x": normals(d, (R, C), 154)}, dtype)
        truth = partial(truth_sums, exact=False)
        yield Entry(f"sum_real-{name}", "reduction", real, launch_sums, truth, bound_sums, right)
        ties = partial(lambda d: {"x": small_integers(d, (R, C), 155, 3) + 0.5}, dtype)
        yield Entry(f"extremes-{name}", "exact", ties, launch_extremes, truth_extremes)
    order = lambda: {"x": numbered(generator(156).permutation(R * C).reshape(R, C), torch.float32)}  # noqa: E731
    yield Entry("argmax_any_tie", "exact", order, launch_distinct, truth_distinct)
    ignored = lambda x: {"max": np.fmax.reduce(x.numpy(), 1), "min": np.fmin.reduce(x.numpy(), 1)}  # noqa: E731
    yield Entry("extremes_nan", "exact", nan_inputs, launch_nan, ignored)
    for dtype in (torch.int32, torch.uint8, torch.int64):
        yield Entry(f"xor_sum-{NAMES[dtype]}", "exact", partial(table, dtype, 157), launch_bits, truth_bits)
    small = lambda: {"x": torch.from_numpy(generator(158).integers(0, 65521, (R, C)).astype(np.int32))}  # noqa: E731
    yield Entry("reduce_combine", "exact", small, launch_combine, truth_combine)
    real = lambda: {"x": normals(torch.float32, (R, C), 159) + 3}  # noqa: E731
    yield Entry("welford", "reduction", real, launch_welford, truth_welford, bound_welford)


ENTRIES = tuple(_entries())
