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


def options_drawn(draw_one, examples):
    """What is drawn besides a number that makes each example new, lest Hypothesis stop when it has seen all."""
    seen = []
    search(lambda draw: seen.append((draw.integer(0, 10**9), draw_one(draw))[1]), examples, "m")
    return seen


def test_mostly_draws_the_first_about_half_the_time_and_every_other_too():
    seen = options_drawn(lambda draw: draw.mostly("abcd"), 800)
    assert set(seen) == set("abcd")
    assert 0.5 < seen.count("a") / len(seen) < 0.75  # 5 of 8; mutation repeats what was drawn


def test_choices_are_equally_likely():
    seen = options_drawn(lambda draw: draw.choice(range(8)), 2000)
    assert min(seen.count(option) for option in range(8)) > 200  # 250 each; Hypothesis' own are skewed to the first
