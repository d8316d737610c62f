"""Scans: prefix sums and products, backwards too, and combinations that do not commute."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import FORMATS, rounded, values_of
from tests.zoo.reductions import gamma
from tests.zoo.values import NAMES, generator, integers, normals, small_integers

R, C = 8, 64


@triton.jit
def cumulate_kernel(x_ptr, rows_ptr, columns_ptr, reverse_ptr, R: tl.constexpr, C: tl.constexpr):
    at = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(rows_ptr + at, tl.cumsum(x, 1))
    tl.store(columns_ptr + at, tl.cumsum(x, 0))
    tl.store(reverse_ptr + at, tl.cumsum(x, 1, reverse=True))


def launch_cumulate(x):
    out = {name: torch.empty_like(x) for name in ("rows", "columns", "reverse")}
    cumulate_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def sums(x):
    values = values_of(x)
    kind = values.dtype
    backwards = values[:, ::-1].cumsum(1, dtype=kind)[:, ::-1].copy()
    return {"rows": values.cumsum(1, dtype=kind), "columns": values.cumsum(0, dtype=kind), "reverse": backwards}


def truth_cumulate(x):
    if x.dtype not in FORMATS:
        return sums(x)
    return {name: rounded(values, x.dtype) for name, values in sums(x).items()}


def bound_cumulate(x):
    """Higham's bound for a sum in any order, of every prefix."""
    form, size = FORMATS[x.dtype], sums(torch.from_numpy(np.abs(values_of(x))))
    return {name: 1.01 * gamma(R if name == "columns" else C, form.unit) * total for name, total in size.items()}


@triton.jit
def product_kernel(x_ptr, forward_ptr, reverse_ptr, R: tl.constexpr, C: tl.constexpr):
    at = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(forward_ptr + at, tl.cumprod(x, 1))
    tl.store(reverse_ptr + at, tl.cumprod(x, 1, reverse=True))


def launch_product(x):
    out = {name: torch.empty_like(x) for name in ("forward", "reverse")}
    product_kernel[(1,)](x, *out.values(), R=R, C=C)
    return out


def truth_product(x):
    """Powers of two and signs multiply exactly, integers wrap."""
    x = x.numpy()
    backwards = x[:, ::-1].cumprod(1, dtype=x.dtype)[:, ::-1].copy()
    return {"forward": x.cumprod(1, dtype=x.dtype), "reverse": backwards}


@triton.jit
def compose(scale_a, shift_a, scale_b, shift_b):
    """The map x -> scale x + shift, the first and then the second: associative, and the order matters."""
    return scale_a * scale_b, shift_a * scale_b + shift_b


@triton.jit
def later(a, b):
    return tl.where(b != 0, b, a)


@triton.jit
def associative_kernel(
    x_ptr, y_ptr, scale_ptr, shift_ptr, back_ptr, later_ptr, max_ptr, R: tl.constexpr, C: tl.constexpr
):
    at = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    x = tl.load(x_ptr + at)
    y = tl.load(y_ptr + at)
    scale, shift = tl.associative_scan((x, y), 1, compose)
    tl.store(scale_ptr + at, scale)
    tl.store(shift_ptr + at, shift)
    _, back = tl.associative_scan((x, y), 1, compose, reverse=True)
    tl.store(back_ptr + at, back)
    tl.store(later_ptr + at, tl.associative_scan(tl.where(x % 5 == 0, y, 0), 1, later))
    tl.store(max_ptr + at, tl.associative_scan(y.to(tl.int32, bitcast=True), 0, tl.standard._elementwise_max))


def launch_associative(x, y):
    out = {name: torch.empty_like(x) for name in ("scale", "shift", "back", "later")}
    out["max"] = torch.empty_like(x, dtype=torch.int32)
    associative_kernel[(1,)](x, y, *out.values(), R=R, C=C)
    return out


def truth_associative(x, y):
    x, y = x.numpy(), y.numpy()
    last = np.where(x % 5 == 0, y, 0)
    for j in range(1, C):
        last[:, j] = np.where(last[:, j] != 0, last[:, j], last[:, j - 1])
    scale, shift = _composed(x, y)
    back = _composed(x[:, ::-1], y[:, ::-1])[1][:, ::-1].copy()
    highest = np.maximum.accumulate(y.view(np.int32), 0)
    return {"scale": scale, "shift": shift, "back": back, "later": last, "max": highest}


def _composed(x, y):
    scale, shift = x.copy(), y.copy()
    for j in range(1, C):
        scale[:, j] = scale[:, j - 1] * x[:, j]
        shift[:, j] = shift[:, j - 1] * x[:, j] + y[:, j]
    return scale, shift


def powers():
    rng = generator(165)
    steps = rng.integers(-1, 2, (R, C)).astype(np.float64)
    return {"x": torch.from_numpy(np.ldexp(rng.choice([-1.0, 1.0], (R, C)), steps.astype(int))).float()}


def _entries():
    for dtype in (torch.int8, torch.int32, torch.int64, torch.uint32):
        table = partial(lambda d: {"x": integers(d, R * C, 161).reshape(R, C)}, dtype)
        if dtype.itemsize >= 4:
            yield Entry(f"cumsum-{NAMES[dtype]}", "exact", table, launch_cumulate, truth_cumulate)
            yield Entry(f"cumprod-{NAMES[dtype]}", "exact", table, launch_product, truth_product)
    for dtype in (torch.float16, torch.float32, torch.float64):
        whole = partial(lambda d: {"x": small_integers(d, (R, C), 162)}, dtype)
        yield Entry(f"cumsum_exact-{NAMES[dtype]}", "exact", whole, launch_cumulate, truth_cumulate)
        real = partial(lambda d: {"x": normals(d, (R, C), 163)}, dtype)
        yield Entry(f"cumsum_real-{NAMES[dtype]}", "reduction", real, launch_cumulate, sums, bound_cumulate)
    yield Entry("cumprod-fp32", "exact", powers, launch_product, truth_product)
    maps = lambda: {name: integers(torch.uint32, R * C, 166 + i).reshape(R, C) for i, name in enumerate("xy")}  # noqa: E731
    yield Entry("scan_compose", "exact", maps, launch_associative, truth_associative)


ENTRIES = tuple(_entries())
