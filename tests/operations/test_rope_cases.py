from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzzrope.build import build
from fuzzrope.case import MAX_ELEMENTS, Case
from fuzzrope.draw import Draw
from fuzzrope.operations import OPERATIONS
from fuzzrope.operations.rope_strata import INVALID, MAX_HEAD_DIM

ROPE = OPERATIONS["rope"]
BLOCKS = (16, 64)
STRATA = ROPE.strata(BLOCKS)
GROUPS = tuple(dict.fromkeys(stratum.group for stratum in STRATA))

#: Groups whose pins leave much free: more examples of each member.
MANY = {"head_dim": 25, "layout of cos": 25, "layout of sin": 25, "invalid": 40, "dtype mix": 1}


def drawing(examples):
    """Draws that do not depend on a database or the clock."""

    def decorate(test):
        run = settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        return run(given(st.data())(test))

    return decorate


def refuses(case):
    """Why the contract or the eager reference refuses a case, or None."""
    reason = ROPE.rejects(case)
    if reason is None:
        try:
            ROPE.reference(build(case).tensors)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = str(error)
    return reason


def missed(stratum, examples):
    """How many drawn cases of a stratum do not lie in it; all must be readable, and valid where promised."""
    count = 0

    @drawing(examples)
    def draw(data):
        nonlocal count
        case = ROPE.draw(Draw(data.conjecture_data), dict(stratum.pins), BLOCKS)
        assert Case.from_json(case.to_json()) == case
        assert stratum.group == "invalid" or refuses(case) is None
        count += stratum.name not in ROPE.classify(case, BLOCKS)

    draw()
    return count


def test_every_stratum_is_declared_once():
    names = [stratum.name for stratum in STRATA]
    assert len(set(names)) == len(names)
    assert len(names) == 481
    assert all(stratum.pins for stratum in STRATA)


def test_strata_follow_the_blocks_in_play():
    names = {stratum.name for stratum in ROPE.strata((32,))}
    assert "edge of S: 2*32-1" in names
    assert "edge of D/2: 1*32+1" in names
    assert not any("64" in name for name in names if name.startswith(("edge", "beyond")))
    assert {stratum.name for stratum in ROPE.strata((1, 4096))} == {stratum.name for stratum in ROPE.strata(())}


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_pinned_puts_every_drawn_case_into_its_stratum(group):
    missing = {
        stratum.name: count
        for stratum in STRATA
        if stratum.group == group and (count := missed(stratum, MANY.get(group, 4)))
    }
    assert not missing


@pytest.mark.parametrize("kind", INVALID)
def test_a_case_is_invalid_exactly_when_it_is_refused(kind):
    @drawing(25)
    def check(data):
        case = ROPE.draw(Draw(data.conjecture_data), {"invalid": kind}, BLOCKS)
        named = {name for name in ROPE.classify(case, BLOCKS) if name.startswith("invalid")}
        assert bool(named) == (refuses(case) is not None)
        assert named <= {f"invalid: {kind}"}

    check()


@drawing(150)
def test_a_free_case_is_valid_readable_and_affordable(data):
    case = ROPE.draw(Draw(data.conjecture_data), {}, BLOCKS)
    assert refuses(case) is None
    assert not any(name.startswith("invalid") for name in ROPE.classify(case, BLOCKS))
    assert Case.from_json(case.to_json()) == case
    assert tuple(name for name, _ in case.tensors) == ROPE.inputs
    assert all(spec.numel <= MAX_ELEMENTS for _, spec in case.tensors)
    assert case["q"].shape[3] <= MAX_HEAD_DIM
    assert case["q"].shape[2] <= 192


def test_free_cases_differ_from_each_other():
    seen = Counter()

    @drawing(100)
    def check(data):
        seen.update(ROPE.classify(ROPE.draw(Draw(data.conjecture_data), {}, BLOCKS), BLOCKS))

    check()
    assert len(seen) > 80


@pytest.mark.parametrize("floats", [("float32",), ("float16", "float64")])
def test_only_the_dtypes_asked_for_are_drawn(floats):
    @drawing(20)
    def check(data):
        case = ROPE.draw(Draw(data.conjecture_data), {"floats": floats}, BLOCKS)
        assert {spec.dtype for _, spec in case.tensors} <= set(floats)

    check()


def test_probes_are_plain_and_valid():
    for case in ROPE.probes():
        assert refuses(case) is None
        names = ROPE.classify(case, BLOCKS)
        assert {"tables: exact", "heads: equal", "memory of q and k: separate"} <= names
        assert all(f"layout of {name}: contiguous" in names for name in ROPE.inputs)
        assert all(f"values of {name}: normal" in names for name in ROPE.inputs)
        assert Case.from_json(case.to_json()) == case


@drawing(40)
def test_simpler_cases_are_smaller_and_still_valid(data):
    case = ROPE.draw(Draw(data.conjecture_data), {}, BLOCKS)
    for simpler in ROPE.simpler(case):
        assert simpler != case
        assert refuses(simpler) is None
        Case.from_json(simpler.to_json())
        for name, spec in simpler.tensors:
            assert all(new <= old for new, old in zip(spec.shape, case[name].shape, strict=True))
            assert spec.strides == case[name].strides


def test_an_invalid_case_is_not_simplified_by_linked_dimensions():
    case = ROPE.probes()[0]
    odd = case.with_tensor("q", shape=(2, 8, 4, 15))
    assert ROPE.classify(odd, BLOCKS) == {"invalid: odd head_dim"}
    assert ROPE.simpler(odd) == []
