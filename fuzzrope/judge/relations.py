"""Two runs held against each other: are the bits the same where they should be?"""

from __future__ import annotations

import numpy as np

from fuzzrope.findings import Finding, finding
from fuzzrope.judge.values import as_tensor
from fuzzrope.operations import Related
from fuzzrope.outcome import Outcome, Output


def differing(one: Outcome, other: Outcome) -> str | None:
    """What first differs between the outputs of two runs of one case, NaN payloads included, or None."""
    if other.status == "unsupported":
        return None
    if one.status != other.status or len(one.outputs) != len(other.outputs):
        return f"the answer ({other.status})"
    for number, (a, b) in enumerate(zip(one.outputs, other.outputs, strict=True)):
        if (a.type, a.dtype, a.shape, a.data) != (b.type, b.dtype, b.shape, b.data):
            return f"output {number}"
    return None


def as_found(relation: str, names: tuple[str, ...], here: Outcome, there: Outcome, related: Related) -> list[Finding]:
    """Findings for outputs that differ where a relation says that they are equal; other failures are not its own."""
    if there.status != "returned" or len(there.outputs) != len(here.outputs):
        return []
    outputs: dict[str, tuple[Output, Output]] = dict(
        zip(names, zip(here.outputs, there.outputs, strict=True), strict=True)
    )
    found = []
    for name, at, other_at in related.equal:
        ours, theirs = (_numbers(output) for output in outputs[name])
        if ours is None or theirs is None:
            continue
        one, other = np.ldexp(ours[at], related.power), theirs[other_at]
        if one.shape != other.shape:
            continue
        with np.errstate(invalid="ignore"):
            same = (one == other) & (np.signbit(one) == np.signbit(other)) | np.isnan(one) & np.isnan(other)
        if not same.all():
            place = np.unravel_index(int(np.argmin(same)), same.shape)
            message = f"relation {relation}: {name} is {one[place]:.9g} here and {other[place]:.9g} there"
            message += f"; {int((~same).sum())} of {same.size} elements"
            found.append(finding("mismatch", message, output=name, detail=f"relation {relation}"))
    return found


def _numbers(output: Output) -> np.ndarray | None:
    if output.type != "Tensor" or 0 in output.shape:
        return None
    return as_tensor(output.data, output.dtype, output.shape).double().numpy()
