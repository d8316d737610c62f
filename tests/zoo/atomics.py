"""Atomic operations: what memory holds in the end, and what they return where no other lane can come between."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import FORMATS, rounded, values_of
from tests.zoo.values import NAMES, generator, integers, small_integers

BLOCK, COUNT, SLOTS = 64, 256, 8


@triton.jit
def add_kernel(x_ptr, sums_ptr, own_ptr, old_ptr, n, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.atomic_add(sums_ptr + i % SLOTS, x, mask=i < n)  # contended, within programs and between them
    old = tl.atomic_add(own_ptr + i, x, mask=i % 3 != 0, sem="relaxed")
    tl.store(old_ptr + i, old, mask=i % 3 != 0)


def launch_add(x, start):
    out = {"sums": torch.zeros(SLOTS, dtype=x.dtype, device=x.device), "own": start.clone(), "old": torch.zeros_like(x)}
    add_kernel[(COUNT // BLOCK,)](x, *out.values(), COUNT - 10, SLOTS=SLOTS, BLOCK=BLOCK)
    return out


def truth_add(x, start):
    """Whole numbers: no order of adding them rounds."""
    values, start, i = values_of(x), values_of(start), np.arange(COUNT)
    sums = np.zeros(SLOTS, values.dtype)
    np.add.at(sums, i[: COUNT - 10] % SLOTS, values[: COUNT - 10])
    out = {"sums": sums, "own": np.where(i % 3 != 0, start + values, start)}
    out["old"] = np.where(i % 3 != 0, start, 0).astype(values.dtype)
    return {name: rounded(value, x.dtype) for name, value in out.items()} if x.dtype in FORMATS else out


@triton.jit
def scalar_kernel(x_ptr, out_ptr, last_ptr, N: tl.constexpr):
    """The last program to arrive does the rest, whichever it is."""
    pid = tl.program_id(0)
    x = tl.load(x_ptr + pid * N + tl.arange(0, N))
    tl.atomic_add(out_ptr, tl.sum(x, 0))
    arrived = tl.atomic_add(out_ptr + 1, 1, sem="acq_rel")
    if arrived == tl.num_programs(0) - 1:
        tl.store(last_ptr, tl.atomic_add(out_ptr, 0) * 10)
        tl.atomic_xchg(out_ptr + 1, 0)


def launch_scalar(x):
    out = {"out": torch.zeros(2, dtype=torch.int32, device=x.device), "last": torch.zeros_like(x[0, :1])}
    scalar_kernel[(x.shape[0],)](x, *out.values(), N=x.shape[1])
    return out


def truth_scalar(x):
    total = x.numpy().sum(dtype=np.int32)
    return {"out": np.array([total, 0], np.int32), "last": np.array([total * 10], np.int32)}


@triton.jit
def extremes_kernel(x_ptr, max_ptr, min_ptr, old_ptr, n, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.atomic_max(max_ptr + i % SLOTS, x, mask=i < n)
    tl.atomic_min(min_ptr + i % SLOTS, x, mask=i < n)
    old = tl.atomic_max(old_ptr + i, x)
    tl.debug_barrier()
    tl.atomic_min(old_ptr + i, old)  # puts back the smaller of the two


def launch_extremes(x, start):
    out = {"max": start[:SLOTS].clone(), "min": start[:SLOTS].clone(), "old": start.clone()}
    extremes_kernel[(COUNT // BLOCK,)](x, *out.values(), COUNT - 10, SLOTS=SLOTS, BLOCK=BLOCK)
    return out


def truth_extremes(x, start):
    values, start, i = x.numpy(), start.numpy(), np.arange(COUNT - 10)
    out = {
        "max": start[:SLOTS].copy(),
        "min": start[:SLOTS].copy(),
        "old": np.minimum(start, np.maximum(values, start)),
    }
    np.maximum.at(out["max"], i % SLOTS, values[: COUNT - 10])
    np.minimum.at(out["min"], i % SLOTS, values[: COUNT - 10])
    return out


@triton.jit
def bits_kernel(x_ptr, and_ptr, or_ptr, xor_ptr, n, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.atomic_and(and_ptr + i % SLOTS, x, mask=i < n)
    tl.atomic_or(or_ptr + i % SLOTS, x & (x >> 3), mask=i < n, scope="sys")
    tl.atomic_xor(xor_ptr + i % SLOTS, x, mask=i < n, sem="release")


def launch_bits(x):
    out = {name: torch.full((SLOTS,), -(name == "and"), device=x.device).to(x.dtype) for name in ("and", "or", "xor")}
    bits_kernel[(COUNT // BLOCK,)](x, *out.values(), COUNT - 10, SLOTS=SLOTS, BLOCK=BLOCK)
    return out


def truth_bits(x):
    x, i = x.numpy(), np.arange(COUNT - 10) % SLOTS
    out = {name: np.full(SLOTS, -(name == "and"), np.int64).astype(x.dtype) for name in ("and", "or", "xor")}
    np.bitwise_and.at(out["and"], i, x[: COUNT - 10])
    np.bitwise_or.at(out["or"], i, (x & (x >> 3))[: COUNT - 10])
    np.bitwise_xor.at(out["xor"], i, x[: COUNT - 10])
    return out


@triton.jit
def exchange_kernel(x_ptr, own_ptr, old_ptr, cas_ptr, seen_ptr, won_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(old_ptr + i, tl.atomic_xchg(own_ptr + i, x, mask=i % 4 != 0), mask=i % 4 != 0)
    expected = tl.where(i % 2 == 0, 5, 6).to(x.dtype)  # memory holds 5: every second exchange fails
    tl.store(seen_ptr + i, tl.atomic_cas(cas_ptr + i, expected, x))
    winner = tl.atomic_cas(won_ptr, 0, 1)  # of all programs, one finds the zero
    if winner == 0:
        tl.atomic_add(won_ptr + 1, 1)


def launch_exchange(x):
    out = {"own": torch.full_like(x, 9), "old": torch.zeros_like(x), "cas": torch.full_like(x, 5)}
    out |= {"seen": torch.empty_like(x), "won": torch.zeros(2, dtype=torch.int32, device=x.device)}
    exchange_kernel[(COUNT // BLOCK,)](x, *out.values(), BLOCK=BLOCK)
    return out


def truth_exchange(x):
    x, i = x.numpy(), np.arange(COUNT)
    out = {"own": np.where(i % 4 != 0, x, 9), "old": np.where(i % 4 != 0, 9, 0), "cas": np.where(i % 2 == 0, x, 5)}
    return {name: value.astype(x.dtype) for name, value in out.items()} | {
        "seen": np.full_like(x, 5),
        "won": np.array([1, 1], np.int32),
    }


@triton.jit
def lock_kernel(x_ptr, lock_ptr, total_ptr, count_ptr, N: tl.constexpr):
    """A lock that programs spin for, as in Triton's tutorial on layer normalization."""
    i = tl.arange(0, N)
    x = tl.load(x_ptr + tl.program_id(0) * N + i)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    count = tl.load(count_ptr)
    if count == 0:
        tl.atomic_xchg(count_ptr, 1)
    else:
        x += tl.load(total_ptr + i)
    tl.store(total_ptr + i, x)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


