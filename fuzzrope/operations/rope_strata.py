"""Which strata a campaign over ``rope`` promises to visit, and which of them a finished case lies in.

The first is a list of names with the choices that force them; the second looks at geometry and values
alone, so a mistake in drawing shows as a stratum that is never reached.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from fuzzrope.case import FLOATS, Case, TensorSpec
from fuzzrope.geometry import layouts, misaligned, traits
from fuzzrope.operations.base import Stratum

NAMES = ("q", "k", "cos", "sin")
SIZES = ("B", "Hq", "Hk", "S", "D")
MAX_HEAD_DIM = 256
MAX_BLOCK = 128  # edges of larger blocks would need more rows than a CPU engine runs in seconds
DRAWN_VALUES = ("normal", "wide", "tiny", "subnormal", "zeros", "infs", "nans", "powers", "constant")
ANGLES = ("any", "any", "any", "by position")  # of tables; the last are cosines and sines as models have them
LONG_ROWS = 2**16  # one more than hardware launches along a grid's second axis
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


def _stratum(group: str, member: Any, **pins: Any) -> Stratum:
    return Stratum(f"{group}: {member}", tuple(pins.items()))


@lru_cache
def edges(blocks: tuple[int, ...], limit: int) -> tuple[tuple[str, int], ...]:
    """(name, size) of n*BLOCK-1, n*BLOCK, n*BLOCK+1 for one and two blocks, sizes up to ``limit``."""
    return tuple(
        (f"{count}*{block}{off:+d}" if off else f"{count}*{block}", count * block + off)
        for block, count, off in itertools.product(blocks, (1, 2), (-1, 0, 1))
        if count * block + off <= limit
    )


@lru_cache
def usable(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """The block sizes whose edges a CPU engine can afford."""
    return tuple(sorted({block for block in blocks if 1 < block <= MAX_BLOCK}))


def strata(blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
    """Every stratum of ``rope`` for these block sizes."""
    blocks = usable(blocks)
    found = [_stratum("dtype mix", " ".join(mix), dtypes=mix) for mix in itertools.product(FLOATS, repeat=4)]
    # Always one case, and a forward pass: it costs as much as some twenty others.
    found += [_stratum("long sequence", f"{LONG_ROWS} rows", rows=LONG_ROWS, gradients="")]
    for name in SIZES:
        found += [_stratum(f"size of {name}", n, **{name: n}) for n in ((0, 2) if name == "D" else (0, 1, 2))]
        if name == "D":
            found += [_stratum("edge of D/2", edge, D=2 * n) for edge, n in edges(blocks, MAX_HEAD_DIM // 2)]
        else:
            found += [_stratum(f"edge of {name}", edge, **{name: n}) for edge, n in edges(blocks, 10**6)]
        found += [
            _stratum(f"beyond two blocks in {name}", f"2*{block}", **{name: ("beyond", 2 * block)})
            for block in blocks
            if name != "D" or 2 * block < MAX_HEAD_DIM
        ]
    found += [_stratum("head_dim", kind, head_dim=kind) for kind in HEAD_DIMS]
    for name in NAMES:
        rank = 4 if name in "qk" else 2
        found += [_stratum(f"layout of {name}", layout, **{f"layout.{name}": layout}) for layout in layouts(rank)]
        found += [_stratum("misaligned", name, **{f"offset.{name}": 1})]
        found += [_stratum(f"values of {name}", v, **{f"values.{name}": v}) for v in DRAWN_VALUES]
    found += [_stratum("tables of angles", "by position", angles="by position")]
    found += [_stratum("memory of q and k", relation, relation=relation) for relation in RELATIONS]
    found += [_stratum("heads", heads, heads=heads) for heads in HEADS]
    found += [_stratum("tables", tables, tables=tables) for tables in TABLES]
    found += [_stratum("invalid", what, invalid=what) for what in INVALID]
    return tuple(found)


def classify(case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
    """The strata that this case lies in."""
    invalid = invalid_kind(case)
    if invalid:
        return frozenset({f"invalid: {invalid}"})
    q, k, cos, sin = (case[name] for name in NAMES)
    (batch, heads, seq, width), (batch_k, heads_k, seq_k, _) = q.shape, k.shape
    found = {"dtype mix: " + " ".join(case[name].dtype for name in NAMES)}
    blocks = usable(blocks)
    for name, size in zip(SIZES, (batch, heads, heads_k, seq, width), strict=True):
        found |= _of_size(name, size, blocks)
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
    if cos.numel and sin.numel and (cos.values.kind, sin.values.kind) == ("cosines", "sines"):
        found.add("tables of angles: by position")
    if batch and heads and width and seq >= LONG_ROWS:
        found.add(f"long sequence: {LONG_ROWS} rows")
    if q == k:
        found.add("memory of q and k: same tensor")
    else:
        found.add(f"memory of q and k: {'packed' if q.storage == k.storage else 'separate'}")
    if batch != batch_k:
        found.add("heads: other batch")
    found.add(f"heads: {'equal' if heads == heads_k else 'fewer for k' if heads > heads_k else 'more for k'}")
    found |= {f"tables: {kind}" for kind in _table_kinds(seq, seq_k, width // 2, cos, sin)}
    return frozenset(found)


@lru_cache(4096)
def _of_size(name: str, size: int, blocks: tuple[int, ...]) -> frozenset[str]:
    shown, label = (size // 2, "D/2") if name == "D" else (size, name)
    found = {f"edge of {label}: {edge}" for edge, n in edges(blocks, 10**6) if n == shown}
    found |= {f"beyond two blocks in {name}: 2*{b}" for b in blocks if size > 2 * b}
    return frozenset({f"size of {name}: {size}", *found})


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


def invalid_kind(case: Case) -> str | None:
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
