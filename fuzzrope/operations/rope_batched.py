"""The contract of ``rope_batched``: :mod:`.rope` where each batch may have tables of its own.

cos (1 or B, R, D/2) and sin likewise, each with its own R, of one row or of q's at least, of one column or D/2. Tables
are cut to q's S rows, and those of one batch turn all. q and k have one length, and with tables of B batches one
batch size. Outputs are transposed views of contiguous (B, S, H, D) memory, and the tables come back cut. Bounds are
those of ``rope`` with the tables of a batch, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fuzzrope.case import FLOATS, Case, TensorSpec, Values
from fuzzrope.draw import Draw
from fuzzrope.geometry import arrange, dense, layouts, traits
from fuzzrope.operations import rope_cases, rope_parts, rope_strata
from fuzzrope.operations.base import NO_OPTIONS, Options, Stratum, Tensors
from fuzzrope.operations.rope import Rope
from fuzzrope.operations.rope_by_batch import ByBatch, fitting, grown
from fuzzrope.operations.rope_parts import ROPE, TABLES, Part

#: Which tables are those of each batch, by name.
OWN = {"both": TABLES, "neither": (), "cos alone": ("cos",), "sin alone": ("sin",)}
MISFITS = ("rank", "batch", "rows", "columns", "k of another length")
#: Groups of ``rope``'s strata that mean the same here, by how they begin.
ALONE = ("layout of q", "layout of k", "misaligned", "values", "heads", "invalid")
KEPT = ("size of ", "edge of ", "beyond ", "head_dim", *ALONE)
LARGE = {"B": 3, "Hq": 2, "S": 5, "D": 8, "relation": "separate", "heads": "equal"}


class RopeBatched(ByBatch):
    """Rotary position embedding by tables of each batch."""

    name = "rope_batched"
    inputs: tuple[str, ...] = ("q", "k", "cos", "sin")
    added = False
    differentiated: Mapping[str, Mapping[str, Any]] = {
        "memory of q and k: same tensor": {"relation": "same tensor", "S": 3},
        "tables of each batch: both": {"own": "both", "tables": "exact", **LARGE},
        "tables of each batch: neither": {"own": "neither", "tables": "exact", **LARGE},
        "tables of each batch: sin alone": {"own": "sin alone", "tables": "exact", **LARGE},
        "batched tables: longer": {"own": "both", "tables": "longer", **LARGE},
        "batched tables: one row": {"own": "both", "tables": "one row", **LARGE},
        "batched tables: one column": {"own": "both", "tables": "one column", **LARGE},
    }

    def rejects(self, case: Case) -> str | None:
        """Tables of another rank, what ``rope`` rejects, and shapes that do not belong together."""
        ranks = next((reason for reason, _ in _ranks(case)), None)
        return ranks or ROPE.rejects(as_rope(case)) or next((reason for reason, _ in _misfits(case)), None)

    def reference(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, torch.Tensor]:
        """Eager PyTorch, on tensors (batch, position, head, dimension) and back."""
        passed = {name: tensors[name][:, : tensors["q"].shape[2]] for name in TABLES}
        return rope_parts.turned(tensors, passed["cos"], passed["sin"]) | passed

    def parts(self, tensors: Tensors) -> list[Part]:
        """All batches at once if they share their tables, else each by itself."""
        rows, counts = tensors["q"].shape[2], {name: tensors[name].shape[0] for name in TABLES}
        whole = set(counts.values()) == {1} or 0 in counts.values()
        found = []
        for b in range(1 if whole else max(counts.values())):
            tables, numbers = {}, {}
            for name in TABLES:
                own, length = b if counts[name] > 1 else 0, tensors[name].shape[1]
                # Without batches nothing is turned; shapes of rows and columns still count.
                cut = tensors[name][own, :rows] if counts[name] else tensors[name].new_zeros(min(length, rows), 1)
                tables[name] = cut
                numbers[name] = own * length + np.arange(len(cut)) if counts[name] else np.full(len(cut), -1)
            found.append(Part(slice(None) if whole else slice(b, b + 1), tables, numbers))
        return found

    def passed(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Tables cut to q's rows."""
        shapes = {name: case[name].shape for name in TABLES}
        return {name: (b, min(rows, case["q"].shape[2]), columns) for name, (b, rows, columns) in shapes.items()}

    def probes(self) -> tuple[Case, ...]:
        """Those of ``rope``, the first with tables of each batch."""
        first, *_, last = ROPE.probes()
        return batched(first, TABLES), batched(last, ())

    def strata(self, blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
        """What tables can be, and the strata of ``rope`` that mean the same here."""
        large = tuple(LARGE.items())
        exact = (("tables", "exact"), *large)
        found = [Stratum(f"tables of each batch: {name}", (("own", name), *exact)) for name in OWN]
        for kind in ("longer", "one row", "one column", "cos and sin differ"):
            found.append(Stratum(f"batched tables: {kind}", (("own", "both"), ("tables", kind), *large)))
        for name in TABLES:
            for layout in layouts(3):
                own = "neither" if layout == "odd ones" else "both"
                pins = ((f"batched.{name}", layout), ("own", own), *exact)
                found.append(Stratum(f"layout of batched {name}: {layout}", pins))
        found += [Stratum(f"invalid tables: {m}", (("misfit", m), ("own", "both"), *exact)) for m in MISFITS]
        found += [Stratum(f"dtype: {dtype}", (("dtypes", (dtype,) * 4), *exact)) for dtype in FLOATS]
        kept = [stratum for stratum in ROPE.strata(blocks) if stratum.group.startswith(KEPT)]
        # Tables that are wrong for rope are so in other words here: above.
        others = {"invalid: rank of cos", "invalid: no broadcast"}
        return (*found, *(stratum for stratum in kept if stratum.name not in others))

    def classify(self, case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
        """Strata by the geometry of a case."""
        found = {f"invalid tables: {kind}" for _, kind in _ranks(case)}
        if found:
            return frozenset(found)
        plain = as_rope(case)
        if ROPE.rejects(plain):
            return rope_strata.classify(plain, blocks)
        found = {f"invalid tables: {kind}" for _, kind in _misfits(case)}
        if found:
            return frozenset(found)
        own = tuple(name for name in TABLES if case[name].shape[0] > 1)
        found = {f"tables of each batch: {n}" for n, some in OWN.items() if some == own and case["q"].shape[0] > 1}
        for name in TABLES:
            found |= {f"layout of batched {name}: {layout}" for layout in traits(case[name])}
        dtypes = {spec.dtype for _, spec in case.tensors}
        found |= {f"dtype: {dtype}" for dtype in dtypes if len(dtypes) == 1}
        whole = {name: grown(plain[name], case["q"].shape[2]) for name in TABLES if plain[name].shape[0] != 1}
        kept = rope_strata.classify(plain.with_tensors(whole), blocks)
        if own == TABLES:
            found |= {f"batched {name}" for name in kept if name.startswith("tables: ")}
        return self.with_backward(case, frozenset(found) | kept)

    def draw_plain(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """A case of ``rope``, and tables of each batch or of one for it."""
        base = rope_cases.draw_case(draw, pins, blocks)
        if ROPE.rejects(base):
            return batched(base, ())
        base = fitting(base)
        batch = base["q"].shape[0]
        own = OWN[pins.get("own") or draw.mostly(tuple(OWN))] if base["k"].shape[0] == batch else ()
        case = batched(base, own)
        changed = {}
        for name in TABLES:
            layout = pins.get(f"batched.{name}") or draw.mostly(layouts(3))
            changed[name] = replace(case[name], strides=arrange(draw, case[name].shape, layout))
        case = case.with_tensors(changed)
        return _spoiled(draw, case, pins["misfit"]) if "misfit" in pins else case

    def simpler(self, case: Case) -> list[Case]:
        """Those of ``rope`` with what is left of the tables, and the case with tables of one batch."""
        if self.rejects(case):
            return []
        own = tuple(name for name in TABLES if case[name].shape[0] != 1)
        found = [batched(as_rope(case), some) for some in ((), *((name,) for name in own)) if some != own]
        for smaller in ROPE.simpler(as_rope(case)):
            fewer = batched(smaller, own)
            old = {name: case[name].strides[0] for name in TABLES}
            strides = {name: (old[name], *fewer[name].strides[1:]) for name in TABLES}
            found += [fewer, fewer.with_tensors({n: replace(fewer[n], strides=s) for n, s in strides.items()})]
        return [smaller for smaller in found if not self.rejects(smaller)]


def as_rope(case: Case) -> Case:
    """The case with the tables of the first batch alone."""
    firsts = {name: case[name] for name in TABLES}
    firsts = {n: replace(t, shape=t.shape[-2:], strides=t.strides[-2:], values=_first(t)) for n, t in firsts.items()}
    return replace(case.with_tensors(firsts), operation=Rope.name)


def _first(spec: TensorSpec) -> Values:
    """The values of the first batch of a table; of a recipe its own."""
    values = spec.values
    return replace(values, data=values.data[: spec.shape[-2] * spec.shape[-1]]) if values.kind == "listed" else values


def batched(case: Case, own: tuple[str, ...]) -> Case:
    """A case of ``rope`` with tables of three dimensions, those named ``own`` of as many batches as q."""
    changed = {}
    for name in TABLES:
        spec, count = case[name], case["q"].shape[0] if name in own else 1
        values = spec.values
        if values.kind == "listed":
            values = replace(values, data=values.data * count) if count else Values("constant", 0, (0.0,))
        pitch = dense((count, *spec.shape))[0] if spec.strides == dense(spec.shape) else max(spec.end - spec.offset, 0)
        changed[name] = replace(spec, shape=(count, *spec.shape), strides=(pitch, *spec.strides), values=values)
    return replace(case.with_tensors(changed), operation=RopeBatched.name)


def _ranks(case: Case) -> Iterator[tuple[str, str]]:
    """Tables that have not three dimensions, as a reason and as a member of ``MISFITS``."""
    for name in TABLES:
        if len(case[name].shape) != 3:
            yield f"{name} has {len(case[name].shape)} dimensions", "rank"


def _misfits(case: Case) -> Iterator[tuple[str, str]]:
    """What does not belong together, likewise, of what ``rope`` does not reject."""
    q, k = case["q"].shape, case["k"].shape
    if k[2] != q[2]:
        yield f"k has {k[2]} rows, q {q[2]}", "k of another length"
    for name in TABLES:
        batches, rows, columns = case[name].shape
        if batches != 1 and not batches == q[0] == k[0]:
            yield f"{name} has {batches} batches", "batch"
        if min(rows, q[2]) not in (1, q[2]):
            yield f"{name} has {rows} rows for {q[2]}", "rows"
        if columns not in (1, q[3] // 2):
            yield f"{name} has {columns} columns for {q[3] // 2}", "columns"


def _spoiled(draw: Draw, case: Case, what: str) -> Case:
    """The case made invalid in the named way."""
    name = "k" if what == "k of another length" else draw.choice(TABLES)
    spec = case[name]
    batches, *rest = spec.shape
    if what == "rank":
        shape = tuple(rest) if draw.flag() else (1, *spec.shape)
    elif what == "batch":
        shape = (batches + draw.choice((1, 2)), *rest)
    elif what == "rows":
        shape = (batches, draw.integer(2, rest[0] - 1), rest[1])
    elif what == "columns":
        shape = (batches, rest[0], rest[1] + draw.choice((1, 2)))
    else:
        shape = (*spec.shape[:2], spec.shape[2] + 1, spec.shape[3])
    return case.with_tensors({name: replace(spec, shape=shape, strides=dense(shape), storage=name)})
