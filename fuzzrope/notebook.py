"""Keeping what a campaign finds: saved the moment it is seen, minimized, and saved again in place.

So a kill at any moment loses no finding, and what stays in the corpus is the smallest case of each bucket.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzzrope import corpus, shrink
from fuzzrope.case import Case
from fuzzrope.events import Event, Minimized, Seen
from fuzzrope.findings import Finding, worst
from fuzzrope.findings import finding as make_finding
from fuzzrope.judge import Verdict
from fuzzrope.operations import Differentiable, Operation
from fuzzrope.settings import Settings
from fuzzrope.targets import Target
from fuzzrope.versions import versions

HANG_SECONDS = 1.0  # deadline of one step while a hang is being minimized; the result is run at the full one

UNSTEADY = ("stateful", "nondeterministic")

#: A case with its own deadline, if any, and the bucket that is looked for.
Execute = Callable[[Case, float | None, str], Verdict]


def reduce(case: Case, keep: shrink.Keep, operation: Operation) -> tuple[Case, bool]:
    """:func:`fuzzrope.shrink.minimize` with what the operation knows of its cases."""
    if isinstance(operation, Differentiable):
        return shrink.minimize(case, keep, operation.simpler, operation.fitted)
    return shrink.minimize(case, keep, operation.simpler)


class Keeper:
    """Saves the cases of one campaign, and knows which of the files are its own."""

    def __init__(self, target: Target, settings: Settings, folder: Path | None) -> None:
        self.target, self.settings, self.folder = target, settings, folder
        self._own: set[Path] = set()

    def save(self, case: Case, verdict: Verdict, finding: Finding, note: str) -> Path | None:
        """Save a case under its finding; None where nothing is to be kept."""
        if self.folder is None:
            return None
        found = {
            "seed": self.settings.seed,
            "device": self.settings.device,
            "level": self.target.level,
            "versions": versions(),
            "date": datetime.date.today().isoformat(),
        }
        expect = tuple(sorted({(f.kind, f.bucket) for f in verdict.findings}))
        path = corpus.path_of(self.folder, self.target, finding.kind, case)
        if not path.exists():
            self._own.add(path)
        corpus.save(path, corpus.Saved(self.target.name, case, expect, found, note))
        return path

    def drop(self, path: Path | None) -> None:
        """Remove a file of this campaign; one that was there before stays."""
        if path in self._own:
            path.unlink(missing_ok=True)
            self._own.discard(path)


@dataclass
class _Work:
    """A finding that is about to be shrunk, and where its case is saved."""

    finding: Finding
    case: Case
    verdict: Verdict
    path: Path | None = None


class Notebook:
    """The buckets a campaign knows, and the one it is working on."""

    def __init__(
        self,
        keeper: Keeper,
        execute: Execute,
        confirm: Callable[[Case, str], Verdict],
        operation: Operation,
        emit: Callable[[Event], None],
        left: Callable[[], float],
    ) -> None:
        self.known: set[str] = set()
        self.withdrawn: set[str] = set()  # buckets of the case in work that did not stand
        self._keeper, self._execute, self._confirm, self._operation = keeper, execute, confirm, operation
        self._emit, self._left = emit, left
        self._open: _Work | None = None

    def note(self, case: Case, verdict: Verdict, finding: Finding) -> None:
        """Save a finding that is about to be shrunk."""
        self.withdrawn = set()
        self._open = _Work(finding, case, verdict)  # before it is saved: an interrupt in between loses nothing
        self._open.path = self._save_raw(self._open)
        self._emit(Seen(finding, case, self._open.path))

    def _save_raw(self, work: _Work) -> Path | None:
        return self._keeper.save(work.case, work.verdict, work.finding, "found, not minimized")

    def give_up(self, complete: bool = False) -> None:
        """Leave the finding in work as it was first saved; ``complete`` if there is nothing to minimize."""
        if self._open is not None:
            work, self._open = self._open, None
            if work.path is None or not work.path.exists():
                work.path = self._save_raw(work)
            self.known.add(work.finding.bucket)
            self._emit(Minimized(work.finding, work.case, work.path, complete, steps=0))

    def leave(self) -> None:
        """Leave the finding in work as it was first saved, if its case alone shows it."""
        if self._open is not None:
            self._irreproducible(self._open.finding, self._open.case, self._open.path)
        self.give_up()

    def withdraw(self) -> None:
        """Drop the finding in work, which did not stand: any machine is slow once."""
        if self._open is not None:
            work, self._open = self._open, None
            self._keeper.drop(work.path)
            self.withdrawn.add(work.finding.bucket)

    @property
    def hangs(self) -> bool:
        """Whether the target is known, or suspected, to hang."""
        suspected = set() if self._open is None else {self._open.finding.bucket}
        return any(bucket.partition(":")[0] == "timeout" for bucket in self.known | suspected)

    def settle(self, case: Case, verdict: Verdict, minimize: bool = True) -> None:
        """Minimize and save every unknown finding of a case, the worst first."""
        while new := [f for f in verdict.findings if f.bucket not in self.known | self.withdrawn]:
            if len(self.known) >= self._keeper.settings.max_findings:
                return
            finding = worst([f for f in new if self._open is not None and f.bucket == self._open.finding.bucket] or new)
            if self._open is None:
                self.note(case, verdict, finding)
            if minimize:
                self._minimize(case, finding)
            self.give_up(complete=not minimize)

    def _minimize(self, case: Case, finding: Finding) -> None:
        """Replace the finding in work by its smallest case, if that shows it in a fresh process."""
        steps = 0

        def keep(candidate: Case) -> bool:
            nonlocal steps
            if self._left() < -self._keeper.settings.grace:
                raise shrink.OutOfTimeError
            steps += 1
            seconds = HANG_SECONDS if finding.kind == "timeout" else None
            return finding.bucket in self._execute(candidate, seconds, finding.bucket).buckets

        smallest, complete = reduce(case, keep, self._operation)
        final = self._confirm(smallest, finding.bucket)
        again = next((f for f in final.findings if f.bucket == finding.bucket), None)
        assert self._open is not None
        raw = self._open.path
        if again is None:
            self._irreproducible(finding, case, raw)
            return
        path = self._keeper.save(smallest, final, again, "" if complete else "minimizing ran out of time")
        if raw != path:
            self._keeper.drop(raw)
        self._open = None
        self.known.add(finding.bucket)
        self._emit(Minimized(again, smallest, path, complete, steps))

    def _irreproducible(self, finding: Finding, case: Case, raw: Path | None) -> None:
        """The smallest case does not show it in a fresh process; if the first one neither, that is the flaw."""
        if finding.bucket in self._confirm(case, finding.bucket).buckets:
            return
        if finding.kind == "timeout":
            self.withdraw()
            return
        if finding.kind not in UNSTEADY:
            unsteady = self._confirm(case, "stateful")
            if any(f.kind in UNSTEADY for f in unsteady.findings):  # repeating the case alone does show something
                self._open = None
                self.known.add(finding.bucket)
                self._keeper.drop(raw)
                self.settle(case, unsteady)
                return
        message = f"{finding.message}; the same case alone in a fresh process does not show it"
        self._open = None
        self.known |= {finding.bucket, f"stateful:{finding.bucket}"}
        self._keeper.drop(raw)  # a case that shows nothing by itself cannot be replayed
        stateful = make_finding("stateful", message, output=finding.output, detail=finding.kind)
        self._emit(Minimized(stateful, case, None, complete=True, steps=0))
