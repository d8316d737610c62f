"""Zero false alarms, counted: campaigns over everything that is correct, 200,000 examples in all.

    python -m tests.soak --jobs 16 --folder reports/baseline/soak

NaN, infinities and subnormals are among the values of each. The exit code is 1 if anything was found. The
folder gets ``report.json`` (counts, seeds, strata, versions), and the tolerance tables. So few examples of the
fused operations on many processes do not visit each of their strata, which its own campaign would call a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from fuzzrope.events import Event, Finished
from fuzzrope.parallel import run_parallel
from fuzzrope.report import machine, tolerance
from fuzzrope.report.summary import EXIT_NOTHING, EXIT_PASS, Run
from fuzzrope.settings import Settings
from fuzzrope.targets import REGISTERED, find

OURS = {"kernels.ModelNew": 70_000, "kernels.rope": 10_000, "kernels.reference": 30_000}
SPECIMENS = {"specimen:tiled": 10_000, "specimen:differentiable": 10_000}
VARIANTS = {target.name: target.operation for target in REGISTERED if target.name.startswith("variant:")}
OF_ROPE, FUSED = 10_000, 500  # examples of each variant, by its operation

EXAMPLES = OURS | SPECIMENS
EXAMPLES |= {name: OF_ROPE if operation == "rope" else FUSED for name, operation in VARIANTS.items()}
EXAMPLES["variant:eager"] += 25_000  # nothing but PyTorch: quick


def main() -> None:
    """Run all of it, and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", type=float, default=1.0, help="the part of the examples to run")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    run = Run()

    def emit(event: Event) -> None:
        run.take(event)
        if isinstance(event, Finished):
            found = sum(len(one.found) for one in run.targets[-1:])
            rate = event.executed / event.seconds
            print(f"{event.target.name}: {event.executed:,} executed, {rate:,.0f}/s, {found} findings", flush=True)

    settings = Settings(seed=options.seed, max_time=7200.0, device=options.device)
    for name, examples in EXAMPLES.items():
        share = settings.with_changes(max_examples=max(int(examples * options.part), 1))
        run_parallel(find(name), share, options.folder / "found", emit, options.jobs)
    options.folder.mkdir(parents=True, exist_ok=True)
    report = machine.report(run, machine.environment(settings), options.seed)
    executed = sum(one.finished.executed for one in run.targets if one.finished is not None)
    report["executed"] = executed
    for entry in report["targets"]:
        entry["strata"].pop("visits")
    report["command"] = f"python -m tests.soak --seed {options.seed} --jobs {options.jobs} --part {options.part:g}"
    (options.folder / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    tolerance.write(run, options.folder)
    print(f"{executed:,} examples executed, {sum(len(one.found) for one in run.targets)} findings")
    sys.exit(EXIT_PASS if run.exit_code == EXIT_NOTHING else run.exit_code)


if __name__ == "__main__":
    main()
