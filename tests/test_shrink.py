import itertools
import math
from dataclasses import replace

import pytest

from fuzzrope.case import Backward, Case, CaseError, TensorSpec, Values
from fuzzrope.geometry import dense
from fuzzrope.operations import OPERATIONS
from fuzzrope.shrink import SPELLED_OUT, OutOfTimeError, minimize
from tests.conftest import rope_case
from tests.conftest import spec as tensor

ROPE = OPERATIONS["rope"]


def start(shape=(2, 3, 5, 8), dtype="float16", kind="normal", strides=(400, 120, 17, 2)):
    q = TensorSpec(dtype, shape, strides, 3, "q", Values(kind, 11))
    k = replace(q, strides=dense(shape), storage="k", values=Values(kind, 12))
    table = TensorSpec("float64", (shape[2] + 1, shape[3] // 2), (9, 1), 2, "cos", Values("wide", 13))
    tensors = (("q", q), ("k", k), ("cos", table), ("sin", replace(table, storage="sin", values=Values("tiny", 4))))
    return Case("rope", tensors)


def nothing(case):
    return []


def lowered(spec):
    """Every spec with one size, stride or offset less by one."""
    for dim, size in enumerate(spec.shape):
        if size:
            shape = (*spec.shape[:dim], size - 1, *spec.shape[dim + 1 :])
            values = spec.values
            if values.kind == "listed":
                places = itertools.product(*map(range, spec.shape))
                numbers = dict(zip(places, values.data, strict=True))
                kept = tuple(number for place, number in numbers.items() if place[dim] < size - 1)
                values = replace(values, data=kept)
            yield replace(spec, shape=shape, values=values)
    for dim, stride in enumerate(spec.strides):
        if stride:
            yield replace(spec, strides=(*spec.strides[:dim], stride - 1, *spec.strides[dim + 1 :]))
    if spec.offset:
        yield replace(spec, offset=spec.offset - 1)


def smaller(case):
    """Every valid case with one number less by one, in one tensor or in all names of the same tensor."""
    for name, spec in case.tensors:
        same = [other for other, s in case.tensors if s == spec]
        for less in lowered(spec):
            for names in {(name,), tuple(same)}:
                candidate = case.with_tensors(dict.fromkeys(names, less))
                try:
                    Case.from_json(candidate.to_json())
                except CaseError:
                    continue
                yield candidate


def assert_minimal(case, keep):
    assert keep(case)
    Case.from_json(case.to_json())
    for candidate in smaller(case):
        assert not keep(candidate), f"{case} could be {candidate}"


PREDICATES = {
    "anything": lambda case: True,
    "three rows and a stride": lambda case: case["q"].shape[2] >= 3 and case["q"].strides[2] != 1,
    "an uneven size": lambda case: case["q"].shape[3] % 3 == 2,
    "sizes that depend on each other": lambda case: case["q"].shape[1] + case["k"].shape[2] >= 6,
    "a product": lambda case: case["q"].shape[0] * case["q"].shape[2] >= 7,
    "two strides": lambda case: case["q"].strides[0] > case["q"].strides[1] > 4,
    "an offset": lambda case: case["cos"].offset == 2 and case["sin"].offset != 1,
    "elements far out": lambda case: case["q"].end > 100,
    "a shared width": lambda case: case["q"].shape[3] == case["k"].shape[3] >= 5,
    "values that are recipes": lambda case: case["q"].values.kind == "normal" and case["q"].numel >= 2,
    "half precision": lambda case: case["q"].dtype == "float16" and case["k"].shape[3] > 1,
    "parity": lambda case: sum(case["q"].shape) % 2 == 0 and case["q"].numel > 0,
}


@pytest.mark.parametrize("simpler", [nothing, ROPE.simpler], ids=["alone", "together"])
@pytest.mark.parametrize("name", PREDICATES)
def test_no_number_of_a_minimum_can_go_down_by_one(name, simpler):
    keep = PREDICATES[name]
    case, complete = minimize(start(), keep, simpler)
    assert complete
    assert_minimal(case, keep)


@pytest.mark.parametrize("name", PREDICATES)
def test_minimizing_is_deterministic_and_a_minimum_stays(name):
    keep = PREDICATES[name]
    first, second = (minimize(start(), keep, ROPE.simpler)[0] for _ in range(2))
    assert first == second
    again, complete = minimize(first, keep, ROPE.simpler)
    assert complete
    assert_minimal(again, keep)
    assert again == first


def test_what_is_not_needed_becomes_plain():
    case, _ = minimize(start(), lambda c: c["q"].shape[2] >= 3, ROPE.simpler)
    assert case["q"].shape == (0, 0, 3, 0)
    for name, spec in case.tensors:
        assert spec.dtype == "float32"
        assert spec.values == Values("constant", 0, (1.0,))
        assert spec.offset == 0
        assert spec.storage == name
        assert set(spec.strides) == {0}


def test_small_values_are_spelled_out():
    def keep(case):
        return case["q"].numel >= 3 and case["q"].values.kind not in ("constant", "zeros")

    case, complete = minimize(start(kind="powers"), keep, ROPE.simpler)
    assert complete
    assert case["q"].numel == 3
    assert case["q"].values == Values("listed", 0, (1.0, 1.0, 1.0))
    assert_minimal(case, keep)


def test_many_values_stay_a_recipe():
    def keep(case):
        return case["q"].numel > SPELLED_OUT and case["q"].values.kind == "powers"

    case, _ = minimize(start(kind="powers"), keep, ROPE.simpler)
    assert case["q"].values.kind == "powers"
    assert_minimal(case, keep)


def listed(shape, numbers):
    spec = TensorSpec("float32", shape, dense(shape), 0, "q", Values("listed", 0, tuple(map(float, numbers))))
    return start().with_tensors({"q": spec})


def test_listed_values_keep_the_numbers_of_the_rows_that_stay():
    case = listed((1, 2, 3, 2), range(10, 22))

    def keep(case):
        return case["q"].shape[2] >= 2 and 11.0 in case["q"].values.data

    found, complete = minimize(case, keep, nothing)
    assert complete
    assert found["q"].shape[2:] == (2, 2)
    assert found["q"].values.data[1] == 11.0
    assert len(found["q"].values.data) == 4
    assert_minimal(found, keep)


def test_spelled_out_numbers_become_one_zero_or_the_nearest_integer():
    def keep(case):
        data, kind = case["q"].values.data, case["q"].values.kind
        if kind != "listed":
            return kind == "normal" and case["q"].numel == 2
        return len(data) == 2 and data[0] != 1 and abs(data[1]) < 0.5

    found, complete = minimize(start((1, 1, 1, 2)), keep, nothing)
    assert complete
    assert found["q"].values.data == (0.0, 0.0)
    assert_minimal(found, keep)


def test_listed_values_can_vanish():
    found, complete = minimize(listed((1, 1, 2, 2), (1, 2, 3, 4)), lambda case: True, ROPE.simpler)
    assert complete
    assert found["q"].numel == 0


def same_tensor(kind="normal"):
    case = start(kind=kind)
    return case.with_tensors({"k": case["q"]})


def test_one_tensor_under_two_names_shrinks_as_one():
    def keep(case):
        return case["q"] == case["k"] and case["q"].shape[2] >= 3 and case["q"].strides[2] >= 2

    found, complete = minimize(same_tensor(), keep, ROPE.simpler)
    assert complete
    assert found["q"].shape == (0, 0, 3, 0)
    assert found["q"].strides == (0, 0, 2, 0)
    assert_minimal(found, keep)


@pytest.mark.parametrize("kind", ["powers", "nans"])
def test_one_tensor_under_two_names_stays_one_when_it_is_spelled_out(kind):
    def keep(case):
        q = case["q"]
        return q == case["k"] and q.numel >= SPELLED_OUT and q.values.kind in ("listed", kind)

    found, complete = minimize(same_tensor(kind), keep, ROPE.simpler)
    assert complete
    assert found["q"].values.kind == "listed"


def test_one_tensor_under_two_names_comes_apart_when_it_may():
    found, _ = minimize(same_tensor(), lambda case: case["q"].shape[2] >= 3, ROPE.simpler)
    assert found["k"].shape == (0, 0, 0, 0)
    assert found["k"].storage == "k"


def test_packed_tensors_stay_packed_only_when_they_must():
    shape, strides = (1, 2, 3, 4), (48, 4, 16, 1)
    q = TensorSpec("float32", shape, strides, 0, "qk", Values("normal", 1))
    packed = start().with_tensors({"q": q, "k": replace(q, offset=8, values=Values("normal", 2))})

    def keep(case):
        return case["q"].storage == case["k"].storage and case["k"].offset > case["q"].offset

    found, complete = minimize(packed, keep, ROPE.simpler)
    assert complete
    assert found["k"].offset == 1
    assert_minimal(found, keep)
    assert minimize(packed, lambda case: True, ROPE.simpler)[0]["q"].storage == "q"


def test_candidates_are_always_valid_and_never_asked_twice():
    asked = []

    def keep(case):
        Case.from_json(case.to_json())
        asked.append(case.id)
        return case["q"].shape[2] >= 3 and case["q"].strides[2] != 1

    minimize(start(), keep, ROPE.simpler)
    refused = [key for key in asked if asked.count(key) > 2]
    assert not refused
    assert len(asked) < 2000


@pytest.mark.parametrize("allowed", [0, 1, 5, 20, 40])
def test_time_that_runs_out_leaves_the_best_case_so_far(allowed):
    kept = [start()]
    asked = itertools.count()

    def keep(case):
        if next(asked) >= allowed:
            raise OutOfTimeError
        good = PREDICATES["three rows and a stride"](case)
        if good:
            kept.append(case)
        return good

    case, complete = minimize(start(), keep, ROPE.simpler)
    assert not complete
    assert case == kept[-1]


def test_other_errors_of_the_predicate_are_not_swallowed():
    def keep(case):
        raise LookupError

    with pytest.raises(LookupError):
        minimize(start(), keep, ROPE.simpler)


def test_huge_strides_come_down_in_few_steps():
    asked = itertools.count()

    def keep(case):
        assert next(asked) < 3000
        return case["q"].strides[0] >= 2**31 // 3

    found, complete = minimize(start(strides=(2**30, 120, 17, 2)), keep, ROPE.simpler)
    assert complete
    assert found["q"].strides[0] == 2**31 // 3
    assert math.prod(found["q"].shape) == 0


def differentiated(used=("cos", "k", "q"), requires=("q", "k", "cos", "sin")) -> Case:
    plain = rope_case(batch=2, heads=2, seq=3, width=4, dtype="float16")
    cotangents = tuple(
        (name, tensor(f"grad_{name}", plain[name].shape, "float16", offset=5, values=Values("wide", 3)))
        for name in used
    )
    return replace(plain, backward=Backward(requires, cotangents))


def test_what_does_not_need_a_gradient_loses_it():
    case, complete = minimize(differentiated(), lambda case: case["q"].shape[2] >= 2, ROPE.simpler, ROPE.fitted)
    assert complete
    assert case.backward is None


def test_cotangents_follow_their_outputs_and_shrink_like_inputs():
    def keep(case):
        seen = case.backward and "q" in dict(case.backward.cotangents) and "cos" in case.backward.requires
        return bool(seen) and case["q"].shape[2] >= 2 and case["grad_q"].shape == case["q"].shape

    case, complete = minimize(differentiated(), keep, ROPE.simpler, ROPE.fitted)
    assert complete
    assert case.backward.requires == ("cos",)
    assert [name for name, _ in case.backward.cotangents] == ["q"]
    assert case["grad_q"].shape == case["q"].shape
    assert case["q"].shape[2] == 2
    assert case["grad_q"].dtype == "float32"
    assert case["grad_q"].offset == 0
    assert set(case["grad_q"].strides) <= {0}
    assert case["grad_q"].values.kind == "constant"


def test_a_cotangent_spelled_out_keeps_the_numbers_that_fit():
    start = differentiated(("q",)).with_tensor("grad_q", values=Values("listed", 0, tuple(map(float, range(48)))))
    smaller = start.with_tensor("q", shape=(1, 2, 3, 4))
    fitted = ROPE.fitted(smaller)
    assert fitted["grad_q"].values.data == tuple(map(float, range(24)))
    assert ROPE.fitted(fitted) == fitted
