"""Arithmetic on unevaluated sums of two float64, and exp, log and tanh on them, for oracles of float64.

A number is a pair (high, low) with |low| at most an ulp of high; about 100 bits are right after each step.
Sources: Dekker 1971 for sums and products of pairs; exp by reduction modulo ln 2 and Taylor's series (Brent
and Zimmermann, Modern Computer Arithmetic, 4.3), log by one step of Newton's method on exp.
"""

from __future__ import annotations

import numpy as np

from fuzzrope.numbers import two_product, two_sum

Array = np.ndarray
Pair = tuple[Array, Array]

LN2 = (np.float64(0.6931471805599453), np.float64(2.3190468138462996e-17))
HALVINGS = 6  # exp(r) = exp(r / 2^6)^(2^6)
TERMS = 14  # of Taylor's series: (ln 2 / 2^7)^15 / 15! is below 2^-150
LEAST = -600.0  # exp of less is given as 0, and bounds count it as lost: 2^-865


def plus(a: Pair, b: Pair) -> Pair:
    """a + b."""
    high, low = two_sum(a[0], b[0])
    return two_sum(high, low + (a[1] + b[1]))


def minus(a: Pair, b: Pair) -> Pair:
    """a - b."""
    return plus(a, (-b[0], -b[1]))


def times(a: Pair, b: Pair) -> Pair:
    """a * b, for magnitudes whose products and their low parts neither over- nor underflow."""
    high, low = two_product(a[0], b[0])
    return two_sum(high, low + (a[0] * b[1] + a[1] * b[0]))


def over(a: Pair, b: Pair) -> Pair:
    """a / b."""
    first = a[0] / b[0]
    rest = minus(a, times(b, (first, np.zeros_like(first))))
    return two_sum(first, rest[0] / b[0])


def total(terms: Pair, axis: int) -> Pair:
    """The sum along an axis, half onto half."""
    high, low = (np.moveaxis(part, axis, 0) for part in terms)
    if not len(high):
        return np.zeros(high.shape[1:]), np.zeros(high.shape[1:])
    while len(high) > 1:
        half = len(high) // 2
        pairs = plus((high[:half], low[:half]), (high[half : 2 * half], low[half : 2 * half]))
        high, low = (np.concatenate([pair, rest[2 * half :]]) for pair, rest in zip(pairs, (high, low), strict=True))
    return high[0], low[0]


def exp(x: Pair) -> Pair:
    """e^x for x up to 700; below ``LEAST`` it is 0."""
    small = x[0] < LEAST
    x = (np.where(small, 0.0, x[0]), np.where(small, 0.0, x[1]))
    k = np.rint(x[0] / LN2[0])
    zero = np.zeros_like(k)
    r = minus(x, times((k, zero), (LN2[0] + zero, LN2[1] + zero)))
    r = (np.ldexp(r[0], -HALVINGS), np.ldexp(r[1], -HALVINGS))
    result = (np.ones_like(k), zero)
    for n in range(TERMS, 0, -1):  # Horner: 1 + r/1 (1 + r/2 (1 + ...))
        result = plus((np.ones_like(k), zero), over(times(r, result), (np.full_like(k, n), zero)))
    for _ in range(HALVINGS):
        result = times(result, result)
    shift = np.where(small, -2000, k).astype(np.int64)
    return np.ldexp(result[0], shift), np.ldexp(result[1], shift)


def log(x: Pair) -> Pair:
    """The natural logarithm of x from 2^-500 to 2^500."""
    first = np.log(x[0])
    back = times(x, exp((-first, np.zeros_like(first))))
    rest = minus(back, (np.ones_like(first), np.zeros_like(first)))
    # log(1 + e) = e - e^2/2, and e is about 2^-52
    return two_sum(first, rest[0] - rest[0] * rest[0] / 2 + rest[1])


def tanh(x: Pair) -> Pair:
    """The hyperbolic tangent, to an absolute error of about 2^-98."""
    sign = np.where(x[0] < 0, -1.0, 1.0)
    e = exp((-2 * x[0] * sign, -2 * x[1] * sign))
    one = (np.ones_like(sign), np.zeros_like(sign))
    high, low = over(minus(one, e), plus(one, e))
    return high * sign, low * sign
