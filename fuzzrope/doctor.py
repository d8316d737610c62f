"""Is this installation sound? Versions that belong together, a child that runs, an engine that is right."""

from __future__ import annotations

import torch
from rich.console import Console

from fuzzrope.judge import judge
from fuzzrope.operations import OPERATIONS
from fuzzrope.run import Runner, RunnerError
from fuzzrope.targets import find
from fuzzrope.versions import versions

#: torch -> triton, by minor version: the pairs that were released for each other.
PAIRS = {"2.11": "3.6", "2.12": "3.7", "2.13": "3.7", "2.14": "3.8"}
TRIED = ("kernels.reference", "kernels.ModelNew")


def examine(console: Console) -> bool:
    """Print what is found; whether everything needed works."""
    found = versions()
    for name, version in found.items():
        console.print(f"  {name} {version}")
    expected = PAIRS.get(".".join(found["torch"].split(".")[:2]))
    if expected is None or not found["triton"].startswith(expected + "."):
        console.print(f"[yellow]![/] torch {found['torch']} was not released with triton {found['triton']}")
    if torch.cuda.is_available():
        console.print(f"[green]✓[/] GPU: {torch.cuda.get_device_name()}")
    else:
        console.print("[green]✓[/] no GPU: kernels run as Triton IR on the CPU")
    results = [_tried(console, name) for name in TRIED]  # all of them, also after a failure
    return all(results)


def _tried(console: Console, name: str) -> bool:
    """Run one plain case of a target that is known to be right."""
    target = find(name)
    case = OPERATIONS[target.operation].probes()[0]
    try:
        with Runner(target) as runner:
            verdict = judge(case, runner.run(case), target)
    except RunnerError as error:
        console.print(f"[red]✗[/] {name}: {error}", soft_wrap=True)
        return False
    if verdict.findings or verdict.skipped:
        problem = verdict.skipped or verdict.findings[0].message
        console.print(f"[red]✗[/] {name}: {problem}", soft_wrap=True)
        return False
    console.print(f"[green]✓[/] {name}: runs in a child process and is judged right")
    return True
