"""Putting the rooms of the judge together: one case, one outcome, one verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from fuzzrope.build import Built, blank, build
from fuzzrope.case import Case
from fuzzrope.findings import Finding, finding
from fuzzrope.geometry import dense, longest
from fuzzrope.judge.gradients import ill_posed, judge_gradients
from fuzzrope.judge.memory import judge_accesses, judge_inputs
from fuzzrope.judge.values import GRADIENT, Errors, as_tensor, compare, compare_exact
from fuzzrope.operations import OPERATIONS, Operation
from fuzzrope.outcome import Outcome, Output
from fuzzrope.targets import Target

DEMANDED_ERRORS = ("ValueError", "TypeError")
MOST_ROWS = 2**14  # of a case whose deadline binds: a kernel that is right may walk through more, one by one
_DEATHS = {"timeout": "timeout", "oom": "oom", "died": "crash", "tampered": "tamper"}


@dataclass
class Verdict:
    """The findings of a case, its error statistics by dtype, and by output and dtype.

    Also why it was left out, if it was.
    """

    findings: list[Finding] = field(default_factory=list)
    errors: dict[str, Errors] = field(default_factory=dict)
    by_output: dict[tuple[str, str], Errors] = field(default_factory=dict)
    skipped: str = ""

    @property
    def buckets(self) -> frozenset[str]:
        """The buckets of its findings."""
        return frozenset(f.bucket for f in self.findings)


def judge(case: Case, outcome: Outcome, target: Target) -> Verdict:
    """Judge what a target did with a case, at the target's level."""
    verdict = Verdict()
    if outcome.status == "unsupported":
        verdict.skipped = outcome.detail
        return verdict
    if outcome.status == "timeout" and longest(case) > MOST_ROWS and not outcome.tampered:
        verdict.skipped = f"{longest(case):,} rows: {outcome.detail}"
        return verdict
    found = verdict.findings
    found += [finding("tamper", f"it changed {name}", detail=name) for name in outcome.tampered]
    if outcome.status in _DEATHS:
        found.append(_death(outcome))
        return verdict
    if outcome.phase == "load":
        found += _judge_raised(outcome, None, "", target) if outcome.raised else []
        return verdict
    operation = OPERATIONS[case.operation]
    found += judge_accesses(outcome)
    inputs = build(case, apart=False)
    stores = any(access.what == "store" for access in outcome.accesses)
    found += judge_inputs(case, inputs, outcome, stores)
    rejected = operation.rejects(case)
    if case.backward is not None:
        for name in case.backward.requires:
            inputs.tensors[name].requires_grad_()
    expected, error = _reference(operation, case, inputs)
    problem = ill_posed(case, expected) if expected is not None else ""
    if problem:  # nothing to compare with; what was seen of the process and its memory stands
        verdict.skipped = "" if found else problem
        return verdict
    if outcome.status == "raised":
        found += _judge_raised(outcome, rejected, error, target)
        return verdict
    if rejected and target.level == "strict":
        found.append(finding("no_exception", f"it returned although {rejected}", detail=rejected.split()[0]))
        return verdict
    if rejected:
        return verdict  # outside the contract, and the values level demands nothing there
    if expected is None:
        found.append(finding("no_exception", f"it returned; the reference raises {error}", detail="reference"))
        return verdict
    if case.backward is None:
        found += _judge_outputs(case, outcome, target, operation, inputs, expected, verdict)
        return verdict
    graph, expected = expected, {name: tensor.detach() for name, tensor in expected.items()}
    plain = replace(inputs, tensors={name: tensor.detach() for name, tensor in inputs.tensors.items()})
    found += _judge_outputs(case, outcome, target, operation, plain, expected, verdict)
    gradients, errors = judge_gradients(case, outcome, operation, inputs, graph, target.level == "strict")
    if outcome.gradients is None and not found:
        gradients = [finding("tamper", "its gradients did not come back", detail="reply")]
    found += gradients
    verdict.by_output |= errors
    for (_, dtype), one in errors.items():
        verdict.errors.setdefault(dtype + GRADIENT, Errors()).add(one)
    return verdict


def _death(outcome: Outcome) -> Finding:
    kind = _DEATHS[outcome.status]
    while_loading = " while it was being imported" if outcome.phase == "load" else ""
    detail = outcome.detail if kind == "crash" else "" if kind in ("timeout", "oom") else "process"
    return finding(kind, f"{outcome.detail}{while_loading}", detail=detail)


def _reference(operation: Operation, case: Case, inputs: Built) -> tuple[dict[str, torch.Tensor] | None, str]:
    try:
        return operation.reference(inputs.tensors, dict(case.options)), ""
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError) as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _judge_raised(outcome: Outcome, rejected: str | None, error: str, target: Target) -> list[Finding]:
    raised = outcome.raised
    assert raised is not None
    function = raised.where.rpartition(" in ")[2]
    said = f"{raised.type}: {raised.message[:200]}"
    if outcome.phase == "load":
        said = f"it could not be loaded: {said}"
    if raised.where:
        said += f" ({raised.where})"
    detail = f"{raised.type}:{function}" if function else raised.type
    if any(access.what == "launch" for access in outcome.accesses):
        return []  # the refused launch is the finding
    if not rejected:
        return [] if error else [finding("exception", said, detail=detail)]
    if target.level == "strict" and raised.type not in DEMANDED_ERRORS:
        message = f"{said}; the contract demands ValueError or TypeError because {rejected}"
        return [finding("exception", message, detail=detail)]
    return []


