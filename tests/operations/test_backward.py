import pytest

from fuzzrope.build import build
from fuzzrope.case import FLOATS, Case
from fuzzrope.draw import search
from fuzzrope.judge.gradients import ill_posed
from fuzzrope.operations import OPERATIONS, Differentiable
from fuzzrope.operations.backward import ONE_IN

BLOCKS = (16, 64)
ALL = [operation for operation in OPERATIONS.values() if isinstance(operation, Differentiable)]
STRATA = [(operation, stratum) for operation in ALL for stratum in operation.backward_strata()]
everywhere = pytest.mark.parametrize("operation", ALL, ids=lambda operation: operation.name)
#: Pins under which two inputs are one tensor.
TWICE = [
    ("rope", {"relation": "same tensor"}, ("q", "k")),
    ("rope_qk", {"twins": "k is q"}, ("q", "k")),
    ("rope_attention", {"twins": "k is q"}, ("q", "k")),
    ("rope_attention", {"twins": "v is k"}, ("k", "v")),
]
ALIKE = {"B": 2, "group": 1, "Sq": 5, "Sk": 5, "D": 16, "Dv": 16}


def drawn(operation, pins, count, seed="0"):
    cases: list[Case] = []

    def take(draw):
        cases.append(operation.draw(draw, pins, BLOCKS))
        return False

    search(take, count, seed)
    return cases


def form(tensor):
    return tensor.dtype, tuple(tensor.shape)


def expected_of(operation, case):
    return operation.reference(build(case).tensors, dict(case.options))


@pytest.mark.parametrize(("operation", "stratum"), STRATA, ids=lambda item: item.name)
def test_pins_lead_into_their_stratum(operation, stratum):
    for case in drawn(operation, {"gradients": True, **dict(stratum.pins)}, 60):
        assert stratum.name in operation.classify(case, BLOCKS)


@everywhere
def test_strata_have_names_of_their_own(operation):
    names = [stratum.name for stratum in (*operation.backward_strata(), *operation.strata(BLOCKS))]
    assert len(set(names)) == len(names)


@everywhere
def test_a_drawn_case_is_well_posed_and_survives_json(operation):
    for case in drawn(operation, {"gradients": True, "backward": True, "floats": FLOATS}, 200):
        assert ill_posed(case, expected_of(operation, case)) == ""
        assert Case.from_json(case.to_json()) == case
        assert operation.fitted(case) == case
        assert operation.rejects(case) is None


@everywhere
def test_only_targets_that_promise_gradients_get_such_cases_and_only_a_share_of_theirs(operation):
    plain = drawn(operation, {}, 300)
    assert all(case.backward is None for case in plain)
    share = sum(case.backward is not None for case in drawn(operation, {"gradients": True}, 600)) / 600
    assert 0.4 / ONE_IN < share < 2 / ONE_IN


@everywhere
def test_what_is_drawn_for_others_is_what_always_was(operation):
    without = drawn(operation, {"gradients": False}, 30)
    assert [case.id for case in drawn(operation, {}, 30)] == [case.id for case in without]


@everywhere
@pytest.mark.parametrize("invalid", ["rank of q", "integer cos", "mixed devices"])
def test_invalid_cases_are_not_differentiated(operation, invalid):
    pins = {"gradients": True, "backward": True, "invalid": invalid}
    assert all(case.backward is None for case in drawn(operation, pins, 10))


@everywhere
def test_cotangents_follow_inputs_that_changed(operation):
    for case in drawn(operation, {"gradients": True, "backward": True, "floats": FLOATS}, 100):
        for other in operation.simpler(case):
            fitted = operation.fitted(other)
            expected = expected_of(operation, fitted)
            given = build(fitted).cotangents
            assert {name: form(t) for name, t in given.items()} == {name: form(expected[name]) for name in given}


def test_a_cotangent_goes_with_the_output_it_is_of():
    attention = OPERATIONS["rope_attention"]
    pins = {"gradients": True, "used": ("o", "lse"), "return_lse": True}
    for case in drawn(attention, pins, 10):
        without = Case(case.operation, case.tensors, backward=case.backward)
        assert "does not return" in ill_posed(without, expected_of(attention, without))
        assert [name for name, _ in attention.fitted(without).backward.cotangents] == ["o"]


@pytest.mark.parametrize(("name", "pins", "twins"), TWICE)
def test_one_tensor_as_two_inputs_requires_a_gradient_as_both_or_neither(name, pins, twins):
    operation, one = OPERATIONS[name], {} if name == "rope" else {"dtypes": ("float32",) * len(OPERATIONS[name].inputs)}
    pins = {"gradients": True, "backward": True, **pins, **({} if name == "rope" else ALIKE | one)}
    for case in drawn(operation, pins, 60):
        tensors = build(case).tensors
        assert tensors[twins[0]] is tensors[twins[1]]
        assert len({twin in case.backward.requires for twin in twins}) == 1


def test_cotangents_have_memory_of_their_own_between_guards():
    pins = {"gradients": True, "requires": ("q",), "used": ("q", "k"), "B": 2, "Hq": 2, "S": 3, "D": 4}
    (case,) = drawn(OPERATIONS["rope"], pins, 1)
    built = build(case)
    assert {"grad_q", "grad_k"} <= set(built.memories)
    assert not any(t.requires_grad for t in built.cotangents.values())
    own, theirs = ({t.untyped_storage().data_ptr() for t in ts.values()} for ts in (built.cotangents, built.tensors))
    assert own.isdisjoint(theirs)
