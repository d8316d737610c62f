"""Kernels of Triton's tutorials: fused softmax, matrix product with tuning and swizzle, dropout, grouped products."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.dots import EPS
from tests.zoo.formats import FP16, FP32, rounded, values_of
from tests.zoo.functions import ulps
from tests.zoo.random_numbers import philox, uniform
from tests.zoo.values import normals


@triton.jit
def softmax_kernel(out_ptr, x_ptr, in_stride, out_stride, rows, columns, BLOCK: tl.constexpr, num_stages: tl.constexpr):
    """Tutorial 02: each program takes rows in turn."""
    first = tl.program_id(0)
    step = tl.num_programs(0)
    for row in tl.range(first, rows, step, num_stages=num_stages):
        j = tl.arange(0, BLOCK)
        mask = j < columns
        x = tl.load(x_ptr + row * in_stride + j, mask=mask, other=-float("inf"))
        numerator = tl.exp(x - tl.max(x, axis=0))
        tl.store(out_ptr + row * out_stride + j, numerator / tl.sum(numerator, axis=0), mask=mask)


def launch_softmax(x):
    out = torch.empty_like(x)
    softmax_kernel[(3,)](out, x, x.stride(0), out.stride(0), *x.shape, BLOCK=64, num_stages=2)
    return {"out": out}


def truth_softmax(x):
    e = np.exp(values_of(x) - values_of(x).max(1, keepdims=True))
    return {"out": e / e.sum(1, keepdims=True)}


def bound_softmax(x):
    """As in ``functions``: exp of a rounded difference, a sum in any order, a division of 2 ulp."""
    z = np.ptp(values_of(x), axis=1)[:, None]
    relative = (2 * (3 * z + 4) + x.shape[1] + 4) * FP32.unit
    return {"out": 1.01 * relative * truth_softmax(x)["out"] + FP32.normal}


@triton.jit
def leaky_relu(x):
    return tl.where(x >= 0, x, 0.01 * x)


@triton.autotune(
    configs=[
        triton.Config({"BM": 32, "BN": 32, "BK": 32, "GROUP": 2}, num_stages=3, num_warps=2),
        triton.Config({"BM": 64, "BN": 32, "BK": 16, "GROUP": 1}, num_stages=2, num_warps=4),
    ],
    key=["m", "n", "k"],
)
@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, m, n, k, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Tutorial 03: programs in groups of rows, so that blocks meet in the cache."""
    pid = tl.program_id(0)
    down = tl.cdiv(m, BM)
    across = tl.cdiv(n, BN)
    group = pid // (GROUP * across)
    rows = min(down - group * GROUP, GROUP)
    pid_m = group * GROUP + (pid % (GROUP * across)) % rows
    pid_n = (pid % (GROUP * across)) // rows
    tl.assume(pid_m >= 0)
    i = (pid_m * BM + tl.arange(0, BM)) % m
    j = (pid_n * BN + tl.arange(0, BN)) % n
    kk = tl.arange(0, BK)
    a = a_ptr + i[:, None] * stride_am + kk[None, :] * stride_ak
    b = b_ptr + kk[:, None] * stride_bk + j[None, :] * stride_bn
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, tl.cdiv(k, BK)):
        left = tl.load(a, mask=kk[None, :] < k - step * BK, other=0.0)
        right = tl.load(b, mask=kk[:, None] < k - step * BK, other=0.0)
        total = tl.dot(left, right, total)
        a += BK * stride_ak
        b += BK * stride_bk
    if ACTIVATION == "leaky_relu":
        total = leaky_relu(total)
    i = pid_m * BM + tl.arange(0, BM)
    j = pid_n * BN + tl.arange(0, BN)
    c = c_ptr + stride_cm * i[:, None] + stride_cn * j[None, :]
    tl.store(c, total.to(tl.float16), mask=(i[:, None] < m) & (j[None, :] < n))