def launch_lock(x):
    out = {"lock": torch.zeros(1, dtype=torch.int32, device=x.device), "total": torch.full_like(x[0], torch.nan)}
    out["count"] = torch.zeros_like(out["lock"])
    lock_kernel[(x.shape[0],)](x, *out.values(), N=x.shape[1])
    return out


def truth_lock(x):
    return {"lock": np.zeros(1, np.int32), "total": x.numpy().sum(0), "count": np.ones(1, np.int32)}


@triton.jit
def real_kernel(x_ptr, sums_ptr, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(sums_ptr + i % SLOTS, tl.load(x_ptr + i))


def launch_real(x):
    out = torch.zeros(SLOTS, dtype=x.dtype, device=x.device)
    real_kernel[(COUNT // BLOCK,)](x, out, SLOTS=SLOTS, BLOCK=BLOCK)
    return {"sums": out}


def truth_real(x):
    return {"sums": values_of(x).reshape(-1, SLOTS).sum(0)}


def bound_real(x):
    """Any order: gamma(n - 1) times the sum of sizes (Higham, section 4.2); red.add may flush subnormal numbers."""
    k, unit, form = COUNT // SLOTS, FORMATS[x.dtype].unit, FORMATS[x.dtype]
    return {"sums": k * unit / (1 - k * unit) * np.abs(values_of(x)).reshape(-1, SLOTS).sum(0) + k * form.normal}


def _entries():
    for dtype in (torch.int32, torch.int64, torch.uint32, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        draw = partial(small_integers, top=3) if dtype in FORMATS else integers
        shape = lambda d, f: {"x": f(d, COUNT, 190), "start": f(d, COUNT, 191)}  # noqa: E731
        right = dtype != torch.bfloat16
        name = f"atomic_add-{NAMES[dtype]}"
        yield Entry(name, "exact", partial(shape, dtype, draw), launch_add, truth_add, None, right)
    for dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64, torch.float32, torch.float64):
        draw = partial(small_integers, top=90) if dtype in FORMATS else integers
        shape = lambda d, f: {"x": f(d, COUNT, 192) + (d in FORMATS) / 4, "start": f(d, COUNT, 193)}  # noqa: E731
        inputs = partial(shape, dtype, draw) if dtype in FORMATS else partial(_plain, dtype)
        yield Entry(f"atomic_extremes-{NAMES[dtype]}", "exact", inputs, launch_extremes, truth_extremes)
    for dtype in (torch.int32, torch.int64, torch.uint32):
        only = partial(lambda d: {"x": integers(d, COUNT, 194)}, dtype)
        yield Entry(f"atomic_bits-{NAMES[dtype]}", "exact", only, launch_bits, truth_bits)
    for dtype in (torch.int32, torch.int64):
        only = partial(lambda d: {"x": integers(d, COUNT, 195)}, dtype)
        yield Entry(f"atomic_exchange-{NAMES[dtype]}", "exact", only, launch_exchange, truth_exchange)
    rows = lambda kind: {"x": torch.from_numpy(generator(196).integers(-99, 99, (12, 32)).astype(kind))}  # noqa: E731
    yield Entry("atomic_last_program", "exact", partial(rows, np.int32), launch_scalar, truth_scalar)
    yield Entry("atomic_lock", "exact", partial(rows, np.float32), launch_lock, truth_lock)
    real = lambda: {"x": torch.from_numpy(generator(197).standard_normal(COUNT).astype(np.float32))}  # noqa: E731
    yield Entry("atomic_add_real", "reduction", real, launch_real, truth_real, bound_real)


def _plain(dtype):
    return {"x": integers(dtype, COUNT, 192), "start": integers(dtype, COUNT, 193)}


ENTRIES = tuple(_entries())
