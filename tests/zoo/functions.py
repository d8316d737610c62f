"""Functions that a GPU computes to a few units in the last place: Triton's own and libdevice's.

Two sources give the errors. The CUDA C++ Programming Guide, appendix "Mathematical Functions", lists the largest
error in ulp of what libdevice has; libdevice flushes subnormal float32 to zero, as Triton links it. The PTX ISA
gives div.full.f32 2 ulp, ex2.approx 2 ulp, sqrt.approx 2**-23 and rsqrt.approx 2**-22.9 relatively.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from tests.zoo.base import Entry
from tests.zoo.formats import FORMATS, FP32, values_of
from tests.zoo.values import NAMES, generator, normals, numbered

BLOCK = 128


def ulps(count, values, dtype):
    """So many ulp of these values, one more than documented for the truth itself, and what flushing loses."""
    form = FORMATS[dtype]
    size = np.where(np.isfinite(values), np.abs(values), 1.0)
    gap = np.ldexp(1.0, np.maximum(np.frexp(size)[1] - 1 - form.mantissa, 1 - form.bias - form.mantissa))
    return (count + 1) * gap + (form.normal if dtype == torch.float32 else 0.0)


@triton.jit
def language_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    positive = tl.abs(x)
    tl.store(out_ptr + i, tl.exp(x))
    tl.store(out_ptr + n + i, tl.exp2(x))
    tl.store(out_ptr + 2 * n + i, tl.log(positive))
    tl.store(out_ptr + 3 * n + i, tl.log2(positive))
    tl.store(out_ptr + 4 * n + i, tl.sin(x))
    tl.store(out_ptr + 5 * n + i, tl.cos(x))
    tl.store(out_ptr + 6 * n + i, tl.sqrt(positive))
    tl.store(out_ptr + 7 * n + i, tl.rsqrt(positive))


LANGUAGE = ("exp", "exp2", "log", "log2", "sin", "cos", "sqrt", "rsqrt")


@triton.jit
def erf_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.erf(tl.load(x_ptr + i)))


@triton.jit
def circular_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, libdevice.sin(x))
    tl.store(out_ptr + n + i, libdevice.cos(x))
    tl.store(out_ptr + 2 * n + i, libdevice.tan(x))
    tl.store(out_ptr + 3 * n + i, libdevice.atan(x))
    tl.store(out_ptr + 4 * n + i, libdevice.sinh(x))
    tl.store(out_ptr + 5 * n + i, libdevice.cosh(x))
    tl.store(out_ptr + 6 * n + i, libdevice.tanh(x))
    tl.store(out_ptr + 7 * n + i, libdevice.asinh(x))


CIRCULAR = ("sin", "cos", "tan", "arctan", "sinh", "cosh", "tanh", "arcsinh")


@triton.jit
def exponential_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, libdevice.exp(x))
    tl.store(out_ptr + n + i, libdevice.exp2(x))
    tl.store(out_ptr + 2 * n + i, libdevice.expm1(x))
    tl.store(out_ptr + 3 * n + i, libdevice.log(tl.abs(x)))
    tl.store(out_ptr + 4 * n + i, libdevice.log2(tl.abs(x)))
    tl.store(out_ptr + 5 * n + i, libdevice.log10(tl.abs(x)))
    tl.store(out_ptr + 6 * n + i, libdevice.log1p(tl.abs(x)))
    tl.store(out_ptr + 7 * n + i, libdevice.rsqrt(tl.abs(x)))
    tl.store(out_ptr + 8 * n + i, libdevice.cbrt(x))
    tl.store(out_ptr + 9 * n + i, libdevice.erf(x))
    tl.store(out_ptr + 10 * n + i, libdevice.erfc(x))


EXPONENTIAL = ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "rsqrt", "cbrt", "erf", "erfc")


@triton.jit
def pairs_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    y = tl.load(x_ptr + (n - 1 - i))
    tl.store(out_ptr + i, libdevice.pow(tl.abs(x), y))
    tl.store(out_ptr + n + i, libdevice.atan2(x, y))
    tl.store(out_ptr + 2 * n + i, libdevice.hypot(x, y))
    tl.store(out_ptr + 3 * n + i, x / y)


PAIRS = ("pow", "atan2", "hypot", "divide")

#: The largest documented error in ulp, of float32 and of float64.
ULPS = {
    "exp": (2, 1), "exp2": (2, 1), "expm1": (1, 1), "log": (1, 1), "log2": (1, 1), "log10": (2, 1), "log1p": (1, 1),
    "sin": (2, 2), "cos": (2, 2), "tan": (4, 2), "arctan": (2, 2), "sinh": (3, 2), "cosh": (2, 1), "tanh": (2, 1),
    "arcsinh": (3, 3), "sqrt": (2, 0), "rsqrt": (2, 1), "cbrt": (1, 1), "erf": (2, 2), "erfc": (4, 5),
    "pow": (4, 2), "atan2": (3, 2), "hypot": (3, 2), "divide": (2, 0),
}  # fmt: skip


@triton.jit
def exact_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """What libdevice does without an error."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    y = tl.load(x_ptr + (n - 1 - i))
    tl.store(out_ptr + i, libdevice.rint(x))
    tl.store(out_ptr + n + i, libdevice.trunc(x))
    tl.store(out_ptr + 2 * n + i, libdevice.copysign(x, y))
    tl.store(out_ptr + 3 * n + i, libdevice.round(x))


