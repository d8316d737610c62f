"""How cases come to be differentiated: what all operations share of drawing, and of the strata that are promised.

An operation says what its outputs are like (``forms``), and which of its plain strata are worth a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from fuzzrope.case import FLOATS, Backward, Case, TensorSpec, Values
from fuzzrope.draw import Draw
from fuzzrope.geometry import arrange, dense, traits
from fuzzrope.operations.base import Stratum
from fuzzrope.operations.rope_strata import DRAWN_VALUES

Form = tuple[str, tuple[int, ...]]
Forms = Mapping[str, Form]
ONE_IN = 32  # free cases, of a target that promises gradients, that are differentiated: each costs twice a plain one
#: Layouts of a cotangent; "one number" is what ``sum().backward()`` hands back.
COTANGENTS = ("contiguous", "one number", "expanded", "transposed", "sliced", "padded")
TRANSPOSED = {2: "10", 3: "021", 4: "0213"}
DIFFERENTIATED = ("backward", True)  # the pin that asks for a gradient, of anything


@lru_cache
def subsets(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """All of the names, then every smaller choice of them."""
    return (names, *(some for size in range(1, len(names)) for some in combinations(names, size)))


@lru_cache
def requires(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The choices of inputs that are promised, by name."""
    return {**{name: (name,) for name in names}, "all": names, "tables": ("cos", "sin")}


def uses(outputs: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The choices of outputs in use that are promised, by name."""
    left_out = {f"{name} unused": tuple(n for n in outputs if n != name) for name in outputs}
    return {"all": outputs} | {name: some for name, some in left_out.items() if some}


def is_wanted(draw: Draw, pins: Mapping[str, Any]) -> bool:
    """Whether these pins ask for a gradient, or chance does where ``pins["gradients"]``, "some" or "all", allows it."""
    if not pins.get("gradients") or "invalid" in pins:
        return False
    if pins["gradients"] == "all":
        return True
    asked = {"requires", "cotangent", "used", "backward"} & set(pins)
    return bool(asked) or draw.integer(0, ONE_IN - 1) == ONE_IN - 1


def differentiated(draw: Draw, pins: Mapping[str, Any], case: Case, forms: Forms) -> Case:
    """A valid case with something to differentiate; ``forms`` are dtype and shape of each output, in order."""
    names = _floating(case)
    chosen = pins.get("requires") or draw.mostly(subsets(names))
    # One tensor that is two inputs requires a gradient or does not.
    chosen = tuple(name for name in names if any(case[name] == case[other] for other in chosen))
    used = pins.get("used") or draw.mostly(tuple(uses(tuple(forms)).values()))
    cotangents = tuple((name, _cotangent(draw, pins, name, *forms[name])) for name in sorted(used))
    return replace(case, backward=Backward(chosen, cotangents))


def _floating(case: Case) -> tuple[str, ...]:
    """The inputs that can have a gradient."""
    return tuple(name for name, spec in case.tensors if spec.dtype in FLOATS)


def _cotangent(draw: Draw, pins: Mapping[str, Any], name: str, dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    layout = pins.get("cotangent") or draw.mostly(COTANGENTS)
    if layout == "one number":
        strides: tuple[int, ...] = (0,) * len(shape)
    elif layout == "transposed":
        strides = dense(shape, TRANSPOSED[len(shape)])
    elif layout == "expanded":  # along one dimension: along all it would be one number
        flat = draw.choice([dim for dim, n in enumerate(shape) if n > 1] or [0])
        kept = dense(tuple(1 if dim == flat else n for dim, n in enumerate(shape)))
        strides = tuple(0 if dim == flat else stride for dim, stride in enumerate(kept))
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


def strata(
    names: tuple[str, ...],
    used: Mapping[str, Mapping[str, Any]],
    apart: Mapping[str, Any],
    large: Mapping[str, Any],
    shapes: Mapping[str, Mapping[str, Any]],
) -> tuple[Stratum, ...]:
    """Every stratum of gradients of an operation with these inputs.

    Args:
        names: the inputs.
        used: pins of each choice of outputs in use, all of them first.
        apart: pins under which no two inputs are one tensor.
        large: pins under which the largest output shows its layout.
        shapes: pins of cases that are worth a gradient, by name.
    """
    found = [Stratum(f"gradient of: {name}", (("requires", r), *apart.items())) for name, r in requires(names).items()]
    for dtype in FLOATS:
        found.append(Stratum(f"gradient dtype: {dtype}", (("dtypes", (dtype,) * len(names)), DIFFERENTIATED)))
    for layout in COTANGENTS:
        found.append(Stratum(f"cotangent: {layout}", (("cotangent", layout), *large.items())))
    every = next(iter(used.values()))  # k may have elements where q has none, so q has to be in use
    found.append(Stratum("cotangent: without elements", (("B", 0), *every.items(), DIFFERENTIATED)))
    found += [Stratum(f"outputs in use: {name}", tuple(pins.items())) for name, pins in used.items()]
    found += [Stratum(f"gradient with: {name}", (*pins.items(), DIFFERENTIATED)) for name, pins in shapes.items()]
    return tuple(found)


def classify(case: Case, outputs: tuple[str, ...]) -> Iterator[str]:
    """The strata of gradients that a valid case lies in, but for those of its shape."""
    assert case.backward is not None
    cotangents = dict(case.backward.cotangents)
    every = requires(_floating(case))
    yield from (f"gradient of: {name}" for name, some in every.items() if some == case.backward.requires)
    dtypes = {case[name].dtype for name in _floating(case)}
    yield from (f"gradient dtype: {dtype}" for dtype in dtypes if len(dtypes) == 1)
    if any(spec.numel == 0 for spec in cotangents.values()):
        yield "cotangent: without elements"
    if cotangents:  # the largest is of what is computed: that of a table goes through autograd alone
        spec = max(cotangents.values(), key=lambda spec: spec.numel)
        shown = traits(spec)
        if spec.numel > 1 and not any(n > 1 and s for n, s in zip(spec.shape, spec.strides, strict=True)):
            shown = {"one number"}
        if shown & {f"permuted {order}" for order in TRANSPOSED.values()}:
            yield "cotangent: transposed"
        yield from (f"cotangent: {layout}" for layout in COTANGENTS if layout in shown)
    yield from (f"outputs in use: {name}" for name, some in uses(outputs).items() if set(some) == set(cotangents))


def fitted(case: Case, forms: Forms) -> Case:
    """The case with cotangents of the dtypes and shapes of its outputs; those of no output are left out."""
    assert case.backward is not None
    cotangents = []
    for name, spec in case.backward.cotangents:
        if name not in forms:
            continue
        dtype, shape = forms[name]
        if (spec.dtype, spec.shape) != (dtype, shape):
            spec = replace(spec, dtype=dtype, shape=shape, values=_refilled(spec, shape))
        cotangents.append((name, spec))
    return replace(case, backward=replace(case.backward, cotangents=tuple(cotangents)) if cotangents else None)


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
