"""The contract of ``rope_placed``: :mod:`.rope` where ``positions`` choose rows of tables.

They are (S,) or (B, S), int32 or int64. Row i of the sequence is turned by row positions[i], or positions[b, i], of
cos and of sin; where a table has no such row, below 0 or beyond its last, the turned row is NaN, and nothing is read.
q and k have one length, and with (B, S) one batch size. Outputs are transposed views of contiguous (B, S, H, D) memory,
and the tables come back whole. Bounds are those of ``rope`` with the rows laid out that were chosen, batch by batch; a
gradient of a row of a table is a sum over all that it turned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fuzzrope.build import build
from fuzzrope.case import Case, TensorSpec, Values
from fuzzrope.draw import Draw
from fuzzrope.geometry import arrange, dense, traits
from fuzzrope.operations import rope_cases, rope_parts, rope_strata
from fuzzrope.operations.base import NO_OPTIONS, Options, Stratum, Tensors
from fuzzrope.operations.rope import Rope
from fuzzrope.operations.rope_by_batch import ByBatch, fitting, grown
from fuzzrope.operations.rope_parts import ROPE, TABLES, Part

INDICES = ("int64", "int32")
PATTERNS = ("in order", "from an offset", "backwards", "repeated", "scattered", "outside", "far outside")
LAYOUTS = ("contiguous", "sliced", "padded", "expanded")
MISFITS = ("dtype", "rank", "length", "batch", "k of another length", "columns")
SIZES = {"B": 2, "Hq": 2, "S": 5, "D": 6, "relation": "separate", "tables": "longer", "heads": "equal"}
#: Groups of ``rope``'s strata that mean the same here, by how they begin.
KEPT = ("size of ", "edge of ", "beyond ", "head_dim", "layout of ", "misaligned", "values of ", "heads", "invalid")


class RopePlaced(ByBatch):
    """Rotary position embedding by rows of tables that positions choose."""

    name = "rope_placed"
    inputs: tuple[str, ...] = ("q", "k", "cos", "sin", "positions")
    added = True
    differentiated: Mapping[str, Mapping[str, Any]] = {
        "memory of q and k: same tensor": {"relation": "same tensor", "S": 3},
        "tables: one column": {"tables": "one column", "pattern": "scattered", "S": 5},
        "positions: repeated": {"pattern": "repeated", **SIZES},
        "positions: outside": {"pattern": "outside", **SIZES},
        "positions: of each batch": {"pattern": "backwards", "rank": 2, "laid": "contiguous", **SIZES},
    }

    def rejects(self, case: Case) -> str | None:
        """What ``rope`` rejects, and positions and shapes that do not belong together."""
        plain = ROPE.rejects(as_rope(case))
        return plain or next((reason for reason, _ in _misfits(case)), None)

    def reference(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, torch.Tensor]:
        """Eager PyTorch, on tensors (batch, position, head, dimension) and back."""
        c, s = (_chosen(tensors[name], tensors["positions"]) for name in TABLES)
        c, s = (t if t.dim() == 3 else t[None] for t in (c, s))
        passed = {name: tensors[name][:] for name in TABLES}
        return rope_parts.turned(tensors, c, s) | passed

    def parts(self, tensors: Tensors) -> list[Part]:
        """All batches at once if they have the same positions, else each by itself."""
        positions = tensors["positions"]
        if positions.dim() == 1 or not positions.shape[0]:
            positions = positions[None] if positions.dim() == 1 else positions.new_zeros(1, positions.shape[1])
        found = []
        for b, own in enumerate(positions):
            at = slice(None) if len(positions) == 1 else slice(b, b + 1)
            rows = {name: _rows_of(tensors[name], own) for name in TABLES}
            found.append(Part(at, {name: _chosen(tensors[name], own) for name in TABLES}, rows))
        return found

    def passed(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Whole tables."""
        return {name: case[name].shape for name in TABLES}

    def probes(self) -> tuple[Case, ...]:
        """Those of ``rope``, in order and backwards."""
        plain = ROPE.probes()
        rows = [case["q"].shape[2] for case in plain]
        return placed(plain[0], np.arange(rows[0])), placed(plain[-1], np.arange(rows[-1])[::-1])

    def strata(self, blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
        """What positions can be, and the strata of ``rope`` that mean the same here."""
        sizes = tuple(SIZES.items())
        found = [Stratum(f"positions: {p}", (("pattern", p), *sizes)) for p in PATTERNS]
        found += [Stratum(f"positions of rank: {n}", (("rank", n), *sizes)) for n in (1, 2)]
        found += [Stratum(f"positions of dtype: {d}", (("index", d), *sizes)) for d in INDICES]
        found += [Stratum(f"positions laid out: {x}", (("laid", x), ("rank", 2), *sizes)) for x in LAYOUTS]
        found += [Stratum(f"invalid positions: {m}", (("misfit", m), *sizes)) for m in MISFITS]
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            found.append(Stratum(f"dtype: {dtype}", (("dtypes", (dtype,) * 4), *sizes)))
        kept = [stratum for stratum in ROPE.strata(blocks) if stratum.group.startswith(KEPT)]
        # What does not broadcast is a misfit of columns: above.
        return (*found, *(stratum for stratum in kept if stratum.name != "invalid: no broadcast"))

    def classify(self, case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
        """Strata by the geometry of a case, and by the numbers of its positions."""
        if ROPE.rejects(as_rope(case)):
            return rope_strata.classify(as_rope(case), blocks)
        misfits = frozenset(f"invalid positions: {kind}" for _, kind in _misfits(case))
        if misfits:
            return misfits
        spec, rows = case["positions"], case["cos"].shape[0]
        found = {f"positions of rank: {len(spec.shape)}", f"positions of dtype: {spec.dtype}"}
        found |= {f"positions laid out: {layout}" for layout in LAYOUTS if layout in traits(spec)}
        dtypes = {case[name].dtype for name in ("q", "k", *TABLES)}
        found |= {f"dtype: {dtype}" for dtype in dtypes if len(dtypes) == 1}
        found |= {f"positions: {pattern}" for pattern in _patterns(_numbers(case), rows)}
        plain = as_rope(case)
        whole = plain.with_tensors({name: grown(plain[name], case["q"].shape[2]) for name in TABLES})
        if len(spec.shape) == 2 and spec.shape[0] > 1 and spec.strides[0]:
            found.add("positions: of each batch")
        return self.with_backward(case, frozenset(found) | rope_strata.classify(whole, blocks))

    def draw_plain(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """A case of ``rope`` and positions for it."""
        base = rope_cases.draw_case(draw, pins, blocks)
        if ROPE.rejects(base):
            return placed(base, np.arange(base["q"].shape[-2]))
        base = fitting(base)
        batch, _, rows, _ = base["q"].shape
        count = base["cos"].shape[0]
        rank = pins.get("rank") or (2 if draw.flag() and base["k"].shape[0] == batch else 1)
        misfit = pins.get("misfit")
        if misfit == "batch":
            return placed(base, np.zeros((batch + 1, rows)))
        if misfit == "rank":
            return placed(base, np.zeros((1, batch, rows)))
        if misfit == "length":
            return placed(base, np.zeros(rows + draw.choice((1, 2))))
        if misfit == "dtype":
            return placed(base, np.zeros(rows), dtype="float32")
        if misfit == "k of another length":
            spec = base["k"]
            shape = (*spec.shape[:2], spec.shape[2] + 1, spec.shape[3])
            base = base.with_tensors({"k": replace(spec, shape=shape, strides=dense(shape), storage="k")})
        if misfit == "columns":
            name = draw.choice(TABLES)
            wide = (base[name].shape[0], base["q"].shape[3] // 2 + draw.choice((1, 2)))
            base = base.with_tensors({name: replace(base[name], shape=wide, strides=dense(wide), storage=name)})
        shape = (rows,) if rank == 1 else (draw.choice((batch, 1)) if "laid" not in pins else batch, rows)
        numbers = _drawn(draw, pins.get("pattern") or draw.mostly(PATTERNS), shape, count)
        laid = LAYOUTS if len(shape) > 1 else ("contiguous", "sliced", "expanded")
        plain = "contiguous" if "pattern" in pins else ""  # others may leave out some of the numbers
        layout = pins.get("laid") or plain or draw.mostly(laid)
        index = pins.get("index") or draw.choice(INDICES)
        return placed(base, numbers, index, arrange(draw, shape, layout), draw.mostly((0, 1, 3)))

    def simpler(self, case: Case) -> list[Case]:
        """Those of ``rope``, with what is left of the positions; and positions in order."""
        if self.rejects(case):
            return []
        numbers, found = _numbers(case), []
        for smaller in ROPE.simpler(as_rope(case)):
            batch, _, rows, _ = smaller["q"].shape
            left = numbers[..., :rows] if numbers.ndim == 1 else numbers[: max(batch, 1), :rows]
            found.append(placed(smaller, left, case["positions"].dtype))
        if numbers.ndim == 2:
            found += [placed(as_rope(case), row, case["positions"].dtype) for row in numbers[:2]]
        return [smaller for smaller in found if not self.rejects(smaller)]


def as_rope(case: Case) -> Case:
    """The case without its positions."""
    return replace(case, operation=Rope.name, tensors=tuple(pair for pair in case.tensors if pair[0] != "positions"))


def placed(
    case: Case, numbers: np.ndarray, dtype: str = "int64", strides: tuple[int, ...] | None = None, offset: int = 0
) -> Case:
    """A case of ``rope`` with such positions."""
    shape, data = numbers.shape, tuple(float(x) for x in numbers.reshape(-1))
    values = Values("listed", 0, data) if data else Values("constant", 0, (0.0,))
    spec = TensorSpec(dtype, shape, dense(shape) if strides is None else strides, offset, "positions", values)
    return replace(case, operation=RopePlaced.name, tensors=(*case.tensors, ("positions", spec)))


def _numbers(case: Case) -> np.ndarray:
    """The positions of a case, as a kernel finds them."""
    spec = case["positions"]
    alone = Case(case.operation, (("positions", spec),))
    return np.asarray(build(alone, apart=False).tensors["positions"].numpy())


def _chosen(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rows of a table (R, columns) that positions (…) choose, (…, columns); NaN where there is none."""
    at, rows = positions.to(torch.int64), table.shape[0]
    nothing = torch.nan if table.is_floating_point() else 0  # of other types only strides are asked for
    found = torch.full((*at.shape, table.shape[1]), nothing, dtype=table.dtype)
    inside = (at >= 0) & (at < rows)
    found[inside] = table[at[inside]]
    return found


def _rows_of(table: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
    """The positions that are rows of a table, and -1 for others."""
    at = positions.to(torch.int64).numpy()
    return np.where((at >= 0) & (at < table.shape[0]), at, -1)


def _misfits(case: Case) -> Iterator[tuple[str, str]]:
    """What does not belong together, as a reason and as a member of ``MISFITS``; of what ``rope`` does not reject."""
    spec, q, k = case["positions"], case["q"].shape, case["k"].shape
    if spec.dtype not in INDICES:
        yield f"positions are {spec.dtype}", "dtype"
    elif len(spec.shape) not in (1, 2):
        yield f"positions have {len(spec.shape)} dimensions", "rank"
    elif spec.shape[-1] != q[2]:
        yield f"positions are {spec.shape[-1]} for {q[2]} rows", "length"
    elif len(spec.shape) == 2 and spec.shape[0] != 1 and not spec.shape[0] == q[0] == k[0]:
        yield f"positions of {spec.shape[0]} batches", "batch"
    if k[2] != q[2]:
        yield f"k has {k[2]} rows, q {q[2]}", "k of another length"
    for name in TABLES:
        if case[name].shape[1] not in (1, q[3] // 2):
            yield f"{name} has {case[name].shape[1]} columns for {q[3] // 2}", "columns"


def _drawn(draw: Draw, pattern: str, shape: tuple[int, ...], rows: int) -> np.ndarray:
    """Positions of a pattern in tables of so many rows, each batch beginning elsewhere."""
    numbers = np.empty(shape, dtype=np.int64)
    for row in numbers.reshape(-1, shape[-1]) if numbers.size else ():
        offset = pattern == "from an offset"
        first = draw.integer(1, max(rows - shape[-1], 1)) if offset else draw.integer(0, max(rows - 1, 0))
        step = {"in order": 1, "from an offset": 1, "backwards": -1, "repeated": 0}.get(pattern, 2)
        start = 0 if pattern == "in order" else first
        row[:] = np.mod(start + step * np.arange(shape[-1]), max(rows, 1))
        if pattern == "outside":
            row[draw.integer(0, shape[-1] - 1)] = draw.choice((rows, -1))
        elif pattern == "far outside":
            row[draw.integer(0, shape[-1] - 1)] = draw.choice((2**31 - 1, -(2**31), 2**30))
    return numbers


def _patterns(numbers: np.ndarray, rows: int) -> Iterator[str]:
    """The patterns that these positions show."""
    flat = numbers.reshape(-1)
    if not flat.size:
        return
    steps = np.diff(numbers, axis=-1)
    inside = (flat >= 0) & (flat < rows)
    if (flat[~inside] == rows).any() or (flat[~inside] == -1).any():
        yield "outside"
    if (np.abs(flat[~inside]) > 2**29).any():
        yield "far outside"
    if inside.all() and steps.size:
        if (steps == 1).all():
            yield "in order" if (numbers[..., 0] == 0).all() else "from an offset"
        if (steps == -1).any():
            yield "backwards"
        if (steps == 0).any():
            yield "repeated"
        if (np.abs(steps) > 1).any():
            yield "scattered"