EXACT = ("rint", "trunc", "copysign", "round")


def launch(kernel, names, x):
    out = torch.empty((len(names), x.numel()), dtype=x.dtype, device=x.device)
    kernel[(x.numel() // BLOCK,)](x, out, x.numel(), BLOCK=BLOCK)
    return dict(zip(names, out, strict=True))


def function(name, x):
    """In float64 from torch, or from NumPy with a longer format where it has the function."""
    if name in ("erf", "erfc"):
        return getattr(torch.special, name)(torch.from_numpy(x)).numpy()
    long, other = x.astype(np.longdouble), x[::-1].astype(np.longdouble)
    if name == "round":  # half away from zero
        return np.copysign(np.floor(np.abs(x) + 0.5), x)
    if name in PAIRS or name == "copysign":
        first = np.abs(long) if name == "pow" else long
        pair = {"pow": np.power, "atan2": np.arctan2, "hypot": np.hypot, "divide": np.divide, "copysign": np.copysign}
        return pair[name](first, other).astype(np.float64)
    if name.startswith("log") or name in ("rsqrt", "sqrt"):
        long = np.abs(long)
    value = 1 / np.sqrt(long) if name == "rsqrt" else getattr(np, name)(long)
    return value.astype(np.float64)


def truth(names, x):
    with np.errstate(all="ignore"):
        return {name: function(name, values_of(x)) for name in names}


def truth_exact(x):
    return {name: value.astype(np.float32) for name, value in truth(EXACT, x).items()}


def bound(names, language, x):
    """Triton multiplies by log2(e) for exp in float32: the argument's rounding counts as often as it is large."""
    single = x.dtype == torch.float32
    out = {}
    for name, value in truth(names, x).items():
        out[name] = ulps(ULPS[name][0 if single else 1], value, x.dtype)
        if language and single and name == "exp":
            with np.errstate(all="ignore"):
                out[name] = np.nan_to_num(out[name] + np.abs(values_of(x)) * 2 * FP32.unit * value)
    return out


def arguments(dtype):
    """Ends and neighbours of the easy range, and numbers in it; none that float32 or its results flush."""
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -0.5, 2.0, 1e-4, -1e-4, 30.0, -30.0])
    rng = generator(200)
    rest = [rng.standard_normal(120), rng.uniform(-20, 20, 60), np.exp(rng.uniform(-6, 3, 62))]
    return {"x": numbered(rng.permutation(np.concatenate([special, *rest])), dtype)}


