"""Loads and stores: masks, what masked lanes hold, hints, strides, far offsets, tables of pointers, block pointers."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import FORMATS, NATIVE, bits_of
from tests.zoo.values import FLOATS, INTEGERS, NAMES, draw, generator, hostile, integers, normals


def plain(x):
    """A tensor as an exact truth gives it."""
    if x.dtype not in FORMATS:
        return x.numpy().copy()
    return bits_of(x).view(NATIVE.get(x.dtype, FORMATS[x.dtype].bits)).reshape(x.shape).copy()


@triton.jit
def masked_kernel(x_ptr, out_ptr, n, other, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=(offsets < n) & (offsets % 5 != 2), other=other)
    tl.store(out_ptr + offsets, x, mask=offsets % 7 != 3)


def launch_masked(x):
    out = torch.ones(x.shape, dtype=x.dtype, device=x.device)
    masked_kernel[(2,)](x, out, 200, 3.0 if x.is_floating_point() else 3, BLOCK=128)
    return {"out": out}


def truth_masked(x):
    i = np.arange(256)
    three, one = (plain(torch.full((1,), value).to(x.dtype)) for value in (3.0, 1.0))
    return {"out": np.where(i % 7 == 3, one, np.where((i < 200) & (i % 5 != 2), plain(x), three))}


@triton.jit
def hints_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.max_contiguous(tl.multiple_of(tl.program_id(0) * BLOCK, BLOCK) + tl.arange(0, BLOCK), BLOCK)
    mask = offsets < n
    a = tl.load(x_ptr + offsets, mask=mask, other=0.0, cache_modifier=".ca")
    b = tl.load(x_ptr + offsets, mask=mask, other=0.0, cache_modifier=".cg")
    c = tl.load(x_ptr + offsets, mask=mask, other=0.0, volatile=True)
    d = tl.load(x_ptr + offsets, mask=mask, other=0.0, eviction_policy="evict_first")
    e = tl.load(x_ptr + offsets, mask=mask, other=0.0, eviction_policy="evict_last")
    tl.store(out_ptr + offsets, a, mask=mask, cache_modifier=".wb")
    tl.store(out_ptr + n + offsets, b, mask=mask, cache_modifier=".cs")
    tl.debug_barrier()
    tl.store(out_ptr + 2 * n + offsets, c, mask=mask, cache_modifier=".wt")
    tl.store(out_ptr + 3 * n + offsets, d, mask=mask, eviction_policy="evict_first")
    tl.store(out_ptr + 4 * n + offsets, e, mask=mask, eviction_policy="evict_last")


def launch_hints(x):
    out = torch.zeros(5 * x.numel(), dtype=x.dtype, device=x.device)
    hints_kernel[(triton.cdiv(x.numel(), 128),)](x, out, x.numel(), BLOCK=128)
    return {"out": out}


@triton.jit
def strided_kernel(x_ptr, start, out_ptr, rows, columns, sx0, sx1, so0, so1, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (i < rows) & (j < columns)
    x = tl.load(x_ptr + start + i * sx0 + j * sx1, mask=mask)
    tl.store(out_ptr + i * so0 + j * so1, x, mask=mask)


def launch_strided(x):
    """Every second row and column, read backwards through negative strides, written transposed."""
    rows, columns = x.shape[0] // 2, x.shape[1] // 2
    out = torch.zeros((columns, rows), dtype=x.dtype, device=x.device)
    start = (2 * rows - 1) * x.stride(0) + (2 * columns - 1) * x.stride(1)
    steps = (-2 * x.stride(0), -2 * x.stride(1), out.stride(1), out.stride(0))
    strided_kernel[(3, 2)](x, start, out, rows, columns, *steps, ROWS=8, COLUMNS=16)
    return {"out": out}


def truth_strided(x):
    rows, columns = x.shape[0] // 2, x.shape[1] // 2
    return {"out": plain(x)[: 2 * rows, : 2 * columns][::-2, ::-2].T.copy()}


@triton.jit
def overlapping_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    window = tl.load(x_ptr + i[:, None] + i[None, :])  # rows overlap
    tl.store(out_ptr + i[:, None] * BLOCK + i[None, :], window)
    tl.store(out_ptr + BLOCK * BLOCK, tl.load(x_ptr + 5))  # one scalar


def launch_overlapping(x):
    out = torch.zeros(16 * 16 + 1, dtype=x.dtype, device=x.device)
    overlapping_kernel[(1,)](x, out, BLOCK=16)
    return {"out": out}


def truth_overlapping(x):
    i = np.arange(16)
    return {"out": np.append(plain(x)[i[:, None] + i[None, :]].ravel(), plain(x)[5])}


@triton.jit
def far_kernel(x_ptr, out_ptr, back, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    far = tl.full((BLOCK,), 1, tl.int64) << 40
    x = tl.load((x_ptr + (i + far)) - far)  # 2**42 bytes away, and back before it is read
    tl.store(out_ptr + i, x)
    tl.store(out_ptr + BLOCK + i, tl.load(x_ptr + back.to(tl.int64) * 65536 * 65536 + i, mask=back == 0))


def launch_far(x):
    out = torch.zeros(2 * x.numel(), dtype=x.dtype, device=x.device)
    far_kernel[(1,)](x, out, 0, BLOCK=x.numel())
    return {"out": out}


@triton.jit
def table_kernel(table_ptr, sizes_ptr, out_ptr, BLOCK: tl.constexpr):
    which = tl.program_id(0)
    source = tl.load(table_ptr + which).to(tl.pointer_type(tl.float32))
    size = tl.load(sizes_ptr + which)
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + which * BLOCK + i, tl.load(source + i, mask=i < size, other=-1.0))


def launch_table(a, b, c):
    table = torch.tensor([t.data_ptr() for t in (a, b, c)], dtype=torch.int64, device=a.device)
    sizes = torch.tensor([t.numel() for t in (a, b, c)], dtype=torch.int32, device=a.device)
    out = torch.empty((3, 64), device=a.device)
    table_kernel[(3,)](table, sizes, out, BLOCK=64)
    return {"out": out}


def truth_table(a, b, c):
    return {"out": np.stack([np.append(t.numpy(), np.full(64 - t.numel(), -1, np.float32)) for t in (a, b, c)])}


@triton.jit
def scattered_kernel(table_ptr, out_ptr, distance_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    addresses = tl.load(table_ptr + i).to(tl.pointer_type(tl.int32))  # a tensor of pointers, each to somewhere else
    tl.store(out_ptr + i, tl.load(addresses))
    tl.store(distance_ptr + i, (out_ptr + i).to(tl.int64) - out_ptr.to(tl.int64))


def launch_scattered(x, order):
    table = x.data_ptr() + 4 * order
    out = {"out": torch.empty_like(x), "distance": torch.empty_like(order)}
    scattered_kernel[(1,)](table, *out.values(), N=x.numel())
    return out


def truth_scattered(x, order):
    return {"out": x.numpy()[order.numpy()], "distance": 4 * np.arange(x.numel())}


@triton.jit
def reinterpreted_kernel(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    bits = tl.load(x_ptr.to(tl.pointer_type(tl.uint16)) + i)
    tl.store(out_ptr.to(tl.pointer_type(tl.uint16)) + (i ^ 1), bits)  # swaps the halves of every float32


def launch_reinterpreted(x):
    out = torch.empty_like(x)
    reinterpreted_kernel[(1,)](x, out, N=2 * x.numel())
    return {"out": out}


def truth_reinterpreted(x):
    return {"out": plain(x).view(np.uint16).reshape(-1, 2)[:, ::-1].copy().view(np.float32).ravel()}


@triton.jit
def block_pointer_kernel(
    x_ptr, zero_ptr, nan_ptr, rows, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr
):
    start = tl.program_id(0) * ROWS
    x = tl.make_block_ptr(x_ptr, (rows, columns), (stride, 1), (start, 0), (ROWS, COLUMNS), (1, 0))
    i = start + tl.arange(0, ROWS)[:, None]
    for step in range(STEPS):
        target = i * (STEPS * COLUMNS) + step * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        tl.store(zero_ptr + target, tl.load(x, boundary_check=(0, 1), padding_option="zero"))
        tl.store(nan_ptr + target, tl.load(x, boundary_check=(0, 1), padding_option="nan"))
        x = tl.advance(x, (0, COLUMNS))


def launch_block_pointer(x):
    rows, columns = x.shape
    out = {name: torch.empty((32, 32), dtype=x.dtype, device=x.device) for name in ("zero", "nan")}
    block_pointer_kernel[(4,)](x, *out.values(), rows, columns, x.stride(0), ROWS=8, COLUMNS=16, STEPS=2)
    return out


def truth_block_pointer(x):
    wide = {name: np.full((32, 32), fill, np.float32) for name, fill in (("zero", 0), ("nan", np.nan))}
    for out in wide.values():
        out[: x.shape[0], : x.shape[1]] = x.numpy()
    return wide


@triton.jit
def block_store_kernel(x_ptr, out_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Written transposed: the block pointer of the output runs along columns."""
    at = (tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS)
    x = tl.make_block_ptr(x_ptr, (rows, columns), (columns, 1), at, (ROWS, COLUMNS), (1, 0))
    out = tl.make_block_ptr(out_ptr, (rows, columns), (1, rows), at, (ROWS, COLUMNS), (0, 1))
    tl.store(out, tl.load(x, boundary_check=(0, 1)), boundary_check=(0, 1))


