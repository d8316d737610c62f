"""Value recipes: numbers from a name and a seed, the same on every machine and NumPy version.

Everything is derived from the raw words of a Philox bit generator (whose stream NumPy guarantees) by
exact operations, so no library's sampling algorithm is part of a corpus file's meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from fuzzrope.case import Values

Array = np.ndarray


class Floats:
    """The limits of a dtype that recipes aim at."""

    def __init__(self, dtype: torch.dtype) -> None:
        info = torch.finfo(dtype)
        self.max = float(info.max)
        self.min_exponent = int(np.log2(info.smallest_normal))
        self.max_exponent = int(np.frexp(info.max)[1]) - 1
        self.digits = round(-np.log2(info.eps))  # stored bits of the significand
        self.smallest = float(np.ldexp(1.0, self.min_exponent - self.digits))


#: The limits of each dtype, worked out once.
limits = lru_cache(maxsize=None)(Floats)


def _uniform(words: Array) -> Array:
    """Uniform in [0, 1) with 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _sign(words: Array) -> Array:
    return np.where(words & np.uint64(1), -1.0, 1.0)


def _integer(words: Array, low: int, high: int) -> Array:
    """Integers in [low, high]."""
    return low + (words % np.uint64(high - low + 1)).astype(np.int64)


def _normal(words: Array, more: Array, floats: Floats) -> Array:
    """Bell-shaped with unit variance: the sum of four uniform 16-bit numbers, centred (Irwin-Hall)."""
    even = np.uint64(0x0000FFFF0000FFFF)
    pairs = (words & even) + ((words >> np.uint64(16)) & even)
    total = ((pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))).astype(np.float64)
    return (total - 2 * 65535.0) * (1.7320508075688772 / 65536.0)


def _wide(words: Array, more: Array, floats: Floats) -> Array:
    """Every exponent of the dtype equally likely: products over- and underflow."""
    exponent = _integer(more, floats.min_exponent, floats.max_exponent)
    value = np.ldexp(1.0 + _uniform(words), exponent.astype(np.int32))
    return _sign(words) * np.minimum(value, floats.max)


def _tiny(words: Array, more: Array, floats: Floats) -> Array:
    """Just above the smallest normal number: products underflow."""
    exponent = floats.min_exponent + _integer(more, 0, 3)
    return _sign(words) * np.ldexp(1.0 + _uniform(words), exponent.astype(np.int32))


def _subnormal(words: Array, more: Array, floats: Floats) -> Array:
    """Subnormal numbers, every bit length equally likely."""
    bits = _integer(more, 1, floats.digits)
    steps = np.floor(np.ldexp(_uniform(words), bits.astype(np.int32))) + 1.0
    return _sign(words) * np.minimum(steps, 2.0**floats.digits - 1) * floats.smallest


def _zeros(words: Array, more: Array, floats: Floats) -> Array:
    """Zeros of both signs."""
    return _sign(words) * 0.0


def _powers(words: Array, more: Array, floats: Floats) -> Array:
    """Powers of two near one: sums and products are exact, so nothing hides behind rounding."""
    return _sign(words) * np.ldexp(1.0, _integer(more, -4, 4).astype(np.int32))


def _sprinkled(special: Callable[[Array], Array]) -> Callable[[Array, Array, Floats], Array]:
    def recipe(words: Array, more: Array, floats: Floats) -> Array:
        return np.where(more & np.uint64(3) == 0, special(more >> np.uint64(2)), _normal(words, more, floats))

    return recipe


_RECIPES: dict[str, Callable[[Array, Array, Floats], Array]] = {
    "normal": _normal,
    "wide": _wide,
    "tiny": _tiny,
    "subnormal": _subnormal,
    "zeros": _zeros,
    "powers": _powers,
    "infs": _sprinkled(lambda words: _sign(words) * np.inf),
    "nans": _sprinkled(lambda words: np.full(words.shape, np.nan)),
}


def _turned(kind: str, columns: int, count: int) -> Array:
    """Tables (positions, ``columns``) as models have them: cos or sin of position times inverse frequency.

    Frequencies fall from 1 to 2^-13, halving in equal steps of the columns and linearly in between. Sums, products and
    a polynomial of angles up to pi/4 stand for a library's functions, whose last bits differ between machines.
    """
    position, column = np.divmod(np.arange(count), max(columns, 1))
    halvings = 13.0 * column / max(columns, 1)
    whole = np.floor(halvings)
    turns = position * np.ldexp(1.0 - (halvings - whole) / 2, -whole.astype(np.int32)) * 0.15915494309189535
    quarters = np.rint(4 * (turns - np.rint(turns)))
    angle = (turns - np.rint(turns) - quarters / 4) * 6.283185307179586
    square, even, odd = angle * angle, np.ones(count), np.ones(count)
    for n in range(14, 0, -2):  # Taylor's polynomials, from the inside
        even, odd = 1.0 - square * even / (n * (n - 1)), 1.0 - square * odd / (n * (n + 1))
    cos, sin = even, odd * angle
    which = quarters.astype(np.int64) + (kind == "cosines")  # cos(a) is sin(a + pi/2)
    return np.choose(which % 4, (sin, cos, -sin, -cos)) + 0.0  # no negative zeros


_ONE_WORD = ("normal", "zeros")  # what looks at one word an element, not at ``more``


def expand(values: Values, dtype: torch.dtype, count: int) -> torch.Tensor:
    """The first ``count`` elements of a recipe as a tensor (count,) of ``dtype``, rounded to nearest even."""
    if values.kind == "listed":
        numbers = np.array(values.data, dtype=np.float64)
    elif values.kind == "constant":
        numbers = np.full(count, values.data[0], dtype=np.float64)
    elif values.kind in ("cosines", "sines"):
        numbers = _turned(values.kind, values.seed, count)
    else:
        raw = np.random.Philox(key=values.seed).random_raw(count if values.kind in _ONE_WORD else 2 * count)
        floats = limits(dtype if dtype.is_floating_point else torch.float32)
        with np.errstate(over="ignore"):
            numbers = np.asarray(_RECIPES[values.kind](raw[:count], raw[count:], floats))
    if not dtype.is_floating_point:
        # Spelled out they are meant; int64 ends where float64 is sure to be exact.
        meant, info = values.kind in ("listed", "constant"), torch.iinfo(dtype)
        low, high = (max(info.min, -(2**53)), min(info.max, 2**53)) if meant else (-100, 100)
        numbers = np.clip(np.nan_to_num(numbers), low, high)
    elif dtype in (torch.float16, torch.bfloat16):
        numbers = _rounded(numbers, limits(dtype))
    return torch.from_numpy(numbers).to(dtype)


def _rounded(numbers: Array, floats: Floats) -> Array:
    """Numbers rounded once, to nearest even; converting in steps would round twice."""
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.frexp(numbers)[1] - 1, floats.min_exponent)
        last = np.ldexp(1.0, exponent - floats.digits)
        return np.where(np.isfinite(numbers), np.rint(numbers / last) * last, numbers)
