"""A search draws the same from the same seed, stops at what fails, and ends with the smallest of it."""

import pytest

from fuzzrope.draw import search


def drawn(fails, examples=30, seed="s"):
    seen = []

    def test(draw):
        seen.append((draw.integer(0, 10**6), draw.flag(), draw.choice("abc")))
        return fails(seen[-1])

    search(test, examples, seed)
    return seen


def test_the_seed_decides_what_is_drawn():
    first, again, other = (drawn(lambda case: False, seed=seed) for seed in ("x", "x", "y"))
    assert first == again != other
    assert len(first) == 30


@pytest.mark.parametrize("seed", ["1", "2", "3", "4"])
def test_the_last_call_draws_the_smallest_that_fails(seed):
    seen = drawn(lambda case: case[0] >= 17 and case[2] != "a", seed=seed)
    assert seen[-1] == (17, False, "b")


def test_what_the_test_raises_comes_through():
    def broken(case):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        drawn(broken)


def test_mostly_draws_the_first_about_half_the_time_and_every_other_too():
    seen = []
    search(lambda draw: seen.append(draw.mostly("abcd")), 400, "m")
    assert set(seen) == set("abcd")
    assert 0.4 < seen.count("a") / len(seen) < 0.85  # mutation repeats what was drawn
