"""Which strata campaigns over ``rope_qk`` and ``rope_attention`` promise, and which a finished case lies in.

The first is a list of names with the choices that force them; the second looks at the finished case alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from fuzzrope.case import FLOATS, Case, TensorSpec
from fuzzrope.geometry import layouts, misaligned, traits
from fuzzrope.operations import fused
from fuzzrope.operations.base import Stratum
from fuzzrope.operations.rope_strata import DRAWN_VALUES, edges, usable

QK = "rope_qk"
MAX_EDGE = 70  # rows and keys beyond which a CPU engine takes too long
MANY = 256  # keys beyond which they are many: sums are long, and kernels share the keys of a row among programs
LENGTHS = ("few keys", "few keys", "few keys", "many keys")
WIDTHS = (2, 4, 16, 18, 30, 32, 34, 64, 66, 100, 128, 130, 256)
VALUE_WIDTHS = (0, 1, 2, 16, 17, 33, 64, 130)
GROUPS = (1, 2, 3, 5)
TABLES = ("exact", "longer", "one row", "one column", "cos and sin differ")
ROTATIONS = ("drawn", "none")
SCALES = ("default", "one", "power of two", "other", "negative", "large")
OFFSETS = ("none", "one", "past the keys", "far")
WINDOWS = ("none", "one", "some", "all")
SOFTCAPS = ("none", "tight", "loose")
MASKS = ("none", "full rows", "some hidden", "rows without keys", "only rows without keys")
INVALID = (
    "odd head_dim", "head_dim of k", "rank of q", "rank of cos", "integer q", "integer cos", "mixed devices",
    "short tables", "wide tables", "heads no multiple", "batch of k", "negative offset",
)  # fmt: skip
INVALID_V = ("length of v", "window without causal", "softcap of zero")


def names_of(operation: str) -> tuple[str, ...]:
    """The inputs of the operation."""
    return ("q", "k", "cos", "sin") if operation == QK else ("q", "k", "v", "cos", "sin")


def _stratum(title: str, member: Any, **pins: Any) -> Stratum:
    return Stratum(f"{title}: {member}", tuple(pins.items()))


@lru_cache
def mixes(operation: str) -> tuple[tuple[str, ...], ...]:
    """Dtypes of the inputs: rows of one type with tables of each, and some where the rows differ too."""
    count = len(names_of(operation)) - 2
    plain = [(x,) * count + (table,) * 2 for x in FLOATS for table in FLOATS]
    three = [("float16", "float32"), ("bfloat16", "float16"), ("float32", "float64"), ("bfloat16", "float32")]
    last = [(q, *(k,) * (count - 1), q, k) for q, k in three]
    values = [(q,) * (count - 1) + (v, q, q) for q, v in three for q, v in ((q, v), (v, q))] if count == 3 else []
    return tuple(dict.fromkeys([*plain, *last, *values]))


def strata(operation: str, blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
    """Every stratum of the operation for these block sizes."""
    names, attention = names_of(operation), operation != QK
    found = [_stratum("dtype mix", " ".join(mix), dtypes=mix) for mix in mixes(operation)]
    for name in ("B", "Hq", "Sq", "Sk"):
        found += [_stratum(f"size of {name}", n, **{name: n}) for n in (0, 1, 2)]
    for name in ("Sq", "Sk"):
        found += [_stratum(f"edge of {name}", e, **{name: n}) for e, n in edges(usable(blocks), MAX_EDGE)]
    found += [_stratum("number of keys", "many", length=LENGTHS[-1])]
    found += [_stratum("size of D", n, D=n) for n in WIDTHS]
    found += [_stratum("heads of q for one of k", n, group=n) for n in GROUPS]
    for name in names:
        rank = 2 if name in ("cos", "sin") else 4
        found += [_stratum(f"layout of {name}", layout, **{f"layout.{name}": layout}) for layout in layouts(rank)]
        found += [_stratum("misaligned", name, **{f"offset.{name}": 1})]
        found += [_stratum(f"values of {name}", v, **{f"values.{name}": v}) for v in DRAWN_VALUES]
    found += [_stratum("tables", tables, tables=tables) for tables in TABLES]
    found += [_stratum("rotation", ROTATIONS[1], rotation=ROTATIONS[1])]
    found += [_stratum("scale", scale, scale=scale) for scale in SCALES]
    found += [_stratum("q_offset", offset, q_offset=offset) for offset in OFFSETS]
    single = ("float32",) * len(names)
    found += [_stratum("precision of float32", p, precision=p, dtypes=single) for p in ("highest", "high")]
    if attention:
        found += [_stratum("size of Dv", n, Dv=n) for n in VALUE_WIDTHS]
        found += [_stratum("window", window, window=window) for window in WINDOWS]
        found += [_stratum("softcap", cap, softcap=cap) for cap in SOFTCAPS]
        found += [_stratum("results", kind, return_lse=kind == "o and lse") for kind in ("o", "o and lse")]
        found += [_stratum("mask", mask, mask=mask) for mask in MASKS]
    else:
        found += [_stratum("out_dtype", name, out_dtype=name) for name in ("None", *FLOATS)]
        found += [_stratum("mask", mask, mask=mask) for mask in MASKS[:3]]
    found += [_stratum("invalid", what, invalid=what) for what in (*INVALID, *(INVALID_V if attention else ()))]
    return tuple(found)


def classify(case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
    """The strata that this case lies in."""
    invalid = invalid_kind(case)
    if invalid:
        return frozenset({f"invalid: {invalid}"})
    return frozenset(_shapes(case, usable(blocks))) | frozenset(_options(case))


def _shapes(case: Case, blocks: tuple[int, ...]) -> Iterator[str]:
    names = tuple(name for name, _ in case.tensors)
    (batch, heads, rows, width), (_, heads_k, keys, _) = case["q"].shape, case["k"].shape
    yield "dtype mix: " + " ".join(case[name].dtype for name in names)
    sizes = {"B": batch, "Hq": heads, "Sq": rows, "Sk": keys, "D": width}
    if "v" in names:
        sizes["Dv"] = case["v"].shape[3]
    for name, size in sizes.items():
        yield f"size of {name}: {size}"
    for name in ("Sq", "Sk"):
        yield from (f"edge of {name}: {edge}" for edge, n in edges(blocks, MAX_EDGE) if n == sizes[name])
    if rows and keys > MANY:
        yield "number of keys: many"
    if heads_k and heads:
        yield f"heads of q for one of k: {heads // heads_k}"
    for name in names:
        spec = case[name]
        yield from (f"layout of {name}: {trait}" for trait in traits(spec))
        if misaligned(spec):
            yield f"misaligned: {name}"
        if spec.numel:
            yield f"values of {name}: {spec.values.kind}"
    ones, zeros = (case[name].values for name in ("cos", "sin"))
    if (ones.kind, ones.data, zeros.kind) == ("constant", (1.0,), "constant") and zeros.data == (0.0,):
        yield f"rotation: {ROTATIONS[1]}"
    needed = max(dict(case.options).get("q_offset", 0) + rows, keys)
    yield from (f"tables: {kind}" for kind in _table_kinds(needed, case["cos"], case["sin"], width // 2))


def _table_kinds(needed: int, cos: TensorSpec, sin: TensorSpec, half: int) -> Iterator[str]:
    if cos.shape == sin.shape == (needed, half):
        yield "exact"
    if needed and min(cos.shape[0], sin.shape[0]) > needed:
        yield "longer"
    if needed > 1 and cos.shape[0] == sin.shape[0] == 1:
        yield "one row"
    if half > 1 and cos.shape[1] == sin.shape[1] == 1:
        yield "one column"
    if cos.shape != sin.shape:
        yield "cos and sin differ"


def _options(case: Case) -> Iterator[str]:
    options = dict(case.options)
    rows, keys = case["q"].shape[2], case["k"].shape[2]
    yield f"scale: {_scale_kind(options.get('scale'))}"
    offset = options.get("q_offset", 0)
    if offset in (0, 1):
        yield f"q_offset: {OFFSETS[offset]}"
    if offset > 1 and offset >= keys:
        yield "q_offset: past the keys"
    if offset >= 1000:
        yield "q_offset: far"
    if all(spec.dtype == "float32" for _, spec in case.tensors):
        yield f"precision of float32: {options.get('precision', 'highest')}"
    if case.operation == QK:
        yield f"out_dtype: {options.get('out_dtype')}"
    else:
        window, cap = options.get("window"), options.get("softcap")
        yield f"window: {'none' if window is None else 'one' if window == 1 else 'all' if window >= keys else 'some'}"
        yield f"softcap: {'none' if cap is None else 'tight' if cap <= 2 else 'loose'}"
        yield f"results: {'o and lse' if options.get('return_lse') else 'o'}"
    if rows and keys:
        yield from (f"mask: {kind}" for kind in _mask_kinds(fused.visible(options, rows, keys), options))


def _scale_kind(scale: float | None) -> str:
    if scale is None:
        return "default"
    if scale < 0:
        return "negative"
    if scale == 1:
        return "one"
    return "large" if scale > 4 else "power of two" if math.frexp(scale)[0] == 0.5 else "other"


def _mask_kinds(seen: np.ndarray, options: dict[str, Any]) -> Iterator[str]:
    if not options.get("causal", False):
        yield "none"
        return
    if seen.all(axis=1).any():
        yield "full rows"
    if (seen.any(axis=1) & ~seen.all(axis=1)).any():
        yield "some hidden"
    if not seen.any(axis=1).all():
        yield "rows without keys" if seen.any() else "only rows without keys"


def invalid_kind(case: Case) -> str | None:
    """Which member of ``INVALID`` or ``INVALID_V`` a case is, or None for a valid one."""
    q, k, cos, sin = (case[name] for name in ("q", "k", "cos", "sin"))
    options = dict(case.options)
    if len({spec.device for _, spec in case.tensors}) > 1:
        return "mixed devices"
    if any(spec.dtype not in FLOATS for spec in (cos, sin)):
        return "integer cos"
    if any(spec.dtype not in FLOATS for _, spec in case.tensors):
        return "integer q"
    if any(len(spec.shape) != 4 for name, spec in case.tensors if name not in ("cos", "sin")):
        return "rank of q"
    if len(cos.shape) != 2 or len(sin.shape) != 2:
        return "rank of cos"
    (batch, heads, rows, width), (batch_k, heads_k, keys, width_k) = q.shape, k.shape
    offset, half = options.get("q_offset", 0), width // 2
    if offset < 0:
        return "negative offset"
    needed = max(offset + rows, keys)
    kinds = (
        ("odd head_dim", width % 2 != 0 or not width),
        ("head_dim of k", width != width_k),
        ("batch of k", batch != batch_k),
        ("heads no multiple", heads % heads_k != 0 if heads_k else heads > 0),
        ("short tables", any(t.shape[0] < needed and t.shape[0] != 1 for t in (cos, sin))),
        ("wide tables", any(t.shape[1] not in (half, 1) for t in (cos, sin))),
    )
    for kind, holds in kinds:
        if holds:
            return kind
    if case.operation == QK:
        return None
    if case["v"].shape[:3] != k.shape[:3]:
        return "length of v"
    if options.get("softcap") == 0:
        return "softcap of zero"
    return "window without causal" if options.get("window") is not None and not options.get("causal") else None