def _judge_outputs(
    case: Case,
    outcome: Outcome,
    target: Target,
    operation: Operation,
    inputs: Built,
    expected: dict[str, torch.Tensor],
    verdict: Verdict,
) -> list[Finding]:
    options = dict(case.options)
    names = operation.results(options)
    found: list[Finding] = []
    bare = outcome.container not in ("tuple", "list")
    if len(outcome.outputs) != len(names) or bare != (len(names) == 1):
        expected_form = "one tensor" if len(names) == 1 else f"a tuple of {len(names)}"
        message = f"it returned a {outcome.container} of {len(outcome.outputs)}, expected {expected_form}"
        return [finding("type", message, detail="container")]
    if not bare and target.level == "strict" and outcome.container != "tuple":
        found.append(finding("type", "it returned a list, expected a tuple", detail="container"))
    strides = _eager_strides(operation, case, expected) if target.level == "strict" else {}
    envelopes = operation.envelopes(inputs.tensors, options)
    for name, output in zip(names, outcome.outputs, strict=True):
        reference = expected[name]
        form = _judge_form(name, output, reference)
        if target.level == "strict" and not form:
            form += _judge_layout(name, output, strides[name])
        found += form + _judge_sharing(name, output, operation, target)
        if any(f.kind in ("type", "shape", "dtype") for f in form):
            continue
        if len(output.data) != reference.numel() * reference.element_size():
            found.append(finding("tamper", f"{name} came back with {len(output.data)} bytes", detail="reply"))
            continue
        got = as_tensor(output.data, output.dtype, output.shape)
        if name in operation.views:
            found += compare_exact(name, got, reference, "it is passed through")
            continue
        comparison = compare(name, got, reference, envelopes[name], output.origin)
        comparison.errors.worst_case = case
        verdict.errors.setdefault(output.dtype, Errors()).add(comparison.errors)
        verdict.by_output[name, output.dtype] = comparison.errors
        found += comparison.findings
        if target.exact and not (comparison.findings or comparison.errors.as_reference):
            found += compare_exact(name, got, reference, "bit for bit as eager")
    work = any(expected[name].numel() for name in names if name not in operation.views)
    if target.kernel and work and not outcome.launches:
        found.append(finding("no_launch", "it computed without launching a Triton kernel"))
    return found


def _judge_form(name: str, output: Output, reference: torch.Tensor) -> list[Finding]:
    if output.type != "Tensor":
        return [finding("type", f"{name} is a {output.type}, expected a torch.Tensor", output=name)]
    found = []
    dtype = str(reference.dtype).removeprefix("torch.")
    if output.shape != tuple(reference.shape):
        found.append(finding("shape", f"{name} is {output.shape}, expected {tuple(reference.shape)}", output=name))
    if output.dtype != dtype:
        found.append(finding("dtype", f"{name} is {output.dtype}, expected {dtype}", output=name))
    if output.device != "cuda":
        found.append(finding("device", f"{name} is on {output.device}, expected cuda", output=name))
    return found


def _judge_layout(name: str, output: Output, strides: tuple[int, ...]) -> list[Finding]:
    if output.strides == strides:
        return []
    return [finding("layout", f"{name} has strides {output.strides}, eager has {strides}", output=name)]


def _judge_sharing(name: str, output: Output, operation: Operation, target: Target) -> list[Finding]:
    """Computed outputs are fresh memory; at the strict level passed-through ones are views of their input."""
    source = operation.views.get(name)
    shares = dict(output.shares)
    if source is None:
        others = [f"output {other[1:]}" if other.startswith("#") else other for other in shares]
        if others:
            return [finding("alias", f"{name} shares memory with {', '.join(others)}", output=name)]
        if 0 not in output.shape and any(n > 1 and not s for n, s in zip(output.shape, output.strides, strict=False)):
            message = f"{name} has one memory for several elements, strides {output.strides}: it cannot be written to"
            return [finding("alias", message, output=name, detail="itself")]
    elif target.level == "strict" and shares.get(source) != 0 and 0 not in output.shape:
        return [finding("alias", f"{name} is no view of the input {source}", output=name)]
    return []


def _eager_strides(operation: Operation, case: Case, expected: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Output strides of the reference on a GPU.

    On a CPU, eager PyTorch first converts operands of other dtypes into temporaries, whose strides then
    decide; a GPU converts while it computes. With one dtype throughout the two agree.
    """
    if operation.contiguous:
        return {name: dense(tuple(tensor.shape)) for name, tensor in expected.items()}
    if len({spec.dtype for _, spec in case.tensors}) > 1:
        expected = operation.reference({name: blank(spec) for name, spec in case.tensors}, dict(case.options))
    return {name: tensor.stride() for name, tensor in expected.items()}
