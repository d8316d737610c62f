"""Each relation leads to a case whose answers are equal where it says so, by the eager reference."""

import numpy as np
import pytest

from fuzzrope.build import build
from fuzzrope.case import Case, Values
from fuzzrope.draw import search
from fuzzrope.operations import OPERATIONS
from tests.conftest import rope_case, spec

ROPE = OPERATIONS["rope"]


def answers(case):
    return ROPE.reference(build(case, apart=False).tensors)


def kept(case, related):
    here, there = answers(case), answers(related.case)
    for name, at, other in related.equal:
        one, two = (x.double().numpy() for x in (here[name], there[name]))
        yield np.ldexp(one[at], related.power), two[other]


@pytest.mark.parametrize("name", ROPE.relations)
def test_a_relation_holds_for_drawn_cases_and_says_something(name):
    said = 0

    def broken(draw):
        nonlocal said
        case = ROPE.draw(draw, {}, (16,))
        related = None if ROPE.rejects(case) else ROPE.relate(case, name)
        if related is None:
            return False
        try:
            answers(case)
        except RuntimeError:
            return False
        Case.from_json(related.case.to_json())
        said += 1
        for one, two in kept(case, related):
            assert one.shape == two.shape
            np.testing.assert_array_equal(one, two)
            np.testing.assert_array_equal(np.signbit(one) & (one == one), np.signbit(two) & (two == two))
        return False

    search(broken, 150, f"relation {name}")
    assert said >= 10


def test_a_relation_compares_something_of_every_output():
    for name in ROPE.relations:
        related = ROPE.relate(rope_case(2, 3, 7, 8), name)
        if related is not None:
            assert {output for output, _, _ in related.equal} == {"q", "k"}
            assert all(one.size for one, _ in kept(rope_case(2, 3, 7, 8), related))


def test_scaling_keeps_away_from_the_ends_of_the_range():
    near = rope_case(q=spec("q", (1, 2, 3, 4), values=Values("tiny", 1)))
    assert ROPE.relate(near, "scaled") is None
    assert ROPE.relate(rope_case(), "scaled") is not None
