"""How close the answers came, by output and dtype: a table, and the numbers behind it for plots.

It writes ``tolerance.json`` and ``tolerance.md`` into the folder of a run, and beside them the case of each
worst error, so that the command in the table replays it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fuzzrope import corpus
from fuzzrope.judge import Errors
from fuzzrope.report.summary import Run
from fuzzrope.targets import Target

HEADINGS = ("output", "dtype", "elements", "worst error / bound", "median", "tightness", "from eager", "RMS / eager's")


def write(run: Run, folder: Path) -> None:
    """Write both files for all targets of a run that came to an end."""
    entries = [
        {"target": done.target.name, "outputs": [_entry(*item, done.target, folder) for item in outputs]}
        for done in (target.finished for target in run.targets)
        if done is not None and (outputs := sorted(done.by_output.items()))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": 1, "targets": entries}, indent=1, sort_keys=True, allow_nan=False)
    (folder / "tolerance.json").write_text(text + "\n", encoding="utf-8")
    (folder / "tolerance.md").write_text("\n".join(map(_table, entries)), encoding="utf-8")


def _entry(key: tuple[str, str], errors: Errors, target: Target, folder: Path) -> dict[str, Any]:
    """The figures of one output and dtype; ``tightness`` is the median over cases of bound / largest error.

    ``rms_over_reference_rms`` is the rule of flash-attention's tests: no worse than the reference by much.
    """
    peak, middle = errors.peaks.median, errors.ratios.median
    return {
        "output": key[0],
        "dtype": key[1],
        "elements": errors.count,
        "max_error_over_bound": errors.over_bound,
        # The middle of a bin may lie beyond the largest number in it.
        "median_error_over_bound": None if middle is None else min(middle, errors.over_bound),
        "median_bound_over_max_error": 1 / peak if peak else None,
        "max_ulp": errors.max_ulp,
        "rms_over_reference_rms": errors.rms_ratio,
        "error_over_bound_by_log2": {str(power): count for power, count in errors.ratios.octaves.items()},
        "max_error_over_bound_by_log2": {str(power): count for power, count in errors.peaks.octaves.items()},
        "worst_case": errors.worst_id,
        "replay": _kept(key, errors, target, folder),
    }


def _kept(key: tuple[str, str], errors: Errors, target: Target, folder: Path) -> str:
    """Save the worst case; the command that runs it again."""
    case = errors.worst_case
    if case is None:
        return ""
    path = folder / "worst" / target.folder / f"{'-'.join(key)}-{case.id}.json"
    note = f"the largest error over bound of {key[0]} in {key[1]}: {errors.over_bound:.3f}"
    corpus.save(path, corpus.Saved(target.name, case, (), {"level": target.level}, note))
    return f"fuzzrope replay {path}"


def _table(entry: dict[str, Any]) -> str:
    lines = [f"## {entry['target']}", "", "| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for one in entry["outputs"]:
        figures = [one[key] for key in _COLUMNS]
        cells = [one["output"], one["dtype"], f"{one['elements']:,}", *(_figure(x) for x in figures)]
        lines.append("| " + " | ".join(cells) + " |")
    commands = [f"- {one['output']} {one['dtype']}: `{one['replay']}`" for one in entry["outputs"] if one["replay"]]
    return "\n".join([*lines, "", "Worst cases:", "", *commands, ""])


_COLUMNS: tuple[str, ...] = ("max_error_over_bound", "median_error_over_bound", "median_bound_over_max_error")
_COLUMNS += ("max_ulp", "rms_over_reference_rms")


def _figure(number: float | None) -> str:
    return "–" if number is None else f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
