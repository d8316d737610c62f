"""Gradients: is each one that a correct implementation may give, where the reference has one?

The reference is autograd through ``operation.reference``. Where it has no gradient, a target may have zeros:
a backward that fills in what it was not asked for harms nobody. Where the reference has one, None is a graph
that was cut, unless the input has no elements.
"""

from __future__ import annotations

from typing import Any

import torch

from fuzzrope.build import Built
from fuzzrope.case import Case
from fuzzrope.findings import Finding, finding
from fuzzrope.judge.values import Errors, as_tensor, compare
from fuzzrope.operations import OPERATIONS, Differentiable, Operation
from fuzzrope.outcome import Outcome, Output, Raised

Reference = dict[str, torch.Tensor]


def ill_posed(case: Case, expected: Reference) -> str:
    """Why the cotangents are none of these outputs', or nothing."""
    cotangents = case.backward.cotangents if case.backward else ()
    returned = OPERATIONS[case.operation].results(dict(case.options))
    for name, spec in cotangents:
        if name not in returned:
            return f"a cotangent is given for {name}, which {case.operation} does not return"
        form = str(expected[name].dtype).removeprefix("torch."), tuple(expected[name].shape)
        if (spec.dtype, spec.shape) != form:
            return f"the cotangent of {name} is {spec.dtype} {spec.shape}, the output {form[0]} {form[1]}"
    return ""


def reference_gradients(case: Case, inputs: Built, expected: Reference) -> dict[str, torch.Tensor | None]:
    """Autograd's gradient of each required input through the reference's outputs, which must hold its graph."""
    assert case.backward is not None
    used = [(expected[name], inputs.cotangents[name]) for name, _ in case.backward.cotangents]
    used = [(output, cotangent) for output, cotangent in used if output.requires_grad]
    if not used:
        return dict.fromkeys(case.backward.requires)
    leaves = [inputs.tensors[name] for name in case.backward.requires]
    outputs, cotangents = zip(*used, strict=True)
    # What ``torch.autograd.grad`` does; given cotangents, it first imports sympy to compare their shapes.
    run: Any = torch.autograd.Variable._execution_engine.run_backward
    gradients = run(outputs, cotangents, False, False, tuple(leaves), allow_unreachable=True, accumulate_grad=False)
    return dict(zip(case.backward.requires, gradients, strict=True))


def judge_gradients(
    case: Case, outcome: Outcome, operation: Operation, inputs: Built, expected: Reference, strict: bool
) -> tuple[list[Finding], dict[tuple[str, str], Errors]]:
    """Findings of the gradients of a case that has some, and their error statistics by name (``dq``) and dtype.

    ``expected`` are the reference's outputs with their graph; ``strict`` has outputs require a gradient where
    the reference's do.
    """
    given = outcome.gradients
    assert case.backward is not None
    if given is None:
        return [], {}
    if given.raised is not None:
        return [_raised(given.raised)], {}
    names = operation.results(dict(case.options))
    if len(given.tensors) != len(case.backward.requires) or len(given.requires) != len(names):
        return [finding("tamper", "gradients came back in another number", detail="reply")], {}
    found = []
    if strict:
        for name, flag in zip(names, given.requires, strict=True):
            if flag != expected[name].requires_grad:
                message = f"output {name} requires {'a' if flag else 'no'} gradient, unlike the reference's"
                found.append(finding("gradient", message, output=name, detail="requires"))
    references = reference_gradients(case, inputs, expected)
    cotangents = {name: tensor.detach() for name, tensor in inputs.cotangents.items()}
    assert isinstance(operation, Differentiable)
    envelopes = operation.gradients(inputs.tensors, cotangents, case.backward.requires, dict(case.options))
    errors: dict[tuple[str, str], Errors] = {}
    for name, gradient in zip(case.backward.requires, given.tensors, strict=True):
        reference = references[name]
        if reference is None:
            found += _unasked(name, gradient)
            continue
        findings = _judge_form(name, gradient, reference)
        if findings or gradient is None:
            found += findings
            continue
        got = as_tensor(gradient.data, gradient.dtype, gradient.shape)
        comparison = compare(f"d{name}", got, reference, envelopes[name], gradient.origin)
        found += [_gradient(name, one) for one in comparison.findings]
        comparison.errors.worst_case = case
        errors[f"d{name}", gradient.dtype] = comparison.errors
    return found, errors


def _raised(raised: Raised) -> Finding:
    function = raised.where.rpartition(" in ")[2]
    place = f" ({raised.where})" if raised.where else ""
    message = f"backward raised {raised.type}: {raised.message[:200]}{place}"
    return finding("gradient", message, detail=":".join(filter(None, ("exception", raised.type, function))))


def _gradient(name: str, one: Finding) -> Finding:
    """A finding of values as one of the gradient of an input."""
    return finding("gradient", one.message, output=name, detail=one.kind, magnitude=one.magnitude)


def _unasked(name: str, gradient: Output | None) -> list[Finding]:
    """Findings of a gradient where the reference has none."""
    if gradient is None or not gradient.data:
        return []
    try:
        zero = not as_tensor(gradient.data, gradient.dtype, gradient.shape).any()
    except (KeyError, RuntimeError, ValueError):
        zero = False
    if zero:
        return []
    message = f"there is a gradient of {name}, on which no used output depends, and it is not zero"
    return [finding("gradient", message, output=name, detail="unasked")]


def _judge_form(name: str, gradient: Output | None, reference: torch.Tensor) -> list[Finding]:
    """None where there should be a gradient, and another type, dtype, shape or device than the reference's."""
    if gradient is None:
        if not reference.numel():
            return []
        message = f"there is no gradient of {name}: the graph was cut"
        return [finding("gradient", message, output=name, detail="detached")]
    dtype, shape = str(reference.dtype).removeprefix("torch."), tuple(reference.shape)
    claims = (
        ("type", gradient.type, "Tensor"),
        ("dtype", gradient.dtype, dtype),
        ("shape", gradient.shape, shape),
        ("device", gradient.device, "cuda"),
    )
    for what, is_, should in claims:
        if is_ != should:
            message = f"the gradient of {name} has {what} {is_}, expected {should}"
            return [finding("gradient", message, output=name, detail=what)]
    if len(gradient.data) != reference.numel() * reference.element_size():
        return [finding("tamper", f"d{name} came back with {len(gradient.data)} bytes", detail="reply")]
    return []