@triton.jit
def divide_kernel(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i) / tl.load(y_ptr + i))


def launch_divide(x, y):
    out = torch.empty_like(x)
    divide_kernel[(x.numel() // BLOCK,)](x, y, out, BLOCK=BLOCK)
    return {"out": out}


def bound_divide(x, y):
    """div.full.f32, rounded to the format of the output."""
    value = values_of(x) / values_of(y)
    return {"out": ulps(2, value, torch.float32) + (0.5 if x.dtype != torch.float32 else 0) * ulps(0, value, x.dtype)}


@triton.jit
def softmax_kernel(x_ptr, sigmoid_ptr, softmax_ptr, R: tl.constexpr, C: tl.constexpr):
    at = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(sigmoid_ptr + at, tl.sigmoid(x))
    tl.store(softmax_ptr + at, tl.softmax(x, dim=1, keep_dims=True))


def launch_softmax(x):
    out = {"sigmoid": torch.empty_like(x), "softmax": torch.empty_like(x)}
    softmax_kernel[(1,)](x, *out.values(), R=x.shape[0], C=x.shape[1])
    return out


def truth_softmax(x):
    x = values_of(x)
    e = np.exp(x - x.max(1, keepdims=True))
    return {"sigmoid": 1 / (1 + np.exp(-x)), "softmax": e / e.sum(1, keepdims=True)}


def bound_softmax(x):
    """Relative errors to first order: exp as above, 1 + e rounded, the sum of C terms in any order, div.full."""
    u, values, right = FP32.unit, values_of(x), truth_softmax(x)
    z = np.abs(values - values.max(1, keepdims=True))
    exp = (z.max(1, keepdims=True) * 3 + 4) * u  # z is rounded too
    relative = {"sigmoid": (np.abs(values) * 2 + 4 + 1 + 4) * u, "softmax": 2 * exp + (x.shape[1] + 4) * u}
    return {name: 1.01 * error * right[name] + FP32.normal for name, error in relative.items()}


def _entries():
    for dtype in (torch.float32, torch.float64):
        inputs, suffix = partial(arguments, dtype), NAMES[dtype]
        groups = [("language", language_kernel, LANGUAGE, True), ("erf", erf_kernel, ("erf",), False)]
        groups += [("libdevice_circular", circular_kernel, CIRCULAR, False)]
        groups += [("libdevice_exponential", exponential_kernel, EXPONENTIAL, False)]
        groups += [("libdevice_pairs", pairs_kernel, PAIRS, False)]
        for name, kernel, names, language in groups:
            # Triton's interpreter uses NumPy, whose log of float32 may be 4 ulp off, and has no libdevice.
            right = name == "erf" or (language and dtype == torch.float64)
            yield Entry(
                f"{name}-{suffix}", "approximate", inputs, partial(launch, kernel, names),
                partial(truth, names), partial(bound, names, language), right,
            )  # fmt: skip
    inputs = partial(arguments, torch.float32)
    yield Entry("libdevice_exact", "exact", inputs, partial(launch, exact_kernel, EXACT), truth_exact, None, False)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        pair = partial(lambda d: {"x": normals(d, 256, 201), "y": normals(d, 256, 202).abs() + 0.25}, dtype)
        quotient = lambda x, y: {"out": values_of(x) / values_of(y)}  # noqa: E731
        right = dtype != torch.bfloat16
        yield Entry(f"divide-{NAMES[dtype]}", "approximate", pair, launch_divide, quotient, bound_divide, right)
    rows = lambda: {"x": normals(torch.float32, (8, 64), 203, 3.0)}  # noqa: E731
    yield Entry("softmax", "approximate", rows, launch_softmax, truth_softmax, bound_softmax)


ENTRIES = tuple(_entries())
