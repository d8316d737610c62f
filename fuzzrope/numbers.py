"""Floating-point formats and exact arithmetic on pairs of float64: what oracles and bounds are made of.

Sources: Dekker, "A floating-point technique for extending the available precision", 1971 (splitting and
the exact product); Knuth, TAOCP 2, 4.2.2 (the exact sum). Both hold when nothing over- or underflows, so
everything here works on significands in [0.5, 1) and carries exponents apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

Array = np.ndarray


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes:
        digits: bits of precision p, the hidden one included.
        min_exponent: exponent of the smallest normal number.
        max: the largest finite number.
    """

    digits: int
    min_exponent: int
    max: float

    @cached_property
    def roundoff(self) -> float:
        """Unit roundoff u = 2^-p: round to nearest errs by at most u times the result."""
        return 2.0**-self.digits

    @cached_property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest subnormal number."""
        return self.min_exponent - self.digits + 1

    @cached_property
    def half_step(self) -> float:
        """Half the smallest subnormal number: what rounding errs by where the result is below the normal ones."""
        return 2.0 ** (self.smallest_exponent - 1)

    def half_step_in(self, unit: Array) -> Array:
        """:attr:`half_step` in units of 2^unit; of float64 it is below what a float64 holds."""
        return np.ldexp(0.5, clipped(self.smallest_exponent - unit, -2000, 1000))

    @cached_property
    def rounds_to_infinity(self) -> float:
        """The least magnitude that rounds to infinity; infinite for float64, which cannot hold its own."""
        one, below, exponent = self.overflow
        return float(np.ldexp(one + below, exponent)) if self.digits < 53 else np.inf

    @cached_property
    def overflow(self) -> tuple[float, float, int]:
        """The least magnitude that rounds to infinity, (high + low) * 2^exponent."""
        return 1.0, -(2.0 ** -(self.digits + 1)), int(np.frexp(self.max)[1])


FORMATS = {
    "float16": Format(11, -14, 65504.0),
    "bfloat16": Format(8, -126, float(torch.finfo(torch.bfloat16).max)),
    "float32": Format(24, -126, float(np.finfo(np.float32).max)),
    "float64": Format(53, -1022, float(np.finfo(np.float64).max)),
}


def format_of(dtype: torch.dtype) -> Format:
    """The format of a torch dtype."""
    return FORMATS[str(dtype).removeprefix("torch.")]


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """s, e with s = fl(a + b) and s + e = a + b exactly."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _split(a: Array) -> tuple[Array, Array]:
    scaled = a * 134217729.0  # 2^27 + 1
    high = scaled - (scaled - a)
    return high, a - high


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """p, e with p = fl(a * b) and p + e = a * b exactly, for magnitudes around one."""
    p = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def clipped(numbers: Array, low: int, high: int) -> Array:
    """``np.clip`` without its search for the limits of the dtype, which costs more than clipping."""
    return np.minimum(np.maximum(numbers, low), high)


_ZERO, _NO_EXPONENT = np.float64(0.0), np.int64(0)
ZERO_EXPONENT = -(2**20)  # the exponent of an exact zero: below that of any number


@dataclass(frozen=True, slots=True)
class Exact:
    """Finite numbers (high + low) * 2^exponent; low is below an ulp of high.

    ``plain`` says that low and exponent are zero throughout.
    """

    high: Array
    low: Array
    exponent: Array
    plain: bool = False

    @classmethod
    def of(cls, numbers: Array) -> Exact:
        """Numbers that float64 holds."""
        return cls(numbers, np.broadcast_to(_ZERO, numbers.shape), np.broadcast_to(_NO_EXPONENT, numbers.shape), True)

    def error(self, numbers: Array) -> Array:
        """number - self in units of 2^exponent."""
        if self.plain:
            return numbers - self.high
        scaled = np.ldexp(numbers, clipped(-self.exponent, -2000, 2000))
        return (scaled - self.high) - self.low

    def distance(self, numbers: Array) -> Array:
        """|number - self| in units of 2^exponent."""
        return np.abs(self.error(numbers))

    def part(self, at: slice) -> Exact:
        """Some of the numbers of flat arrays."""
        return Exact(self.high[at], self.low[at], self.exponent[at], self.plain)

    def at(self, exponent: Array) -> tuple[Array, Array]:
        """high and low scaled to another exponent; what is too small to matter there becomes 0."""
        shift = clipped(self.exponent - exponent, -2000, 900)
        return np.ldexp(self.high, shift), np.ldexp(self.low, shift)


def product(a: Array, b: Array) -> Exact:
    """The exact products of two float64 arrays; entries that are not finite are worth nothing."""
    (ma, ea), (mb, eb) = np.frexp(a), np.frexp(b)
    high, low = two_product(ma, mb)
    return Exact(high, low, np.where(high == 0, ZERO_EXPONENT, ea.astype(np.int64) + eb))


def difference(a: Exact, b: Exact) -> Exact:
    """a - b, exact to about 2^-104 relative to the larger of the two."""
    exponent = np.maximum(a.exponent, b.exponent)
    (ah, al), (bh, bl) = a.at(exponent), b.at(exponent)
    s, e = two_sum(ah, -bh)
    high, low = two_sum(s, e + (al - bl))
    high = np.where((ah == 0) & (bh == 0), ah - bh, high)
    return Exact(high, low, exponent)
