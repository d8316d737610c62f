"""The figures of a run over the gauntlet: counts and medians, and a row for each file."""

from __future__ import annotations

import ast
import statistics
from typing import Any

from tests.gauntlet.judging import FILES, Judged
from tests.gauntlet.kinds import FAIR, STRICT


def summary(results: list[Judged], passed: dict[str, bool], environment: dict[str, Any]) -> dict[str, Any]:
    """The JSON report; ``passed`` says which files the fixed-shape checker passes."""
    bad = [one for one in results if one.name in FAIR]
    good = [one for one in results if one.name not in FAIR]
    found = [one for one in bad if one.fair]
    names = sorted({one.name for one in results}, key=list(FILES).index)
    rows = []
    for name in names:
        runs = sorted((one for one in results if one.name == name), key=lambda one: one.seed)
        row: dict[str, Any] = {"file": name, "good": name not in FAIR, "fair_kinds": sorted(FAIR.get(name, ()))}
        row |= {"level": "strict" if name in STRICT else "values", "fixed_shape_passes": passed[name]}
        row |= {"flaw": (ast.get_docstring(ast.parse(FILES[name].read_text())) or "").strip()}
        rows.append(row | {"runs": [one.to_json() for one in runs]})
    return {
        "format": 1,
        "environment": environment,
        "bad_files": sum(name in FAIR for name in names),
        "good_files": sum(name not in FAIR for name in names),
        "bad_runs": len(bad),
        "bad_runs_found": len(found),
        "good_runs": len(good),
        "good_runs_passed": sum(one.fair for one in good),
        "not_found": sorted({one.name for one in bad if not one.fair}),
        "falsely_alarmed": sorted({one.name for one in good if one.kinds}),
        "not_visited_fully": sorted({one.name for one in good if not one.kinds and not one.fair}),
        "fixed_shape_passes_bad": sum(passed[name] for name in names if name in FAIR),
        "fixed_shape_passes_good": sum(passed[name] for name in names if name not in FAIR),
        "median_examples_to_first_finding": statistics.median([one.examples for one in found] or [0]),
        "median_seconds_to_first_finding": round(statistics.median([one.seconds for one in found] or [0]), 3),
        "largest_examples_to_first_finding": max([one.examples for one in found] or [0]),
        "largest_seconds_to_first_finding": round(max([one.seconds for one in found] or [0]), 3),
        "median_processor_seconds_to_first_finding": round(
            statistics.median([one.processor for one in found] or [0]), 3
        ),
        "largest_processor_seconds": round(max([one.processor for one in results] or [0]), 3),
        "seconds_of_start": round(max([one.start for one in results] or [0]), 3),
        "files": rows,
    }


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    versions = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    seeds = sorted({run["seed"] for row in report["files"] for run in row["runs"]})
    worked = f"{report['median_processor_seconds_to_first_finding']:.2f} s"
    lines = [
        "# The gauntlet: candidate files as models write them",
        "",
        f"`python -m tests.gauntlet --seeds {' '.join(map(str, seeds))}`, with {versions}.",
        "",
        "| | fuzzrope | five trials, one shape, allclose 1e-4 |",
        "|---|---|---|",
        f"| runs of bad files found, with a fair kind | {report['bad_runs_found']} of {report['bad_runs']} "
        f"| passes {report['fixed_shape_passes_bad']} of {report['bad_files']} files |",
        f"| runs of good files passed | {report['good_runs_passed']} of {report['good_runs']} "
        f"| passes {report['fixed_shape_passes_good']} of {report['good_files']} files |",
        "",
        "To the first fair finding: "
        f"median {report['median_examples_to_first_finding']:g} examples and "
        f"{report['median_seconds_to_first_finding']:.2f} s, "
        f"at most {report['largest_examples_to_first_finding']} examples and "
        f"{report['largest_seconds_to_first_finding']:.1f} s. "
        f"All processes together worked {worked} in the median, "
        f"and at most {report['largest_processor_seconds']:.1f} s for any file: "
        "where that is less, other work kept the machine busy. Before the first file of a command, torch and Triton "
        f"are imported ({report['seconds_of_start']:.1f} s). "
        "Good files are judged until the budget of a campaign ends.",
        "",
    ]
    for good, title in ((False, "Bad files"), (True, "Good files")):
        rows = [row for row in report["files"] if row["good"] is good]
        lines += [f"## {title}", "", "| file | what it is | kinds | examples | seconds | fixed shape |"]
        lines += ["|---|---|---|---|---|---|", *map(_row, rows), ""]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    runs = row["runs"]
    kinds = ", ".join(dict.fromkeys(kind for run in runs for kind in run["kinds"])) or "nothing"
    if not all(run["fair"] for run in runs):
        kinds += f" (fair in {sum(run['fair'] for run in runs)} of {len(runs)})"
    examples = " / ".join(str(run["examples"]) for run in runs)
    seconds = " / ".join(f"{run['seconds']:.1f}" for run in runs)
    name = row["file"] + (" (strict)" if row["level"] == "strict" else "")
    flaw, word = row["flaw"].replace("|", "\\|"), "passes" if row["fixed_shape_passes"] else "fails"
    return f"| {name} | {flaw} | {kinds} | {examples} | {seconds} | {word} |"
