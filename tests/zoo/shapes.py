"""Shapes: broadcasting, reshaping, transposing, joining and splitting, gathering, counting, sorting."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.memory import plain
from tests.zoo.values import draw, generator, normals, random_bits

DTYPES = (torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64)


@triton.jit
def broadcast_kernel(row_ptr, column_ptr, a_ptr, b_ptr, c_ptr, d_ptr, R: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, R)
    j = tl.arange(0, C)
    row = tl.load(row_ptr + j)
    column = tl.load(column_ptr + i)
    at = i[:, None] * C + j[None, :]
    tl.store(a_ptr + at, tl.broadcast_to(row[None, :], (R, C)))
    tl.store(b_ptr + at, tl.expand_dims(column, 1) + row)  # (R, 1) and (C,)
    x, y = tl.broadcast(column[:, None], row[None, :])
    tl.store(c_ptr + at, x - y)
    cube = tl.expand_dims(row[None, :], [0, 3]) + tl.zeros((2, R, C, 1), row.dtype)  # negative and several axes
    k = tl.arange(0, 2)[:, None, None, None]
    tl.store(d_ptr + k * (R * C) + at[None, :, :, None], cube * (k + 1).to(row.dtype))


def launch_broadcast(row, column):
    r, c = column.numel(), row.numel()
    out = {name: torch.empty((r, c), dtype=row.dtype, device=row.device) for name in "abc"}
    out["d"] = torch.empty((2, r, c), dtype=row.dtype, device=row.device)
    broadcast_kernel[(1,)](row, column, *out.values(), R=r, C=c)
    return out


def truth_broadcast(row, column):
    row, column = row.numpy()[None, :], column.numpy()[:, None]
    full = np.broadcast_to(row, (column.size, row.size)).copy()
    return {"a": full, "b": column + row, "c": column - row, "d": np.stack([full, full * full.dtype.type(2)])}


@triton.jit
def reshape_kernel(x_ptr, trans_ptr, reshape_ptr, permute_ptr, ravel_ptr, R: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, R)
    j = tl.arange(0, C)
    x = tl.load(x_ptr + i[:, None] * C + j[None, :])
    tl.store(trans_ptr + j[:, None] * R + i[None, :], tl.trans(x))
    tl.store(reshape_ptr + j[:, None] * R + i[None, :], tl.reshape(x, (C, R)))
    cube = x.reshape(R, 2, C // 2).permute(2, 0, 1)  # (C/2, R, 2)
    a = tl.arange(0, C // 2)[:, None, None]
    tl.store(permute_ptr + a * (2 * R) + i[None, :, None] * 2 + tl.arange(0, 2)[None, None, :], cube)
    tl.store(ravel_ptr + tl.arange(0, R * C), tl.ravel(tl.trans(x)))


def launch_reshape(x):
    r, c = x.shape
    shapes = {"trans": (c, r), "reshape": (c, r), "permute": (c // 2, r, 2), "ravel": (r * c,)}
    out = {name: torch.empty(shape, dtype=x.dtype, device=x.device) for name, shape in shapes.items()}
    reshape_kernel[(1,)](x, *out.values(), R=r, C=c)
    return out


def truth_reshape(x):
    x, (r, c) = plain(x), x.shape
    cube = x.reshape(r, 2, c // 2).transpose(2, 0, 1)
    return {"trans": x.T.copy(), "reshape": x.reshape(c, r), "permute": cube.copy(), "ravel": x.T.ravel()}


@triton.jit
def join_kernel(x_ptr, y_ptr, join_ptr, interleave_ptr, even_ptr, odd_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    y = tl.load(y_ptr + i)
    tl.store(join_ptr + 2 * i[:, None] + tl.arange(0, 2)[None, :], tl.join(x, y))
    mixed = tl.interleave(y, x)
    tl.store(interleave_ptr + tl.arange(0, 2 * N), mixed)
    even, odd = tl.split(tl.reshape(mixed, (N // 2, 2, 2)))  # the last axis goes
    at = tl.arange(0, N // 2)[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(even_ptr + at, even)
    tl.store(odd_ptr + at, odd)


def launch_join(x, y):
    n = x.numel()
    shapes = {"join": (n, 2), "interleave": (2 * n,), "even": (n,), "odd": (n,)}
    out = {name: torch.empty(shape, dtype=x.dtype, device=x.device) for name, shape in shapes.items()}
    join_kernel[(1,)](x, y, *out.values(), N=n)
    return out


def truth_join(x, y):
    x, y = plain(x), plain(y)
    return {"join": np.stack([x, y], 1), "interleave": np.stack([y, x], 1).ravel(), "even": y, "odd": x}


@triton.jit
def cat_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    """Triton may reorder what it concatenates so, and here sorting makes up for it."""
    both = tl.cat(tl.load(x_ptr + tl.arange(0, N)), tl.load(y_ptr + tl.arange(0, N)), can_reorder=True)
    tl.store(out_ptr + tl.arange(0, 2 * N), tl.sort(both))


def launch_cat(x, y):
    out = torch.empty(2 * x.numel(), dtype=x.dtype, device=x.device)
    cat_kernel[(1,)](x, y, out, N=x.numel())
    return {"out": out}


@triton.jit
def flip_kernel(x_ptr, rows_ptr, columns_ptr, R: tl.constexpr, C: tl.constexpr):
    at = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(rows_ptr + at, tl.flip(x, 0))
    tl.store(columns_ptr + at, tl.flip(x, 1))


def launch_flip(x):
    out = {name: torch.empty_like(x) for name in ("rows", "columns")}
    flip_kernel[(1,)](x, *out.values(), R=x.shape[0], C=x.shape[1])
    return out


def truth_flip(x):
    return {"rows": plain(x)[::-1].copy(), "columns": plain(x)[:, ::-1].copy()}


@triton.jit
def gather_kernel(x_ptr, i_ptr, rows_ptr, columns_ptr, R: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    i = tl.arange(0, R)[:, None]
    j = tl.arange(0, C)[None, :]
    k = tl.arange(0, K)
    x = tl.load(x_ptr + i * C + j)
    index = tl.load(i_ptr + k[:, None] * C + j)
    tl.store(rows_ptr + k[:, None] * C + j, tl.gather(x, index, 0))
    turned = tl.load(i_ptr + k[None, :] * C + i) % C
    tl.store(columns_ptr + i * K + k[None, :], tl.gather(x, turned, 1))


def launch_gather(x, index):
    (r, c), k = x.shape, index.shape[0]
    out = {"rows": torch.empty((k, c), dtype=x.dtype, device=x.device)}
    out["columns"] = torch.empty((r, k), dtype=x.dtype, device=x.device)
    gather_kernel[(1,)](x, index, *out.values(), R=r, C=c, K=k)
    return out


def truth_gather(x, index):
    x, index, c = x.numpy(), index.numpy(), x.shape[1]
    columns = np.take_along_axis(x, index[:, : x.shape[0]].T % c, 1)
    return {"rows": np.take_along_axis(x, index, 0), "columns": columns}


@triton.jit
def histogram_kernel(x_ptr, all_ptr, some_ptr, N: tl.constexpr, BINS: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(all_ptr + tl.arange(0, BINS), tl.histogram(x, BINS))
    tl.store(some_ptr + tl.arange(0, BINS), tl.histogram(x, BINS, mask=i % 3 == 0))


def launch_histogram(x):
    out = {name: torch.empty(16, dtype=torch.int32, device=x.device) for name in ("all", "some")}
    histogram_kernel[(1,)](x, *out.values(), N=x.numel(), BINS=16)
    return out


def truth_histogram(x):
    counts = {"all": x.numpy(), "some": x.numpy()[::3]}
    return {name: np.bincount(values, minlength=16).astype(np.int32) for name, values in counts.items()}


@triton.jit
def sort_kernel(x_ptr, up_ptr, down_ptr, top_ptr, R: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    i = tl.arange(0, R)[:, None]
    j = tl.arange(0, C)[None, :]
    x = tl.load(x_ptr + i * C + j)
    tl.store(up_ptr + i * C + j, tl.sort(x))
    tl.store(down_ptr + i * C + j, tl.sort(x, dim=1, descending=True))
    tl.store(top_ptr + i * K + tl.arange(0, K)[None, :], tl.topk(x, K))


def launch_sort(x):
    out = {"up": torch.empty_like(x), "down": torch.empty_like(x)}
    out["top"] = torch.empty((x.shape[0], 4), dtype=x.dtype, device=x.device)
    sort_kernel[(1,)](x, *out.values(), R=x.shape[0], C=x.shape[1], K=4)
    return out


def truth_sort(x):
    order = np.argsort(x.float().numpy() if x.is_floating_point() else x.numpy(), axis=1, kind="stable")
    up = np.take_along_axis(plain(x), order, 1)
    return {"up": up, "down": up[:, ::-1].copy(), "top": up[:, :-5:-1].copy()}


@triton.jit
def argsort_kernel(x_ptr, order_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    keys = tl.load(x_ptr + i).to(tl.int64) << 32 | i.to(tl.int64)  # the index breaks ties, so the order is stable
    tl.store(order_ptr + i, (tl.sort(keys) & 0xFFFFFFFF).to(tl.int32))


def launch_argsort(x):
    order = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    argsort_kernel[(1,)](x, order, N=x.numel())
    return {"order": order}


@triton.jit
def create_kernel(i_ptr, f_ptr, h_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(i_ptr + i, tl.arange(N, 2 * N) * 3 + tl.full((N,), -7, tl.int32) + tl.zeros((N,), tl.int32))
    tl.store(f_ptr + i, tl.full((N,), 0.1, tl.float32) + tl.zeros_like(i).to(tl.float32))
    swapped_i, swapped_j = tl.swizzle2d(i // 8, i % 8, N // 8, 8, 3)
    tl.store(h_ptr + i, swapped_i * 100 + swapped_j)


def launch_create(n):
    out = {"i": torch.empty_like(n, dtype=torch.int32), "f": torch.empty_like(n)}
    out["h"] = torch.empty_like(out["i"])
    create_kernel[(1,)](*out.values(), N=n.numel())
    return out


def truth_create(n):
    count = n.numel()
    i, rows, group = np.arange(count), count // 8, 3
    first = i // (8 * group) * group
    size = np.minimum(rows - first, group)
    inside = i % (8 * group)
    swizzled = (first + inside % size) * 100 + inside // size
    numbers = {"i": (np.arange(count, 2 * count) * 3 - 7).astype(np.int32), "f": np.full(count, 0.1, np.float32)}
    return {**numbers, "h": swizzled.astype(np.int32)}


def distinct(dtype, shape, seed):
    """Rows of numbers that differ, so that there is one way to sort them."""
    count = int(np.prod(shape))
    numbers = generator(seed).permutation(count) - count // 2
    return torch.from_numpy(numbers.reshape(shape)).to(dtype)


def _entries():
    vectors = {"row": (torch.float32, 16, 120), "column": (torch.float32, 8, 121)}
    row = lambda: {name: normals(*form) for name, form in vectors.items()}  # noqa: E731
    yield Entry("broadcast", "exact", row, launch_broadcast, truth_broadcast)
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        table = partial(lambda d, seed: {"x": draw(d, 256, seed).reshape(8, 32)}, dtype, 122)
        yield Entry(f"reshape-{name}", "exact", table, launch_reshape, truth_reshape)
        both = partial(lambda d: {"x": draw(d, 64, 123), "y": draw(d, 64, 124)}, dtype)
        yield Entry(f"join-{name}", "exact", both, launch_join, truth_join)
    for dtype in (torch.float16, torch.float32, torch.int32, torch.int16, torch.uint8, torch.int64):
        name = str(dtype).removeprefix("torch.")
        shape = (4, 16) if dtype == torch.uint8 else (4, 64)
        rows = partial(lambda d, s: {"x": distinct(d, s, 125)}, dtype, shape)
        yield Entry(f"sort-{name}", "exact", rows, launch_sort, truth_sort)
    table = lambda: {"x": random_bits(torch.float32, 256, 126).reshape(16, 16)}  # noqa: E731
    yield Entry("flip", "exact", table, launch_flip, truth_flip)
    halves = lambda: {"x": distinct(torch.int32, 128, 127)[:64], "y": distinct(torch.int32, 128, 127)[64:]}  # noqa: E731
    yield Entry("cat", "exact", halves, launch_cat, lambda x, y: {"out": np.sort(np.append(x.numpy(), y.numpy()))})
    indexed = lambda: {  # noqa: E731
        "x": normals(torch.float32, (16, 32), 128),
        "index": torch.from_numpy(generator(129).integers(0, 16, (8, 32)).astype(np.int32)),
    }
    yield Entry("gather", "exact", indexed, launch_gather, truth_gather)
    counted = lambda: {"x": torch.from_numpy(generator(130).integers(0, 16, 256).astype(np.int32))}  # noqa: E731
    yield Entry("histogram", "exact", counted, launch_histogram, truth_histogram)
    tied = lambda: {"x": torch.from_numpy(generator(131).integers(-9, 9, 128).astype(np.int32))}  # noqa: E731
    order = lambda x: {"order": np.argsort(x.numpy(), kind="stable").astype(np.int32)}  # noqa: E731
    yield Entry("argsort", "exact", tied, launch_argsort, order)
    yield Entry("create", "exact", lambda: {"n": torch.zeros(64)}, launch_create, truth_create)


ENTRIES = tuple(_entries())