def launch_matmul(a, b):
    (m, k), n = a.shape, b.shape[1]
    out = {name: torch.empty((m, n), dtype=torch.float16, device=a.device) for name in ("plain", "leaky")}
    for name, activation in (("plain", ""), ("leaky", "leaky_relu")):
        matmul_kernel[lambda meta: (triton.cdiv(m, meta["BM"]) * triton.cdiv(n, meta["BN"]),)](
            a, b, out[name], m, n, k, *a.stride(), *b.stride(), *out[name].stride(), ACTIVATION=activation
        )
    return out


def truth_matmul(a, b):
    c = values_of(a) @ values_of(b)
    return {"plain": c, "leaky": np.where(c >= 0, c, np.float64(np.float32(0.01)) * c)}


def product_error(a, b):
    """As in ``dots``, then rounded to float16."""
    error = 2 * a.shape[1] * EPS[torch.float32] * (np.abs(values_of(a)) @ np.abs(values_of(b)))
    return error + FP16.unit * (np.abs(values_of(a) @ values_of(b)) + error) + FP16.smallest / 2


def bound_matmul(a, b):
    """The leaky side is no steeper; its own multiplication rounds once in float32."""
    error = product_error(a, b)
    return {"plain": error, "leaky": error + FP32.unit * np.abs(truth_matmul(a, b)["leaky"])}


@triton.jit
def dropout_kernel(x_ptr, out_ptr, n, p, seed, BLOCK: tl.constexpr):
    """Tutorial 04, with a seed instead of a mask."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = tl.load(x_ptr + i, mask=mask)
    keep = tl.rand(seed, i) > p
    tl.store(out_ptr + i, tl.where(keep, x / (1 - p), 0.0), mask=mask)


def launch_dropout(x, p, seed):
    out = torch.empty_like(x)
    dropout_kernel[(triton.cdiv(x.numel(), 128),)](x, out, x.numel(), p, seed, BLOCK=128)
    return {"out": out}


def kept(x, p, seed):
    words = np.array([philox(32, (i, 0, 0, 0), (seed, 0))[0] for i in range(x.numel())], np.uint32)
    return uniform(words) > np.float32(p)


def truth_dropout(x, p, seed):
    return {"out": np.where(kept(x, p, seed), values_of(x) / np.float64(np.float32(1) - np.float32(p)), 0.0)}


def bound_dropout(x, p, seed):
    """A division of 2 ulp, and nothing where the number is dropped."""
    return {"out": np.where(kept(x, p, seed), ulps(2, truth_dropout(x, p, seed)["out"], torch.float32), 0.0)}


@triton.jit
def grouped_kernel(
    a_table, b_table, c_table, sizes_ptr, strides_ptr, groups,
    PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Tutorial 08: a fixed number of programs shares the tiles of several products found through tables."""
    tile = tl.program_id(0)
    before = 0
    for g in range(groups):
        m = tl.load(sizes_ptr + g * 3)
        n = tl.load(sizes_ptr + g * 3 + 1)
        k = tl.load(sizes_ptr + g * 3 + 2)
        across = tl.cdiv(n, BN)
        tiles = tl.cdiv(m, BM) * across
        while tile >= before and tile < before + tiles:
            lda = tl.load(strides_ptr + g * 3)
            ldb = tl.load(strides_ptr + g * 3 + 1)
            ldc = tl.load(strides_ptr + g * 3 + 2)
            a_ptr = tl.load(a_table + g).to(tl.pointer_type(tl.float16))
            b_ptr = tl.load(b_table + g).to(tl.pointer_type(tl.float16))
            c_ptr = tl.load(c_table + g).to(tl.pointer_type(tl.float16))
            i = (tile - before) // across * BM + tl.arange(0, BM)
            j = (tile - before) % across * BN + tl.arange(0, BN)
            kk = tl.arange(0, BK)
            total = tl.zeros((BM, BN), dtype=tl.float32)
            for start in range(0, k, BK):
                rest = k - start
                a = tl.load(
                    a_ptr + i[:, None] * lda + start + kk[None, :],
                    mask=(i[:, None] < m) & (kk[None, :] < rest),
                    other=0.0,
                )
                b = tl.load(
                    b_ptr + (start + kk[:, None]) * ldb + j[None, :],
                    mask=(kk[:, None] < rest) & (j[None, :] < n),
                    other=0.0,
                )
                total += tl.dot(a, b)
            tl.store(
                c_ptr + i[:, None] * ldc + j[None, :], total.to(tl.float16), mask=(i[:, None] < m) & (j[None, :] < n)
            )
            tile += PROGRAMS
        before += tiles


