"""One candidate file judged as ``fuzzrope fuzz`` would, until it is told apart from a good one."""

from __future__ import annotations

import atexit
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fuzzrope.campaign import run_campaign
from fuzzrope.events import Event, Example, Seen
from fuzzrope.report.summary import EXIT_FINDINGS, EXIT_PASS, Run
from fuzzrope.run import Runner, processes
from fuzzrope.settings import PROFILES
from fuzzrope.targets import find
from tests.gauntlet.kinds import FAIR, STRICT

HERE = Path(__file__).parent
FILES = {path.stem: path for folder in ("bad", "good") for path in sorted((HERE / folder).glob("*.py"))}
#: Bad files that nothing is found in yet. What finds one moves it to ``bad``.
EVADES = {path.stem: path for path in sorted((HERE / "evades").glob("*.py"))}
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
        examples: drawn until the first fair finding of a bad file was seen, or in all.
        seconds: of the campaign until then, or in all.
        start: seconds before that, in which the first of the files waits for torch and Triton to be imported.
        processor: seconds that all processes worked from start to end, which on a busy machine are fewer.
        message: of the last finding, or what was missed.
    """

    name: str
    seed: int
    exit_code: int
    kinds: list[str]
    fair: bool
    examples: int
    seconds: float
    start: float
    processor: float
    message: str

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        times = {name: round(getattr(self, name), 3) for name in ("seconds", "start", "processor")}
        return asdict(self) | times


class _ToldApartError(BaseException):
    """A fair finding is in: the rest of the campaign, minimizing it among that, would add nothing."""


class _Watch:
    def __init__(self, fair: set[str]) -> None:
        self.fair, self.run, self.examples, self.seconds = fair, Run(), 0, 0.0
        self.kinds: list[str] = []
        self.message = ""

    def take(self, event: Event) -> None:
        self.run.take(event)
        if isinstance(event, Example):
            self.examples = event.examples
        elif isinstance(event, Seen):
            self.kinds.append(event.finding.kind)
            self.message = event.finding.message
            if event.finding.kind in self.fair:
                self.examples, self.seconds = event.examples, event.seconds
                raise _ToldApartError


def judged(name: str, seed: int, seconds: float = SECONDS, examples: int | None = None) -> Judged:
    """Judge one file, for so many seconds and examples; the default number if None.

    The files that a process judges share a zygote, as those of one command do.
    """
    path, fair = FILES[name], FAIR.get(name, set())
    target = replace(find(str(path)), level="strict" if name in STRICT else "values")
    settings = PROFILES["quick"].with_changes(seed=seed, max_time=seconds, grace=10.0, max_examples=examples)
    watch, began, runner = _Watch(fair), time.monotonic(), _runner()
    worked = _worked(runner)
    with suppress(_ToldApartError):
        watch.seconds = run_campaign(target, settings, None, watch.take, runner).seconds
    start = time.monotonic() - began - watch.seconds
    processor = _worked(runner) - worked
    code = EXIT_FINDINGS if watch.kinds else watch.run.exit_code
    right = bool(set(watch.kinds) & fair) if fair else code == EXIT_PASS
    message = watch.message or ("" if code == EXIT_PASS else _missed(watch.run))
    return Judged(name, seed, code, watch.kinds, right, watch.examples, watch.seconds, start, processor, message)


@cache
def _runner() -> Runner:
    runner = Runner(find(str(next(iter(FILES.values())))))
    atexit.register(runner.close)
    return runner


def _worked(runner: Runner) -> float:
    """Seconds of processor time of this process and, once the child at work has ended, of those it started."""
    runner.discard()
    ours = (processes.stat(pid) for pid in (os.getpid(), *processes.children(os.getpid())))
    return sum(sum(map(int, fields[11:15])) for fields in ours if fields is not None) / os.sysconf("SC_CLK_TCK")


def _missed(run: Run) -> str:
    done = [target.finished for target in run.targets if target.finished is not None]
    return "; ".join(f"{len(one.missed)} strata missed, {one.missed[:3]}, {one.skipped}" for one in done)
