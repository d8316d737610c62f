"""Number formats for the truths of the zoo: bits to values and back, rounded once, with no code of Triton's.

Every floating-point format here is decoded to float64 without error. Values are encoded from float64 by
:func:`encode`, or from rational numbers by :func:`encode_exactly` where float64 would round first.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format.

    Attributes:
        infinite: whether it has infinities; float8_e4m3fn has none, and one NaN for each sign.
        saturating: whether a conversion to it gives the largest finite value for whatever is larger,
            infinities included. ``cvt.satfinite`` does so for the formats of eight bits (PTX ISA, cvt).
    """

    name: str
    dtype: torch.dtype
    bits: type
    exponent: int
    mantissa: int
    infinite: bool = True
    saturating: bool = False

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1

    @property
    def unit(self) -> float:
        """The largest relative error of rounding to nearest."""
        return 2.0 ** -(self.mantissa + 1)

    @property
    def smallest(self) -> float:
        """The smallest subnormal number."""
        return 2.0 ** (1 - self.bias - self.mantissa)

    @property
    def normal(self) -> float:
        """The smallest normal number."""
        return 2.0 ** (1 - self.bias)

    @property
    def largest(self) -> float:
        top = 2.0 ** (2**self.exponent - 2 - self.bias)
        if self.infinite:
            return top * (2 - 2.0**-self.mantissa)
        return 2 * top * (2 - 2.0 ** (1 - self.mantissa))  # the all-ones exponent holds numbers too, but for one


FP8E4NV = Format("fp8e4nv", torch.float8_e4m3fn, np.uint8, 4, 3, infinite=False, saturating=True)
FP8E5 = Format("fp8e5", torch.float8_e5m2, np.uint8, 5, 2, saturating=True)
FP16 = Format("fp16", torch.float16, np.uint16, 5, 10)
BF16 = Format("bf16", torch.bfloat16, np.uint16, 8, 7)
FP32 = Format("fp32", torch.float32, np.uint32, 8, 23)
FP64 = Format("fp64", torch.float64, np.uint64, 11, 52)

FORMATS = {format.dtype: format for format in (FP8E4NV, FP8E5, FP16, BF16, FP32, FP64)}
#: Formats that NumPy has itself.
NATIVE = {FP16.dtype: np.float16, FP32.dtype: np.float32, FP64.dtype: np.float64}


def bits_of(x: torch.Tensor) -> np.ndarray:
    """The bit patterns of a tensor of floating-point numbers, as unsigned integers."""
    form = FORMATS[x.dtype]
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.detach().cpu().contiguous().view(signed).numpy().view(form.bits)


def from_bits(bits: np.ndarray, form: Format) -> torch.Tensor:
    """The tensor with these bit patterns."""
    signed = np.ascontiguousarray(bits, form.bits).view(f"i{form.width // 8}")
    return torch.from_numpy(signed.copy()).view(form.dtype)


def decode(bits: np.ndarray, form: Format) -> np.ndarray:
    """The values of bit patterns, in float64, exactly."""
    if form.dtype in NATIVE:
        with np.errstate(invalid="ignore"):  # a signaling NaN is a NaN
            return np.asarray(bits, form.bits).view(NATIVE[form.dtype]).astype(np.float64)
    bits = np.asarray(bits).astype(np.int64)
    mantissa = bits & (2**form.mantissa - 1)
    exponent = bits >> form.mantissa & (2**form.exponent - 1)
    scale = np.maximum(exponent, 1) - form.bias - form.mantissa
    value = np.ldexp((mantissa + (exponent > 0) * 2**form.mantissa).astype(np.float64), scale)
    top = exponent == 2**form.exponent - 1
    if form.infinite:
        value = np.where(top, np.where(mantissa == 0, np.inf, np.nan), value)
    else:
        value = np.where(top & (mantissa == 2**form.mantissa - 1), np.nan, value)
    return np.where(bits >> (form.width - 1) == 1, -value, value)


@np.errstate(all="ignore")  # what overflows here is told apart afterwards
def encode(values: np.ndarray, form: Format, toward_zero: bool = False) -> np.ndarray:
    """Round float64 values to the nearest, ties to even, or toward zero; gives bit patterns."""
    values = np.asarray(values, np.float64)
    size = np.where(np.isfinite(values), np.abs(values), 0.0)
    exponent = np.maximum(np.frexp(size)[1] - 1, 1 - form.bias)
    step = np.ldexp(1.0, np.maximum(exponent - form.mantissa, -1074))
    rounded = (np.trunc if toward_zero else np.rint)(size / step) * step  # a power of two: the division is exact
    over = rounded > form.largest
    exponent = np.maximum(np.frexp(rounded)[1] - 1, 1 - form.bias)  # rounding may have carried into the next binade
    units = np.ldexp(rounded, form.mantissa - exponent).astype(np.uint64)
    hidden = np.uint64(2**form.mantissa)
    biased = np.where(units >= hidden, exponent + form.bias, 0).astype(np.uint64)
    bits = (biased << np.uint64(form.mantissa)) | (units & (hidden - np.uint64(1)))
    last = np.uint64((2**form.exponent - 1) * 2**form.mantissa + (0 if form.infinite else 2**form.mantissa - 2))
    largest = last - np.uint64(form.infinite)
    infinity = largest if form.saturating and not toward_zero else last
    bits = np.where(over, largest if toward_zero else infinity, bits)
    bits = np.where(np.isinf(values), infinity, bits)
    bits = np.where(np.isnan(values), last + np.uint64(1), bits)
    bits = bits | (np.signbit(values).astype(np.uint64) << np.uint64(form.width - 1))
    return bits.astype(form.bits)


def encode_exactly(value: Fraction | int, form: Format) -> int:
    """The bit pattern nearest to a rational number, ties to even."""
    value = Fraction(value)
    sign = int(value < 0) << (form.width - 1)
    value = abs(value)
    if not value:
        return 0
    exponent = max(value.numerator.bit_length() - value.denominator.bit_length(), 1 - form.bias)
    if value < Fraction(2) ** exponent:
        exponent = max(exponent - 1, 1 - form.bias)
    units = round(value / Fraction(2) ** (exponent - form.mantissa))  # Python rounds fractions half to even
    biased = exponent + form.bias - 1 if units >= 2**form.mantissa else 0
    bits = (biased << form.mantissa) + units
    return sign | min(bits, (2**form.exponent - 1) << form.mantissa)


def values_of(x: torch.Tensor) -> np.ndarray:
    """What a tensor holds, in float64 for floating-point numbers and as it is for integers."""
    return decode(bits_of(x), FORMATS[x.dtype]) if x.dtype in FORMATS else x.detach().cpu().numpy()


def native(x: torch.Tensor) -> np.ndarray:
    """A tensor in the format NumPy has for it; bfloat16, which it has not, in float32."""
    if x.dtype in NATIVE or x.dtype not in FORMATS:
        return x.detach().cpu().numpy()
    return values_of(x).astype(np.float32)


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Values rounded to a format, as an exact truth gives them: NumPy's own format where it has one, or bits."""
    bits = encode(values, FORMATS[dtype])
    return bits.view(NATIVE[dtype]) if dtype in NATIVE else bits
