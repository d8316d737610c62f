"""What generated programs call: arithmetic that NumPy has not under one name. Pure functions of arrays.

Where hardware must differ: ``exp2``, ``sin`` and their like are computed in float64 and rounded (hardware
approximates them within the ulps of the PTX manual); ``/`` on float32 is the correctly rounded quotient
(Triton's is ``div.full.f32``, 2 ulp); sums in reductions and dots are rounded in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fuzzrope.interpreter import formats
from fuzzrope.interpreter.libdevice import FUNCTIONS, MATH
from fuzzrope.interpreter.values import BITS, SMALL_FLOATS, carried

Array = np.ndarray
bf16 = formats.round_bf16
f16 = formats.round_f16


def one(value: Array) -> Any:
    """The scalar in an array of one element: a Python int or bool, or a NumPy float."""
    scalar = value.reshape(-1)[0]
    return scalar if value.dtype.kind == "f" else scalar.item()


def bf16_one(value: Any) -> Any:
    """A NumPy float rounded to bfloat16."""
    return bf16(np.full(1, value, np.float32))[0]


def f16_one(value: Any) -> Any:
    """A NumPy float rounded to float16."""
    return f16(np.full(1, value, np.float32))[0]


def wide(value: Any) -> Array:
    """Integers as int64."""
    return np.asarray(value, dtype=np.int64)


# -- activity -----------------------------------------------------------------------------------------


def narrow(act: Array | None, cond: Array) -> Array:
    """Those of the active programs for which a condition holds."""
    return cond if act is None else act & cond


def everyone(act: Array | None, pids: Any) -> Array:
    """Activity as an array."""
    return np.ones(len(pids[0]), dtype=bool) if act is None else act


def alive(act: Any) -> bool:
    """Whether any program is active: None stands for all, False for none."""
    return act is None or (act is not False and bool(act.any()))


def step(act: Any, cond: Any) -> Any:
    """Activity along an edge of the control flow."""
    if cond is True or act is False:
        return act
    if cond is False:
        return False
    return cond if act is None else act & cond


def either(one_act: Any, other: Any) -> Any:
    """Activity where two edges meet."""
    if one_act is None or other is None:
        return None
    if one_act is False:
        return other
    return one_act if other is False else one_act | other


def merge(act: Any, new: Any, old: Any) -> Any:
    """``new`` for active programs, ``old`` for the others; anything if there is nothing old."""
    if old is None or act is None:
        return new
    if act.all():
        return new
    rank = max(np.ndim(new), np.ndim(old))
    where = act.reshape(-1, *(1,) * (rank - 1)) if rank > act.ndim else act
    made = np.where(where, new, old)
    dtype = getattr(new, "dtype", None) or getattr(old, "dtype", None)
    return made if dtype is None or made.dtype == dtype else made.astype(dtype)


def spread(value: Array, shape: tuple[int, ...]) -> Array:
    """A view with these dimensions after the programs' axis, repeated where it had extent 1."""
    return np.broadcast_to(value, (value.shape[0], *np.maximum(value.shape[1:], shape)))


# -- integers -----------------------------------------------------------------------------------------


def _unsigned(value: Array) -> Array:
    return value if value.dtype == bool else value.view(f"u{value.dtype.itemsize}")


def _signed(value: Array) -> Array:
    return value if value.dtype == bool else value.view(f"i{value.dtype.itemsize}")


def divsi(a: Array, b: Array) -> Array:
    """Quotient towards zero; by zero it is 0 (undefined in LLVM)."""
    floored = np.floor_divide(a, b)
    opposite = (a < 0) != (b < 0)
    if not np.any(opposite):
        return floored
    inexact = opposite & (floored * b != a) & (b != 0)
    return floored + inexact.astype(floored.dtype)


def remsi(a: Array, b: Array) -> Array:
    """Remainder with the dividend's sign."""
    return np.fmod(a, b)


def floordivsi(a: Array, b: Array) -> Array:
    """Quotient towards minus infinity."""
    return np.floor_divide(a, b)


def ceildivsi(a: Array, b: Array) -> Array:
    """Quotient towards plus infinity."""
    return -np.floor_divide(-a, b)


def divui(a: Array, b: Array) -> Array:
    """Unsigned quotient."""
    return _signed(np.floor_divide(_unsigned(a), _unsigned(b)))


def ceildivui(a: Array, b: Array) -> Array:
    """Unsigned quotient, up."""
    x, y = _unsigned(a), _unsigned(b)
    return _signed(np.floor_divide(x, y) + (np.mod(x, y) != 0))


