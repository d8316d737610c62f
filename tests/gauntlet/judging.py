"""One candidate file judged as ``fuzzrope fuzz`` would, until it is told apart from a good one."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fuzzrope.campaign import run_campaign
from fuzzrope.events import Event, Example, Minimized, Seen
from fuzzrope.report.summary import EXIT_FINDINGS, EXIT_PASS, Run
from fuzzrope.settings import PROFILES
from fuzzrope.targets import find
from tests.gauntlet.kinds import FAIR, STRICT

HERE = Path(__file__).parent
FILES = {path.stem: path for folder in ("bad", "good") for path in sorted((HERE / folder).glob("*.py"))}
SECONDS = 60.0


@dataclass
class Judged:
    """What became of one file under one seed.

    Attributes:
        name: the file, without its ending.
        seed: of the campaign.
        exit_code: of the command.
        kinds: of the findings, in the order in which they came.
        fair: whether one of them is a fair verdict; for a good file, whether there is none and all was visited.
        examples: drawn until the fair finding of a bad file was seen, or in all.
        seconds: until then, start of the child included, or in all.
        total_seconds: until its smallest case was found, too.
        message: of the last finding, or what was missed.
    """

    name: str
    seed: int
    exit_code: int
    kinds: list[str]
    fair: bool
    examples: int
    seconds: float
    total_seconds: float
    message: str

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"seconds": round(self.seconds, 3), "total_seconds": round(self.total_seconds, 3)}


class _ToldApartError(BaseException):
    """A fair finding is in: the rest of the campaign would add nothing."""


class _Watch:
    def __init__(self, fair: set[str]) -> None:
        self.fair, self.run, self.examples = fair, Run(), 0
        self.began = time.monotonic()
        self.first: tuple[int, float] | None = None  # examples and seconds until it was seen
        self.seen = 0, 0.0

    def take(self, event: Event) -> None:
        self.run.take(event)
        if isinstance(event, Example):
            self.examples = event.examples
        elif isinstance(event, Seen):
            self.seen = self.examples, time.monotonic() - self.began
        elif isinstance(event, Minimized):
            self.first = self.first if self.first and not self.fair else self.seen
            if event.finding.kind in self.fair:
                raise _ToldApartError


def judged(name: str, seed: int, seconds: float = SECONDS, examples: int | None = None) -> Judged:
    """Judge one file, for so many seconds and examples; the default number if None."""
    path, fair = FILES[name], FAIR.get(name, set())
    target = replace(find(str(path)), level="strict" if name in STRICT else "values")
    settings = PROFILES["quick"].with_changes(seed=seed, max_time=seconds, grace=10.0, max_examples=examples)
    watch = _Watch(fair)
    try:
        run_campaign(target, settings, None, watch.take)
    except _ToldApartError:
        pass
    total = time.monotonic() - watch.began
    found = [one.finding for run in watch.run.targets for one in run.found]
    code = EXIT_FINDINGS if found else watch.run.exit_code
    count, first = watch.first or (watch.examples, total)
    right = bool({one.kind for one in found} & fair) if fair else code == EXIT_PASS
    message = found[-1].message if found else "" if code == EXIT_PASS else str(_missed(watch.run))
    return Judged(name, seed, code, [one.kind for one in found], right, count, first, total, message)


def _missed(run: Run) -> list[Any]:
    return [[*done.finished.missed[:3], done.finished.skipped] for done in run.targets if done.finished]
