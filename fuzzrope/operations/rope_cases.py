"""How cases of ``rope`` are drawn, and which strata a campaign over it promises to visit.

A drawn case is a handful of named choices. A stratum pins some of them; the rest stay free. What a
finished case counts for is decided by :func:`classify` from the case alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from fuzzrope.case import FLOATS, Case, TensorSpec, Values
from fuzzrope.geometry import arrange, dense, layouts, least_sizes, misaligned, traits
from fuzzrope.operations.base import Draw, Stratum

NAMES = ("q", "k", "cos", "sin")
SIZES = ("B", "Hq", "Hk", "S", "D")
MAX_HEAD_DIM = 256
MAX_BLOCK = 128  # edges of larger blocks would need more rows than a CPU engine runs in seconds
MAX_ROWS = 192  # of q and of k, where nothing is pinned: engines may run one program a row
MAX_FAR_BATCH = 4  # more batches so far apart would exceed the address space a child may map
DRAWN_VALUES = ("normal", "wide", "tiny", "subnormal", "zeros", "infs", "nans", "powers", "constant")
RELATIONS = ("separate", "packed", "same tensor")
HEADS = ("equal", "fewer for k", "more for k", "other batch")
TABLES = (
    "exact",
    "longer",
    "one row",
    "one column",
    "cos and sin differ",
    "k of one row",
    "half spreads",
)
INVALID = (
    "odd head_dim",
    "head_dim of k",
    "rank of q",
    "rank of cos",
    "integer q",
    "integer cos",
    "mixed devices",
    "no broadcast",
)
HEAD_DIMS = ("least", "greatest", "power of two", "no power of two")


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


def _stratum(group: str, member: Any, **pins: Any) -> Stratum:
    return Stratum(f"{group}: {member}", tuple((key.replace("_", "."), value) for key, value in pins.items()))


def _edges(blocks: tuple[int, ...], limit: int) -> Iterator[tuple[str, int]]:
    """(name, size) of n*BLOCK-1, n*BLOCK, n*BLOCK+1 for one and two blocks, sizes up to ``limit``."""
    for block in blocks:
        for count, off in itertools.product((1, 2), (-1, 0, 1)):
            if count * block + off <= limit:
                yield f"{count}*{block}{off:+d}" if off else f"{count}*{block}", count * block + off


def _usable(blocks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({block for block in blocks if 1 < block <= MAX_BLOCK}))


def strata(blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
    """Every stratum of ``rope`` for these block sizes."""
    blocks = _usable(blocks)
    found = [_stratum("dtype mix", " ".join(mix), dtypes=mix) for mix in itertools.product(FLOATS, repeat=4)]
    for name in SIZES:
        found += [_stratum(f"size of {name}", n, **{name: n}) for n in ((0, 2) if name == "D" else (0, 1, 2))]
        if name == "D":
            found += [_stratum("edge of D/2", edge, D=2 * n) for edge, n in _edges(blocks, MAX_HEAD_DIM // 2)]
        else:
            found += [_stratum(f"edge of {name}", edge, **{name: n}) for edge, n in _edges(blocks, 10**6)]
        found += [
            _stratum(f"beyond two blocks in {name}", f"2*{block}", **{name: ("beyond", 2 * block)})
            for block in blocks
            if name != "D" or 2 * block < MAX_HEAD_DIM
        ]
    found += [_stratum("head_dim", kind, head_dim=kind) for kind in HEAD_DIMS]
    for name in NAMES:
        rank = 4 if name in "qk" else 2
        found += [_stratum(f"layout of {name}", layout, **{f"layout_{name}": layout}) for layout in layouts(rank)]
        found += [_stratum("misaligned", name, **{f"offset_{name}": 1})]
        found += [_stratum(f"values of {name}", v, **{f"values_{name}": v}) for v in DRAWN_VALUES]
    found += [_stratum("memory of q and k", relation, relation=relation) for relation in RELATIONS]
    found += [_stratum("heads", heads, heads=heads) for heads in HEADS]
    found += [_stratum("tables", tables, tables=tables) for tables in TABLES]
    found += [_stratum("invalid", what, invalid=what) for what in INVALID]
    return tuple(found)


def classify(case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
    """The strata that this case lies in."""
    invalid = _invalid_kind(case)
    if invalid:
        return frozenset({f"invalid: {invalid}"})
    q, k, cos, sin = (case[name] for name in NAMES)
    (batch, heads, seq, width), (batch_k, heads_k, seq_k, _) = q.shape, k.shape
    found = {"dtype mix: " + " ".join(case[name].dtype for name in NAMES)}
    sizes = {"B": {batch}, "Hq": {heads}, "Hk": {heads_k}, "S": {seq}, "D": {width}}
    blocks = _usable(blocks)
    for name, here in sizes.items():
        found |= {f"size of {name}: {n}" for n in here}
        shown = {n // 2 for n in here} if name == "D" else here
        label = "D/2" if name == "D" else name
        found |= {f"edge of {label}: {edge}" for edge, n in _edges(blocks, 10**6) if n in shown}
        found |= {f"beyond two blocks in {name}: 2*{b}" for b in blocks if max(here) > 2 * b}
    if width:
        found.add(f"head_dim: {'power of two' if width & (width - 1) == 0 else 'no power of two'}")
    if width in (2, MAX_HEAD_DIM):
        found.add(f"head_dim: {'least' if width == 2 else 'greatest'}")
    for name in NAMES:
        spec = case[name]
        found |= {f"layout of {name}: {trait}" for trait in traits(spec)}
        if misaligned(spec):
            found.add(f"misaligned: {name}")
        if spec.numel:
            found.add(f"values of {name}: {spec.values.kind}")
    if q == k:
        found.add("memory of q and k: same tensor")
    else:
        found.add(f"memory of q and k: {'packed' if q.storage == k.storage else 'separate'}")
    if batch != batch_k:
        found.add("heads: other batch")
    found.add(f"heads: {'equal' if heads == heads_k else 'fewer for k' if heads > heads_k else 'more for k'}")
    found |= {f"tables: {kind}" for kind in _table_kinds(seq, seq_k, width // 2, cos, sin)}
    return frozenset(found)


def _table_kinds(seq: int, seq_k: int, half: int, cos: TensorSpec, sin: TensorSpec) -> Iterator[str]:
    if cos.shape == sin.shape == (seq, half):
        yield "exact"
    if seq and cos.shape[0] > seq and sin.shape[0] > seq:
        yield "longer"
    if seq > 1 and cos.shape[0] == sin.shape[0] == 1:
        yield "one row"
    if half > 1 and cos.shape[1] == sin.shape[1] == 1:
        yield "one column"
    if cos.shape != sin.shape:
        yield "cos and sin differ"
    if seq > 1 and seq_k == 1:
        yield "k of one row"
    if half == 1 and max(cos.shape[1], sin.shape[1]) > 1:
        yield "half spreads"


def _invalid_kind(case: Case) -> str | None:
    """Which member of ``INVALID`` a case is, or None for a valid one."""
    q, k, cos, sin = (case[name] for name in NAMES)
    if len({spec.device for _, spec in case.tensors}) > 1:
        return "mixed devices"
    if q.dtype not in FLOATS or k.dtype not in FLOATS:
        return "integer q"
    if cos.dtype not in FLOATS or sin.dtype not in FLOATS:
        return "integer cos"
    if len(q.shape) != 4 or len(k.shape) != 4:
        return "rank of q"
    if len(cos.shape) != 2 or len(sin.shape) != 2:
        return "rank of cos"
    if q.shape[3] % 2:
        return "odd head_dim"
    if q.shape[3] != k.shape[3]:
        return "head_dim of k"
    rows = min(cos.shape[0], q.shape[2]), min(sin.shape[0], q.shape[2])
    fits_rows = len({q.shape[2], *rows} - {1}) <= 1 and len({k.shape[2], *rows} - {1}) <= 1
    fits_columns = len({q.shape[3] // 2, cos.shape[1], sin.shape[1]} - {1}) <= 1
    return None if fits_rows and fits_columns else "no broadcast"


@dataclass
class _Plan:
    """The choices of one drawn case, filled in step by step."""

    draw: Draw
    pins: Mapping[str, Any]

    def pick(self, key: str, strategy: Any) -> Any:
        """The pinned choice of this key, or a drawn one."""
        return self.pins[key] if key in self.pins else self.draw(strategy)

    def choose(self, key: str, choices: tuple[Any, ...]) -> Any:
        """Like :meth:`pick` among alternatives, of which the first, plain one is drawn half the time."""
        if key in self.pins:
            return self.pins[key]
        return self.draw(st.sampled_from(choices)) if self.draw(st.booleans()) else choices[0]


def draw_case(draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
    """Draw a case; ``pins`` fixes choices by name, and ``pins["floats"]`` the dtypes to draw from."""
    plan = _Plan(draw, pins)
    sizes = _draw_sizes(plan, _usable(blocks))
    relation = plan.choose("relation", RELATIONS)
    relation = "separate" if _needs_own_memory(pins) else relation
    shapes = _draw_shapes(plan, sizes, relation)
    dtypes = _draw_dtypes(plan, relation)
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
            values=_draw_values(plan, name),
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
        first = plan.draw(st.sampled_from(floats))
        mixed = plan.draw(st.booleans())
        mix = tuple(plan.draw(st.sampled_from(floats)) if mixed else first for _ in NAMES)
    dtypes = dict(zip(NAMES, mix, strict=True))
    if relation != "separate":
        dtypes["k"] = dtypes["q"]
    return dtypes


def _draw_sizes(plan: _Plan, blocks: tuple[int, ...]) -> dict[str, int]:
    """B, Hq, S, D; pinned ones as asked, the others small and, together, affordable."""
    small = (1, 2, 3, 4, 5, 7, 0)
    edges = tuple(n for _, n in _edges(blocks, 129))
    least = _least(plan.pins)
    kind = plan.pins.get("head_dim")
    widths = {"least": (2,), "greatest": (256,), "power of two": (4, 16, 64), "no power of two": (6, 10, 34, 100)}
    drawn = {
        "B": plan.choose("B", (1, 2, 3, 0)),
        "Hq": plan.choose("Hq", (1, 2, 3, 5, 0)),
        "S": plan.choose("S", small + edges),
        "D": plan.choose("D", widths[kind] if kind else (2, 4, 6, 8, 16, 18, 32, 34, 64, 66, 100, 128, 130, 256, 0)),
    }
    for name, size in drawn.items():
        if isinstance(size, tuple):
            step = 2 if name == "D" else 1
            drawn[name] = size[1] + step * plan.draw(st.integers(1, 4))
        elif name not in plan.pins:
            drawn[name] = max(size, least[name])
    if plan.pins.get("tables") == "half spreads":
        drawn["D"] = 2
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
        heads_k = max(heads // 2, 1) if heads != 1 else 1
    elif kind == "more for k":
        heads_k = heads + 1
    elif kind == "other batch":
        batch_k = 1 if batch > 1 else batch + 1
    if "Hk" in pins:
        heads_k = pins["Hk"] if isinstance(pins["Hk"], int) else pins["Hk"][1] + plan.draw(st.integers(1, 4))
        heads_k = heads if relation == "same tensor" else heads_k
    if f"layout.{'k'}" in pins:
        need = least_sizes(pins["layout.k"], 4)
        batch_k, heads_k = max(batch_k, need[0]), max(heads_k, need[1])
    tables = plan.choose("tables", TABLES)
    if tables == "k of one row" and (relation == "separate" or "tables" in pins):
        seq_k = 1
    rows, half = seq, width // 2
    cos: tuple[int, int] = (rows, half)
    if tables == "longer":
        cos = (rows + plan.draw(st.integers(1, 4)), half)
    elif tables == "one row":
        cos = (1, half)
    elif tables == "one column":
        cos = (rows, 1)
    elif tables == "half spreads" and half == 1:
        cos = (rows, plan.draw(st.sampled_from((2, 3, 17, 65))))
    sin = cos
    if tables == "cos and sin differ":
        sin = plan.draw(st.sampled_from(((1, half), (rows, 1), (rows + 1, half), (1, 1))))
    return {"q": (batch, heads, seq, width), "k": (batch_k, heads_k, seq_k, width), "cos": cos, "sin": sin}


def _draw_values(plan: _Plan, name: str) -> Values:
    kind = plan.choose(f"values.{name}", DRAWN_VALUES)
    if kind == "constant":
        return Values("constant", 0, (float(plan.draw(st.sampled_from((1.0, 0.0, -1.0, -0.0, 2.5, 0.1)))),))
    return Values(kind, plan.draw(st.integers(0, 2**16)))


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
    name = draw(st.sampled_from(("q", "k")))
    table = draw(st.sampled_from(("cos", "sin")))
    x, t = case[name], case[table]
    if what == "mixed devices":
        return case.with_tensor(draw(st.sampled_from(NAMES)), device="cpu")
    if what == "integer q":
        return case.with_tensor(name, dtype=draw(st.sampled_from(("int32", "int64"))))
    if what == "integer cos":
        return case.with_tensor(table, dtype=draw(st.sampled_from(("int32", "int64"))))
    if what == "rank of q":
        return case.with_tensor(name, shape=x.shape[1:], strides=x.strides[1:])
    if what == "rank of cos":
        return case.with_tensor(table, shape=(1, *t.shape), strides=(0, *t.strides))
    if what == "head_dim of k":
        return case.with_tensor("k", shape=(*case["k"].shape[:3], case["k"].shape[3] + 2))
    if what == "no broadcast":
        return case.with_tensor(table, shape=(t.shape[0], t.shape[1] + 1), strides=t.strides)
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
    if _invalid_kind(case):
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
    return found
