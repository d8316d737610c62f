"""Replaying saved cases: does each show exactly what it is expected to show?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fuzzrope.corpus import Saved
from fuzzrope.examine import examine_afresh
from fuzzrope.judge import Verdict
from fuzzrope.run import Runner, Zygote
from fuzzrope.settings import Settings
from fuzzrope.targets import LEVELS, Target, find


@dataclass(frozen=True)
class Replayed:
    """One replayed file: what it expected, what it showed, or why it was not run."""

    path: Path
    saved: Saved
    verdict: Verdict

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """(kind, bucket) of every finding."""
        return tuple(sorted({(f.kind, f.bucket) for f in self.verdict.findings}))

    @property
    def as_expected(self) -> bool:
        """Whether it showed exactly what it should."""
        return not self.verdict.skipped and self.shown == self.saved.expect


def target_of(saved: Saved) -> Target:
    """The target of a saved case, at the level it was found."""
    level = saved.found.get("level")
    return find(saved.target).at(level if level in LEVELS else None)


def replay(items: list[tuple[Path, Saved]], settings: Settings, zygote: Zygote | None = None) -> Iterator[Replayed]:
    """Replay saved cases in order; cases of one target share a child while it lives, all of them a zygote."""
    with contextlib.ExitStack() as stack:
        runner = None
        for target, group in groupby(items, key=lambda item: target_of(item[1])):
            if target.missing:
                yield from (Replayed(path, saved, Verdict(skipped=target.missing)) for path, saved in group)
                continue
            if runner is None:
                runner = Runner(target, settings.device, settings.limits, settings.engine, zygote)
                stack.enter_context(runner)
            else:
                runner.turn_to(target)
            for path, saved in group:
                yield Replayed(path, saved, examine_afresh(saved.case, runner, target, settings, saved.buckets))
