"""Pairs of float64 against the decimal module."""

import operator
from decimal import Decimal, getcontext

import numpy as np
import pytest

from fuzzrope.operations import doubled

getcontext().prec = 80
EXACT = Decimal(2) ** -88


def pairs(numbers):
    return np.asarray(numbers, np.float64), np.asarray(numbers, np.float64) * 2.0**-55 / 3


def decimals(pair):
    return [Decimal(float(a)) + Decimal(float(b)) for a, b in zip(*pair, strict=True)]


def close(found, truth):
    return all(abs(a - b) <= EXACT * abs(b) for a, b in zip(decimals(found), truth, strict=True))


def test_ln2_is_right_beyond_float64():
    assert abs(sum(Decimal(float(part)) for part in doubled.LN2) - Decimal(2).ln()) < Decimal(2) ** -106


@pytest.mark.parametrize("x", [-599.5, -300.25, -37.1, -1.0, -1e-3, -1e-17, 0.0, 1e-9, 0.3, 0.35, 10.7, 300.0])
def test_exp(x):
    x = pairs([x])
    assert close(doubled.exp(x), [d.exp() for d in decimals(x)])


def test_exp_of_what_no_bound_looks_at_is_zero():
    assert doubled.exp(pairs([-601.0, -1e300]))[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("x", [1.5, 2.0, 7.0, 70.3, 1e100, 0.01])
def test_log(x):
    x = pairs([x])
    (found,), (truth,) = decimals(doubled.log(x)), [d.ln() for d in decimals(x)]
    assert abs(found - truth) <= EXACT * 8 * max(abs(truth), 1)


@pytest.mark.parametrize("x", [-30.0, -1.0, -1e-5, 0.0, 0.01, 0.7, 3.0, 1e6])
def test_tanh_absolutely(x):
    x = pairs([x])
    (d,) = decimals(x)
    e = (-2 * abs(d)).exp()
    truth = (1 - e) / (1 + e) * (-1 if d < 0 else 1)
    assert abs(decimals(doubled.tanh(x))[0] - truth) < EXACT * 4


@pytest.mark.parametrize("name", ["plus", "minus", "times", "over"])
def test_arithmetic(name):
    a, b = pairs([1.1, -3.7, 1e10, 2.0**-40]), pairs([2.3, 5.1, -1e-3, 7.7])
    names = {"plus": "add", "minus": "sub", "times": "mul", "over": "truediv"}
    truth = [getattr(operator, names[name])(x, y) for x, y in zip(decimals(a), decimals(b), strict=True)]
    assert close(getattr(doubled, name)(a, b), truth)


def test_a_total_keeps_what_cancels():
    terms = (np.array([[1e16, 1.0, -1e16, 2.0**-60]]), np.zeros((1, 4)))
    assert decimals(doubled.total(terms, axis=1)) == [Decimal(1) + Decimal(2) ** -60]