def launch_block_store(x):
    out = torch.zeros(x.shape[::-1], dtype=x.dtype, device=x.device)
    block_store_kernel[(3, 2)](x, out, *x.shape, ROWS=16, COLUMNS=16)
    return {"out": out}


def _entries():
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, *FLOATS, *INTEGERS):
        inputs = partial(lambda dtype: {"x": draw(dtype, 256, 101)}, dtype)
        yield Entry(f"masked-{NAMES[dtype]}", "exact", inputs, launch_masked, truth_masked)
    one = partial(lambda count: {"x": hostile(torch.float32, count, 102)}, 201)
    yield Entry("cache_hints", "exact", one, launch_hints, lambda x: {"out": np.tile(plain(x), 5)})
    grid = partial(lambda: {"x": normals(torch.float32, (41, 53), 103)})
    yield Entry("strided", "exact", grid, launch_strided, truth_strided)
    yield Entry(
        "overlapping", "exact", lambda: {"x": hostile(torch.float16, 32, 104)}, launch_overlapping, truth_overlapping
    )
    far = partial(lambda: {"x": hostile(torch.float32, 64, 105)})
    yield Entry("far_offsets", "exact", far, launch_far, lambda x: {"out": np.tile(plain(x), 2)})
    tables = {"a": (torch.float32, 64, 106), "b": (torch.float32, 33, 107), "c": (torch.float32, 50, 108)}
    yield Entry(
        "pointer_table", "exact", lambda: {k: hostile(*v) for k, v in tables.items()}, launch_table, truth_table
    )
    order = partial(
        lambda: {"x": integers(torch.int32, 64, 109), "order": torch.from_numpy(generator(110).permutation(64))}
    )
    yield Entry("scattered_pointers", "exact", order, launch_scattered, truth_scattered)
    yield Entry("pointer_cast", "exact", far, launch_reinterpreted, truth_reinterpreted)
    ragged = partial(lambda: {"x": normals(torch.float32, (27, 21), 111)})
    yield Entry("block_pointer", "exact", ragged, launch_block_pointer, truth_block_pointer)
    yield Entry("block_pointer_store", "exact", partial(lambda: {"x": normals(torch.float32, (37, 21), 112)}),
                launch_block_store, lambda x: {"out": x.numpy().T.copy()})  # fmt: skip


ENTRIES = tuple(_entries())
