"""Does the CPU engine give the bits that a GPU gives? The zoo and drawn ``rope`` cases, on both.

    python -m tests.agreement --json reports/baseline/engine-h200.json

needs a GPU. Every output of the zoo's kernels is compared bit for bit, NaN payloads aside; those whose kind
is not ``exact`` are also held against their bound. Then cases of the operation ``rope`` are drawn as in a
campaign, and ``kernels.ModelNew`` runs each on the engine and on the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzzrope.build import DTYPES
from fuzzrope.campaign import run_campaign
from fuzzrope.case import Case
from fuzzrope.events import Example
from fuzzrope.run import Runner
from fuzzrope.settings import Settings
from fuzzrope.targets import find
from fuzzrope.versions import versions
from tests.zoo import FAMILIES, ZOO, compare


def collect(where: str, path: Path) -> None:
    """Run the zoo here and save every output; for a process of its own."""
    engine = None
    if where == "engine":
        from fuzzrope.interpreter.engine import Engine
        from fuzzrope.run import driver

        driver.install()
        engine = Engine()
        engine.install()
    saved: dict[str, Any] = {}
    for name, entry in ZOO.items():
        try:
            outputs = entry.launch(**entry.moved("cpu" if engine else "cuda"))
            saved[name] = {key: tensor.detach().cpu() for key, tensor in outputs.items()}
            if engine is not None and engine.accesses:
                saved[name] = f"noticed: {next(iter(engine.accesses.values()))['message']}"
                engine.reset()
        except Exception as error:  # noqa: BLE001 - one kernel that fails must not hide the others
            saved[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    torch.save(saved, path)


def _zoo(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for where in ("engine", "cuda"):
        path = folder / f"{where}.pt"
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES="") if where == "engine" else dict(os.environ)
        subprocess.run(
            [sys.executable, "-m", "tests.agreement", "--collect", where, str(path)], check=True, env=environment
        )
        found[where] = torch.load(path)
    return found


def _bits(tensor: torch.Tensor) -> np.ndarray:
    flat = tensor.contiguous().reshape(-1)
    return flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]).numpy()


def differing(one: torch.Tensor, other: torch.Tensor) -> int:
    """Elements with other bits; a NaN equals every NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return one.numel()
    unequal = _bits(one) != _bits(other)
    if one.dtype.is_floating_point:
        both = torch.isnan(one.float()) & torch.isnan(other.float())
        unequal &= ~both.reshape(-1).numpy()
    return int(unequal.sum())


def zoo_rows(outputs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each entry of the zoo."""
    family = {entry.name: name for name, entries in FAMILIES.items() for entry in entries}
    rows = []
    for name, entry in ZOO.items():
        engine, gpu = outputs["engine"][name], outputs["cuda"][name]
        row: dict[str, Any] = {"entry": name, "family": family[name], "kind": entry.kind}
        for where, one in (("engine", engine), ("gpu", gpu)):
            if isinstance(one, str):
                row[where] = one
        if "engine" not in row and "gpu" not in row:
            row["elements"] = sum(t.numel() for t in gpu.values())
            row["differing"] = sum(differing(engine[key], gpu[key]) for key in gpu)
            results = {"engine": compare(entry, engine), "gpu": compare(entry, gpu)}
            for where, found in results.items():
                row[f"{where}_error_over_bound"] = max(one.ratio for one in found.values())
                row[f"{where}_ulps"] = max(one.ulps for one in found.values())
        rows.append(row)
    return rows


def drawn(count: int) -> list[Case]:
    """Cases as a campaign draws them."""
    cases: dict[str, Case] = {}

    def note(event: Any) -> None:
        if isinstance(event, Example):
            cases[event.case.id] = event.case

    settings = Settings(seed=2026, max_examples=count + count // 4, max_time=400)
    run_campaign(find("kernels.ModelNew"), settings, None, note)
    return list(cases.values())[:count]


def rope_rows(cases: list[Case]) -> dict[str, Any]:
    """Elements and differences of ``kernels.ModelNew`` between engine and GPU, by dtype of the output."""
    elements: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    other: list[str] = []
    target = find("kernels.ModelNew")
    launched = 0
    with Runner(target, "cpu") as engine, Runner(target, "cuda") as gpu:
        for case in cases:
            ours, theirs = engine.run(case), gpu.run(case)
            launched += bool(theirs.launches)
            if (ours.status, len(ours.outputs)) != (theirs.status, len(theirs.outputs)):
                other.append(f"{case.id}: {ours.status} {ours.detail} against {theirs.status} {theirs.detail}")
                continue
            for one, two in zip(ours.outputs, theirs.outputs, strict=True):
                if one.dtype not in DTYPES:
                    continue
                left, right = (
                    torch.frombuffer(bytearray(o.data), dtype=DTYPES[o.dtype]) if o.data else torch.empty(0)
                    for o in (one, two)
                )
                elements[one.dtype] += left.numel()
                wrong[one.dtype] += differing(left, right)
                if (one.shape, one.strides, one.dtype) != (two.shape, two.strides, two.dtype):
                    other.append(f"{case.id}: another form of output")
    return {
        "cases": len(cases),
        "with_a_launch": launched,
        "elements": dict(elements),
        "differing": dict(wrong),
        "otherwise": other,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Counts by kind of kernel."""
    found: dict[str, dict[str, Any]] = {}
    for kind in ("exact", "approximate", "reduction", "dot"):
        mine = [row for row in rows if row["kind"] == kind]
        ran = [row for row in mine if "elements" in row]
        found[kind] = {
            "kernels": len(mine),
            "ran": len(ran),
            "elements": sum(row["elements"] for row in ran),
            "differing": sum(row["differing"] for row in ran),
            "kernels_differing": sum(row["differing"] > 0 for row in ran),
            "engine_worst_error_over_bound": max((row["engine_error_over_bound"] for row in ran), default=0.0),
            "gpu_worst_error_over_bound": max((row["gpu_error_over_bound"] for row in ran), default=0.0),
        }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--collect", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collect:
        collect(options.collect[0], Path(options.collect[1]))
        return
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    with tempfile.TemporaryDirectory() as folder:
        rows = zoo_rows(_zoo(Path(folder)))
    rope = rope_rows(drawn(options.cases))
    report = {
        "format": 1,
        "environment": versions() | {"gpu": torch.cuda.get_device_name()},
        "summary": summary(rows),
        "rope": rope,
        "zoo": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, allow_nan=True) + "\n")
    for kind, counts in report["summary"].items():
        print(kind, counts)
    print("rope", rope)
    for row in rows:
        if "elements" not in row or (row["kind"] == "exact" and row["differing"]):
            print("differs:", row)


if __name__ == "__main__":
    main()
