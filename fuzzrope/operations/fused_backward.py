"""How cases of the fused operations come to be differentiated: their outputs, inputs that are one tensor, strata."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fuzzrope.build import DTYPES
from fuzzrope.case import Case
from fuzzrope.draw import Draw
from fuzzrope.operations import backward, fused, fused_strata
from fuzzrope.operations.backward import Form
from fuzzrope.operations.base import Stratum
from fuzzrope.operations.fused_strata import QK, invalid_kind, names_of

#: Inputs that may be one tensor: (the one that takes the other's place, the other).
TWINS = {"k is q": ("k", "q"), "v is k": ("v", "k")}
NONE = "separate"
#: Plain strata that are worth a gradient: each is an arm of the backward pass.
GRADED = (
    "mask: some hidden", "mask: rows without keys", "mask: only rows without keys", "tables: one row",
    "tables: one column", "tables: longer", "q_offset: one", "heads of q for one of k: 3", "scale: negative",
    "precision of float32: high", "softcap: tight", "softcap: loose", "window: some", "size of Sk: 0", "size of Dv: 0",
)  # fmt: skip
#: Sizes at which inputs that may be one tensor have one shape.
ALIKE = {"B": 2, "group": 1, "Sq": 5, "Sk": 5, "D": 16, "Dv": 16}


def forms(case: Case) -> dict[str, Form]:
    """dtype and shape of every output that comes back."""
    (batch, heads, rows, _), options = case["q"].shape, dict(case.options)
    dtype = fused.promoted(DTYPES[case[name].dtype] for name in ("q", "k", "cos", "sin"))
    if case.operation == QK:
        asked = options.get("out_dtype")
        return {"scores": (asked or _name(dtype), (batch, heads, rows, case["k"].shape[2]))}
    v = case["v"]
    found: dict[str, Form] = {"o": (_name(fused.promoted((dtype, DTYPES[v.dtype]))), (batch, heads, rows, v.shape[3]))}
    if options.get("return_lse"):
        found["lse"] = _name(fused.work_dtype(dtype)), (batch, heads, rows)
    return found


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def differentiated(draw: Draw, pins: Mapping[str, Any], case: Case) -> Case:
    """A share of cases, where ``pins["gradients"]`` asks for any, with something to differentiate."""
    if invalid_kind(case) or not backward.is_wanted(draw, pins):
        return case
    twins = pins.get("twins") or draw.mostly((NONE, *TWINS))
    if twins in TWINS:
        mine, other = TWINS[twins]
        names = {name for name, _ in case.tensors}
        if {mine, other} <= names and _alike(case, mine, other):
            case = case.with_tensors({mine: case[other]})
    return backward.differentiated(draw, pins, case, forms(case))


def _alike(case: Case, one: str, other: str) -> bool:
    return (case[one].dtype, case[one].shape) == (case[other].dtype, case[other].shape)


@lru_cache
def strata(operation: str) -> tuple[Stratum, ...]:
    """Every stratum of gradients of the operation."""
    names, single = names_of(operation), ("float32",) * len(names_of(operation))
    large = {"B": 2, "Hq": 2, "Sq": 3, "Sk": 4, "D": 6, "Dv": 6}
    shapes = {
        name: {"twins": name, "dtypes": single, **ALIKE} for name, pair in TWINS.items() if set(pair) <= set(names)
    }
    plain = {stratum.name: dict(stratum.pins) for stratum in fused_strata.strata(operation, ())}
    shapes |= {name: plain[name] for name in GRADED if name in plain}
    used: dict[str, dict[str, Any]] = {"all": {"used": ("scores",)}}
    if operation != QK:
        every = backward.uses(("o", "lse"))
        used = {name: {"used": some, "return_lse": True} for name, some in every.items()}
        used["all"] = {"used": ("o", "lse"), "return_lse": True}
    return backward.strata(names, used, {"twins": NONE}, large, shapes)


def classify(case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
    """The strata of gradients that a case lies in."""
    if case.backward is None or invalid_kind(case):
        return frozenset()
    found = set(backward.classify(case, ("scores",) if case.operation == QK else ("o", "lse")))
    names = {name for name, _ in case.tensors}
    for name, (one, other) in TWINS.items():
        if {one, other} <= names and case[one] == case[other]:
            found.add(f"gradient with: {name}")
    plain = fused_strata.classify(case, blocks)
    return frozenset(found | {f"gradient with: {name}" for name in plain & set(GRADED)})


def fitted(case: Case) -> Case:
    """The case with cotangents of its outputs, for a case whose inputs or options were changed."""
    return case if case.backward is None or invalid_kind(case) else backward.fitted(case, forms(case))
