import pytest

from fuzzrope.build import build
from fuzzrope.case import FLOATS, Case
from fuzzrope.draw import search
from fuzzrope.judge.gradients import ill_posed
from fuzzrope.operations import OPERATIONS
from fuzzrope.operations.backward import ONE_IN

ROPE = OPERATIONS["rope"]
BLOCKS = (16, 64)
STRATA = ROPE.backward_strata()


def drawn(pins, count, seed="0"):
    cases: list[Case] = []

    def take(draw):
        cases.append(ROPE.draw(draw, pins, BLOCKS))
        return False

    search(take, count, seed)
    return cases


def form(tensor):
    return tensor.dtype, tuple(tensor.shape)


@pytest.mark.parametrize("stratum", STRATA, ids=lambda stratum: stratum.name)
def test_pins_lead_into_their_stratum(stratum):
    for case in drawn({"gradients": True, **dict(stratum.pins)}, 20):
        assert stratum.name in ROPE.classify(case, BLOCKS)


def test_strata_have_names_of_their_own():
    names = [stratum.name for stratum in (*STRATA, *ROPE.strata(BLOCKS))]
    assert len(set(names)) == len(names)


def test_a_drawn_case_is_well_posed_and_survives_json():
    for case in drawn({"gradients": True, "backward": True, "floats": FLOATS}, 200):
        expected = ROPE.reference(build(case).tensors)
        assert ill_posed(case, expected) == ""
        assert Case.from_json(case.to_json()) == case
        assert ROPE.fitted(case) == case


def test_only_targets_that_promise_gradients_get_such_cases_and_only_a_share_of_theirs():
    plain = drawn({}, 300)
    assert all(case.backward is None for case in plain)
    share = sum(case.backward is not None for case in drawn({"gradients": True}, 600)) / 600
    assert 0.4 / ONE_IN < share < 2 / ONE_IN


def test_what_is_drawn_for_others_is_what_always_was():
    assert [case.id for case in drawn({}, 30)] == [case.id for case in drawn({"gradients": False}, 30)]


@pytest.mark.parametrize("invalid", ["rank of q", "integer cos", "mixed devices"])
def test_invalid_cases_are_not_differentiated(invalid):
    pins = {"gradients": True, "backward": True, "invalid": invalid}
    assert all(case.backward is None for case in drawn(pins, 10))


def test_cotangents_follow_inputs_that_changed():
    for case in drawn({"gradients": True, "backward": True, "floats": FLOATS}, 100):
        for other in ROPE.simpler(case):
            fitted = ROPE.fitted(other)
            expected = ROPE.reference(build(fitted).tensors)
            given = build(fitted).cotangents
            assert {name: form(t) for name, t in given.items()} == {name: form(expected[name]) for name in given}


def test_one_tensor_as_q_and_k_requires_a_gradient_as_both_or_neither():
    pins = {"gradients": True, "backward": True, "relation": "same tensor"}
    for case in drawn(pins, 60):
        assert ("q" in case.backward.requires) == ("k" in case.backward.requires)


def test_cotangents_have_memory_of_their_own_between_guards():
    (case,) = drawn({"gradients": True, "requires": ("q",), "used": ("q", "k"), "B": 2, "Hq": 2, "S": 3, "D": 4}, 1)
    built = build(case)
    assert {"grad_q", "grad_k"} <= set(built.memories)
    assert not any(t.requires_grad for t in built.cotangents.values())
    own, theirs = ({t.untyped_storage().data_ptr() for t in ts.values()} for ts in (built.cotangents, built.tensors))
    assert own.isdisjoint(theirs)
