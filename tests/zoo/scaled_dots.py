"""Products of microscaled numbers (OCP MX 1.0): blocks of 32 share a power of two. sm_90 unpacks them to bfloat16."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.dots import EPS
from tests.zoo.formats import BF16, FORMATS, FP8E4NV, FP8E5, decode, rounded, values_of
from tests.zoo.values import generator, normals, small_integers

M, N, K = 32, 32, 64
#: The values of e2m1 by their three low bits (OCP MX 1.0, table 5).
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
ELEMENTS = {"e4m3": FP8E4NV, "e5m2": FP8E5, "bf16": BF16}


@triton.jit
def scaled_kernel(
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, out_ptr, A: tl.constexpr, B: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, KA: tl.constexpr, KB: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, M)
    j = tl.arange(0, N)
    block = tl.arange(0, BLOCKS)
    a = tl.load(a_ptr + i[:, None] * KA + tl.arange(0, KA)[None, :])
    b = tl.load(b_ptr + tl.arange(0, KB)[:, None] * N + j[None, :])
    a_scale = tl.load(a_scale_ptr + i[:, None] * BLOCKS + block[None, :])
    if b_scale_ptr is None:
        total = tl.dot_scaled(a, a_scale, A, b, None, B)
    else:
        total = tl.dot_scaled(a, a_scale, A, b, tl.load(b_scale_ptr + j[:, None] * BLOCKS + block[None, :]), B)
    tl.store(out_ptr + i[:, None] * N + j[None, :], total)


def launch(formats, a, a_scale, b, b_scale):
    out = torch.empty((M, N), device=a.device)
    scaled_kernel[(1,)](
        a, a_scale, b, b_scale, out, A=formats[0], B=formats[1], M=M, N=N, KA=a.shape[1], KB=b.shape[0], BLOCKS=K // 32
    )
    return {"out": out}


def unpacked(x, form, axis):
    """Float64 values; two e2m1 share a byte, the first in its low half."""
    if form != "e2m1":
        return decode(x.numpy(), ELEMENTS[form]) if x.dtype not in FORMATS else values_of(x)
    halves = np.stack([x.numpy() & 15, x.numpy() >> 4], axis + 1)
    nibbles = halves.reshape((-1, 2 * x.shape[1]) if axis == 1 else (2 * x.shape[0], -1))
    return np.where(nibbles & 8, -1, 1) * E2M1[nibbles & 7]


def factors(formats, a, a_scale, b, b_scale):
    left = unpacked(a, formats[0], 1) * np.repeat(2.0 ** (a_scale.numpy().astype(int) - 127), 32, 1)
    right = unpacked(b, formats[1], 0)
    if b_scale is not None:
        right = right * np.repeat(2.0 ** (b_scale.numpy().astype(int) - 127), 32, 1).T
    return left, right


def truth(formats, exact, **inputs):
    left, right = factors(formats, **inputs)
    return {"out": rounded(left @ right, torch.float32) if exact else left @ right}


def bound(formats, **inputs):
    """As in ``dots``: the scaled factors are exact in bfloat16."""
    left, right = factors(formats, **inputs)
    return {"out": 2 * K * EPS[torch.float32] * (np.abs(left) @ np.abs(right))}


def elements(form, shape, axis, seed, exact):
    if form == "e2m1":
        packed = tuple(n // 2 if i == axis else n for i, n in enumerate(shape))
        return torch.from_numpy(generator(seed).integers(0, 256, packed, np.uint8))
    dtype = ELEMENTS[form].dtype
    x = small_integers(dtype, shape, seed, 4) if exact else normals(dtype, shape, seed, 4.0)
    return x if form == "bf16" else x.view(torch.uint8)


def inputs(formats, exact):
    """Scales of 2**-3 to 2**3, or of 1 to 2 where sums are to be exact."""
    low, high = (127, 129) if exact else (124, 131)
    scales = [torch.from_numpy(generator(280 + i).integers(low, high, (M, K // 32)).astype(np.uint8)) for i in (0, 1)]
    a, b = elements(formats[0], (M, K), 1, 282, exact), elements(formats[1], (K, N), 0, 283, exact)
    return {"a": a, "a_scale": scales[0], "b": b, "b_scale": None if formats[1] == "bf16" else scales[1]}


def _entries():
    for formats in (("e4m3", "e4m3"), ("e5m2", "e4m3"), ("e2m1", "e2m1"), ("e2m1", "e4m3"), ("e4m3", "bf16")):
        name, draw, go = "-".join(formats), partial(inputs, formats), partial(launch, formats)
        limit = partial(bound, formats)
        yield Entry(f"dot_scaled-{name}", "dot", partial(draw, False), go, partial(truth, formats, False), limit, False)
        yield Entry(
            f"dot_scaled_exact-{name}", "exact", partial(draw, True), go, partial(truth, formats, True), None, False
        )


ENTRIES = tuple(_entries())
