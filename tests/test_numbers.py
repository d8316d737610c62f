"""fuzzrope.numbers against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fuzzrope.numbers import (
    FORMATS,
    ZERO_EXPONENT,
    Exact,
    Format,
    difference,
    format_of,
    product,
    two_product,
    two_sum,
)

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True, database=None)

TINY = math.ulp(0.0)
NORMAL = 2.0**-1022
HUGE = float(np.finfo(np.float64).max)
NARROW = ("float16", "bfloat16", "float32")
LANDMARKS = (0.0, TINY, 3 * TINY, NORMAL - TINY, NORMAL, 2.0**-538, 1 - 2.0**-53, 1.0, 1 + 2.0**-52, 2.0**512, HUGE)

finite = st.floats(allow_nan=False, allow_infinity=False)
significands = st.floats(0.5, 1.0, exclude_max=True).map(np.float64)
landmarks = st.sampled_from([sign * x for x in LANDMARKS for sign in (1, -1)])
numbers = st.one_of(finite, landmarks, st.floats(-NORMAL, NORMAL))


def array(x: float) -> np.ndarray:
    return np.array([x], dtype=np.float64)


def worth(value: Exact) -> Fraction:
    """The one number of an Exact as a fraction; an exact zero has an exponent that means nothing."""
    high, low, exponent = (part.item() for part in (value.high, value.low, value.exponent))
    if high == low == 0:
        return Fraction(0)
    return (Fraction(high) + Fraction(low)) * Fraction(2) ** exponent


def difference_of_products(a: float, c: float, b: float, s: float) -> Exact:
    return difference(product(array(a), array(c)), product(array(b), array(s)))


@SETTINGS
@given(numbers, numbers)
@example(HUGE, -HUGE)
@example(HUGE / 2, TINY)
@example(1.0, 2.0**-53)
@example(1.0, -(2.0**-54))
@example(NORMAL, -(NORMAL - TINY))
def test_two_sum_is_exact(a: float, b: float):
    assume(abs(Fraction(a) + Fraction(b)) <= Fraction(HUGE) * 3 / 4)
    s, e = (part.item() for part in two_sum(array(a), array(b)))
    assert s == a + b
    assert Fraction(s) + Fraction(e) == Fraction(a) + Fraction(b)


def test_a_plain_sum_is_not_exact():
    s = 1.0 + 2.0**-60
    assert Fraction(s) != 1 + Fraction(2) ** -60


@SETTINGS
@given(significands, significands, st.sampled_from([1, -1]))
@example(np.float64(1 - 2.0**-53), np.float64(1 - 2.0**-53), 1)
@example(np.float64(0.5), np.float64(0.5 + 2.0**-53), -1)
@example(np.float64(1 / 3), np.float64(2 / 3), 1)
def test_two_product_is_exact_for_significands(a: np.float64, b: np.float64, sign: int):
    p, e = (part.item() for part in two_product(array(sign * a), array(b)))
    assert p == sign * a * b
    assert Fraction(p) + Fraction(e) == sign * Fraction(float(a)) * Fraction(float(b))


@SETTINGS
@given(numbers, numbers)
@example(HUGE, HUGE)
@example(TINY, TINY)
@example(TINY, HUGE)
@example(NORMAL - TINY, 1 - 2.0**-53)
@example(-HUGE, 1 + 2.0**-52)
def test_product_is_exact_whatever_the_exponents(a: float, b: float):
    p = product(array(a), array(b))
    assert worth(p) == Fraction(a) * Fraction(b)
    assert abs(p.high.item()) < 4
    assert abs(p.low.item()) <= np.spacing(abs(p.high.item()))


@pytest.mark.parametrize("a", [0.0, -0.0])
@pytest.mark.parametrize("b", [0.0, -0.0, 1.0, -1.0, TINY, HUGE])
def test_a_product_with_zero_is_a_signed_zero_below_every_number(a: float, b: float):
    for left, right in ((a, b), (b, a)):
        p = product(array(left), array(right))
        assert p.high.item() == 0
        assert np.signbit(p.high.item()) == (np.signbit(a) != np.signbit(b))
        assert p.exponent.item() == ZERO_EXPONENT
        assert product(array(TINY), array(TINY)).exponent.item() > ZERO_EXPONENT


def check_difference(a: float, c: float, b: float, s: float) -> None:
    left, right = Fraction(a) * Fraction(c), Fraction(b) * Fraction(s)
    result = difference_of_products(a, c, b, s)
    assert abs(worth(result) - (left - right)) <= max(abs(left), abs(right)) * Fraction(2) ** -104
    if left == right == 0:
        assert result.high.item() == 0
    else:
        assert abs(result.high.item()) < 4


@SETTINGS
@given(numbers, numbers, numbers, numbers)
@example(HUGE, HUGE, TINY, TINY)
@example(TINY, TINY, HUGE, HUGE)
@example(HUGE, HUGE, HUGE, HUGE)
@example(TINY, TINY, TINY, 3 * TINY)
@example(0.0, 1.0, TINY, TINY)
@example(HUGE, HUGE, 0.0, HUGE)
@example(0.0, HUGE, -0.0, TINY)
@example(1 - 2.0**-53, 1 - 2.0**-53, 1 - 2.0**-52, 1.0)
def test_difference_of_products_errs_by_2_to_the_minus_104_of_the_larger(a: float, c: float, b: float, s: float):
    check_difference(a, c, b, s)


@SETTINGS
@given(numbers, numbers, st.integers(-3, 3), st.integers(-3, 3))
def test_difference_survives_cancellation(a: float, c: float, step_b: int, step_s: int):
    """The products agree in nearly all digits, so everything hangs on the low halves."""
    b, s = a, c
    for _ in range(abs(step_b)):
        b = math.nextafter(b, math.copysign(math.inf, step_b))
    for _ in range(abs(step_s)):
        s = math.nextafter(s, math.copysign(math.inf, step_s))
    assume(math.isfinite(b) and math.isfinite(s))
    check_difference(a, c, b, s)


def test_difference_in_plain_float64_does_not_survive_cancellation():
    a = 1 + 2.0**-30
    b, s = 1 + 2.0**-29, 1.0
    exact = Fraction(a) * Fraction(a) - Fraction(b) * Fraction(s)
    assert a * a - b * s == 0 != exact
    assert worth(difference_of_products(a, a, b, s)) == exact


@SETTINGS
@given(numbers, numbers)
def test_equal_products_cancel_to_zero(a: float, c: float):
    assert worth(difference_of_products(a, c, c, a)) == 0


@pytest.mark.parametrize("a", [0.0, -0.0])
@pytest.mark.parametrize("b", [0.0, -0.0])
def test_a_difference_of_zeros_has_the_sign_of_ieee(a: float, b: float):
    result = difference_of_products(a, 1.0, b, 1.0)
    assert result.high.item() == 0
    assert np.signbit(result.high.item()) == np.signbit(np.float64(a) - np.float64(b))


@SETTINGS
@given(numbers, numbers, st.integers(-900, 900))
def test_scaling_to_another_exponent_keeps_the_value(a: float, b: float, shift: int):
    value = product(array(a), array(b))
    assume(value.high.item() != 0)
    exponent = value.exponent + shift
    high, low = value.at(exponent)
    assume(low.item() == 0 or abs(low.item()) > NORMAL)
    assert (Fraction(high.item()) + Fraction(low.item())) * Fraction(2) ** exponent.item() == worth(value)


def test_arrays_are_computed_elementwise():
    rng = np.random.default_rng(1)
    a, c, b, s = rng.standard_normal((4, 50)) * 2.0 ** rng.integers(-500, 500, (4, 50))
    together = difference(product(a, c), product(b, s))
    for i in range(50):
        alone = difference_of_products(a[i], c[i], b[i], s[i])
        assert (together.high[i], together.low[i], together.exponent[i]) == (alone.high, alone.low, alone.exponent)


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)


def as_fraction(tensor: torch.Tensor) -> Fraction:
    return Fraction(tensor.double().item())


def rounded(value: Fraction, form: Format) -> Fraction | float:
    """To nearest even in a format, by definition: the independent twin of every claim below."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    step = Fraction(2) ** max(exponent - form.digits + 1, form.smallest_exponent)
    result = round(value / step) * step
    return (math.inf if value > 0 else -math.inf) if abs(result) > Fraction(form.max) else result


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_those_of_torch(name: str):
    form, dtype = FORMATS[name], dtype_of(name)
    info = torch.finfo(dtype)
    assert format_of(dtype) is form
    assert form.max == info.max
    assert 2.0**form.min_exponent == info.smallest_normal
    assert form.roundoff == info.eps / 2
    least = torch.nextafter(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
    assert as_fraction(least) == Fraction(2) ** form.smallest_exponent


@pytest.mark.parametrize("name", FORMATS)
def test_roundoff_is_the_largest_relative_error_of_rounding(name: str):
    form = FORMATS[name]
    u = Fraction(form.roundoff)
    assert rounded(1 + u, form) == 1  # a tie, to even
    assert rounded(1 + u + u**2, form) == 1 + 2 * u
    assert rounded(1 + 3 * u, form) == 1 + 4 * u
    rng = np.random.default_rng(form.digits)
    for x in map(Fraction, (1 + rng.random(200)).tolist()):
        assert abs(rounded(x, form) - x) <= u * x


@pytest.mark.parametrize("name", FORMATS)
def test_overflow_is_the_least_magnitude_that_rounds_to_infinity(name: str):
    form = FORMATS[name]
    high, low, exponent = form.overflow
    threshold = (Fraction(high) + Fraction(low)) * Fraction(2) ** exponent
    half_ulp = Fraction(2) ** (exponent - form.digits - 1)
    assert threshold == Fraction(form.max) + half_ulp
    assert rounded(threshold, form) == math.inf
    assert rounded(-threshold, form) == -math.inf
    assert rounded(threshold - half_ulp / 2**200, form) == Fraction(form.max)


@pytest.mark.parametrize("name", NARROW)
def test_overflow_is_where_torch_rounds_to_infinity(name: str):
    high, low, exponent = FORMATS[name].overflow
    threshold = math.ldexp(high + low, exponent)
    # torch converts float64 to bfloat16 through float32, so go down by a step of that.
    below = (
        float(np.nextafter(np.float32(threshold), np.float32(0))) if name != "float32" else math.nextafter(threshold, 0)
    )
    for sign in (1, -1):
        at, under = (torch.tensor(sign * x, dtype=torch.float64).to(dtype_of(name)).item() for x in (threshold, below))
        assert at == sign * math.inf
        assert under == sign * FORMATS[name].max


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_only_floats_have_a_format(dtype: torch.dtype):
    with pytest.raises(KeyError):
        format_of(dtype)
