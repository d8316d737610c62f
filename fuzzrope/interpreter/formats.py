"""Conversions between number formats on NumPy arrays, each with a single correct rounding.

A value narrower than float32 is carried by a float32 array that holds it exactly; memory holds its bits.
Nothing here sets NumPy's error state: NaN and overflow are ordinary, so callers hold
``np.errstate(all="ignore")``, once for many calls, which costs less than a microsecond in each.

Which way is fastest depends on the size: a NumPy call costs a microsecond before it does anything, and
NumPy converts float16 in software, at 4 ns a value. torch costs 3 µs and then 0.1 ns. It sees the arrays
with torch functions disabled, for the child's facade would otherwise take part.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch

from fuzzrope.numbers import FORMATS as WIDE
from fuzzrope.numbers import Format, two_product, two_sum

Array = np.ndarray[Any, Any]
Mode = Literal["rtne", "rtz"]

#: Formats by their names in MLIR. Triton's fp8e4nv is f8E4M3FN, its fp8e5 is f8E5M2.
FORMATS = {
    "f16": WIDE["float16"],
    "bf16": WIDE["bfloat16"],
    "f32": WIDE["float32"],
    "f64": WIDE["float64"],
    "f8E4M3FN": Format(4, -6, 448.0),
    "f8E5M2": Format(3, -14, 57344.0),
    "f8E4M3FNUZ": Format(4, -7, 240.0),
    "f8E5M2FNUZ": Format(3, -15, 57344.0),
    "f8E4M3B11FNUZ": Format(4, -10, 30.0),
}

_F16, _F32, _F64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
_U8, _U16, _U32, _U64 = (np.dtype(f"u{size}") for size in (1, 2, 4, 8))
_BF16 = np.dtype(ml_dtypes.bfloat16)
_FP8 = {
    "f8E4M3FN": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "f8E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "f8E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "f8E4M3B11FNUZ": np.dtype(ml_dtypes.float8_e4m3b11fnuz),
}
_BYTES = np.arange(256, dtype=_U8)
_TABLES = {fmt: _BYTES.view(dtype).astype(_F32) for fmt, dtype in _FP8.items()}
with np.errstate(all="ignore"):  # the high byte of a float16 is an f8E5M2: so the payload of its NaNs stays
    _TABLES["f8E5M2"] = (_BYTES.astype(_U16) << 8).view(_F16).astype(_F32)

#: From how many values on torch is the faster one.
_TORCH_F16 = 768
_TORCH_BF16 = 16384
#: From how many bfloat16 on a shift beats the strided copy of the upper halves.
_SHIFT = 4096


def _tensor(values: Array) -> torch.Tensor:
    """A tensor over an array, or over a copy of it where torch would complain."""
    return torch.from_numpy(values if values.flags.carray else values.copy())


def decode(bits: Array, fmt: str) -> Array:
    """The values of bits that were in memory, as float32 (float64 for f64); payloads of quiet NaNs stay."""
    if fmt == "f32":
        return bits.view(_F32)
    if fmt == "bf16":
        return bits.view(_BF16).astype(_F32)
    if fmt == "f16":
        if bits.size < _TORCH_F16:
            return bits.view(_F16).astype(_F32)
        with torch._C.DisableTorchFunction():
            return _tensor(bits.view(_F16)).float().numpy()
    if fmt == "f64":
        return bits.view(_F64)
    return _TABLES[fmt].take(bits)


def encode(values: Array, fmt: str) -> Array:
    """The bits of values that the format holds exactly."""
    if fmt == "f32":
        return values.view(_U32)
    if fmt == "bf16":
        if values.size < _SHIFT and values.ndim and values.flags.c_contiguous:
            return values.view(_U16)[..., 1::2].copy()
        return (values.view(_U32) >> np.uint32(16)).astype(_U16)
    if fmt == "f16":
        if values.size < _TORCH_F16:
            return values.astype(_F16).view(_U16)
        with torch._C.DisableTorchFunction():
            return _tensor(values).half().numpy().view(_U16)
    if fmt == "f64":
        return values.view(_U64)
    if fmt == "f8E5M2":
        return (encode(values, "f16") >> np.uint16(8)).astype(_U8)
    return values.astype(_FP8[fmt]).view(_U8)


def round_bf16(values: Array, out: Array | None = None) -> Array:
    """Float32 rounded to the nearest bfloat16, ties to even; into ``out`` if given, which may be the input."""
    if values.size < _TORCH_BF16:
        narrow = values.astype(_BF16)
        if out is None:
            return narrow.astype(_F32)
        np.copyto(out, narrow)
        return out
    with torch._C.DisableTorchFunction():
        wide = _tensor(values).bfloat16().float().numpy()
    return _deliver(wide, out)


def round_f16(values: Array, out: Array | None = None) -> Array:
    """Float32 rounded to the nearest float16, ties to even; into ``out`` if given, which may be the input."""
    if values.size < _TORCH_F16:
        narrow = values.astype(_F16)
        if out is None:
            return narrow.astype(_F32)
        np.copyto(out, narrow)
        return out
    with torch._C.DisableTorchFunction():
        wide = _tensor(values).half().float().numpy()
    return _deliver(wide, out)


def _deliver(result: Array, out: Array | None) -> Array:
    if out is None:
        return result
    np.copyto(out, result)
    return out


def round_to(values: Array, fmt: str, mode: Mode = "rtne", saturate: bool = False) -> Array:
    """Float32 or float64 rounded once to a format; the answer is float32, or float64 for f64.

    What overflows becomes infinite, or NaN where the format has no infinity, as IEEE 754 and the OCP 8-bit
    specification have it without saturation; infinities likewise. Rounding toward zero, a finite value never
    overflows. With ``saturate`` everything but NaN ends at the largest finite number, infinities too: PTX's
    ``.satfinite``, which Triton asks for in each conversion to an fp8 that rounds to nearest.
    """
    if fmt == "f64":
        return values.astype(_F64)
    if saturate:
        largest = values.dtype.type(FORMATS[fmt].max)
        values = np.clip(values, -largest, largest)
    if mode == "rtz":
        return _truncate(values, fmt)
    if values.dtype == _F64:
        if fmt == "f32":
            return values.astype(_F32)
        values = _odd_f32(values)
    if fmt == "bf16":
        return round_bf16(values)
    if fmt == "f16":
        return round_f16(values)
    if fmt == "f32":
        return values
    return _TABLES[fmt].take(values.astype(_FP8[fmt]).view(_U8))


def _truncate(values: Array, fmt: str) -> Array:
    target = FORMATS[fmt]
    size = np.abs(values.astype(_F64))
    power = (size.view(_U64) & np.uint64(0x7FF << 52)).view(_F64)
    ulp = np.clip(power, 2.0**target.min_exponent, 2.0**1023) * 2.0 ** (1 - target.digits)
    result = np.trunc(size / ulp) * ulp
    result = np.where(np.isfinite(size), np.minimum(result, target.max), result)
    if fmt in _FP8 and fmt != "f8E5M2":
        result = np.where(np.isinf(result), np.nan, result)
    signed = np.copysign(result, values)
    return (signed + 0.0 if fmt.endswith("FNUZ") else signed).astype(_F32)


def round_tf32(values: Array, mode: Literal["rtne", "rna", "rtz"] = "rtne") -> Array:
    """Float32 rounded to the 10 explicit bits of TF32: to nearest with ties to even or away, or toward zero.

    ``tl.dot`` with TF32 inputs cuts them off ("rtz") on an H200; "rna" is ``cvt.rna``, of tf32x3. NaN stays NaN:
    the hardware makes infinity of those with a payload below bit 13 alone, which no arithmetic gives.
    """
    bits = values.view(_U32)
    if mode == "rtne":
        bits = bits + (np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
    elif mode == "rna":
        bits = bits + np.uint32(0x1000)
    rounded = (bits & np.uint32(0xFFFFE000)).view(_F32)
    return np.where(np.isnan(values), np.float32(np.nan), rounded)


def _odd(nearest: Array, error: Array) -> Array:
    """The exact ``nearest + error`` rounded to odd: if it is between two numbers, the one whose last bit is 1.

    What has been rounded to odd with two bits to spare can be rounded once more to nearest as if it were exact.
    Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding
    to odd", IEEE Transactions on Computers 57(4), 2008.
    """
    bits: Array = nearest.view(np.int64 if nearest.dtype == _F64 else np.int32)
    step = np.where((error > 0) != np.signbit(nearest), bits.dtype.type(1), bits.dtype.type(-1))
    move = (error != 0) & (error == error) & ((bits & 1) == 0)  # the error beside inf and NaN is NaN
    return np.add(bits, step * move, dtype=bits.dtype).view(nearest.dtype)


def _odd_f32(values: Array) -> Array:
    """Float64 rounded to odd in float32: from there, formats of up to 22 digits are reached correctly."""
    nearest = values.astype(_F32)
    return _odd(nearest, values - nearest)


def fma(a: Array, b: Array, c: Array, fmt: str) -> Array:
    """a * b + c with one rounding to nearest: f64 from float64 arrays, f16, bf16 and f32 from float32 arrays.

    The product of two narrow numbers is exact in the wider format, and the sum is rounded to odd there (see
    ``_odd``). That is needed only where the sum looks like the middle between two numbers of the format, so
    that what was lost decides; such a middle has one digit more than the format, and zeros after it.
    """
    if fmt == "f64":
        return _fma_f64(*np.broadcast_arrays(a, b, c))
    wide = _F32 if fmt == "f16" else _F64
    product = np.multiply(a, b, dtype=wide)
    total = product + c
    zeros = (23 if wide == _F32 else 52) - FORMATS[fmt].digits
    bits = total.view(_U32 if wide == _F32 else _U64)
    if np.equal(bits & bits.dtype.type((1 << zeros) - 1), 0).any():
        total = _odd(*two_sum(product, c.astype(wide)))
    if fmt == "f16":
        return round_f16(total)
    if fmt == "bf16":
        return round_bf16(_odd_f32(total))
    return total.astype(_F32)


def _fma_f64(a: Array, b: Array, c: Array) -> Array:
    """Boldo and Melquiond's algorithm (see ``_odd``), and exact fractions where exponents are extreme."""
    product = a * b
    high, low = two_product(a, b)
    upper, lower = two_sum(c, low)
    first, second = two_sum(high, upper)
    result = np.asarray(first + _odd(*two_sum(second, lower)))
    sizes = np.abs(np.stack([a, b, c, product]))
    tame = ((sizes > 2.0**-900) & (sizes < 2.0**900)).all(axis=0)
    if tame.all():
        return result
    # A product by zero, infinity or NaN is exact; any other gives way to a c that is not finite, and is
    # the answer if c is zero, even where it vanished.
    special = ~np.isfinite(a) | ~np.isfinite(b) | (a == 0) | (b == 0)
    alone = (c == 0) | ~np.isfinite(c)
    result = np.where(special, product + c, np.where(alone, np.where(c == 0, product, c), result))
    for lane in np.argwhere(~(tame | special | alone)):
        at = tuple(lane)
        result[at] = _nearest_f64(Fraction(float(a[at])) * Fraction(float(b[at])) + Fraction(float(c[at])))
    return result