def launch_grouped(**matrices):
    groups = len(matrices) // 2
    pairs = [(matrices[f"a{g}"], matrices[f"b{g}"]) for g in range(groups)]
    device = pairs[0][0].device
    outs = [torch.empty((a.shape[0], b.shape[1]), dtype=a.dtype, device=device) for a, b in pairs]
    columns = zip(*((a, b, c) for (a, b), c in zip(pairs, outs, strict=True)), strict=True)
    tables = [torch.tensor([t.data_ptr() for t in column], dtype=torch.int64, device=device) for column in columns]
    sizes = torch.tensor([(*c.shape, a.shape[1]) for (a, _), c in zip(pairs, outs, strict=True)], dtype=torch.int32)
    strides = [(a.stride(0), b.stride(0), c.stride(0)) for (a, b), c in zip(pairs, outs, strict=True)]
    places = torch.tensor(strides, dtype=torch.int32, device=device)
    grouped_kernel[(3,)](*tables, sizes.to(device), places, groups, PROGRAMS=3, BM=32, BN=16, BK=32)
    return {f"c{g}": c for g, c in enumerate(outs)}


def grouped_inputs():
    shapes = ((40, 24, 48), (16, 33, 64), (70, 20, 17))
    out = {}
    for g, (m, n, k) in enumerate(shapes):
        out |= {f"a{g}": normals(torch.float16, (m, k), 240 + g), f"b{g}": normals(torch.float16, (k, n), 250 + g)}
    return out


def truth_grouped(**matrices):
    return {f"c{g}": values_of(matrices[f"a{g}"]) @ values_of(matrices[f"b{g}"]) for g in range(len(matrices) // 2)}


def bound_grouped(**matrices):
    return {f"c{g}": product_error(matrices[f"a{g}"], matrices[f"b{g}"]) for g in range(len(matrices) // 2)}


@triton.jit
def shift_kernel(x_ptr, table_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """An embedding: rows by index, as language models begin."""
    row = tl.load(x_ptr + tl.program_id(0))
    j = tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0) * n + j, tl.load(table_ptr + row * n + j, mask=j < n), mask=j < n)


def launch_embedding(index, table):
    out = torch.empty((index.numel(), table.shape[1]), dtype=table.dtype, device=table.device)
    shift_kernel[(index.numel(),)](index, table, out, table.shape[1], BLOCK=32)
    return {"out": out}


def _entries():
    rows = partial(lambda: {"x": normals(torch.float32, (10, 45), 241, 3.0)})
    yield Entry("tutorial_softmax", "approximate", rows, launch_softmax, truth_softmax, bound_softmax)
    sides = partial(lambda: {"a": normals(torch.float16, (72, 40), 242), "b": normals(torch.float16, (40, 56), 243)})
    # Triton's interpreter cannot tune without a GPU.
    yield Entry("tutorial_matmul", "dot", sides, launch_matmul, truth_matmul, bound_matmul, False)
    numbers = partial(lambda: {"x": normals(torch.float32, 300, 244), "p": 0.4, "seed": 512})
    yield Entry("tutorial_dropout", "approximate", numbers, launch_dropout, truth_dropout, bound_dropout)
    yield Entry("tutorial_grouped", "dot", grouped_inputs, launch_grouped, truth_grouped, bound_grouped)
    looked_up = partial(
        lambda: {"index": torch.tensor([3, 0, 9, 3, 7]), "table": normals(torch.float16, (10, 24), 245)}
    )
    embedding = lambda index, table: {"out": rounded(values_of(table)[index.numpy()], torch.float16)}  # noqa: E731
    yield Entry("embedding", "exact", looked_up, launch_embedding, embedding)


ENTRIES = tuple(_entries())
