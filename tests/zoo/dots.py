"""Matrix products, of whole numbers exactly and of real numbers within what the accumulator allows.

Two kinds of accumulation are known. Plain multiply-add rounds once or twice a term, to nearest. A tensor core
adds a handful of products at once: it shifts each to the largest exponent and cuts what falls off the end of
the accumulator (Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330,
2021), so a term or an addition loses up to one unit in the last place of the largest partial sum. With ``eps`` that
unit, and K products and K additions, |error| <= 2 K eps (sum |a b| + |c|) covers both.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import FORMATS, rounded, values_of
from tests.zoo.values import NAMES, generator, normals, small_integers

#: The unit in the last place of accumulators. On sm_90 products of float8 are added up with 13 bits after the
#: point unless Triton is told to leave the tensor core often (DeepSeek-V3 technical report, section 3.3.2).
EPS = {torch.float16: 2.0**-10, torch.float32: 2.0**-23, torch.float64: 2.0**-52}
FLOAT8_EPS = 2.0**-13
#: What a factor loses relatively: tf32 keeps 10 bits and cuts the others. Three products of tf32 keep 20
#: bits of each factor, and lose the product of the two low parts. Products of pieces of bfloat16, each of which
#: leaves 2**-8 of what was there, likewise: two pieces a factor for three products, three pieces for six.
PRECISION = {
    "ieee": 0.0, "tf32": 2 * 2.0**-10 + 2.0**-20, "tf32x3": 3.01 * 2.0**-20,
    "bf16x3": 3.05 * 2.0**-16, "bf16x6": 4.1 * 2.0**-24,
}  # fmt: skip
PRODUCTS = {"tf32x3": 3, "bf16x3": 3, "bf16x6": 6}


@triton.jit
def dot_kernel(
    a_ptr, b_ptr, c_ptr, out_ptr, stride_am, stride_ak, stride_bk, stride_bn, PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, M)[:, None]
    j = tl.arange(0, N)[None, :]
    total = tl.load(c_ptr + i * N + j)
    for k in range(0, K, STEP):
        a = tl.load(a_ptr + i * stride_am + (k + tl.arange(0, STEP)[None, :]) * stride_ak)
        b = tl.load(b_ptr + (k + tl.arange(0, STEP)[:, None]) * stride_bk + j * stride_bn)
        total = tl.dot(
            a, b, total, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE, out_dtype=c_ptr.dtype.element_ty
        )
    tl.store(out_ptr + i * N + j, total)


def launch_dot(a, b, c, precision=None, imprecise=None, step=32):
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty_like(c)
    dot_kernel[(1,)](
        a, b, c, out, *a.stride(), *b.stride(), PRECISION=precision, IMPRECISE=imprecise, M=m, N=n, K=k, STEP=step
    )
    return {"out": out}


def product(a, b, c):
    """In float64: products of float32 are exact in it, and its sums are a thousand times better than any here."""
    if c.dtype == torch.int32:
        return a.numpy().astype(np.int64) @ b.numpy().astype(np.int64) + c.numpy()
    if c.dtype == torch.float64:
        long = np.longdouble
        return a.numpy().astype(long) @ b.numpy().astype(long) + c.numpy().astype(long)
    return values_of(a) @ values_of(b) + values_of(c)


def truth_exact(a, b, c):
    out = product(a, b, c)
    return {"out": rounded(out, c.dtype) if c.dtype in FORMATS else out.astype(np.int32)}


def truth_real(a, b, c):
    return {"out": product(a, b, c).astype(np.float64)}


def bound(a, b, c, eps=None, precision="ieee", chunk=None):
    """The accumulator is left for float32 after every ``chunk`` of products, if at all."""
    eps, k = EPS[c.dtype] if eps is None else eps, a.shape[1]
    sizes = np.abs(values_of(a)) @ np.abs(values_of(b))
    lost = PRECISION[precision]
    error = 2 * (chunk or k) * eps * PRODUCTS.get(precision, 1) * (sizes * (1 + lost) + np.abs(values_of(c)))
    last = FORMATS[c.dtype].unit * np.abs(values_of(c))
    if chunk:
        error = error + 2 * k * EPS[torch.float32] * (sizes + np.abs(values_of(c)))
    return {"out": error + lost * sizes + last}


def exact_inputs(a, b, c, m=64, n=32, k=64):
    """Whole numbers whose sums the accumulator holds: 64 * 4 * 4 and some."""
    return {
        "a": small_integers(a, (m, k), 170, 4),
        "b": small_integers(b, (k, n), 171, 4),
        "c": small_integers(c, (m, n), 172, 100),
    }


def real_inputs(a, b, c, m=64, n=32, k=128, turned=False):
    left, right = normals(a, (m, k), 173), normals(b, (k, n), 174)
    if turned:  # columns that lie together: both operands are read transposed
        left, right = left.t().contiguous().t(), right.t().contiguous().t()
    return {"a": left, "b": right, "c": normals(c, (m, n), 175)}


def byte_inputs():
    rng = generator(176)
    sides = {"a": rng.integers(-128, 128, (64, 64)), "b": rng.integers(-128, 128, (64, 32))}
    out = {name: torch.from_numpy(side.astype(np.int8)) for name, side in sides.items()}
    return out | {"c": torch.from_numpy(rng.integers(-(2**31), 2**31, (64, 32)).astype(np.int32))}


def truth_bytes(a, b, c):
    """Sums of 32 bits wrap."""
    return {"out": product(a, b, c).astype(np.int32)}


@triton.jit
def batched_kernel(a_ptr, b_ptr, out_ptr, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    z = tl.arange(0, B)[:, None, None]
    i = tl.arange(0, M)[None, :, None]
    j = tl.arange(0, N)[None, None, :]
    a = tl.load(a_ptr + z * (M * K) + i * K + tl.arange(0, K)[None, None, :])
    b = tl.load(b_ptr + z * (K * N) + tl.arange(0, K)[None, :, None] * N + j)
    tl.store(out_ptr + z * (M * N) + i * N + j, tl.dot(a, b))


def launch_batched(a, b):
    (z, m, k), n = a.shape, b.shape[2]
    out = torch.empty((z, m, n), device=a.device)
    batched_kernel[(1,)](a, b, out, B=z, M=m, N=n, K=k)
    return {"out": out}


def batched_bound(a, b):
    return {"out": 2 * a.shape[2] * EPS[torch.float32] * (np.abs(values_of(a)) @ np.abs(values_of(b)))}


@triton.jit
def chained_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    """A product that is rounded and multiplied again, by its own transpose."""
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    first = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)).to(tl.float16)
    tl.store(out_ptr + at, tl.dot(first, tl.trans(first)))


def launch_chained(a, b):
    out = torch.empty(a.shape, device=a.device)
    chained_kernel[(1,)](a, b, out, N=a.shape[0])
    return {"out": out}


def truth_chained(a, b):
    first = values_of(a) @ values_of(b)
    return {"out": rounded(first @ first.T, torch.float32)}


def _entries():
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    e4, e5 = torch.float8_e4m3fn, torch.float8_e5m2
    # Triton's interpreter multiplies the bits of bfloat16, and float8 it has only read.
    mixes = [(half, half, single), (brain, brain, single), (half, half, half), (single, single, single)]
    mixes += [(double, double, double), (e4, e4, single), (e5, e5, single), (e4, e5, single), (e5, e4, single)]
    for a, b, c in mixes:
        name = f"{NAMES[a]}-{NAMES[b]}-{NAMES[c]}" if a != b or a != c else NAMES[a]
        eps = FLOAT8_EPS if a.itemsize == 1 else None
        # Triton 3.6.0 on an H200 miscompiles a pipelined loop of three and more products that are summed in
        # float16: with k = 96 the error was 30 where 0.02 was due. Two products come out right.
        k = 64 if c == half else 128
        right, exact, real = a != brain, partial(exact_inputs, a, b, c), partial(real_inputs, a, b, c, k=k)
        options = {"precision": "ieee"} if a in (single, double) else {}
        launch = partial(launch_dot, **options)
        yield Entry(f"dot_exact-{name}", "exact", exact, launch, truth_exact, None, right)
        yield Entry(f"dot-{name}", "dot", real, launch, truth_real, partial(bound, eps=eps), right)
    for precision in ("tf32", "tf32x3", "bf16x3", "bf16x6"):
        launch, inputs = partial(launch_dot, precision=precision), partial(real_inputs, single, single, single)
        limit, right = partial(bound, precision=precision), precision.startswith("tf32")  # others it refuses
        yield Entry(f"dot-{precision}", "dot", inputs, launch, truth_real, limit, right)
    turned = partial(real_inputs, half, half, single, turned=True)
    yield Entry("dot-transposed", "dot", turned, launch_dot, truth_real, bound)
    for imprecise in (0, 32):
        launch, inputs = partial(launch_dot, imprecise=imprecise), partial(real_inputs, e4, e4, single)
        name = f"dot-fp8e4nv-imprecise{imprecise}"
        yield Entry(name, "dot", inputs, launch, truth_real, partial(bound, eps=FLOAT8_EPS, chunk=32))
    yield Entry("dot-int8", "exact", byte_inputs, launch_dot, truth_bytes)  # tl.dot takes no uint8
    cubes = lambda: {"a": normals(half, (4, 16, 32), 177), "b": normals(half, (4, 32, 16), 178)}  # noqa: E731
    matmul = lambda a, b: {"out": values_of(a) @ values_of(b)}  # noqa: E731
    yield Entry("dot-batched", "dot", cubes, launch_batched, matmul, batched_bound)
    squares = lambda: {"a": small_integers(half, (32, 32), 179, 3), "b": small_integers(half, (32, 32), 180, 3)}  # noqa: E731
    yield Entry("dot-chained", "exact", squares, launch_chained, truth_chained)


ENTRIES = tuple(_entries())
