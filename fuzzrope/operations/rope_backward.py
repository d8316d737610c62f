"""How cases of ``rope`` come to be differentiated: its outputs and its strata. The rest is :mod:`.backward`'s."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fuzzrope.build import DTYPES
from fuzzrope.case import Case
from fuzzrope.draw import Draw
from fuzzrope.operations import backward
from fuzzrope.operations.backward import Form
from fuzzrope.operations.base import Stratum
from fuzzrope.operations.rope_strata import NAMES, invalid_kind

SHAPES = {
    "same tensor twice": {"relation": "same tensor"},
    "k of one row": {"tables": "k of one row"},
    "one-row tables": {"tables": "one row"},
    "one-column tables": {"tables": "one column"},
}


def forms(case: Case) -> dict[str, Form]:
    """dtype and shape of every output; raises ValueError where shapes do not broadcast."""
    rows = case["q"].shape[2]
    tables = {name: (min(case[name].shape[0], rows), case[name].shape[1]) for name in ("cos", "sin")}
    found: dict[str, Form] = {}
    for name in ("q", "k"):
        spec = case[name]
        dtype = torch.promote_types(DTYPES[spec.dtype], DTYPES[case["cos"].dtype])
        dtype = torch.promote_types(dtype, DTYPES[case["sin"].dtype])
        half = (*spec.shape[:3], spec.shape[3] // 2)
        shape = np.broadcast_shapes(half, tables["cos"], tables["sin"])
        found[name] = str(dtype).removeprefix("torch."), (*shape[:3], 2 * shape[3])
    return found | {name: (case[name].dtype, tables[name]) for name in ("cos", "sin")}


def differentiated(draw: Draw, pins: Mapping[str, Any], case: Case) -> Case:
    """A share of cases, where ``pins["gradients"]`` asks for any, with something to differentiate."""
    if invalid_kind(case) or not backward.is_wanted(draw, pins):
        return case
    return backward.differentiated(draw, pins, case, forms(case))


@lru_cache
def strata() -> tuple[Stratum, ...]:
    """Every stratum of gradients."""
    used = {name: {"used": some} for name, some in backward.uses(NAMES).items()}
    large = {"tables": "exact", "B": 2, "Hq": 2, "S": 3, "D": 6, "used": NAMES}  # k may have one head
    return backward.strata(NAMES, used, {"relation": "separate"}, large, SHAPES)


def classify(case: Case) -> frozenset[str]:
    """The strata of gradients that a case lies in."""
    if case.backward is None or invalid_kind(case):
        return frozenset()
    found = set(backward.classify(case, NAMES))
    q, k, cos, sin = (case[name] for name in NAMES)
    if q == k:
        found.add("gradient with: same tensor twice")
    if q.shape[2] > 1 and k.shape[2] == 1:
        found.add("gradient with: k of one row")
    if q.shape[2] > 1 and cos.shape[0] == sin.shape[0] == 1:
        found.add("gradient with: one-row tables")
    if q.shape[3] > 2 and cos.shape[1] == sin.shape[1] == 1:
        found.add("gradient with: one-column tables")
    return frozenset(found)


def fitted(case: Case) -> Case:
    """The case with cotangents of the dtypes and shapes of its outputs, for a case whose inputs were changed."""
    return case if case.backward is None or invalid_kind(case) else backward.fitted(case, forms(case))
