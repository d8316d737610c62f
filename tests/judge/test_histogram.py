import numpy as np
import pytest

from fuzzrope.judge.histogram import LOWEST, Histogram


def of(*numbers):
    made = Histogram()
    made.count(np.array(numbers))
    return made


@pytest.mark.parametrize("number", [1.0, 0.37, 1e-9, 300.0])
def test_the_median_is_within_a_tenth(number):
    assert of(number / 4, number, number * 9).median == pytest.approx(number, rel=0.1)


def test_zeros_and_nothing():
    assert of(0.0, 0.0, 1.0).median == 0.0
    assert Histogram().median is None
    assert Histogram().octaves == {}


def test_merging_counts_both():
    merged = of(0.0, 0.5, 0.75)
    merged.merge(of(0.25, 1e300))
    assert merged.octaves == {LOWEST: 1, -1: 2, -2: 1, 15: 1}