def _nearest_f64(value: Fraction) -> float:
    try:
        return float(value)  # Python rounds a quotient of integers once, subnormal or not
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def float_to_int(values: Array, bits: int, signed: bool) -> Array:
    """Truncation to an integer as NVIDIA's ``cvt.rzi`` does it; in LLVM what does not fit is poison.

    What does not fit saturates. NaN becomes 0, but the integer with only its highest bit set if the source is
    f64 or the integer has 64 bits (PTX ISA, ``cvt``, "NaN input results"). For 8 bits, LLVM's NVPTX backend
    converts to 16 bits and drops the upper byte, so 300.0 becomes 44. An H200 gave the same for every source
    and integer, at the limits and for all float16 and bfloat16.
    """
    hardware = max(bits, 16)
    wide = np.trunc(values.astype(_F64))
    low = -(2.0 ** (hardware - 1)) if signed else 0.0
    end = 2.0 ** (hardware - signed)
    fits = (wide >= low) & (wide < end)
    integers = np.dtype(f"{'i' if signed else 'u'}{hardware // 8}")
    limits = np.iinfo(integers)
    least, most = integers.type(limits.min), integers.type(limits.max)
    highest_bit = integers.type(limits.min if signed else limits.max // 2 + 1)
    unknown = highest_bit if hardware == 64 or values.dtype == _F64 else integers.type(0)
    outside = np.where(wide > 0, most, np.where(np.isnan(wide), unknown, least))
    inside = np.where(fits, wide, 0.0).astype(integers)
    return np.where(fits, inside, outside).astype(f"{'i' if signed else 'u'}{bits // 8}")


def int_to_float(values: Array, fmt: str) -> Array:
    """Integers rounded once to the nearest number of a format, ties to even."""
    if fmt == "f64":
        return values.astype(_F64)
    if fmt == "f32":
        return values.astype(_F32)
    if values.dtype.itemsize < 4:
        return round_to(values.astype(_F32), fmt)
    if values.dtype.itemsize < 8:
        return round_to(values.astype(_F64), fmt)
    # The lowest 12 bits of a large one only decide whether it lies beyond a middle: one bit says that too.
    large = (values >= 2**53) | (values <= -(2**53) if values.dtype.kind == "i" else False)
    lowest = values & values.dtype.type(0xFFF)
    jammed = (values - lowest) | ((lowest != 0).astype(values.dtype) << values.dtype.type(12))
    return round_to(np.where(large, jammed, values).astype(_F64), fmt)
