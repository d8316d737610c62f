from fractions import Fraction

import numpy as np
import pytest

from fuzzrope.operations.balls import Balls, dot, exactly, plus, summed, times

WIDE = pytest.mark.parametrize("wide", [False, True])


def drawn(shape, wide, seed, radius=2.0**-20):
    generator = np.random.default_rng(seed)
    high = generator.standard_normal(shape)
    low = generator.standard_normal(shape) * 2.0**-60 if wide else None
    return exactly(high, wide, low, np.abs(generator.standard_normal(shape)) * radius)


def ends(x: Balls):
    """Both ends of each ball, as fractions."""
    exact = np.vectorize(Fraction, otypes=[object])
    centre, radius = exact(x.high) + exact(x.low), exact(x.radius)
    return centre - radius, centre + radius


def inside(numbers, x: Balls):
    least, most = ends(x)
    return bool(np.all((least <= numbers) & (numbers <= most)))


@WIDE
def test_sums_and_products_of_any_members_are_members(wide):
    a, b = drawn((3, 4, 5), wide, 1), drawn((3, 5, 2), wide, 2)
    product = dot(a, b, 2.0**-53, 0.0, np.inf)
    for left in ends(a):
        assert inside(left + ends(a)[0], plus(a, a))
        assert inside(left.sum(axis=1, keepdims=True), summed(a, (1,), 0.0))
        for right in ends(b):
            assert inside(np.matmul(left, right), product)
    for left in ends(a):
        for right in ends(drawn((3, 4, 5), wide, 3)):
            assert inside(left * right, times(a, drawn((3, 4, 5), wide, 3)))


@WIDE
def test_radii_are_no_wider_than_the_members_make_them(wide):
    a, b = drawn((1, 4, 5), wide, 1), drawn((1, 5, 2), wide, 2)
    reach = np.abs(a.high) @ b.radius + a.radius @ (np.abs(b.high) + b.radius)
    assert np.all(dot(a, b, 0.0, 0.0, np.inf).radius <= 1.001 * reach)


@WIDE
def test_zero_stays_zero_and_is_not_rounded(wide):
    nothing = exactly(np.zeros((1, 2, 2)), wide)
    assert not nothing.rounded(2.0**-8, 2.0**-25).radius.any()
    assert not dot(nothing, drawn((1, 2, 2), wide, 0), 2.0**-22, 2.0**-149, np.inf).radius.any()
    assert exactly(np.ones(1), wide).rounded(2.0**-8, 2.0**-25).radius[0] == pytest.approx(2.0**-8 + 2.0**-25)


def test_a_product_that_underflows_in_the_oracle_is_not_taken_for_zero():
    tiny = exactly(np.full((1, 1, 1), 2.0**-1074), True)
    for found in (times(tiny, exactly(np.full((1, 1, 1), 0.25), True)), dot(tiny, tiny, 0.0, 0.0, np.inf)):
        assert found.radius.item() > 0


@WIDE
def test_odd_wins_over_open_and_open_over_numbers(wide):
    numbers = exactly(np.array([1.0, np.nan, 1.0, np.inf]), wide)
    opened = exactly(np.ones(4), wide).marked(np.zeros(4, bool), np.array([False, True, True, False]))
    for found in (times(numbers, opened), plus(numbers, opened)):
        assert found.odd.tolist() == [False, True, False, True]
        assert found.open.tolist() == [False, False, True, False]


@WIDE
def test_an_odd_factor_beside_a_zero_that_may_be_skipped_is_open_in_its_row_alone(wide):
    left = exactly(np.array([[[0.0, 1.0], [1.0, 1.0]]]), wide)
    right = exactly(np.array([[[np.nan], [1.0]]]), wide)
    found = dot(left, right, 0.0, 0.0, np.inf, nil=np.array([[True, False], [False, False]]))
    assert found.odd[0, :, 0].tolist() == [False, True]
    assert found.open[0, :, 0].tolist() == [True, False]


@WIDE
def test_what_may_overflow_is_open(wide):
    a = exactly(np.array([[[3.0, -2.0]]]), wide)
    assert dot(a, exactly(np.ones((1, 2, 1)), wide), 0.0, 0.0, 5.0).open.all()
    assert not dot(a, exactly(np.ones((1, 2, 1)), wide), 0.0, 0.0, 5.5).open.any()
    assert a.rounded(0.0, 0.0, 3.0).open[0, 0].tolist() == [True, False]
