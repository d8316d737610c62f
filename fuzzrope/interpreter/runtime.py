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


def steps(lower: int, upper: int, step: int) -> range:
    """The numbers that a loop counts: it compares as ``<`` whatever the sign of a step known only now."""
    if step <= 0 and lower < upper:
        raise RuntimeError(f"a loop from {lower} to {upper} in steps of {step} does not end")
    return range(lower, upper, step) if step > 0 else range(0)


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


Chosen = tuple[Any, Any, Array] | None  # what Machine.enter gives: None when everyone takes the branch


def pick(value: Array, chosen: Chosen) -> Array:
    """The rows of those programs that take a branch."""
    return value if chosen is None or len(value) == 1 else value[chosen[2]]


def pick_all(values: tuple[Array, ...], chosen: Chosen) -> tuple[Array, ...]:
    """Program numbers of those that take a branch."""
    return values if chosen is None else tuple(value[chosen[2]] for value in values)


def put_back(value: Array, old: Any, mask: Array, chosen: Chosen) -> Array:
    """Results of the programs that took a branch among those of the others."""
    if chosen is None:
        return value
    shape = (len(mask), *value.shape[1:])
    if old is None:
        made = np.zeros(shape, dtype=value.dtype)
    else:
        made = np.array(np.broadcast_to(old, np.broadcast_shapes(shape, old.shape)), dtype=value.dtype)
    made[chosen[2]] = value
    return made


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


def convert(value: Array, elem: str, mode: formats.Mode) -> Array:
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
