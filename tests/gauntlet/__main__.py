"""Judge every file of the gauntlet, beside a fixed-shape checker; exit code 1 if one verdict is not fair.

python -m tests.gauntlet [--seeds 1 2 3] [--jobs N] [--only NAME ...] [--seconds 60] [--json FILE]

FILE.json is the report, FILE.md its table. Each verdict is appended to FILE.jsonl as it is reached: a run that was
stopped goes on where it was when it is asked again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from fuzzrope.versions import versions
from tests.gauntlet.judging import FILES, SECONDS, Judged, judged
from tests.gauntlet.kinds import FAIR
from tests.gauntlet.table import summary, table


def fixed_shape(names: list[str]) -> dict[str, bool]:
    """Whether the fixed-shape checker passes each file."""
    paths = {str(FILES[name]): name for name in names}
    command = [sys.executable, "-m", "tests.gauntlet.fixed_shape", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = (line.rpartition(" ") for line in done.stdout.splitlines())
    return {paths[path]: word == "pass" for path, _, word in rows if path in paths}


def resumed(rows: Path, head: dict[str, Any]) -> list[Judged]:
    """What an earlier run has left; a run of other versions or with another budget is an error."""
    if not rows.exists():
        rows.parent.mkdir(parents=True, exist_ok=True)
        rows.write_text(json.dumps(head) + "\n")
        return []
    first, *others = (json.loads(line) for line in rows.read_text().splitlines())
    if first != head:
        sys.exit(f"{rows}: is of {first}, not of {head}; remove it")
    return [Judged(**row) for row in others]


def tell(one: Judged) -> None:
    """One line, and another on what is not fair."""
    line = f"{'✓' if one.fair else '✗'} {one.name:28} seed {one.seed}  {one.examples:5} examples {one.seconds:6.1f} s"
    print(f"{line} ({one.processor:5.1f} worked)  {', '.join(one.kinds) or 'nothing'}", flush=True)
    if not one.fair:
        print(f"    {one.message[:200]}", flush=True)


def main() -> None:
    """Judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a campaign; more on a machine that is busy")
    parser.add_argument("--only", nargs="+", choices=list(FILES), default=list(FILES), metavar="NAME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    environment = {**versions(), "seconds": options.seconds, "jobs": options.jobs}
    rows = options.json.with_suffix(".jsonl") if options.json is not None else None
    results = [] if rows is None else resumed(rows, environment)
    done = {(one.name, one.seed) for one in results}
    todo = [(name, seed) for seed in options.seeds for name in options.only]
    todo.sort(key=lambda one: one[0] not in FAIR)  # good files take the whole budget: they come last
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for future in as_completed([pool.submit(judged, *one, options.seconds) for one in todo if one not in done]):
            one = future.result()
            results.append(one)
            tell(one)
            if rows is not None:
                with rows.open("a") as file:
                    file.write(json.dumps(one.to_json()) + "\n")
    passed = fixed_shape(options.only)
    report = summary([one for one in results if one.name in passed], passed, environment)
    print(json.dumps({key: value for key, value in report.items() if key not in ("files", "environment")}, indent=1))
    if rows is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        options.json.with_suffix(".md").write_text(table(report))
        rows.unlink()
    sys.exit(0 if all(one.fair for one in results) else 1)


if __name__ == "__main__":
    main()
