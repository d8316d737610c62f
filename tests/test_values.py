import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzzrope.case import RECIPES, Values
from fuzzrope.values import Floats, expand

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DRAWN = tuple(kind for kind in RECIPES if kind not in ("constant", "listed"))
COUNT = 4000

#: (significand bits, least normal exponent, greatest exponent)
FORMS = {
    torch.float16: (11, -14, 15),
    torch.bfloat16: (8, -126, 127),
    torch.float32: (24, -126, 127),
    torch.float64: (53, -1022, 1023),
}

every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))


def drawn(kind, dtype, seed=3, count=COUNT):
    return expand(Values(kind, seed), dtype, count)


def numbers(tensor):
    return tensor.to(torch.float64).numpy()


def rounded(number, dtype):
    """Rounding to nearest, ties to even, in rational arithmetic."""
    if not math.isfinite(number) or number == 0:
        return number
    bits, least, greatest = FORMS[dtype]
    exact = abs(Fraction(number))
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** exponent > exact:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, least) - bits + 1)
    steps, rest = divmod(exact, unit)
    if rest * 2 > unit or (rest * 2 == unit and steps % 2):
        steps += 1
    result = steps * unit
    if result >= Fraction(2) ** (greatest + 1):
        return math.copysign(math.inf, number)
    return math.copysign(float(result), number)


@pytest.mark.parametrize("kind", DRAWN)
@every_dtype
def test_a_recipe_gives_the_same_bytes_every_time(kind, dtype):
    first, second = drawn(kind, dtype), drawn(kind, dtype)
    assert first.dtype == dtype
    assert first.shape == (COUNT,)
    assert first.view(torch.uint8).equal(second.view(torch.uint8))


@pytest.mark.parametrize("kind", DRAWN)
def test_another_seed_gives_other_numbers(kind):
    one, other = drawn(kind, torch.float32, 1), drawn(kind, torch.float32, 2)
    assert not one.view(torch.int32).equal(other.view(torch.int32))


@pytest.mark.parametrize(
    ("kind", "dtype", "seed", "expected"),
    [
        (
            "normal",
            torch.float32,
            0,
            ["-0x1.508bac0000000p-1", "-0x1.6d8b3e0000000p-2", "-0x1.9f53ac0000000p+0", "-0x1.d161620000000p-4"],
        ),
        (
            "normal",
            torch.bfloat16,
            1,
            ["-0x1.4600000000000p-3", "0x1.0e00000000000p+0", "-0x1.8600000000000p+0", "-0x1.9200000000000p-1"],
        ),
        (
            "wide",
            torch.float64,
            0,
            ["-0x1.02f4ba6408e4ep+853", "0x1.3dd62b0b9ca8cp+565", "-0x1.1c8667a55d902p+849", "0x1.907d7a052fd5bp+748"],
        ),
        (
            "tiny",
            torch.float16,
            2,
            ["0x1.7d40000000000p-14", "0x1.5300000000000p-12", "-0x1.dc80000000000p-12", "-0x1.9100000000000p-14"],
        ),
        (
            "subnormal",
            torch.float32,
            9,
            ["-0x1.c000000000000p-146", "-0x1.97b8000000000p-136", "0x1.0000000000000p-149", "-0x1.afc4e00000000p-130"],
        ),
        ("zeros", torch.float16, 0, ["-0x0.0p+0", "0x0.0p+0", "-0x0.0p+0", "0x0.0p+0"]),
        (
            "powers",
            torch.bfloat16,
            5,
            ["-0x1.0000000000000p-4", "0x1.0000000000000p+2", "-0x1.0000000000000p-4", "0x1.0000000000000p+0"],
        ),
        (
            "cosines",
            torch.float64,
            2,
            ["0x1.0000000000000p+0", "0x1.0000000000000p+0", "0x1.14a280fb5068bp-1", "0x1.fff70006bffe0p-1"],
        ),
        ("sines", torch.bfloat16, 2, ["0x0.0p+0", "0x0.0p+0", "0x1.ae00000000000p-1", "0x1.8000000000000p-7"]),
        ("infs", torch.float32, 4, ["inf", "0x1.e330240000000p-2", "-inf", "-0x1.30a1960000000p+0"]),
        ("nans", torch.float64, 6, ["-0x1.50388867a2472p+0", "nan", "-0x1.ec09a9b5c1bf3p-2", "0x1.5b38d8f21e549p-3"]),
    ],
)
def test_the_meaning_of_a_recipe_never_changes(kind, dtype, seed, expected):
    assert [x.hex() for x in drawn(kind, dtype, seed, 4).tolist()] == expected


@every_dtype
def test_normal_numbers_are_bell_shaped_around_zero(dtype):
    x = numbers(drawn("normal", dtype))
    assert abs(x.mean()) < 0.1
    assert abs(x.std() - 1) < 0.05
    assert np.abs(x).max() < 4
    assert 0.63 < (np.abs(x) < 1).mean() < 0.70


@every_dtype
def test_wide_numbers_are_finite_and_span_the_exponents(dtype):
    x = numbers(drawn("wide", dtype))
    _, least, greatest = FORMS[dtype]
    assert np.isfinite(x).all()
    assert (x < 0).any()
    assert (x > 0).any()
    exponents = np.frexp(x)[1] - 1
    span = greatest - least
    assert exponents.min() >= least
    assert exponents.min() <= least + span * 0.05
    assert exponents.max() >= greatest - span * 0.05
    spread = np.histogram(exponents, bins=10, range=(least, greatest + 1))[0]
    assert spread.min() > COUNT / 20


