"""Judge every file of the gauntlet, beside a fixed-shape checker; exit code 1 if one verdict is not fair.

python -m tests.gauntlet [--seeds 1 2 3] [--jobs N] [--only NAME ...] [--seconds 60] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from fuzzrope.versions import versions
from tests.gauntlet.judging import FILES, SECONDS, Judged, judged
from tests.gauntlet.kinds import FAIR, STRICT


def fixed_shape(names: list[str]) -> dict[str, bool]:
    """Whether the fixed-shape checker passes each file."""
    paths = {str(FILES[name]): name for name in names}
    command = [sys.executable, "-m", "tests.gauntlet.fixed_shape", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = (line.rpartition(" ") for line in done.stdout.splitlines())
    return {paths[path]: word == "pass" for path, _, word in rows if path in paths}


def summary(results: list[Judged], passed: dict[str, bool]) -> dict[str, Any]:
    """Counts, medians, and a row for each file."""
    bad = [one for one in results if one.name in FAIR]
    good = [one for one in results if one.name not in FAIR]
    found = [one for one in bad if one.fair]
    rows = []
    for name in dict.fromkeys(one.name for one in results):
        runs = sorted((one for one in results if one.name == name), key=lambda one: one.seed)
        row: dict[str, Any] = {"file": name, "good": name not in FAIR, "fair_kinds": sorted(FAIR.get(name, ()))}
        row |= {"level": "strict" if name in STRICT else "values", "fixed_shape_passes": passed[name]}
        rows.append(row | {"runs": [one.to_json() for one in runs]})
    named = dict.fromkeys(one.name for one in results)
    return {
        "format": 1,
        "environment": versions(),
        "bad_files": sum(name in FAIR for name in named),
        "good_files": sum(name not in FAIR for name in named),
        "bad_runs": len(bad),
        "bad_runs_found": len(found),
        "good_runs": len(good),
        "good_runs_passed": sum(one.fair for one in good),
        "not_found": sorted({one.name for one in bad if not one.fair}),
        "falsely_alarmed": sorted({one.name for one in good if one.kinds}),
        "not_visited_fully": sorted({one.name for one in good if not one.kinds and not one.fair}),
        "fixed_shape_passes_bad": sum(passed[name] for name in named if name in FAIR),
        "fixed_shape_passes_good": sum(passed[name] for name in named if name not in FAIR),
        "median_examples_to_first_finding": statistics.median([one.examples for one in found] or [0]),
        "median_seconds_to_first_finding": round(statistics.median([one.seconds for one in found] or [0]), 3),
        "files": rows,
    }


def main() -> None:
    """Judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a campaign; more on a machine that is busy")
    parser.add_argument("--only", nargs="+", choices=list(FILES), default=list(FILES), metavar="NAME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    passed = fixed_shape(options.only)
    results = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        asked = [pool.submit(judged, name, seed, options.seconds) for seed in options.seeds for name in options.only]
        for future in as_completed(asked):
            one = future.result()
            results.append(one)
            mark = "✓" if one.fair else "✗"
            naive = "passes" if passed[one.name] else "fails"
            kinds = ", ".join(one.kinds) or "nothing"
            line = f"{mark} {one.name:28} seed {one.seed}  {one.examples:5} examples {one.seconds:6.1f} s"
            print(f"{line}  fixed shape {naive:6}  {kinds}", flush=True)
            if not one.fair:
                print(f"    {one.message[:200]}", flush=True)
    report = summary(results, passed)
    print(json.dumps({key: value for key, value in report.items() if key not in ("files", "environment")}, indent=1))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(0 if all(one.fair for one in results) else 1)


if __name__ == "__main__":
    main()
