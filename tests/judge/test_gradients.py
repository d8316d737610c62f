"""Each way a gradient can be wrong, from an outcome that shows it and nothing else."""

from dataclasses import replace

import pytest
import torch

from fuzzrope.build import build
from fuzzrope.case import Backward, Case
from fuzzrope.judge import judge
from fuzzrope.judge.gradients import reference_gradients
from fuzzrope.operations import OPERATIONS
from fuzzrope.outcome import Access, Gradients, Launch, Outcome, Output, Raised
from fuzzrope.targets import find
from tests.conftest import rope_case, spec

TARGET = replace(find("kernels.ModelNew"), exact=False)
VALUES = TARGET.at("values")
NAMES = ("q", "k", "cos", "sin")


def case_of(requires=NAMES, used=NAMES, dtype="float32") -> Case:
    case = rope_case(dtype=dtype)
    forms = {"q": case["q"].shape, "k": case["k"].shape, "cos": case["cos"].shape, "sin": case["sin"].shape}
    cotangents = tuple((name, spec(f"grad_{name}", forms[name], dtype)) for name in sorted(used))
    return replace(case, backward=Backward(requires, cotangents))


def output(tensor: torch.Tensor, shares=()) -> Output:
    tensor = tensor.detach()
    data = tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Output("Tensor", dtype, tuple(tensor.shape), tensor.stride(), "cuda", data, shares)


def right(case: Case) -> Outcome:
    """The outcome of a perfect target."""
    built = build(case)
    for name in case.backward.requires:
        built.tensors[name].requires_grad_()
    expected = OPERATIONS["rope"].reference(built.tensors)
    gradients = reference_gradients(case, built, expected)
    outputs = [output(t, ((name, 0),) if name in ("cos", "sin") else ()) for name, t in expected.items()]
    return Outcome(
        "returned",
        container="tuple",
        outputs=tuple(outputs),
        gradients=Gradients(
            tuple(t.requires_grad for t in expected.values()),
            tuple(None if g is None else output(g) for g in gradients.values()),
        ),
        launches=(Launch("rope_kernel", (1,), ()),),
        after=tuple((name, memory.bytes()) for name, memory in built.memories.items()),
    )


def buckets(case: Case, outcome: Outcome, target=TARGET) -> set[str]:
    verdict = judge(case, outcome, target)
    assert not verdict.skipped
    return {f.bucket for f in verdict.findings}


