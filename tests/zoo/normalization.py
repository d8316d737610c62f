"""Triton's tutorial 05, layer normalization: forward, and backward with locks around partial sums of gradients.

The bounds follow each rounding to first order, with u the unit roundoff of float32, gamma(n) = n u / (1 - n u) for a
sum in any order (Higham, section 4.2), 4 u for a root and 4 u for a division (``functions``), times 1.1 for
what is of second order.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import FP32, values_of
from tests.zoo.reductions import gamma
from tests.zoo.values import normals

U = FP32.unit
EPSILON = 1e-5


@triton.jit
def forward_kernel(x_ptr, y_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, stride, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    y_ptr += row * stride
    x_ptr += row * stride
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + j, mask=j < n, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / n
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + j, mask=j < n, other=0.0).to(tl.float32)
        x = tl.where(j < n, x - mean, 0.0)
        squares += x * x
    variance = tl.sum(squares, axis=0) / n
    rstd = 1 / tl.sqrt(variance + eps)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        mask = j < n
        w = tl.load(w_ptr + j, mask=mask)
        b = tl.load(b_ptr + j, mask=mask)
        x = tl.load(x_ptr + j, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + j, (x - mean) * rstd * w + b, mask=mask)


def launch_forward(x, w, b):
    rows, n = x.shape
    out = {"y": torch.empty_like(x), "mean": torch.empty_like(x[:, 0]), "rstd": torch.empty_like(x[:, 0])}
    forward_kernel[(rows,)](x, out["y"], w, b, out["mean"], out["rstd"], x.stride(0), n, EPSILON, BLOCK=32)
    return out


def truth_forward(x, w, b):
    x, w, b = values_of(x), values_of(w), values_of(b)
    mean, rstd = x.mean(1), 1 / np.sqrt(x.var(1) + EPSILON)
    return {"y": (x - mean[:, None]) * rstd[:, None] * w + b, "mean": mean, "rstd": rstd}


def bound_forward(x, w, b):
    right, (_, n) = truth_forward(x, w, b), x.shape
    x, w, b = values_of(x), values_of(w), values_of(b)
    d, rstd = np.abs(x - right["mean"][:, None]), right["rstd"]
    mean = (gamma(n, U) + 4 * U) * np.abs(x).mean(1)
    variance = 2 * mean * d.mean(1) + mean**2 + (gamma(n, U) + 8 * U) * (d**2).mean(1)
    relative = variance / (2 * (x.var(1) + EPSILON)) + U + 4 * U + 4 * U  # eps added, root, reciprocal
    hat = (mean[:, None] + U * d) * rstd[:, None] + d * (rstd * (relative + U))[:, None]
    y = np.abs(w) * hat + 2 * U * (np.abs(w) * d * rstd[:, None] + np.abs(b))
    return {"y": 1.1 * y, "mean": 1.1 * mean, "rstd": 1.1 * relative * rstd}


@triton.jit
def backward_kernel(
    dx_ptr, dy_ptr, dw_ptr, db_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, lock_ptr, stride, n,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    mask = j < n
    x = tl.load(x_ptr + row * stride + j, mask=mask, other=0).to(tl.float32)
    dy = tl.load(dy_ptr + row * stride + j, mask=mask, other=0).to(tl.float32)
    w = tl.load(w_ptr + j, mask=mask).to(tl.float32)
    mean = tl.load(mean_ptr + row)
    rstd = tl.load(rstd_ptr + row)
    hat = tl.where(mask, (x - mean) * rstd, 0.0)
    wdy = tl.where(mask, w * dy, 0.0)
    c1 = tl.sum(hat * wdy, axis=0) / n
    c2 = tl.sum(wdy, axis=0) / n
    tl.store(dx_ptr + row * stride + j, (wdy - (hat * c1 + c2)) * rstd, mask=mask)
    group = row % GROUPS
    lock_ptr += group
    count_ptr = lock_ptr + GROUPS
    dw_ptr += group * n + j
    db_ptr += group * n + j
    part_dw = (dy * hat).to(w.dtype)
    part_db = dy.to(w.dtype)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    count = tl.load(count_ptr)
    if count == 0:
        tl.atomic_xchg(count_ptr, 1)
    else:
        part_dw += tl.load(dw_ptr, mask=mask)
        part_db += tl.load(db_ptr, mask=mask)
    tl.store(dw_ptr, part_dw, mask=mask)
    tl.store(db_ptr, part_db, mask=mask)
    tl.debug_barrier()  # every thread has written before the lock is given back
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def gather_kernel(parts_dw_ptr, parts_db_ptr, dw_ptr, db_ptr, m, n, BM: tl.constexpr, BN: tl.constexpr):
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    dw = tl.zeros((BM, BN), dtype=tl.float32)
    db = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, m, BM):
        i = start + tl.arange(0, BM)
        mask = (i[:, None] < m) & (j[None, :] < n)
        dw += tl.load(parts_dw_ptr + i[:, None] * n + j[None, :], mask=mask, other=0.0)
        db += tl.load(parts_db_ptr + i[:, None] * n + j[None, :], mask=mask, other=0.0)
    tl.store(dw_ptr + j, tl.sum(dw, axis=0), mask=j < n)
    tl.store(db_ptr + j, tl.sum(db, axis=0), mask=j < n)


GROUPS = 5


def launch_backward(x, dy, w, mean, rstd):
    rows, n = x.shape
    locks = torch.zeros(2 * GROUPS, dtype=torch.int32, device=x.device)
    parts = torch.empty((2, GROUPS, n), device=x.device)
    out = {"dx": torch.empty_like(x), "dw": torch.empty_like(w), "db": torch.empty_like(w)}
    backward_kernel[(rows,)](
        out["dx"], dy, parts[0], parts[1], x, w, mean, rstd, locks, x.stride(0), n, GROUPS=GROUPS, BLOCK=64
    )
    gather_kernel[(triton.cdiv(n, 16),)](parts[0], parts[1], out["dw"], out["db"], min(GROUPS, rows), n, BM=4, BN=16)
    return out


def _terms(x, dy, w, mean, rstd):
    x, dy, w, mean, rstd = (values_of(t) for t in (x, dy, w, mean, rstd))
    hat, wdy, rstd = (x - mean[:, None]) * rstd[:, None], w * dy, rstd[:, None]
    return hat, wdy, rstd, dy, (hat * wdy).mean(1, keepdims=True), wdy.mean(1, keepdims=True)


def truth_backward(x, dy, w, mean, rstd):
    hat, wdy, rstd, dy, c1, c2 = _terms(x, dy, w, mean, rstd)
    return {"dx": (wdy - (hat * c1 + c2)) * rstd, "dw": (dy * hat).sum(0), "db": dy.sum(0)}


def bound_backward(x, dy, w, mean, rstd):
    hat, wdy, rstd, dy, c1, c2 = (np.abs(t) for t in _terms(x, dy, w, mean, rstd))
    rows, n = x.shape
    c1_error = (gamma(n, U) + 8 * U) * (hat * wdy).mean(1, keepdims=True)  # 3 u for the product, 4 u to divide
    c2_error = (gamma(n, U) + 5 * U) * wdy.mean(1, keepdims=True)
    inner = hat * c1_error + 3 * U * hat * c1 + c2_error + U * (hat * c1 + c2) + U * wdy
    dx = rstd * (inner + 2 * U * (wdy + hat * c1 + c2))
    dw = (gamma(rows + GROUPS, U) + 3 * U) * (dy * hat).sum(0)
    return {"dx": 1.1 * dx, "dw": 1.1 * dw, "db": 1.1 * gamma(rows + GROUPS, U) * dy.sum(0)}


def inputs():
    return {
        "x": normals(torch.float32, (13, 50), 260, 2.0) + 0.5,
        "w": normals(torch.float32, 50, 261),
        "b": normals(torch.float32, 50, 262),
    }


def backward_inputs():
    first = inputs()
    right = truth_forward(**first)
    saved = {name: torch.from_numpy(right[name].astype(np.float32)) for name in ("mean", "rstd")}
    return {"x": first["x"], "dy": normals(torch.float32, (13, 50), 263), "w": first["w"], **saved}


ENTRIES = (
    Entry("layer_norm", "reduction", inputs, launch_forward, truth_forward, bound_forward),
    Entry("layer_norm_backward", "reduction", backward_inputs, launch_backward, truth_backward, bound_backward),
)
