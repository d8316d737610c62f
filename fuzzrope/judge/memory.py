"""What happened to memory: accesses the engine saw, and the bytes of the inputs afterwards."""

from __future__ import annotations

import numpy as np

from fuzzrope.build import Built, offsets
from fuzzrope.case import Case
from fuzzrope.findings import Finding, finding
from fuzzrope.outcome import Outcome

#: What an engine notices under the name of its kind; every other name is a direction of an access out of bounds.
NOTICED = ("launch", "race", "overflow", "assumption", "uninitialized")


def judge_accesses(outcome: Outcome) -> list[Finding]:
    """Findings for what the engine noticed in launches, one for each kernel, kind and direction."""
    found: dict[str, Finding] = {}
    for access in outcome.accesses:
        place = f" in {access.kernel}" if access.kernel else ""
        message = f"{access.message}{place} at {access.line}; {access.lanes} lanes"
        kind = access.what if access.what in NOTICED else "out_of_bounds"
        detail = access.kernel if kind != "out_of_bounds" else f"{access.what}:{access.kernel or 'host'}"
        one = finding(kind, message, detail=detail, magnitude=float(access.lanes))
        found.setdefault(one.bucket, one)
    return list(found.values())


def judge_inputs(case: Case, before: Built, outcome: Outcome, seen_stores: bool) -> list[Finding]:
    """Findings for inputs that changed, and for writes into gaps and guard bands around them.

    ``seen_stores`` says that the engine already reported a wild store, which explains the latter.
    """
    found: list[Finding] = []
    for storage, after in outcome.after:
        memory = before.memories.get(storage)
        if memory is None:
            continue
        original = memory.bytes()
        if after == original:
            continue
        if len(after) != len(original):
            found.append(finding("tamper", f"the memory of {storage} came back with another size", detail="reply"))
            continue
        changed = np.nonzero(np.frombuffer(after, np.uint8) != np.frombuffer(original, np.uint8))[0]
        places = np.unique([memory.where(int(p)) // memory.itemsize for p in changed[:10000]])
        owned: list[np.ndarray] = []
        for name, spec in case.specs:
            if spec.storage != storage or not spec.numel:
                continue
            mine = offsets(spec)
            owned.append(mine)
            hit = np.isin(places, mine)
            if hit.any():
                message = f"{int(hit.sum())} elements of {name} changed, the first at element {int(places[hit][0])}"
                found.append(finding("mutation", message, output=name, magnitude=float(hit.sum())))
        stray = places[~np.isin(places, np.concatenate(owned))] if owned else places
        if len(stray) and not seen_stores:
            message = f"memory around {storage} was written, at element {int(stray[0])} of its storage"
            found.append(finding("out_of_bounds", message, detail=f"around {storage}", magnitude=float(len(stray))))
    return found