def with_gradient(outcome: Outcome, index: int, gradient: Output | None) -> Outcome:
    tensors = list(outcome.gradients.tensors)
    tensors[index] = gradient
    return replace(outcome, gradients=replace(outcome.gradients, tensors=tuple(tensors)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("used", [NAMES, ("q",), ("cos",), ("k", "sin")], ids=" ".join)
@pytest.mark.parametrize("requires", [NAMES, ("k",), ("cos", "sin")], ids=" ".join)
def test_a_perfect_outcome_has_no_finding(requires, used, dtype):
    case = case_of(requires, used, dtype)
    assert buckets(case, right(case)) == set()


CASE = case_of()


@pytest.mark.parametrize(("index", "name"), list(enumerate(NAMES)))
def test_no_gradient_where_the_reference_has_one_is_a_cut_graph(index, name):
    assert buckets(CASE, with_gradient(right(CASE), index, None)) == {f"gradient:{name}:detached"}


@pytest.mark.parametrize(("index", "name"), list(enumerate(NAMES)))
def test_each_way_to_be_wrong_has_a_bucket_of_its_own(index, name):
    outcome = right(CASE)
    good = outcome.gradients.tensors[index]
    tensor = torch.frombuffer(bytearray(good.data), dtype=torch.float32).reshape(good.shape)
    doubled, infinite = tensor.clone(), tensor.clone()
    doubled.view(-1)[1] *= 1 + 1e-4
    infinite.view(-1)[1] = torch.inf
    wrong = {
        "mismatch": output(doubled),
        "nonfinite": output(infinite),
        "dtype": output(tensor.double()),
        "shape": output(tensor[..., :1]),
        "device": replace(good, device="cpu"),
        "type": replace(good, type="Parameter"),
    }
    for what, gradient in wrong.items():
        assert buckets(CASE, with_gradient(outcome, index, gradient)) == {f"gradient:{name}:{what}"}
    assert buckets(CASE, with_gradient(outcome, index, replace(good, data=b""))) == {"tamper:reply"}


def test_zeros_where_the_reference_has_no_gradient_are_fine_and_anything_else_is_not():
    case = case_of(("q", "k"), ("k",))
    outcome = right(case)
    assert outcome.gradients.tensors[0] is None
    zeros = torch.zeros(case["q"].shape)
    assert buckets(case, with_gradient(outcome, 0, output(zeros))) == set()
    zeros[0, 0, 0, 0] = 1e-30
    assert buckets(case, with_gradient(outcome, 0, output(zeros))) == {"gradient:q:unasked"}


def test_an_exception_in_backward_is_a_finding_and_forward_is_judged_all_the_same():
    raised = Gradients(raised=Raised("TypeError", "no", "kernel.py:3 in backward"))
    outcome = replace(right(CASE), gradients=raised)
    assert buckets(CASE, outcome) == {"gradient:exception:TypeError:backward"}
    shorter = (replace(outcome.outputs[0], dtype="float16"), *outcome.outputs[1:])
    found = buckets(CASE, replace(outcome, outputs=shorter))
    assert found == {"gradient:exception:TypeError:backward", "dtype:q"}


def test_at_the_strict_level_outputs_require_a_gradient_where_the_references_do():
    case = case_of(("q",), ("q",))
    outcome = right(case)
    assert outcome.gradients.requires == (True, False, False, False)
    changed = replace(outcome, gradients=replace(outcome.gradients, requires=(True, True, False, False)))
    assert buckets(case, changed) == {"gradient:k:requires"}
    assert buckets(case, changed, VALUES) == set()


def test_a_cotangent_that_changed_is_a_mutation():
    outcome = right(CASE)
    after = dict(outcome.after)
    data = bytearray(after["grad_k"])
    data[len(data) // 2] ^= 1
    after["grad_k"] = bytes(data)
    assert buckets(CASE, replace(outcome, after=tuple(after.items()))) == {"mutation:grad_k"}


def test_an_access_in_backward_is_judged_like_any_other():
    outcome = replace(right(CASE), accesses=(Access("load", "back", "tl.load(g)", "past the end", 3),))
    assert buckets(CASE, outcome) == {"out_of_bounds:load:back"}


def test_gradients_that_do_not_come_back_are_no_pass():
    assert buckets(CASE, replace(right(CASE), gradients=None)) == {"tamper:reply"}
    fewer = replace(right(CASE).gradients, tensors=())
    assert buckets(CASE, replace(right(CASE), gradients=fewer)) == {"tamper:reply"}


@pytest.mark.parametrize("changes", [{"dtype": "float64"}, {"shape": (1, 2, 3, 2)}])
def test_cotangents_that_are_not_of_the_outputs_say_nothing_about_the_target(changes):
    case = CASE.with_tensor("grad_q", **changes)
    memories = tuple((name, memory.bytes()) for name, memory in build(case).memories.items())
    outcome = replace(right(CASE), after=memories)
    verdict = judge(case, outcome, TARGET)
    assert verdict.skipped.startswith("the cotangent of q")
    assert not verdict.findings
    access = Access("load", "back", "tl.load(g)", "past the end", 3)
    verdict = judge(case, replace(outcome, accesses=(access,)), TARGET)
    assert not verdict.skipped
    assert verdict.buckets == {"out_of_bounds:load:back"}


def test_gradients_are_counted_apart_from_outputs():
    assert set(judge(CASE, right(CASE), TARGET).errors) == {"float32", "float32 gradient"}
