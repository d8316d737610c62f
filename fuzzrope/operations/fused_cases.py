"""How cases of ``rope_qk`` and ``rope_attention`` are drawn: named choices, some pinned by a stratum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fuzzrope.case import FLOATS, Case, TensorSpec, Values
from fuzzrope.draw import Draw
from fuzzrope.geometry import arrange, dense, layouts, least_sizes
from fuzzrope.operations.fused_strata import (
    GROUPS,
    LENGTHS,
    MANY,
    MASKS,
    MAX_EDGE,
    OFFSETS,
    QK,
    ROTATIONS,
    SCALES,
    SOFTCAPS,
    TABLES,
    VALUE_WIDTHS,
    WIDTHS,
    WINDOWS,
    invalid_kind,
    names_of,
)
from fuzzrope.operations.rope_strata import DRAWN_VALUES, edges, usable

MAX_WORK = 2**19  # multiplications of a case
MAX_WIDE_WORK = 2**16  # where the oracle needs pairs of float64
SIZES = ("B", "Hq", "Sq", "Sk", "D", "Dv")
SIZELESS = frozenset({"floats", "gradients", "dtypes", "length"})  # pins that leave all sizes free


def probes(operation: str) -> tuple[Case, ...]:
    """Plain cases, one of them large enough to show a tile."""
    return tuple(_plain(operation, *sizes) for sizes in ((2, 4, 2, 5, 7, 16), (1, 2, 1, 40, 70, 64)))


def _plain(operation: str, batch: int, heads: int, heads_k: int, rows: int, keys: int, width: int) -> Case:
    table = (max(rows, keys), width // 2)
    shapes: dict[str, tuple[int, ...]] = {"q": (batch, heads, rows, width), "k": (batch, heads_k, keys, width)}
    shapes |= {"v": (batch, heads_k, keys, width), "cos": table, "sin": table}
    specs = [
        (name, TensorSpec("float32", shapes[name], dense(shapes[name]), 0, name, Values("normal", seed)))
        for seed, name in enumerate(names_of(operation))
    ]
    return Case(operation, tuple(specs))


#: Tables that rotate nothing, exactly.
UNTURNED = {"cos": Values("constant", 0, (1.0,)), "sin": Values("constant", 0, (0.0,))}


@dataclass
class _Plan:
    """The choices of one drawn case."""

    operation: str
    draw: Draw
    pins: Mapping[str, Any]

    def choose(self, key: str, choices: tuple[Any, ...]) -> Any:
        """The pinned choice of this key, or a drawn one; the first, plain one is drawn half the time."""
        return self.pins[key] if key in self.pins else self.draw.mostly(choices)


def draw_case(operation: str, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
    """Draw a case; ``pins`` fixes choices by name, and ``pins["floats"]`` the dtypes to draw from."""
    plan = _Plan(operation, draw, pins)
    names = names_of(operation)
    dtypes = dict(zip(names, _draw_dtypes(plan), strict=True))
    sizes = _draw_sizes(plan, usable(blocks), "float64" in dtypes.values())
    turned = _is_turned(plan)
    options = _draw_options(plan, sizes, turned)
    shapes = _draw_shapes(plan, sizes, options.get("q_offset", 0))
    specs: dict[str, TensorSpec] = {}
    for name in names:
        layout = plan.choose(f"layout.{name}", layouts(len(shapes[name])))
        if layout == "far batch" and shapes[name][0] > 3:
            layout = "contiguous"
        offset = plan.choose(f"offset.{name}", (0, 1, 2, 3, 8))
        strides = arrange(draw, shapes[name], layout)
        values = _draw_values(plan, name) if turned or name not in UNTURNED else UNTURNED[name]
        specs[name] = TensorSpec(dtypes[name], shapes[name], strides, offset, name, values)
    case = Case(operation, tuple(specs.items()), tuple(sorted(options.items())))
    return _spoil(draw, case, pins["invalid"]) if "invalid" in pins else case


def _is_turned(plan: _Plan) -> bool:
    """Whether tables are drawn; if not, they leave q and k as they are, so that only what follows rounds."""
    free = not {"values.cos", "values.sin"} & set(plan.pins)
    return not free or plan.choose("rotation", ROTATIONS) == ROTATIONS[0]


def _draw_dtypes(plan: _Plan) -> tuple[str, ...]:
    if "dtypes" in plan.pins:
        mix: tuple[str, ...] = plan.pins["dtypes"]
        return mix
    floats = tuple(f for f in ("float32", "bfloat16", "float16", "float64") if f in plan.pins.get("floats", FLOATS))
    count = len(names_of(plan.operation))
    first = plan.draw.choice(floats)
    how = plan.draw.mostly(("uniform", "tables differ", "all differ"))
    if how == "tables differ":
        return (first,) * (count - 2) + (plan.draw.choice(floats),) * 2
    return tuple(plan.draw.choice(floats) if how == "all differ" else first for _ in range(count))


def _draw_sizes(plan: _Plan, blocks: tuple[int, ...], wide: bool) -> dict[str, int]:
    """Pinned sizes as asked, the others small and, together, affordable."""
    borders = tuple(n for _, n in edges(blocks, MAX_EDGE))
    least = _least(plan.pins)
    group = plan.choose("group", GROUPS)
    sizes = {
        "B": plan.choose("B", (1, 2, 3, 0)),
        "Hk": plan.draw.mostly((1, 2, 3)),
        "Sq": plan.choose("Sq", (5, 1, 2, 3, 0, 7, 12, *borders)),
        "Sk": plan.choose("Sk", (7, 1, 2, 3, 0, 5, 12, 23, *borders)),
        "D": plan.choose("D", WIDTHS),
        "Dv": plan.choose("Dv", (16, *VALUE_WIDTHS)),
    }
    many = not set(plan.pins) - SIZELESS and plan.choose("length", LENGTHS) == LENGTHS[-1]
    if many:
        sizes |= {"Sq": plan.draw.choice((1, 2, 3)), "Sk": MANY + plan.draw.choice((1, 265, 44, 774))}
    free = [name for name in sizes if name not in plan.pins and not (many and name == "Sk")]
    for name in free:
        sizes[name] = max(sizes[name], least[name])
    if "Hq" in plan.pins:
        group, sizes["Hk"] = plan.pins["Hq"], 1
    for name in ("q", "k", "v", "cos", "sin"):  # a stride is odd where the size is one
        if plan.pins.get(f"layout.{name}") == "odd ones" and name in ("q", "k", "v"):
            sizes["B"] = 1
    for name, floor in (("Hk", 1), ("B", 1), ("Sq", 3), ("Sk", 3), ("D", 4), ("Dv", 1)):
        cost = sizes["B"] * sizes["Hk"] * group * sizes["Sq"] * sizes["Sk"] * (sizes["D"] + sizes["Dv"])
        limit = MAX_WIDE_WORK if wide else MAX_WORK
        if name in free and cost > limit:
            less = int(sizes[name] * limit / cost)
            sizes[name] = min(sizes[name], max(less, floor, least[name]))
            sizes[name] -= sizes[name] % 2 if name == "D" else 0
    return {**sizes, "Hq": sizes["Hk"] * group}


def _least(pins: Mapping[str, Any]) -> dict[str, int]:
    """Sizes that the pinned choices need in order to show."""
    least = dict.fromkeys(("B", "Hk", "Sq", "Sk", "D", "Dv"), 0) | {"Hk": 1, "D": 2}
    keys: dict[str, tuple[str, ...]] = {
        "q": ("B", "Hk", "Sq", "D"),
        "k": ("B", "Hk", "Sk", "D"),
        "v": ("B", "Hk", "Sk", "Dv"),
    }
    keys |= {"cos": ("Sq", "D"), "sin": ("Sq", "D")}
    for name, dims in keys.items():
        shown = {f"layout.{name}", f"offset.{name}", f"values.{name}"} & set(pins)
        needed = least_sizes(pins[f"layout.{name}"], len(dims)) if f"layout.{name}" in pins else (1,) * len(dims)
        for dim, size in zip(dims, needed, strict=True):
            if shown:
                least[dim] = max(least[dim], size * (2 if name in ("cos", "sin") and dim == "D" else 1))
    if {"tables", "mask", "invalid", "window", "q_offset", "group", "scale", "softcap", "rotation"} & set(pins):
        least = {dim: max(size, low) for (dim, size), low in zip(least.items(), (1, 1, 3, 3, 4, 1), strict=True)}
    return least


def _draw_options(plan: _Plan, sizes: Mapping[str, int], turned: bool) -> dict[str, Any]:
    """Options that differ from their defaults, and a mask that shows what is pinned."""
    draw, keys, rows = plan.draw, sizes["Sk"], sizes["Sq"]
    options: dict[str, Any] = {}
    scale = plan.choose("scale", SCALES if turned else ("one", *SCALES))
    scales = {"one": (1.0,), "power of two": (0.5, 0.125, 2.0), "other": (0.3, 0.0721, 1.7)}
    scales |= {"negative": (-0.25, -0.3), "large": (5.0, 30.0)}
    if scale != "default":
        options["scale"] = draw.choice(scales[scale])
    rich = plan.operation != QK and not {"q_offset", "window"} & set(plan.pins)
    mask = plan.choose("mask", MASKS if rich else MASKS[:3])
    offset = plan.choose("q_offset", OFFSETS)
    window = plan.choose("window", WINDOWS) if plan.operation != QK else "none"
    if "mask" in plan.pins:
        offset = {"full rows": "past the keys", "some hidden": "none"}.get(mask, offset)
        window = {"rows without keys": "past", "only rows without keys": "past", "full rows": "none"}.get(mask, window)
        window = "none" if mask == "none" else window
    elif window != "none" or "q_offset" in plan.pins:
        mask = "some hidden" if window != "none" else mask
    far = {"none": 0, "one": 1, "past the keys": keys + draw.integer(0, 3) + (keys == 0), "far": 1000 + keys}[offset]
    if mask == "some hidden" and "mask" in plan.pins:
        far = 0
    if mask in MASKS[3:] and plan.operation != QK and ("mask" in plan.pins or window == "none"):
        # The last row looks at nothing, or the first does not either.
        options["window"] = draw.integer(1, 2) if mask == MASKS[4] else 2
        far = keys + 2 if mask == MASKS[4] else max(keys + options["window"] - rows, 0)
    elif window != "none" and mask != "none":
        options["window"] = {"one": 1, "some": max(2, min(draw.integer(2, 9), keys - 1)), "all": keys + 1}[window]
    if far:
        options["q_offset"] = far
    if mask != "none":
        options["causal"] = True
    if plan.choose("precision", ("highest", "high")) == "high":
        options["precision"] = "high"
    if plan.operation == QK:
        wanted = plan.choose("out_dtype", ("None", *FLOATS))
        options |= {"out_dtype": wanted} if wanted != "None" else {}
        return options
    cap = plan.choose("softcap", SOFTCAPS)
    if cap != "none":
        options["softcap"] = draw.choice((0.5, 2.0) if cap == "tight" else (5.0, 30.0))
    if plan.choose("return_lse", (True, False)):
        options["return_lse"] = True
    return options


def _draw_shapes(plan: _Plan, sizes: Mapping[str, int], offset: int) -> dict[str, tuple[int, ...]]:
    batch, keys, width = sizes["B"], sizes["Sk"], sizes["D"]
    needed, half = max(offset + sizes["Sq"], keys), width // 2
    laid_out = {"layout.cos", "layout.sin"} & set(plan.pins) and "tables" not in plan.pins
    tables = "exact" if laid_out else plan.choose("tables", TABLES)
    cos: tuple[int, int] = (needed, half)
    if tables == "longer":
        cos = (needed + plan.draw.choice((1, 3, 17)), half)
    elif tables == "one row":
        cos = (1, half)
    elif tables == "one column":
        cos = (needed, 1)
    if any(plan.pins.get(f"layout.{name}") == "odd ones" for name in ("cos", "sin")):
        cos = (1, half)
    sin = cos
    if tables == "cos and sin differ":
        sin = plan.draw.choice(((1, half), (needed, 1), (needed + 1, half), (1, 1)))
        sin = sin if sin != cos else (needed + 1, half)
    shapes: dict[str, tuple[int, ...]] = {"q": (batch, sizes["Hq"], sizes["Sq"], width), "cos": cos, "sin": sin}
    return shapes | {"k": (batch, sizes["Hk"], keys, width), "v": (batch, sizes["Hk"], keys, sizes["Dv"])}


def _draw_values(plan: _Plan, name: str) -> Values:
    kind = plan.choose(f"values.{name}", ("normal", "normal", *DRAWN_VALUES))
    if kind == "constant":
        return Values("constant", 0, (float(plan.draw.choice((1.0, 0.0, -1.0, -0.0, 2.5, 0.1))),))
    return Values(kind, plan.draw.integer(0, 2**16))


def _spoil(draw: Draw, case: Case, what: str) -> Case:
    """Make a valid case invalid in the named way."""
    table = draw.choice(("cos", "sin"))
    q, k, t = case["q"], case["k"], case[table]
    half = q.shape[3] // 2
    options = dict(case.options)
    changes: dict[str, Any] = {
        "negative offset": {"q_offset": -1}, "window without causal": {"window": 3, "causal": False},
        "softcap of zero": {"softcap": 0.0},
    }  # fmt: skip
    if what in changes:
        options |= changes[what]
        options = {key: value for key, value in options.items() if value is not False}
        if what == "softcap of zero" and not options.get("causal"):
            options.pop("window", None)
        return replace(case, options=tuple(sorted(options.items())))
    if what == "mixed devices":
        return case.with_tensor(draw.choice(("q", "k", "cos", "sin")), device="cpu")
    if what == "integer q":
        return case.with_tensor(draw.choice(("q", "k")), dtype="int32")
    if what == "integer cos":
        return case.with_tensor(table, dtype="int64")
    if what == "rank of q":
        return case.with_tensor("q", shape=q.shape[1:], strides=q.strides[1:])
    if what == "rank of cos":
        return case.with_tensor(table, shape=(1, *t.shape), strides=(0, *t.strides))
    if what == "head_dim of k":
        return case.with_tensor("k", shape=(*k.shape[:3], k.shape[3] + 2))
    if what == "batch of k":
        wider = {n: replace(case[n], shape=(q.shape[0] + 1, *case[n].shape[1:])) for n, _ in case.tensors if n in "kv"}
        return case.with_tensors(wider)
    if what == "heads no multiple":
        heads = q.shape[1] + 1
        rest = {n: case[n] for n, _ in case.tensors if n in "kv"}
        many = {n: replace(spec, shape=(q.shape[0], heads, *spec.shape[2:])) for n, spec in rest.items()}
        return case.with_tensors(many)
    if what == "short tables":
        needed = max(options.get("q_offset", 0) + q.shape[2], k.shape[2])
        return case.with_tensor(table, shape=(max(needed - 1, 2), t.shape[1]))
    if what == "wide tables":
        return case.with_tensor(table, shape=(t.shape[0], max(half, 2) + 1))
    if what == "length of v":
        v = case["v"]
        return case.with_tensor("v", shape=(*v.shape[:2], v.shape[2] + 1, v.shape[3]))
    odd = {n: replace(case[n], shape=(*case[n].shape[:3], q.shape[3] + 1)) for n in ("q", "k")}
    return case.with_tensors(odd)


#: Dimensions that belong together: (tensor, dimension, how many of it make one).
_TOGETHER: tuple[tuple[tuple[str, int, int], ...], ...] = (
    (("q", 0, 1), ("k", 0, 1), ("v", 0, 1)),
    (("k", 2, 1), ("v", 2, 1)),
    (("q", 2, 1),),
    (("q", 3, 2), ("k", 3, 2), ("cos", 1, 1), ("sin", 1, 1)),
    (("v", 3, 1),),
)


def simpler(case: Case) -> list[Case]:
    """Cases whose linked dimensions shrink together, with fewer heads, and with options left out."""
    if invalid_kind(case):
        return []
    names = {name for name, _ in case.tensors}
    found = [replace(case, options=tuple(o for o in case.options if o is not option)) for option in case.options]
    (_, heads, _, _), heads_k = case["q"].shape, case["k"].shape[1]
    for new, new_k in ((1, 1), (heads // heads_k, 1), (heads_k, heads_k)) if heads and heads_k else ():
        found.append(_with_sizes(case, {name: {1: new if name == "q" else new_k} for name in names & {"q", "k", "v"}}))
    for members in _TOGETHER:
        present = [member for member in members if member[0] in names]
        if not present:
            continue
        leader, dim, unit = present[0]
        size = case[leader].shape[dim] // unit
        for new in sorted({0, 1, size // 2, size - 1}):
            if 0 <= new < size:
                sizes = {n: {d: new * per} for n, d, per in present if case[n].shape[d] == size * per}
                found.append(_with_sizes(case, sizes))
    return [candidate for candidate in found if candidate != case and not invalid_kind(candidate)]


def _with_sizes(case: Case, sizes: Mapping[str, Mapping[int, int]]) -> Case:
    changed = {}
    for name, dims in sizes.items():
        shape = tuple(dims.get(dim, size) for dim, size in enumerate(case[name].shape))
        changed[name] = replace(case[name], shape=shape)
    return case.with_tensors(changed)
