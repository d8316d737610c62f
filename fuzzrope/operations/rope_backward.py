"""How cases of ``rope`` come to be differentiated: what is drawn, and the strata that are promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import torch

from fuzzrope.build import DTYPES
from fuzzrope.case import FLOATS, Backward, Case, TensorSpec, Values
from fuzzrope.draw import Draw
from fuzzrope.geometry import arrange, dense, traits
from fuzzrope.operations.base import Stratum
from fuzzrope.operations.rope_strata import DRAWN_VALUES, NAMES, invalid_kind

ONE_IN = 32  # free cases, of a target that promises gradients, that are differentiated: each costs twice a plain one
SUBSETS = tuple(tuple(some) for size in (4, 1, 2, 3) for some in combinations(NAMES, size))
REQUIRES = {**{name: (name,) for name in NAMES}, "all": NAMES, "tables": ("cos", "sin")}
#: Layouts of a cotangent; "one number" is what ``sum().backward()`` hands back.
COTANGENTS = ("contiguous", "one number", "expanded", "transposed", "sliced", "padded")
USED = {"all": NAMES, **{f"{name} unused": tuple(n for n in NAMES if n != name) for name in NAMES}}
SHAPES = {
    "same tensor twice": {"relation": "same tensor"},
    "k of one row": {"tables": "k of one row"},
    "one-row tables": {"tables": "one row"},
    "one-column tables": {"tables": "one column"},
}


def forms(case: Case) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of every output; raises ValueError where shapes do not broadcast."""
    rows = case["q"].shape[2]
    tables = {name: (min(case[name].shape[0], rows), case[name].shape[1]) for name in ("cos", "sin")}
    found: dict[str, tuple[str, tuple[int, ...]]] = {name: (case[name].dtype, tables[name]) for name in tables}
    for name in ("q", "k"):
        spec = case[name]
        dtype = torch.promote_types(DTYPES[spec.dtype], DTYPES[case["cos"].dtype])
        dtype = torch.promote_types(dtype, DTYPES[case["sin"].dtype])
        half = (*spec.shape[:3], spec.shape[3] // 2)
        shape = np.broadcast_shapes(half, tables["cos"], tables["sin"])
        found[name] = str(dtype).removeprefix("torch."), (*shape[:3], 2 * shape[3])
    return found


def differentiated(draw: Draw, pins: Mapping[str, Any], case: Case) -> Case:
    """A share of cases, where ``pins["gradients"]`` asks for any, with something to differentiate."""
    if not pins.get("gradients") or "invalid" in pins or invalid_kind(case):
        return case
    asked = {"requires", "cotangent", "used", "backward"} & set(pins)
    if not asked and draw.integer(0, ONE_IN - 1) < ONE_IN - 1:
        return case
    requires = pins.get("requires") or draw.mostly(SUBSETS)
    if case["q"] == case["k"] and {"q", "k"} & set(requires):  # one tensor: it requires a gradient or does not
        requires = tuple(name for name in NAMES if name in requires or name in "qk")
    used = pins.get("used") or draw.mostly(tuple(USED.values()))
    found = forms(case)
    cotangents = tuple((name, _cotangent(draw, pins, name, *found[name])) for name in sorted(used))
    return replace(case, backward=Backward(requires, cotangents))


def _cotangent(draw: Draw, pins: Mapping[str, Any], name: str, dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    layout = pins.get("cotangent") or draw.mostly(COTANGENTS)
    if layout == "one number":
        strides: tuple[int, ...] = (0,) * len(shape)
    elif layout == "transposed":
        strides = dense(shape, "0213" if len(shape) == 4 else "10")
    else:
        strides = arrange(draw, shape, layout)
    kind = draw.mostly(tuple(kind for kind in DRAWN_VALUES if kind != "constant"))
    return TensorSpec(
        dtype=dtype,
        shape=shape,
        strides=strides,
        offset=draw.mostly((0, 1, 3)),
        storage=f"grad_{name}",
        values=Values(kind, draw.integer(0, 2**16)),
    )


@lru_cache
def strata() -> tuple[Stratum, ...]:
    """Every stratum of gradients."""
    apart = (("relation", "separate"),)  # one tensor requires a gradient as q and as k
    found = [Stratum(f"gradient of: {name}", (("requires", some), *apart)) for name, some in REQUIRES.items()]
    found += [Stratum(f"gradient dtype: {t}", (("dtypes", (t,) * 4), ("backward", True))) for t in FLOATS]
    least = {"B": 2, "Hq": 2, "S": 3, "D": 6}
    for layout in COTANGENTS:
        found.append(Stratum(f"cotangent: {layout}", (("cotangent", layout), ("tables", "exact"), *least.items())))
    found.append(Stratum("cotangent: without elements", (("B", 0), ("backward", True))))
    found += [Stratum(f"outputs in use: {name}", (("used", some),)) for name, some in USED.items()]
    found += [Stratum(f"gradient with: {name}", (*pins.items(), ("backward", True))) for name, pins in SHAPES.items()]
    return tuple(found)


def classify(case: Case) -> frozenset[str]:
    """The strata of gradients that a case lies in."""
    if case.backward is None or invalid_kind(case):
        return frozenset()
    requires, cotangents = case.backward.requires, dict(case.backward.cotangents)
    found = {f"gradient of: {name}" for name, some in REQUIRES.items() if some == requires}
    dtypes = {spec.dtype for _, spec in case.specs}
    found |= {f"gradient dtype: {dtype}" for dtype in dtypes if len(dtypes) == 1}
    for spec in cotangents.values():
        shown = traits(spec)
        if spec.numel == 0:
            found.add("cotangent: without elements")
        if spec.numel > 1 and not any(n > 1 and s for n, s in zip(spec.shape, spec.strides, strict=True)):
            found.add("cotangent: one number")
        if shown & {"permuted 0213", "permuted 10"}:
            found.add("cotangent: transposed")
        found |= {f"cotangent: {layout}" for layout in COTANGENTS if layout in shown}
    found |= {f"outputs in use: {name}" for name, some in USED.items() if set(some) == set(cotangents)}
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
    if case.backward is None or invalid_kind(case):
        return case
    found = forms(case)
    changed = {}
    for name, spec in case.backward.cotangents:
        dtype, shape = found[name]
        if (spec.dtype, spec.shape) != (dtype, shape):
            changed[f"grad_{name}"] = replace(spec, dtype=dtype, shape=shape, values=_refilled(spec, shape))
    return case.with_tensors(changed)


def _refilled(spec: TensorSpec, shape: tuple[int, ...]) -> Values:
    """Values of the spec for another shape: of numbers spelled out those that fit, in turn."""
    if spec.values.kind != "listed":
        return spec.values
    numbers = spec.values.data or (1.0,)
    if spec.numel and len(shape) == len(spec.shape):
        kept = np.array(numbers).reshape(spec.shape)
        for dim, size in enumerate(shape):
            kept = kept.take(np.arange(size), axis=dim, mode="wrap")
        return Values("listed", 0, tuple(kept.reshape(-1).tolist()))
    return Values("constant", 0, (numbers[0],))
