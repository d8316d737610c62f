"""What `fuzzrope list` and `fuzzrope show` print."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fuzzrope.corpus import Saved
from fuzzrope.findings import KINDS
from fuzzrope.targets import REGISTERED


def print_targets(console: Console) -> None:
    """What can be judged, and the kinds of finding."""
    table = Table("target", "operation", "level", "what it is", title="targets", title_justify="left")
    for target in REGISTERED:
        level = target.level + (", exact" if target.exact else "")
        table.add_row(target.name, target.operation, level, target.summary)
    console.print(table)
    kinds = Table("kind", "meaning", title="kinds of finding", title_justify="left")
    for kind, meaning in KINDS.items():
        kinds.add_row(kind, meaning)
    console.print(kinds)


def print_case(console: Console, path: Path, saved: Saved) -> None:
    """A saved case: its tensors, what it is expected to show, and how to replay it."""
    console.print(f"{saved.target}: {saved.case.operation} {saved.case.id}", style="bold", markup=False)
    table = Table("tensor", "dtype", "shape", "strides", "offset", "storage", "device", "values")
    for name, spec in saved.case.specs:
        values = spec.values
        data = " ".join(f"{x:g}" for x in values.data[:8]) + (" …" if len(values.data) > 8 else "")
        recipe = f"{values.kind} {data}" if values.data else f"{values.kind}, seed {values.seed}"
        table.add_row(
            name, spec.dtype, str(spec.shape), str(spec.strides), str(spec.offset), spec.storage, spec.device, recipe
        )
    console.print(table)
    for kind, bucket in saved.expect:
        console.print(f"expects {bucket}: {KINDS[kind]}", markup=False, soft_wrap=True)
    if not saved.expect:
        console.print("expects no finding")
    if saved.note:
        console.print(saved.note, markup=False, soft_wrap=True)
    console.print(f"found: {json.dumps(saved.found, sort_keys=True)}", style="dim", markup=False, soft_wrap=True)
    console.print(f"fuzzrope replay {path}", style="cyan", soft_wrap=True)
