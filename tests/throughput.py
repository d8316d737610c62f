"""How many examples a second does a campaign run on one core, and what is its time made of?

    python -m tests.throughput --json reports/baseline/throughput.json

Parent and child share one core, so the time waiting for the child is the time that the child computes. The
first campaign fills the caches; the same campaign is then run again and measured, its quickest run counting.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fuzzrope import campaign
from fuzzrope.events import Event, Started
from fuzzrope.judge import verdict
from fuzzrope.operations.rope import Rope
from fuzzrope.run import runner, wire
from fuzzrope.settings import PROFILES
from fuzzrope.targets import find
from fuzzrope.versions import versions

#: What is timed: where it is looked up, its name, and what it is called in the report.
PARTS: tuple[tuple[Any, str, str], ...] = (
    (Rope, "draw", "drawing (ours)"),
    (Rope, "classify", "strata"),
    (runner, "contents", "values"),
    (wire, "send", "child"),
    (wire, "receive", "child"),
    (verdict, "build", "building inputs"),
    (Rope, "reference", "reference"),
    (Rope, "envelopes", "oracle and bounds"),
    (verdict, "compare", "comparing"),
    (verdict, "compare_exact", "comparing"),
)

RUNS = 4


def _timed(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - started

    return wrapper


def measure(target: str, seed: int, examples: int) -> dict[str, Any]:
    """Examples a second, and milliseconds an example by part, start of the child excluded from the parts."""
    settings = PROFILES["quick"].with_changes(seed=seed, max_examples=examples, max_time=3600.0)
    runs = [campaign.run_campaign(find(target), settings, None, lambda event: None) for _ in range(RUNS + 1)]
    plain = min(runs[1:], key=lambda run: run.seconds)  # the quickest: other work on the machine only adds
    spent: dict[str, float] = defaultdict(float)
    with ExitStack() as patches:
        for where, name, part in PARTS:
            patches.enter_context(patch.object(where, name, _timed(getattr(where, name), part, spent)))

        def forget_the_start(event: Event) -> None:
            if isinstance(event, Started):
                spent.clear()

        timed = campaign.run_campaign(find(target), settings, None, forget_the_start)
    parts = {part: 1e3 * value / timed.examples for part, value in sorted(spent.items(), key=lambda item: -item[1])}
    rest = 1e3 * timed.seconds / timed.examples - sum(parts.values())
    return {
        "target": target,
        "seed": seed,
        "examples": plain.examples,
        "executed": plain.executed,  # those that were not judged cost nothing: they do not count
        "examples_per_second": plain.executed / plain.seconds,
        "milliseconds": {**parts, "Hypothesis, counting, the rest": rest},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--target", default="kernels.ModelNew")
    parser.add_argument("--examples", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    gc.freeze()  # as the command does
    gc.set_threshold(50_000)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # children inherit it
    report = {"format": 1, "environment": versions(), **measure(options.target, options.seed, options.examples)}
    text = json.dumps(report, indent=1) + "\n"
    print(text, end="")
    if options.json is not None:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
