"""What all renderers share: the events of a run gathered target by target, and the verdict they add up to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzzrope.case import Case
from fuzzrope.events import Event, Example, Finished, Minimized, Seen, Started
from fuzzrope.findings import Finding

EXIT_PASS, EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_INTERNAL, EXIT_USAGE, EXIT_NOTHING = range(6)


@dataclass
class Found:
    """A finding as it ended up: its smallest case, where that is saved, whether it is a minimum, when it was seen."""

    finding: Finding
    case: Case
    path: Path | None
    complete: bool
    seen: Seen | None = None


@dataclass
class TargetRun:
    """One target's campaign so far."""

    started: Started
    found: list[Found] = field(default_factory=list)
    finished: Finished | None = None
    visits: Counter[str] = field(default_factory=Counter)
    seen: dict[str, Seen] = field(default_factory=dict)


@dataclass
class Run:
    """All campaigns of one command, and the targets that the machinery failed on, with the reason."""

    targets: list[TargetRun] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Fold in one event."""
        if isinstance(event, Started):
            self.targets.append(TargetRun(event))
        elif isinstance(event, Minimized):
            target = self.targets[-1]
            seen = target.seen.get(event.finding.bucket)
            target.found.append(Found(event.finding, event.case, event.path, event.complete, seen))
        elif isinstance(event, Seen):
            self.targets[-1].seen.setdefault(event.finding.bucket, event)
        elif isinstance(event, Example):
            self.targets[-1].visits.update(event.strata)
        elif isinstance(event, Finished):
            self.targets[-1].finished = event

    @property
    def exit_code(self) -> int:
        """pytest's meaning: 0 nothing found, 1 findings, 2 interrupted, 5 not enough was run to say so."""
        done = [target.finished for target in self.targets if target.finished is not None]
        if any(finished.interrupted for finished in done):
            return EXIT_INTERRUPTED
        if self.broken:
            return EXIT_INTERNAL
        if any(target.found for target in self.targets):
            return EXIT_FINDINGS
        if not done or any(finished.executed == 0 or finished.missed for finished in done):
            return EXIT_NOTHING
        return EXIT_PASS


def replay_command(found: Found, started: Started) -> str:
    """The command that shows a finding again."""
    if found.path is None:
        return f"fuzzrope fuzz {started.target.name} --seed {started.seed}"
    return f"fuzzrope replay {found.path}"
