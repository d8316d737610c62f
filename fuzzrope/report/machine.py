"""The JSON report (DESIGN: ``--json``) and the log of events, for other programs."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from fuzzrope.events import Event, Example, Finished, Minimized, Seen, Started
from fuzzrope.judge import GRADIENT, Errors
from fuzzrope.report.summary import EXIT_PASS, Run, TargetRun
from fuzzrope.settings import Settings
from fuzzrope.versions import versions

FORMAT = 1


def environment(settings: Settings) -> dict[str, str]:
    """What a figure depends on, for reports."""
    processor = (
        torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or platform.machine()
    )
    return {
        **versions(),
        "device": settings.device,
        "engine": settings.engine if settings.device == "cpu" else "cuda",
        "processor": processor,
    }


def report(run: Run, environment: dict[str, str], seed: int) -> dict[str, Any]:
    """The report of a run; ``verdict`` is ``pass`` only if the command's exit code is 0."""
    finished = [target.finished for target in run.targets if target.finished is not None]
    return {
        "format": FORMAT,
        "verdict": "pass" if run.exit_code == EXIT_PASS else "fail",
        "exit_code": run.exit_code,
        "seed": seed,
        "examples": sum(f.examples for f in finished),
        "seconds": round(sum(f.seconds for f in finished), 3),
        "targets": [_target(target) for target in run.targets],
        "broken": run.broken,
        "environment": environment,
    }


def _errors(by_dtype: dict[str, Errors]) -> dict[str, Any]:
    return {
        dtype: {
            "elements": errors.count,
            "max_ulp": errors.max_ulp,
            "max_error_over_bound": errors.over_bound,
            "rms_over_reference_rms": errors.rms_ratio,
            "worst_case": errors.worst_id,
        }
        for dtype, errors in sorted(by_dtype.items())
    }


def _target(run: TargetRun) -> dict[str, Any]:
    done = run.finished
    errors = done.errors if done else {}
    gradients = {dtype: one for dtype, one in errors.items() if dtype.endswith(GRADIENT)}
    failed = bool(run.found) or done is None or bool(done.missed) or not done.executed
    return {
        "target": run.started.target.name,
        "operation": run.started.target.operation,
        "level": run.started.target.level,
        "verdict": "fail" if failed else "pass",
        "examples": done.examples if done else 0,
        "executed": done.executed if done else 0,
        "differentiated": done.differentiated if done else 0,
        "seconds": round(done.seconds, 3) if done else 0.0,
        "findings": [
            {**found.finding.to_json(), "case": str(found.path or ""), "minimized": found.complete}
            for found in run.found
        ],
        "errors": _errors({dtype: e for dtype, e in errors.items() if dtype not in gradients}),
        "gradients": _errors({dtype.removesuffix(GRADIENT): e for dtype, e in gradients.items()}),
        "strata": {
            "declared": sum(run.started.declared.values()),
            "reached": len(done.reached) if done else 0,
            "missed": list(done.missed) if done else [],
            "left_out": {
                group: {"count": count, "reason": run.started.reasons[group]}
                for group, count in run.started.left_out.items()
            },
            "visits": dict(sorted(run.visits.items())),
        },
        "skipped": done.skipped if done else {},
        "child_restarts": done.restarts if done else 0,
    }


class EventLog:
    """Writes every event as one JSON row, flushed at once, so that a killed run leaves its history."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def take(self, event: Event) -> None:
        """Write one event."""
        self._file.write(json.dumps(_row(event), sort_keys=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _row(event: Event) -> dict[str, Any]:
    row: dict[str, Any] = {"event": type(event).__name__.lower()}
    if isinstance(event, Started):
        row |= {"target": event.target.name, "seed": event.seed, "blocks": list(event.blocks)}
        row |= {"declared": event.declared, "left_out": event.left_out}
    elif isinstance(event, Example):
        row |= {"case": event.case.id, "strata": sorted(event.strata), "skipped": event.skipped}
    elif isinstance(event, (Seen, Minimized)):
        row |= {"finding": event.finding.to_json(), "case": event.case.to_json(), "path": str(event.path or "")}
    elif isinstance(event, Finished):
        row |= {"target": event.target.name, "examples": event.examples, "seconds": event.seconds}
        row |= {"missed": list(event.missed), "interrupted": event.interrupted}
    return row
