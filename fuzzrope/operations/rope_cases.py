"""How cases of ``rope`` are drawn.

A drawn case is a handful of named choices. A stratum (:mod:`.rope_strata`) pins some of them; the rest stay
free, as far as they do not undo what is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fuzzrope.case import FLOATS, Case, TensorSpec, Values
from fuzzrope.draw import Draw
from fuzzrope.geometry import arrange, dense, layouts, least_sizes
from fuzzrope.operations.rope_strata import (
    ANGLES,
    DRAWN_VALUES,
    HEADS,
    NAMES,
    RELATIONS,
    TABLES,
    edges,
    invalid_kind,
    usable,
)

MAX_ROWS = 192  # of q and of k, where nothing is pinned: engines may run one program a row
RECIPE_OF = {"cos": "cosines", "sin": "sines"}
MAX_FAR_BATCH = 4  # more batches so far apart would exceed the address space a child may map


def probes() -> tuple[Case, ...]:
    """The benchmark's own shape, and one large enough to show a tile; both plain float32."""
    return tuple(_plain(*sizes) for sizes in ((2, 8, 4, 16), (1, 1, 40, 128)))


def _plain(batch: int, heads: int, seq: int, width: int) -> Case:
    shapes: dict[str, tuple[int, ...]] = {"q": (batch, heads, seq, width), "k": (batch, heads, seq, width)}
    shapes |= {"cos": (seq, width // 2), "sin": (seq, width // 2)}
    specs = [
        (name, TensorSpec("float32", shape, dense(shape), 0, name, Values("normal", seed)))
        for seed, (name, shape) in enumerate(shapes.items())
    ]
    return Case("rope", tuple(specs))


@dataclass
class _Plan:
    """The choices of one drawn case, filled in step by step."""

    draw: Draw
    pins: Mapping[str, Any]

    def choose(self, key: str, choices: tuple[Any, ...]) -> Any:
        """The pinned choice of this key, or a drawn one; the first, plain one is drawn half the time."""
        if key in self.pins:
            return self.pins[key]
        return self.draw.mostly(choices)


def draw_case(draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
    """Draw a case; ``pins`` fixes choices by name, and ``pins["floats"]`` the dtypes to draw from."""
    if "rows" in pins:
        return _plain(1, 1, pins["rows"], 2)
    plan = _Plan(draw, pins)
    sizes = _draw_sizes(plan, usable(blocks))
    relation = plan.choose("relation", RELATIONS)
    relation = "separate" if _needs_own_memory(pins) else relation
    shapes = _draw_shapes(plan, sizes, relation)
    dtypes = _draw_dtypes(plan, relation)
    turned = not {"values.cos", "values.sin"} & set(pins) and plan.choose("angles", ANGLES) == "by position"
    specs: dict[str, TensorSpec] = {}
    for name in NAMES:
        layout = plan.choose(f"layout.{name}", layouts(len(shapes[name])))
        if layout == "far batch" and shapes[name][0] > MAX_FAR_BATCH:
            layout = "contiguous"
        specs[name] = TensorSpec(
            dtype=dtypes[name],
            shape=shapes[name],
            strides=arrange(draw, shapes[name], layout),
            offset=plan.choose(f"offset.{name}", (0, 1, 2, 3, 8)),
            storage=name,
            values=_angles(name, shapes[name]) if turned and name in RECIPE_OF else _draw_values(plan, name),
        )
    if relation == "packed":
        specs["q"], specs["k"] = _packed(specs["q"], specs["k"])
    elif relation == "same tensor":
        specs["k"] = specs["q"]
    case = Case("rope", tuple(specs.items()))
    invalid = pins.get("invalid")
    return _spoil(draw, case, invalid) if invalid else case


def _needs_own_memory(pins: Mapping[str, Any]) -> bool:
    """Whether what is pinned would be lost if k shared q's memory."""
    own = {"layout.k", "layout.q", "offset.k", "offset.q", "values.k", "Hk", "heads", "tables", "invalid"}
    mix = pins.get("dtypes")
    return "relation" not in pins and bool(own & set(pins) or (mix and mix[0] != mix[1]))


def _draw_dtypes(plan: _Plan, relation: str) -> dict[str, str]:
    if "dtypes" in plan.pins:
        mix = plan.pins["dtypes"]
    else:
        floats = tuple(f for f in ("float32", "float16", "float64", "bfloat16") if f in plan.pins.get("floats", FLOATS))
        first = plan.draw.choice(floats)
        mixed = plan.draw.flag()
        mix = tuple(plan.draw.choice(floats) if mixed else first for _ in NAMES)
    dtypes = dict(zip(NAMES, mix, strict=True))
    if relation != "separate":
        dtypes["k"] = dtypes["q"]
    return dtypes


def _draw_sizes(plan: _Plan, blocks: tuple[int, ...]) -> dict[str, int]:
    """B, Hq, S, D; pinned ones as asked, the others small and, together, affordable."""
    small = (1, 2, 3, 4, 5, 7, 0)
    borders = tuple(n for _, n in edges(blocks, 129))
    least = _least(plan.pins)
    kind = plan.pins.get("head_dim")
    widths = {"least": (2,), "greatest": (256,), "power of two": (4, 16, 64), "no power of two": (6, 10, 34, 100)}
    drawn = {
        "B": plan.choose("B", (1, 2, 3, 0)),
        "Hq": plan.choose("Hq", (1, 2, 3, 5, 8, 7, 12, 0)),
        "S": plan.choose("S", small + borders),
        "D": plan.choose("D", widths[kind] if kind else (2, 4, 6, 8, 16, 18, 32, 34, 64, 66, 100, 128, 130, 256, 0)),
    }
    for name, size in drawn.items():
        if isinstance(size, tuple):
            step = 2 if name == "D" else 1
            drawn[name] = size[1] + step * plan.draw.integer(1, 4)
        elif name not in plan.pins:
            drawn[name] = max(size, least[name])
    if plan.pins.get("tables") == "half spreads":
        drawn["D"] = 2
    for name in NAMES:  # a stride is odd where the size is one
        if plan.pins.get(f"layout.{name}") == "odd ones":
            drawn["B" if name in "qk" else "S"] = 1
    for name in ("B", "Hq", "S"):
        others = drawn["B"] * drawn["Hq"] * drawn["S"] // max(drawn[name], 1)
        if name not in plan.pins and others * drawn[name] > MAX_ROWS:
            drawn[name] = max(min(drawn[name], MAX_ROWS // max(others, 1)), least[name], 1)
    return drawn


def _least(pins: Mapping[str, Any]) -> dict[str, int]:
    """Sizes that the pinned choices need in order to show."""
    least = {"B": 0, "Hq": 0, "S": 0, "D": 0}
    for name in NAMES:
        layout = pins.get(f"layout.{name}")
        keys = ("B", "Hq", "S", "D") if name in "qk" else ("S", "D")
        if layout:
            needed = least_sizes(layout, len(keys))
            scale = 1 if name in "qk" else 2
            for key, size in zip(keys, needed, strict=True):
                least[key] = max(least[key], size * (scale if key == "D" else 1))
            least = {key: max(size, 2 if key == "D" else 1) for key, size in least.items()}
        if {f"offset.{name}", f"values.{name}"} & set(pins):
            least = {key: max(size, 2 if key == "D" else 1) for key, size in least.items()}
    if "angles" in pins:
        least = {"B": 1, "Hq": 1, "S": 1, "D": 2}
    if pins.get("relation") in RELATIONS[1:] or "tables" in pins or "heads" in pins or "invalid" in pins:
        least = {"B": 1, "Hq": 2, "S": 3, "D": 4}
    if "head_dim" in pins:
        least["D"] = 2
    return least


def _draw_shapes(plan: _Plan, sizes: Mapping[str, int], relation: str) -> dict[str, tuple[int, ...]]:
    batch, heads, seq, width = sizes["B"], sizes["Hq"], sizes["S"], sizes["D"]
    pins = plan.pins
    kind = plan.choose("heads", HEADS) if relation == "separate" or "heads" in pins else "equal"
    batch_k, heads_k, seq_k = batch, heads, seq
    if kind == "fewer for k":
        heads_k = max(heads // plan.draw.choice((2, 4, heads)), 1) if heads > 1 else 1
    elif kind == "more for k":
        heads_k = heads + 1
    elif kind == "other batch":
        batch_k = 1 if batch > 1 else batch + 1
    if "Hk" in pins:
        heads_k = pins["Hk"] if isinstance(pins["Hk"], int) else pins["Hk"][1] + plan.draw.integer(1, 4)
        heads_k = heads if relation == "same tensor" else heads_k
    if "layout.k" in pins:
        need = least_sizes(pins["layout.k"], 4)
        batch_k, heads_k = max(batch, need[0]), max(heads_k, need[1])
    # A free choice of tables must not take away a dimension that a pinned layout of theirs needs.
    laid_out = {"layout.cos", "layout.sin", "layout.k"} & set(pins) and "tables" not in pins
    tables = "exact" if laid_out else plan.choose("tables", TABLES)
    if tables == "k of one row" and (relation == "separate" or "tables" in pins):
        seq_k = 1
    rows, half = seq, width // 2
    cos: tuple[int, int] = (rows, half)
    if tables == "longer":
        cos = (rows + plan.draw.choice((1, 2, 3, 17, 64, 3 * rows + 1)), half)
    elif tables == "one row":
        cos = (1, half)
    elif tables == "one column":
        cos = (rows, 1)
    elif tables == "half spreads" and half == 1:
        cos = (rows, plan.draw.choice((2, 3, 17, 65)))
    sin = cos
    if tables == "cos and sin differ":
        sin = plan.draw.choice(((1, half), (rows, 1), (rows + 1, half), (1, 1)))
    return {"q": (batch, heads, seq, width), "k": (batch_k, heads_k, seq_k, width), "cos": cos, "sin": sin}


def _draw_values(plan: _Plan, name: str) -> Values:
    kind = plan.choose(f"values.{name}", DRAWN_VALUES)
    if kind == "constant":
        return Values("constant", 0, (float(plan.draw.choice((1.0, 0.0, -1.0, -0.0, 2.5, 0.1))),))
    return Values(kind, plan.draw.integer(0, 2**16))


def _angles(name: str, shape: tuple[int, ...]) -> Values:
    """A table of cosines or sines; the seed of such a recipe is its number of columns."""
    return Values(RECIPE_OF[name], shape[1])


def _packed(q: TensorSpec, k: TensorSpec) -> tuple[TensorSpec, TensorSpec]:
    """q and k as head ranges of one (B, S, heads, D) buffer, as a fused projection leaves them."""
    (batch, heads, seq, width), heads_k = q.shape, k.shape[1]
    pitch = (heads + heads_k) * width
    strides = (seq * pitch, width, pitch, 1)
    packed_q = replace(q, strides=strides, storage="qk")
    shape_k = (batch, heads_k, seq, width)
    return packed_q, replace(k, shape=shape_k, strides=strides, offset=q.offset + heads * width, storage="qk")


def _spoil(draw: Draw, case: Case, what: str) -> Case:
    """Make a valid case invalid in the named way."""
    name = draw.choice(("q", "k"))
    table = draw.choice(("cos", "sin"))
    x, t = case[name], case[table]
    if what == "mixed devices":
        return case.with_tensor(draw.choice(NAMES), device="cpu")
    if what == "integer q":
        return case.with_tensor(name, dtype=draw.choice(("int32", "int64")))
    if what == "integer cos":
        return case.with_tensor(table, dtype=draw.choice(("int32", "int64")))
    if what == "rank of q":
        return case.with_tensor(name, shape=x.shape[1:], strides=x.strides[1:])
    if what == "rank of cos":
        return case.with_tensor(table, shape=(1, *t.shape), strides=(0, *t.strides))
    if what == "head_dim of k":
        return case.with_tensor("k", shape=(*case["k"].shape[:3], case["k"].shape[3] + 2))
    if what == "no broadcast":
        return case.with_tensor(table, shape=(t.shape[0], max(case["q"].shape[3] // 2, 2) + 1))
    odd = {n: replace(case[n], shape=(*case[n].shape[:3], case["q"].shape[3] + 1)) for n in ("q", "k")}
    return case.with_tensors(odd)


#: Dimensions that belong together: (tensor, dimension, how many of it make one).
_TOGETHER: dict[str, tuple[tuple[str, int, int], ...]] = {
    "B": (("q", 0, 1), ("k", 0, 1)),
    "H": (("q", 1, 1), ("k", 1, 1)),
    "S": (("q", 2, 1), ("k", 2, 1), ("cos", 0, 1), ("sin", 0, 1)),
    "D": (("q", 3, 2), ("k", 3, 2), ("cos", 1, 1), ("sin", 1, 1)),
}


def simpler(case: Case) -> list[Case]:
    """Cases whose linked dimensions shrink together: to one, by half, by one."""
    if invalid_kind(case):
        return []
    found = []
    for members in _TOGETHER.values():
        leader, dim, unit = members[0]
        size = case[leader].shape[dim] // unit
        for new in sorted({0, 1, size // 2, size - 1}):
            if not 0 <= new < size:
                continue
            changed: dict[str, TensorSpec] = {}
            for name, d, per in members:
                spec = changed.get(name, case[name])
                if spec.shape[d] >= size * per and len(spec.shape) > d:
                    left = spec.shape[d] - (size - new) * per
                    changed[name] = replace(spec, shape=(*spec.shape[:d], left, *spec.shape[d + 1 :]))
            found.append(case.with_tensors(changed))
    return [candidate for candidate in found if not invalid_kind(candidate)]
