"""A picture of a report: for each row, how near each peer comes to the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fuzzrope.bench.rows import GROUPS
from fuzzrope.bench.session import Measured

ROW_INCHES, HEAD_INCHES, WIDTH_INCHES = 0.28, 1.6, 10
MARKS = "osv^D<>PXdph*8"


def draw(rows: Sequence[Measured], title: str, path: Path) -> None:
    """Write a picture of the format that the file's ending names; raises ValueError for one that is none.

    A panel for each group, a line for each row, a mark for each peer at its fraction of the floor's speed.
    """
    groups = [group for group in GROUPS if any(m.row.group == group for m in rows)]
    counts = [sum(m.row.group == group for m in rows) for group in groups]
    height = ROW_INCHES * sum(counts) + HEAD_INCHES * len(groups)
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(groups), squeeze=False, height_ratios=[count + 3 for count in counts])[:, 0]
    for group, panel in zip(groups, panels, strict=True):
        own = [m for m in rows if m.row.group == group]
        names = list(dict.fromkeys(cell.peer.name for m in own for cell in m.cells if cell.times))
        for i, name in enumerate(names):
            dots = [
                (m.floor / cell.times.median, len(own) - 1 - at)
                for at, m in enumerate(own)
                for cell in m.cells
                if cell.peer.name == name and cell.times
            ]
            ours = any(cell.peer.ours for m in own for cell in m.cells if cell.peer.name == name)
            panel.scatter(*zip(*dots, strict=True), marker=MARKS[i % len(MARKS)], s=60 if ours else 25, label=name)
        panel.set_yticks(range(len(own)), [m.row.name for m in reversed(own)], fontsize=8)
        panel.set_xlim(left=0)
        panel.axvline(1, color="gray", linewidth=0.8)
        panel.set_xlabel("floor / time", fontsize=8)
        panel.set_title(group, loc="left")
        panel.grid(axis="x", alpha=0.3)
        if names:
            panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path)
