"""How far correct answers scatter: what an operation says about its roundings, beside its worst-case bound.

The judge's statistics (:mod:`fuzzrope.judge.statistics`; derived in ``docs/statistics.md``) need for each
element the half ulps of the roundings that lead to it. An operation hands them over as :class:`Spread`,
made only when asked for, from :func:`rounding` and :func:`last_rounding`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fuzzrope.numbers import Exact, Format

Array = np.ndarray

MAX_SAMPLES = 2**14  # elements of an output that are looked at: more gives no power that is needed
FEW_BITS = 8  # a product that ends within 1/8 of its last place takes few values, so its rounding is no sample
NARROW = 11  # digits up to which operands have so few bits that a repeated one leaves a bias
LEAN = {True: 0.25, False: 0.06}  # that bias in half ulps, for narrow operands and others


@dataclass(frozen=True, slots=True)
class Roundings:
    """One rounding of each element: half an ulp, or 0 where it is exact; and where it can be counted on."""

    half: Array
    regular: Array


@dataclass(frozen=True, slots=True)
class Spread:
    """Scatter of the first n elements of an output, in the units of their bound; flat arrays (n,).

    Attributes:
        reach: the half ulps of all roundings of an element, added up.
        squares: their squares added up: the sub-Gaussian proxy.
        variance: the largest variance of the error of a correct implementation.
        sign: +1 or -1, the sign of the exact result.
        regular: where all this holds: normal range, roundings that vary, an answer that must be finite.
        same: a number that is equal for elements with equal operands, scaled by powers of two or not.
        operands: for each group of operands drawn apart from the others, a number (n,) that is equal where
            they are; worked out only if something looks wrong.
        lean: the mean error, over ``reach``, that a single repeated operand may cause.
    """

    reach: Array
    squares: Array
    variance: Array
    sign: Array
    regular: Array
    same: Callable[[], Array]
    operands: Callable[[], tuple[Array, ...]]
    lean: float


def rounding(value: Exact, form: Format, unit: Array | int = 0) -> Roundings:
    """Rounding exact values to a format, in units of 2^unit; irregular where subnormal or few-valued."""
    significand, exponent = np.frexp(value.high)
    scaled = np.ldexp(significand, form.digits)
    rest = scaled - np.rint(scaled)
    if not value.plain:
        rest = rest + np.ldexp(value.low, np.clip(form.digits - exponent, -2000, 2000))
    total = exponent + value.exponent
    half = np.ldexp(1.0, np.clip(total - unit - form.digits - 1, -2000, 1000).astype(np.int64))
    eighths = rest * FEW_BITS
    exact = rest == 0
    few = (eighths == np.rint(eighths)) & ~exact
    return Roundings(np.where(exact, 0.0, half), ~few & (total > form.min_exponent))


def last_rounding(size: Array, form: Format, unit: Array | int = 0) -> Roundings:
    """Rounding results of at most this size, in units of 2^unit, that earlier roundings have already moved."""
    exponent = np.frexp(size)[1]
    half = np.ldexp(1.0, exponent - form.digits - 1)
    return Roundings(half, exponent + unit > form.min_exponent + 1)


def mantissas(numbers: Array) -> Array:
    """|numbers| scaled into [0.5, 1): equal for numbers that differ by sign and a power of two."""
    return np.abs(np.frexp(numbers)[0])


def together(one: Array, other: Array) -> Array:
    """A number (complex) that is equal where both are."""
    return one + 1j * other


def two_products(
    left: Exact,
    right: Exact,
    exact: Exact,
    formats: tuple[Format, Format, Format],
    sure: Array | bool,
    operands: Callable[[], tuple[Array, Array, Array, Array]],
) -> Spread:
    """The spread of left - right with products rounded to the first two formats and the result to the third.

    ``sure`` says where a finite answer is the only one; ``operands`` gives the factors a, c, b, s of
    a*c - b*s, each (n,), of which (a, b) and (c, s) are drawn apart.
    """
    p, r, o = formats
    with np.errstate(all="ignore"):
        unit: Array | int = 0 if exact.plain else exact.exponent
        first, second = rounding(left, p, unit), rounding(right, r, unit)
        size = np.abs(exact.high) + first.half + second.half
        last = last_rounding(size, o, unit)
        products, final = first.half * first.half + second.half * second.half, last.half * last.half
        regular = first.regular & second.regular & last.regular & sure & (exact.high != 0)
    return Spread(
        reach=first.half + second.half + last.half,
        squares=products + final,
        # What is left of rounded products below the last place is often half of it or nothing.
        variance=products / 3 + final / 2,
        sign=np.where(exact.high < 0, -1.0, 1.0),
        regular=regular,
        same=lambda: mantissas(exact.high),
        operands=lambda: _pairs(*operands()),
        lean=LEAN[min(form.digits for form in formats) <= NARROW],
    )


def _pairs(a: Array, c: Array, b: Array, s: Array) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        return together(mantissas(a), mantissas(b)), together(mantissas(c), mantissas(s))
