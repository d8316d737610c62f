"""Tensor descriptors, made on the host and on the device: ragged edges, padding, reductions into memory."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.zoo.base import Entry
from tests.zoo.memory import plain
from tests.zoo.values import NAMES, draw, generator, normals, small_integers

ROWS, COLUMNS = 16, 32


def scratch(x):
    """Descriptors made on a GPU need memory from somewhere."""
    if x.is_cuda:
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=x.device))


@triton.jit
def copy_kernel(x_desc, out_desc, moved_desc, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0) * ROWS
    j = tl.program_id(1) * COLUMNS
    out_desc.store([i, j], x_desc.load([i, j]))
    moved_desc.store([i, j], x_desc.load([i - 3, j + 16]))  # begins outside: before the first row


def launch_host(x):
    out = {name: torch.zeros_like(x) for name in ("out", "moved")}
    block = [ROWS, COLUMNS]
    descriptors = [TensorDescriptor.from_tensor(t, block) for t in (x, *out.values())]
    grid = (triton.cdiv(x.shape[0], ROWS), triton.cdiv(x.shape[1], COLUMNS))
    copy_kernel[grid](*descriptors, ROWS=ROWS, COLUMNS=COLUMNS)
    return out


def truth_host(x):
    values = plain(x)
    moved = np.zeros_like(values)
    moved[3:, :-16] = values[:-3, 16:]
    return {"out": values, "moved": moved}


@triton.jit
def padded_kernel(x_desc, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out_ptr + at, x_desc.load([tl.program_id(0) * 0, 8]))


def launch_padded(x, padding):
    out = torch.empty((ROWS, COLUMNS), dtype=x.dtype, device=x.device)
    descriptor = TensorDescriptor.from_tensor(x, [ROWS, COLUMNS], padding=padding)
    padded_kernel[(1,)](descriptor, out, ROWS=ROWS, COLUMNS=COLUMNS)
    return {"out": out}


def truth_padded(x, padding):
    out = np.full((ROWS, COLUMNS), np.nan if padding == "nan" else 0, np.float32)
    out[: x.shape[0], : x.shape[1] - 8] = x.numpy()[:, 8:]
    return {"out": out}


@triton.jit
def device_kernel(x_ptr, out_ptr, turned_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [rows, columns], [columns, 1], [ROWS, COLUMNS])
    out = tl.make_tensor_descriptor(out_ptr, [rows, columns], [columns, 1], [ROWS, COLUMNS])
    i = tl.program_id(0) * ROWS
    for j in range(0, columns, COLUMNS):
        block = x.load([i, j])
        out.store([i, j], block * 2)
        k = j + tl.arange(0, COLUMNS)[:, None]
        row = i + tl.arange(0, ROWS)[None, :]
        tl.store(turned_ptr + k * rows + row, block.T, mask=(k < columns) & (row < rows))


def launch_device(x):
    scratch(x)
    out = {"out": torch.zeros_like(x), "turned": torch.zeros(x.shape[::-1], dtype=x.dtype, device=x.device)}
    device_kernel[(triton.cdiv(x.shape[0], ROWS),)](x, *out.values(), *x.shape, ROWS=ROWS, COLUMNS=COLUMNS)
    return out


def truth_device(x):
    return {"out": x.numpy() * 2, "turned": x.numpy().T.copy()}


@triton.jit
def cube_kernel(x_desc, out_desc, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """Three dimensions, the first of one element at a time."""
    z = tl.program_id(0)
    block = x_desc.load([z, tl.program_id(1) * B, 0]).reshape(B, C)
    out_desc.store([z, tl.program_id(1) * B, 0], (block + z).reshape(A, B, C))


def launch_cube(x):
    out = torch.zeros_like(x)
    block = [1, 8, x.shape[2]]
    descriptors = [TensorDescriptor.from_tensor(t, block) for t in (x, out)]
    cube_kernel[(x.shape[0], triton.cdiv(x.shape[1], 8))](*descriptors, A=1, B=8, C=x.shape[2])
    return {"out": out}


def truth_cube(x):
    return {"out": x.numpy() + np.arange(x.shape[0], dtype=np.int32)[:, None, None]}


@triton.jit
def reduce_kernel(
    x_ptr, add_desc, max_desc, min_desc, and_desc, or_desc, xor_desc, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Every program reduces into the same block, which hangs over the edge."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    x = tl.load(x_ptr + tl.program_id(0) * ROWS * COLUMNS + at)
    add_desc.atomic_add([0, 8], x)
    max_desc.atomic_max([0, 8], x)
    min_desc.atomic_min([0, 8], x)
    and_desc.atomic_and([0, 8], x)
    or_desc.atomic_or([0, 8], x)
    xor_desc.atomic_xor([0, 8], x)


REDUCTIONS = {
    "add": np.add, "max": np.maximum, "min": np.minimum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def launch_reduce(x, start):
    out = {name: start.clone() for name in REDUCTIONS}
    descriptors = [TensorDescriptor.from_tensor(t, [ROWS, COLUMNS]) for t in out.values()]
    reduce_kernel[(x.shape[0],)](x, *descriptors, ROWS=ROWS, COLUMNS=COLUMNS)
    return out


def truth_reduce(x, start):
    out = {}
    for name, function in REDUCTIONS.items():
        out[name] = start.numpy().copy()
        inside = out[name][:ROWS, 8 : 8 + COLUMNS]
        for block in x.numpy():
            inside[...] = function(inside, block[: inside.shape[0], : inside.shape[1]])
    return out


@triton.jit
def add_kernel(x_ptr, out_desc, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    out_desc.atomic_add([0, 0], tl.load(x_ptr + tl.program_id(0) * ROWS * COLUMNS + at))


def launch_add(x):
    out = torch.zeros(x.shape[1:], device=x.device)
    add_kernel[(x.shape[0],)](x, TensorDescriptor.from_tensor(out, [ROWS, COLUMNS]), ROWS=ROWS, COLUMNS=COLUMNS)
    return {"out": out}


def _entries():
    for dtype in (torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int32):
        ragged = partial(lambda d: {"x": draw(d, 27 * 48, 220).reshape(27, 48)}, dtype)
        yield Entry(f"descriptor_copy-{NAMES[dtype]}", "exact", ragged, launch_host, truth_host)
    for padding in ("zero", "nan"):
        few = partial(lambda p: {"x": normals(torch.float32, (11, 28), 221), "padding": p}, padding)
        yield Entry(f"descriptor_padding-{padding}", "exact", few, launch_padded, truth_padded)
    ragged = lambda: {"x": normals(torch.float32, (27, 48), 222)}  # noqa: E731
    yield Entry("descriptor_device", "exact", ragged, launch_device, truth_device)
    cube = lambda: {"x": draw(torch.int32, 3 * 13 * 16, 223).reshape(3, 13, 16) >> 1}  # noqa: E731
    yield Entry("descriptor_cube", "exact", cube, launch_cube, truth_cube)
    whole = lambda: {  # noqa: E731
        "x": torch.from_numpy(generator(224).integers(-(2**31), 2**31, (4, ROWS, COLUMNS)).astype(np.int32)),
        "start": torch.from_numpy(generator(225).integers(-(2**31), 2**31, (13, 32)).astype(np.int32)),
    }
    yield Entry("descriptor_reduce", "exact", whole, launch_reduce, truth_reduce, None, False)
    sums = lambda: {"x": small_integers(torch.float32, (5, ROWS, COLUMNS), 226)}  # noqa: E731
    yield Entry("descriptor_add", "exact", sums, launch_add, lambda x: {"out": x.numpy().sum(0)}, None, False)


ENTRIES = tuple(_entries())