def remui(a: Array, b: Array) -> Array:
    """Unsigned remainder."""
    return _signed(np.mod(_unsigned(a), _unsigned(b)))


def shli(a: Array, b: Array) -> Array:
    """Shift left; by the width or more it is 0, as PTX clamps."""
    count = _unsigned(b)
    bits = 8 * a.dtype.itemsize
    return np.where(count < bits, np.left_shift(a, np.minimum(count, bits - 1).astype(a.dtype)), a.dtype.type(0))


def shrsi(a: Array, b: Array) -> Array:
    """Arithmetic shift right; by the width or more the sign remains."""
    count = np.minimum(_unsigned(b), 8 * a.dtype.itemsize - 1).astype(a.dtype)
    return np.right_shift(a, count)


def shrui(a: Array, b: Array) -> Array:
    """Logical shift right; by the width or more it is 0."""
    x, count = _unsigned(a), _unsigned(b)
    bits = 8 * a.dtype.itemsize
    shifted = np.right_shift(x, np.minimum(count, bits - 1).astype(x.dtype))
    return _signed(np.where(count < bits, shifted, x.dtype.type(0)))


def minui(a: Array, b: Array) -> Array:
    """Unsigned minimum."""
    return _signed(np.minimum(_unsigned(a), _unsigned(b)))


def maxui(a: Array, b: Array) -> Array:
    """Unsigned maximum."""
    return _signed(np.maximum(_unsigned(a), _unsigned(b)))


