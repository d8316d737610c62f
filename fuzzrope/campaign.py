"""A campaign: draw cases under a budget, judge each, minimize and keep what fails, and say so in events.

The order of work is fixed by the seed alone. Rounds of Hypothesis run one after another: first the
operation's probes, then every declared stratum not reached yet, groups of them taking turns, then free rounds
until the budget ends. A round stops at its first new bucket; Hypothesis shrinks it, :mod:`fuzzrope.notebook` has it
minimized and kept, and from then on that bucket counts as known.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fuzzrope.case import Case
from fuzzrope.draw import search
from fuzzrope.events import Event, Example, Finished, Seen, Started
from fuzzrope.examine import IDLE, examine, examine_afresh, sampled
from fuzzrope.findings import Finding, worst
from fuzzrope.judge import Errors, Verdict, judge
from fuzzrope.notebook import Keeper, Notebook
from fuzzrope.operations import OPERATIONS, Differentiable, Stratum
from fuzzrope.run import Runner
from fuzzrope.run.capability import cannot_run
from fuzzrope.settings import Settings
from fuzzrope.targets import Target

FREE_ROUND = 50  # examples of a round that aims at no stratum
DEFAULT_BLOCKS = (16, 64)
AFTER_A_HANG = 4.0  # deadline (s) once a target is known to hang

Emit = Callable[[Event], None]


class _Over(BaseException):
    """The budget is spent; passes through Hypothesis untouched."""


def run_campaign(
    target: Target, settings: Settings, folder: Path | None, emit: Emit, runner: Runner | None = None
) -> Finished:
    """Run a campaign on one target, saving cases under ``folder`` unless it is None.

    ``runner``, if given, has the settings' device, limits and engine; it is turned to the target, and stays open.

    Raises:
        RunnerError: no child process could be started.
    """
    with contextlib.ExitStack() as stack:
        if runner is None:
            runner = stack.enter_context(Runner(target, settings.device, settings.limits, settings.engine))
        else:
            runner.turn_to(target)
        campaign = _Campaign(target, settings, folder, emit, runner)
        try:
            campaign.run()
        except _Over:
            pass
        except KeyboardInterrupt:
            campaign.interrupted = True
            if not campaign.strata:
                campaign.declare()
        campaign.notebook.give_up()
        finished = campaign.finished()
    emit(finished)
    return finished


def in_turns(strata: Sequence[Stratum]) -> list[Stratum]:
    """The first of each group, then the second of each: no region waits for all of a larger one."""
    seen: Counter[str] = Counter()
    turns = []
    for stratum in strata:
        turns.append((seen[stratum.group], stratum))
        seen[stratum.group] += 1
    return [stratum for _, stratum in sorted(turns, key=lambda turn: turn[0])]


class _Campaign:
    def __init__(self, target: Target, settings: Settings, folder: Path | None, emit: Emit, runner: Runner) -> None:
        self.target, self.settings, self.folder, self.emit, self.runner = target, settings, folder, emit, runner
        self.operation = OPERATIONS[target.operation]
        self.gradients = target.gradients or target.level == "strict"
        self.blocks: tuple[int, ...] = DEFAULT_BLOCKS
        self.strata: tuple[Stratum, ...] = ()
        self._declared: frozenset[str] = frozenset()
        self.visits: Counter[str] = Counter()
        self.reached: set[str] = set()
        self.errors: dict[str, Errors] = {}
        self.by_output: dict[tuple[str, str], Errors] = {}
        self.skipped: Counter[str] = Counter()
        self.examples = self.executed = self.differentiated = 0
        self.interrupted = False
        self.started = time.monotonic()
        self._shrinking: dict[str, bool] | None = None
        self._spent = 0
        self._failure: tuple[Case, Finding] | None = None
        keeper = Keeper(target, settings, folder)
        self.notebook = Notebook(keeper, self._execute, self._execute_afresh, self.operation, self._say, self._left)
        self.known = self.notebook.known

    # The order of work

    def run(self) -> None:
        """Everything, until the budget ends (by :class:`_Over`) or nothing is left to do."""
        observed: set[int] = set()
        verdicts = []
        for case in self.operation.probes():
            outcome = self.runner.run(case)
            observed |= {value for launch in outcome.launches for _, value in launch.constants}
            verdicts.append((case, judge(case, outcome, self.target)))
            if outcome.phase == "load":
                self.declare()
                self.notebook.settle(case, verdicts[-1][1], minimize=False)
                return
        blocks = tuple(sorted(n for n in observed if 8 <= n <= 1024 and n & (n - 1) == 0))
        self.blocks = blocks or DEFAULT_BLOCKS
        self.declare()
        for number, (case, verdict) in enumerate(verdicts):
            if number == 0 and not (self.target.exact or verdict.findings or self.settings.device != "cpu"):
                # Once for certain: what kernels have no part in may be rare among what is sampled.
                verdict = examine(case, self.runner, self.target, self.settings, (IDLE,))
            self._count(case, verdict)
            self.notebook.settle(case, verdict)
        for visit in range(self.settings.visits):
            for index, stratum in enumerate(self.strata):
                if self._mine(index) and self.visits[stratum.name] <= visit:
                    self._round(dict(stratum.pins), 2, f"{stratum.name}#{visit}")
        for index in itertools.count():
            if self._mine(index):
                self._round({}, FREE_ROUND, f"free#{index}")

    def declare(self) -> None:
        """Fix the strata that the engine can visit, and say so."""
        every = self.operation.strata(self.blocks)
        if self.gradients and isinstance(self.operation, Differentiable):
            every = self.operation.backward_strata() + every  # few, and what they alone can show comes first
        reasons: dict[str, str] = {}
        for stratum in every:
            pins = dict(stratum.pins)
            dtypes, rows = pins.get("dtypes", ()), pins.get("rows", 0)
            reason = cannot_run(self.settings.device, self.settings.engine, dtypes, rows)
            if reason:
                reasons[stratum.name] = reason
        self.strata = tuple(in_turns([stratum for stratum in every if stratum.name not in reasons]))
        left_out = Counter(stratum.group for stratum in every if stratum.name in reasons)
        reason_of = {stratum.group: reasons[stratum.name] for stratum in every if stratum.name in reasons}
        names = tuple(stratum.name for stratum in self.strata)
        self._declared = frozenset(names)
        self.emit(Started(self.target, self.settings.seed, self.blocks, names, dict(left_out), reason_of))

    def _mine(self, index: int) -> bool:
        which, count = self.settings.shard
        return index % count == which

    # Drawing

    def _round(self, pins: Mapping[str, Any], examples: int, label: str) -> None:
        """Rounds of Hypothesis on one theme until it shows nothing new."""
        floats = tuple(
            name
            for name in ("float32", "float16", "float64", "bfloat16")
            if not cannot_run(self.settings.device, self.settings.engine, (name,))
        )
        pins = {"floats": floats, "gradients": self.settings.gradients if self.gradients else "", **pins}
        for attempt in range(10):
            failure = self._hypothesis(pins, examples, f"{self.settings.seed}/{label}/{attempt}")
            if failure is None:
                return
            case, finding = failure
            verdict = self._execute(case, bucket=finding.bucket)
            if finding.bucket not in verdict.buckets and finding.kind == "timeout":
                self.notebook.withdraw()
            elif finding.bucket not in verdict.buckets:
                self.notebook.leave()
            self.notebook.settle(case, verdict)
            if finding.bucket in self.notebook.withdrawn:
                self.skipped[f"{finding.message} once, and one in time when asked again"] += 1

    def _hypothesis(self, pins: Mapping[str, Any], examples: int, seed: str) -> tuple[Case, Finding] | None:
        """One run of Hypothesis; the shrunk case of the first new bucket it came upon, if any."""
        self._shrinking, self._spent, self._failure = None, 0, None

        search(lambda draw: self._fails(self.operation.draw(draw, pins, self.blocks)), examples, seed)
        self._shrinking = None
        return self._failure

    def _fails(self, case: Case) -> bool:
        """Whether a drawn case shows something new; remembers it in ``_failure`` if so."""
        if self._shrinking is not None:
            return self._still_fails(case)
        self._check_budget()
        verdict = self._sample(case)
        self._count(case, verdict)
        new = [f for f in verdict.findings if f.bucket not in self.known]
        if not new:
            return False
        self._failure = (case, worst(new))
        self._shrinking = {case.id: True}
        # A hang costs its whole deadline each time it is shown again, so it is left to the minimizer.
        self._spent = self.settings.shrink_examples if worst(new).kind == "timeout" else 0
        self.notebook.note(case, verdict, worst(new))
        return True

    def _still_fails(self, case: Case) -> bool:
        """While Hypothesis shrinks: whether the case shows the same bucket.

        Only so many cases are run. One that was not tried before the allowance ran out counts as passing,
        each time it is asked, so that Hypothesis sees one consistent answer.
        """
        assert self._shrinking is not None
        assert self._failure is not None
        if case.id not in self._shrinking:
            fails = False
            if self._spent < self.settings.shrink_examples and self._left() > 0:
                self._spent += 1
                bucket = self._failure[1].bucket
                fails = bucket in self._execute(case, bucket=bucket).buckets
            self._shrinking[case.id] = fails
        if self._shrinking[case.id]:
            self._failure = (case, self._failure[1])
        return self._shrinking[case.id]

    # Running and counting

    def _execute(self, case: Case, seconds: float | None = None, bucket: str = "") -> Verdict:
        """Run and judge a case, with the extra runs that a finding in ``bucket`` needs."""
        if seconds is None and self.notebook.hangs:
            seconds = AFTER_A_HANG
        return examine_afresh(case, self.runner, self.target, self.settings, (bucket,), seconds)

    def _sample(self, case: Case) -> Verdict:
        """Run and judge a case, with the extra runs that are its share."""
        seconds = AFTER_A_HANG if self.notebook.hangs else None
        checks = sampled(case, self.target.exact, self.settings.device)
        return examine(case, self.runner, self.target, self.settings, checks, seconds)

    def _execute_afresh(self, case: Case, bucket: str) -> Verdict:
        """Run a case as the first of a new child, with the whole deadline."""
        self.runner.discard()
        return self._execute(case, self.runner.deadline, bucket)

    def _count(self, case: Case, verdict: Verdict) -> None:
        self.examples += 1
        strata: frozenset[str] = frozenset()
        if verdict.skipped:
            self.skipped[verdict.skipped] += 1
        else:
            self.executed += 1
            self.differentiated += case.backward is not None
            strata = self.operation.classify(case, self.blocks)
            self.visits.update(strata)
            self.reached |= strata & self._declared
        for dtype, errors in verdict.errors.items():
            self.errors.setdefault(dtype, Errors()).add(errors)
        for output, errors in verdict.by_output.items():
            self.by_output.setdefault(output, Errors()).add(errors)
        self.emit(Example(case, self.examples, strata, len(self.reached), verdict.skipped))

    def _say(self, event: Event) -> None:
        """Pass on what the notebook says, with when it was."""
        if isinstance(event, Seen):
            event = replace(event, examples=self.examples, seconds=time.monotonic() - self.started)
        self.emit(event)

    def _left(self) -> float:
        return self.settings.max_time - (time.monotonic() - self.started)

    def _check_budget(self) -> None:
        spent = self.examples >= self.settings.max_examples and self.examples > 0
        if spent or self._left() <= 0 or len(self.known) >= self.settings.max_findings:
            raise _Over

    def finished(self) -> Finished:
        """The summary of what was done."""
        reached = frozenset(self.reached)
        mine = [s for i, s in enumerate(self.strata) if self._mine(i)]
        return Finished(
            target=self.target,
            examples=self.examples,
            executed=self.executed,
            differentiated=self.differentiated,
            seconds=time.monotonic() - self.started,
            reached=reached,
            missed=tuple(stratum.name for stratum in mine if stratum.name not in reached),
            errors=self.errors,
            by_output=self.by_output,
            restarts=max(self.runner.restarts - 1, 0),
            interrupted=self.interrupted,
            skipped=dict(self.skipped),
        )