@every_dtype
def test_tiny_numbers_are_normal_and_near_the_smallest(dtype):
    x = np.abs(numbers(drawn("tiny", dtype)))
    smallest = math.ldexp(1.0, FORMS[dtype][1])
    assert x.min() >= smallest
    assert x.max() <= 16 * smallest


@every_dtype
def test_subnormal_numbers_are_subnormal_and_not_zero(dtype):
    x = numbers(drawn("subnormal", dtype))
    bits, least, _ = FORMS[dtype]
    assert (x != 0).all()
    assert (np.abs(x) < math.ldexp(1.0, least)).all()
    steps = np.abs(x) / math.ldexp(1.0, least - bits + 1)
    assert (steps == np.floor(steps)).all()
    assert steps.min() == 1
    assert steps.max() > 2 ** (bits - 2)
    assert (x < 0).any()
    assert (x > 0).any()


@every_dtype
def test_zeros_are_zeros_of_both_signs(dtype):
    x = numbers(drawn("zeros", dtype))
    assert (x == 0).all()
    assert 0.4 < np.signbit(x).mean() < 0.6


@every_dtype
def test_powers_are_powers_of_two_near_one_of_both_signs(dtype):
    x = numbers(drawn("powers", dtype))
    assert set(np.abs(x)) == {2.0**n for n in range(-4, 5)}
    assert {-1.0, 1.0} <= set(x)


@pytest.mark.parametrize(("kind", "function"), [("cosines", math.cos), ("sines", math.sin)])
@pytest.mark.parametrize("columns", [1, 2, 13, 64])
def test_tables_of_angles_are_of_positions_times_falling_frequencies(kind, function, columns):
    x = numbers(drawn(kind, torch.float64, columns, 300 * columns)).reshape(300, columns)
    frequencies = np.interp(13 * np.arange(columns) / columns, range(14), [2.0**-n for n in range(14)])
    for position in (0, 1, 2, 299):
        expected = [function(position * f) for f in frequencies]
        assert np.abs(x[position] - expected).max() < 1e-13


@every_dtype
def test_infs_sprinkle_both_infinities_and_no_nan(dtype):
    x = numbers(drawn("infs", dtype))
    assert 0.2 < np.isinf(x).mean() < 0.3
    assert {-math.inf, math.inf} <= set(x)
    assert not np.isnan(x).any()


@every_dtype
def test_nans_sprinkle_nan_and_no_infinity(dtype):
    x = numbers(drawn("nans", dtype))
    assert 0.2 < np.isnan(x).mean() < 0.3
    assert not np.isinf(x).any()


@every_dtype
@pytest.mark.parametrize("kind", [kind for kind in DRAWN if kind not in ("infs", "nans")])
def test_only_the_named_recipes_are_not_finite(dtype, kind):
    assert drawn(kind, dtype).isfinite().all()


@every_dtype
@pytest.mark.parametrize("number", [0.0, -0.0, 1.0, -2.5, 1e300, math.inf, math.nan])
def test_a_constant_is_that_number_everywhere(dtype, number):
    x = expand(Values("constant", 0, (number,)), dtype, 5)
    expected = torch.full((5,), number, dtype=torch.float64).to(dtype)
    assert x.shape == (5,)
    assert x.view(torch.uint8).equal(expected.view(torch.uint8))


def test_listed_numbers_come_in_order():
    assert expand(Values("listed", 0, (3.0, -0.0, 1e9)), torch.float64, 3).tolist() == [3.0, -0.0, 1e9]


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_are_small_whatever_the_recipe(kind, dtype):
    x = drawn(kind, dtype)
    assert x.dtype == dtype
    assert x.abs().max() <= 100


@pytest.mark.parametrize("kind", DRAWN)
def test_no_elements_are_no_elements(kind):
    assert drawn(kind, torch.float32, count=0).shape == (0,)


@every_dtype
def test_the_limits_of_a_dtype_are_ieee_limits(dtype):
    bits, least, _ = FORMS[dtype]
    limits = Floats(dtype)
    assert limits.max == torch.finfo(dtype).max
    assert limits.min_exponent == least
    assert limits.digits == bits - 1
    assert limits.smallest == math.ldexp(1.0, least - bits + 1)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FLOATS),
    st.floats(allow_nan=False) | st.floats(-70000, 70000) | st.floats(-1e-4, 1e-4) | st.floats(1.0, 2.0),
)
@example(torch.float16, 65519.99)
@example(torch.float16, 65520.0)
@example(torch.float16, 2.0**-25)
@example(torch.float16, 2.0**-25 + 2.0**-60)
@example(torch.bfloat16, 1.00390625)
@example(torch.bfloat16, 1.01171875)
@example(torch.bfloat16, 2.0**-134)
def test_numbers_are_rounded_to_nearest_even(dtype, number):
    x = expand(Values("listed", 0, (number,)), dtype, 1)
    assert x.to(torch.float64).item().hex() == rounded(number, dtype).hex()


@pytest.mark.parametrize(
    ("dtype", "number"), [(torch.bfloat16, 1 + 2.0**-8 + 2.0**-40), (torch.float16, 1 + 2.0**-11 + 2.0**-40)]
)
def test_numbers_are_rounded_once(dtype, number):
    x = expand(Values("listed", 0, (number,)), dtype, 1)
    assert x.to(torch.float64).item() == rounded(number, dtype)