def mulhiui(a: Array, b: Array) -> Array:
    """The high half of an unsigned product."""
    x, y = _unsigned(a).astype(np.uint64), _unsigned(b).astype(np.uint64)
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        return (x * y >> np.uint64(bits)).astype(f"u{bits // 8}").view(a.dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = x & low, x >> half, y & low, y >> half
    middle = (a0 * b0 >> half) + (a1 * b0 & low) + (a0 * b1 & low)
    return (a1 * b1 + (a1 * b0 >> half) + (a0 * b1 >> half) + (middle >> half)).view(np.int64)


# -- floating point -----------------------------------------------------------------------------------


def rounded(value: Array, elem: str) -> Array:
    """A float32 or float64 result in the format of an element type, rounded once."""
    if elem == "f32":
        return value if value.dtype == np.float32 else value.astype(np.float32)
    if elem == "f64":
        return value.astype(np.float64, copy=False)
    if value.dtype == np.float32 and elem in ("bf16", "f16"):
        return bf16(value) if elem == "bf16" else f16(value)
    return formats.round_to(value, elem)


def convert(value: Array, elem: str, mode: str) -> Array:
    """To another format. To nearest in 8 bits it saturates, as Triton uses ``cvt.satfinite``."""
    return formats.round_to(value, elem, mode=mode, saturate=BITS[elem] == 8 and mode == "rtne")


def sitofp(value: Array, elem: str) -> Array:
    """Signed integers as floats."""
    if value.dtype == bool:
        value = -value.astype(np.int32)
    return formats.int_to_float(value, elem)


def uitofp(value: Array, elem: str) -> Array:
    """Unsigned integers as floats."""
    return formats.int_to_float(value.astype(np.int32) if value.dtype == bool else _unsigned(value), elem)


def fptoi(value: Array, bits: int, signed: bool) -> Array:
    """Floats towards zero as integers, as hardware saturates."""
    if bits == 1:
        return value != 0
    return _signed(formats.float_to_int(value, bits, signed))


def bitcast(value: Array, source: str, target: str) -> Array:
    """The same bits as another type."""
    bits = formats.encode(value, source) if source in SMALL_FLOATS else value
    if target in SMALL_FLOATS:
        return formats.decode(np.ascontiguousarray(bits).view(f"u{BITS[target] // 8}"), target)
    return bits.view(carried(target))


def fma(a: Array, b: Array, c: Array, elem: str) -> Array:
    """a * b + c rounded once."""
    return formats.fma(a, b, c, elem)


def cmpf(a: Array, b: Array, predicate: str) -> Array:
    """Comparisons that NumPy has no operator for: ordered-unequal, unordered-or-, ord, uno."""
    either_nan = np.isnan(a) | np.isnan(b)
    if predicate in ("uno", "ord"):
        return either_nan if predicate == "uno" else ~either_nan
    if predicate == "one":
        return (a != b) & ~either_nan
    compare: dict[str, Callable[..., Array]] = {"lt": np.less, "le": np.less_equal, "gt": np.greater}
    compare |= {"ge": np.greater_equal, "eq": np.equal}
    if predicate in ("true", "false"):
        return np.full(np.broadcast(a, b).shape, predicate == "true")
    return compare[predicate[1:]](a, b) | either_nan


def _flushed(value: Array) -> Array:
    """Subnormals of float32 as zeros of their sign."""
    small = np.abs(value) < np.float32(2.0**-126)
    return np.where(small, np.copysign(np.float32(0), value), value) if small.any() else value


def floor(value: Array) -> Array:
    """The next integer below a float32; Triton uses ``cvt.rmi.ftz``, for which a subnormal is zero."""
    return np.floor(_flushed(value))


def ceil(value: Array) -> Array:
    """The next integer above a float32; Triton uses ``cvt.rpi.ftz``, for which a subnormal is zero."""
    return np.ceil(_flushed(value))


def minimumf(a: Array, b: Array) -> Array:
    """The smaller, NaN if either is; -0 is below +0."""
    return np.where((a < b) | np.isnan(a) | ((a == b) & np.signbit(a)), a, b)


def maximumf(a: Array, b: Array) -> Array:
    """The larger, NaN if either is; -0 is below +0."""
    return np.where((a > b) | np.isnan(a) | ((a == b) & np.signbit(b)), a, b)


def minnumf(a: Array, b: Array) -> Array:
    """The smaller, the other one if one is NaN; -0 is below +0."""
    return np.where((a < b) | np.isnan(b) | ((a == b) & np.signbit(a)), a, b)


def maxnumf(a: Array, b: Array) -> Array:
    """The larger, the other one if one is NaN; -0 is below +0."""
    return np.where((a > b) | np.isnan(b) | ((a == b) & np.signbit(b)), a, b)


def clampf(value: Array, low: Array, high: Array, propagate: bool) -> Array:
    """``min(max(value, low), high)``; a NaN value stays one if told to, else becomes ``low``."""
    if propagate:
        return minimumf(maximumf(value, low), high)
    return minnumf(maxnumf(value, low), high)


def function(*arguments: Any) -> Array:
    """A function of the ``math`` dialect, computed in float64 and rounded: (arrays, name, format)."""
    *values, name, elem = arguments
    return rounded(MATH[name](*(value.astype(np.float64) for value in values)), elem)


def extern(*arguments: Any) -> Array:
    """A function of libdevice by symbol: (arrays, symbol, format)."""
    *values, symbol, elem = arguments
    result = FUNCTIONS[symbol](*values)
    return rounded(result, elem) if elem[0] in "fb" else result.astype(carried(elem))


# -- tensors ------------------------------------------------------------------------------------------


def join(a: Array, b: Array) -> Array:
    """Two arrays side by side in a new last dimension."""
    return np.stack(np.broadcast_arrays(a, b), axis=-1)


def cat(a: Array, b: Array) -> Array:
    """One array after another in the first dimension."""
    programs = max(len(a), len(b))
    return np.concatenate([np.broadcast_to(x, (programs, *x.shape[1:])) for x in (a, b)], axis=1)


def histogram(values: Array, mask: Array | None, bins: int) -> Array:
    """How often each number below ``bins`` occurs, for each program."""
    programs = len(values) if mask is None else max(len(values), len(mask))
    values = np.broadcast_to(values, (programs, *values.shape[1:]))
    keep = (values >= 0) & (values < bins)
    if mask is not None:
        keep = keep & mask
    flat = values.astype(np.int64) + np.arange(programs)[:, None] * bins
    return np.bincount(flat[keep], minlength=programs * bins).reshape(programs, bins).astype(np.int32)


def _part(value: Array, axis: int, part: slice) -> Array:
    return value[(slice(None),) * axis + (part,)]


def reduce(combine: Callable[..., tuple[Array, ...]], values: tuple[Array, ...], axis: int) -> tuple[Array, ...]:
    """Neighbours combined in a tree along an axis, which disappears."""
    extent = values[0].shape[axis]
    while extent > 1:
        even = [_part(value, axis, slice(0, extent - extent % 2, 2)) for value in values]
        odd = [_part(value, axis, slice(1, None, 2)) for value in values]
        left = [_part(value, axis, slice(extent - 1, extent)) for value in values] if extent % 2 else None
        values = combine(*even, *odd)
        if left:
            values = tuple(np.concatenate(pair, axis=axis) for pair in zip(values, left, strict=True))
        extent = (extent + 1) // 2
    return tuple(value[(slice(None),) * axis + (0,)] for value in values)


def scan(
    combine: Callable[..., tuple[Array, ...]], values: tuple[Array, ...], axis: int, reverse: bool
) -> tuple[Array, ...]:
    """Every prefix combined, in the order of the axis or against it."""
    flip = (slice(None),) * axis + (slice(None, None, -1),)
    if reverse:
        values = tuple(value[flip] for value in values)
    extent, reach = values[0].shape[axis], 1
    while reach < extent:
        left = [_part(value, axis, slice(0, extent - reach)) for value in values]
        right = [_part(value, axis, slice(reach, None)) for value in values]
        combined = combine(*left, *right)
        values = tuple(
            np.concatenate([np.broadcast_to(_part(old, axis, slice(0, reach)), _head(new, axis, reach)), new], axis)
            for old, new in zip(values, combined, strict=True)
        )
        reach *= 2
    return tuple(value[flip] for value in values) if reverse else values


def _head(like: Array, axis: int, extent: int) -> tuple[int, ...]:
    return (*like.shape[:axis], extent, *like.shape[axis + 1 :])


def dot(a: Array, b: Array, c: Any, elem: str, out: str, precision: str) -> Array:
    """a @ b + c for each program; integers exactly, floats as exact products summed in float32 or float64."""
    if elem[0] == "i":
        # Below 2^24 (2^53) every partial sum is exact in float32 (float64), whatever the order.
        small = a.shape[-1] * 2 ** (2 * BITS[elem] - 2) <= 2**24
        wider = np.float32 if small else np.float64
        product = np.matmul(a.astype(wider), b.astype(wider)).astype(np.int64)
        return (product + c).astype(carried(out))
    if elem == "f32" and precision.startswith("tf32"):
        return _dot_tf32(a, b, c, precision)
    if elem == "f32" and precision.startswith("bf16"):
        return _dot_split(a, b, c, int(precision[-1]))
    return rounded(np.matmul(a, b) + c, out)


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def scaled(values: Array, scale: Array | None, form: str, left: bool, packed: bool) -> Array:
    """A factor of a microscaled product (OCP MX 1.0) as bfloat16 numbers, which sm_90 multiplies.

    Scales (programs, rows of the other side's sum, K / 32) are powers of two by their biased exponent; 255
    is NaN. Two e2m1 share a byte along the summed axis, or along the other one if not ``packed``.
    """
    axis = (-1 if left else -2) if packed else (-2 if left else -1)
    if form == "e2m1":
        bits = values.view(np.uint8)
        shape = list(bits.shape)
        shape[axis] *= 2
        numbers = np.moveaxis(_E2M1[np.stack([bits & 15, bits >> 4])], 0, axis if axis == -1 else -2)
        numbers = numbers.reshape(shape)
    else:
        numbers = values
    if scale is None:
        return numbers
    exponent = scale.view(np.uint8).astype(np.int32)
    factor = np.where(exponent == 255, np.float32(np.nan), np.ldexp(np.float32(1), exponent - 127))
    factor = np.repeat(factor, 32, axis=-1)
    return bf16(numbers * (factor if left else np.swapaxes(factor, -1, -2)))


def _dot_tf32(a: Array, b: Array, c: Any, precision: str) -> Array:
    if precision == "tf32":  # the tensor cores drop the low bits (measured on an H200)
        return np.matmul(formats.round_tf32(a, "rtz"), formats.round_tf32(b, "rtz")) + c
    high_a, high_b = formats.round_tf32(a, "rna"), formats.round_tf32(b, "rna")
    low_a, low_b = formats.round_tf32(a - high_a, "rna"), formats.round_tf32(b - high_b, "rna")
    cross = np.matmul(low_a, high_b) + np.matmul(high_a, low_b)
    cross = np.where(np.isnan(cross), np.float32(0), cross)  # as Triton's own decomposition does
    return np.matmul(high_a, high_b) + cross + c


def _dot_split(a: Array, b: Array, c: Any, terms: int) -> Array:
    """bf16x3 and bf16x6: each factor as a sum of three bfloat16 numbers, the larger products kept."""
    parts = []
    for factor in (a, b):
        first = bf16(factor)
        second = bf16(factor - first)
        parts.append((first, second, bf16(factor - first - second)))
    pairs = [(1, 0), (0, 1)] if terms == 3 else [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1)]
    total: Any = np.float32(0)
    for i, j in pairs:
        total = total + np.matmul(parts[0][i], parts[1][j])
    total = np.where(np.isnan(total), np.float32(0), total)
    return np.matmul(parts[0][0], parts[1][0]) + total + c
