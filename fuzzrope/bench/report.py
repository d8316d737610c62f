"""What comes out: lines while it runs, a table of where the kernels stand, and JSON with everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzzrope import atomic
from fuzzrope.bench import gate, timing
from fuzzrope.bench.session import ABSENT, FAILED, OK, WRONG, Ceilings, Cell, Measured
from fuzzrope.bench.timing import Spread

FORMAT = 1
METHOD = (
    "sets of inputs taken in turn, larger together than four times the cache; peers in turn, batch by batch; GPU time "
    "between two events around calls that the host had queued before the first; launch included: the host's time of a "
    "loop of calls with one synchronization; medians, 10th and 90th percentile over batches"
)


@dataclass
class Report:
    """All that a run has found so far."""

    environment: dict[str, Any]
    ceilings: Ceilings
    rows: list[Measured] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON form; seconds, bytes and operations in those units."""
        gates = f"relative to float64, at most {gate.WHOLE} u on the whole and {gate.EACH_ROW} u in a row"
        gates += f", {gate.BACKWARD} times that for gradients"
        return {
            "format": FORMAT,
            "complete": self.complete,
            "seconds": self.seconds,
            "environment": self.environment,
            "method": {"time": METHOD, "gate": gates, "most calls of a batch": timing.MOST},
            "ceilings": asdict(self.ceilings),
            "rows": [_row(measured) for measured in self.rows],
        }

    def write(self, path: Path) -> None:
        """Write the JSON form; a kill at any moment leaves a whole file."""
        atomic.write(path, json.dumps(self.to_json(), indent=1) + "\n")

    @property
    def lost(self) -> list[str]:
        """Rows in which a kernel of ours is wrong or failed."""
        cells = ((measured, cell) for measured in self.rows for cell in measured.cells)
        return [f"{m.row.group} {m.row.name}" for m, c in cells if c.peer.ours and c.status in (WRONG, FAILED)]


def _row(measured: Measured) -> dict[str, Any]:
    return {
        "group": measured.row.group,
        "name": measured.row.name,
        "row": asdict(measured.row),
        "time": measured.meaning,
        "work": asdict(measured.work),
        "floor": measured.floor,
        "bound": measured.bound,
        "sets": measured.sets,
        "peers": [_cell(cell, measured.floor) for cell in measured.cells],
    }


def _cell(cell: Cell, floor: float) -> dict[str, Any]:
    found: dict[str, Any] = {"name": cell.peer.name, "ours": cell.peer.ours, "rotates": cell.peer.rotates}
    found |= {"status": cell.status, "reason": cell.reason}
    if cell.error is not None:
        # JSON knows no infinity, which stands for another shape or dtype, or a number that is not finite.
        found["error"] = {name: x if x < float("inf") else None for name, x in asdict(cell.error).items()}
    if cell.times is not None:
        found |= {"seconds": asdict(cell.times), "fraction": floor / cell.times.median}
    return found


def microseconds(spread: Spread) -> str:
    """A median with its percentiles."""
    return f"{spread.median * 1e6:9.1f} µs  {spread.low * 1e6:.1f} to {spread.high * 1e6:.1f}"


def about(environment: dict[str, Any], ceilings: Ceilings) -> list[str]:
    """What the figures depend on, in two lines."""
    shown = ("device", "torch", "triton", "cuda", "cudnn", "liger")
    return [
        ", ".join(f"{name} {environment[name]}" for name in shown if environment.get(name)),
        f"ceilings: copy {ceilings.copied / 1e9:,.0f} GB/s, bf16 products {ceilings.multiplied / 1e12:,.0f} TFLOP/s",
    ]


def progress(measured: Measured, number: int, count: int) -> list[str]:
    """A row as it is done: a heading, and a line for each peer that is installed."""
    floor = f"floor {measured.floor * 1e6:.1f} µs by {measured.bound}"
    row = measured.row
    lines = [f"[{number}/{count}] {row.group} {row.name}: {floor}, {measured.meaning}, {measured.sets} sets of inputs"]
    for cell in measured.cells:
        if cell.times is not None:
            found = f"{microseconds(cell.times):40} {measured.floor / cell.times.median:5.2f} of the floor"
        elif cell.status != ABSENT:
            found = f"{cell.status}: {cell.reason}"
        else:
            continue
        lines.append(f"    {cell.peer.name:24} {found}")
    return lines


def _quickest(cells: Sequence[Cell]) -> Cell | None:
    return min((c for c in cells if c.times is not None), key=lambda c: c.times.median if c.times else 0, default=None)


def summary(rows: Sequence[Measured]) -> list[str]:
    """One line a row: the floor, ours, the quickest other way to the same result, and that without rotation, in µs."""
    heads = ("row", "floor", "ours", "of floor", "quickest other", "", "ours/it", "no RoPE")
    table = [heads, *(_line(measured) for measured in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    left = {0, 5}
    return [
        "  ".join(x.ljust(w) if i in left else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in table
    ]


def _line(measured: Measured) -> tuple[str, ...]:
    ours = next((c for c in measured.cells if c.peer.ours), None)
    other = _quickest([c for c in measured.cells if c.peer.rotates and not c.peer.ours])
    without = _quickest([c for c in measured.cells if not c.peer.rotates])
    fraction = ratio = "–"
    if ours and ours.times:
        fraction = f"{measured.floor / ours.times.median:.2f}"
        if other and other.times:
            ratio = f"{ours.times.median / other.times.median:.2f}"
    return (
        f"{measured.row.group} {measured.row.name}",
        f"{measured.floor * 1e6:.1f}",
        _median(ours),
        fraction,
        _median(other),
        other.peer.name if other else "",
        ratio,
        _median(without),
    )


def _median(cell: Cell | None) -> str:
    if cell is None or cell.status == ABSENT:
        return "–"
    return f"{cell.times.median * 1e6:.1f}" if cell.status == OK and cell.times else cell.status
