"""Examining a case: running and judging it, and, if nothing is wrong, the runs that show what one run cannot.

    again          the same inputs once more in the same process: the same bits
    same memory    other values at the same addresses: the right answer to those
    alone          as the first case of a new process: the same bits
    idle           with launches that do nothing: other bits, or PyTorch did the kernels' work
    NAME           a metamorphic relation of the operation: the same bits where it says so

A campaign samples them, by the case's own id; replaying and minimizing a finding of theirs runs those that
it names, in a new process, so that the case alone shows it again.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import replace

from fuzzrope.case import Case, Values
from fuzzrope.findings import Finding, finding
from fuzzrope.geometry import longest
from fuzzrope.judge import Verdict, judge
from fuzzrope.judge.relations import as_found, differing
from fuzzrope.operations import OPERATIONS
from fuzzrope.outcome import Outcome
from fuzzrope.run import Runner
from fuzzrope.run.capability import cannot_run
from fuzzrope.settings import Settings
from fuzzrope.targets import Target

AGAIN, SAME_MEMORY, ALONE, IDLE = "again", "same memory", "alone", "idle"
RUNS = (AGAIN, SAME_MEMORY, ALONE)
#: One case in so many is given each extra run, and one relation.
EVERY = {AGAIN: 16, SAME_MEMORY: 30, ALONE: 1500, IDLE: 120}
EVERY_RELATION = 4
TELLING = 16  # elements of an output that chance does not repeat
TIMES = 8  # how often a case is run again where it is known to differ
AGREEING = 6  # new processes that must agree for a difference to be laid to state, not chance
RELATION = "relation "


def sampled(case: Case, exact: bool = False, device: str = "cpu") -> tuple[str, ...]:
    """The checks that a campaign gives to this case.

    ``exact``: the target promises the bits of eager, so a run that differs from another is a mismatch already, and no
    relation is left to break. On a GPU relations do not bind to the bit: compilers contract products and sums in one
    variant of a kernel and not in another.
    """
    number = int(case.id, 16)
    chosen = []
    for check, every in EVERY.items():
        number, rest = divmod(number, every)
        fitting = check == SAME_MEMORY or not exact
        chosen += [check] if rest == 0 and fitting and (check != IDLE or device == "cpu") else []
    number, rest = divmod(number, EVERY_RELATION)
    relations = OPERATIONS[case.operation].relations
    if rest == 0 and relations and not exact and device == "cpu":
        # The first two twice as often: an operation names first what is hardest to show.
        chosen.append(f"{RELATION}{number % (len(relations) + 2) % len(relations)}")
    return tuple(chosen)


def demanded(buckets: Iterable[str]) -> tuple[str, ...]:
    """The checks without which findings in these buckets cannot show."""
    checks = {check for bucket in buckets for check in _demanded(bucket)}
    return tuple(sorted(checks))


def _demanded(bucket: str) -> tuple[str, ...]:
    kind, _, rest = bucket.partition(":")
    if kind == "nondeterministic":
        return (AGAIN,)
    if kind == "no_launch":
        return (IDLE,) if rest.rpartition(":")[2] == IDLE else ()
    if kind == "stateful":
        detail = rest.rpartition(":")[2]
        return (detail,) if detail in RUNS else RUNS
    before, found, name = bucket.partition(RELATION)
    return (name,) if found and before.endswith(":") else ()


def examine(
    case: Case,
    runner: Runner,
    target: Target,
    settings: Settings,
    checks: tuple[str, ...] = (),
    seconds: float | None = None,
    times: int = 1,
) -> Verdict:
    """Run and judge a case; ``checks`` follow if it returned and nothing is wrong.

    ``seconds`` is its own deadline; ``times`` says how often it is run ``again``.
    """
    dtypes = (spec.dtype for _, spec in case.tensors)
    reason = cannot_run(settings.device, settings.engine, dtypes, longest(case))
    if reason:
        return Verdict(skipped=reason)
    outcome = runner.run(case, seconds)
    verdict = judge(case, outcome, target)
    if checks and outcome.status == "returned" and not verdict.findings and not verdict.skipped:
        extra = _Extra(case, outcome, runner, target)
        for check in checks:
            if not verdict.findings:
                verdict.findings += extra.check(check, times)
    return verdict


def examine_afresh(
    case: Case, runner: Runner, target: Target, settings: Settings, buckets: Iterable[str], seconds: float | None = None
) -> Verdict:
    """Examine a case, as the first of a new child where that is what findings in these buckets need."""
    checks = demanded(buckets)
    if not checks:
        return examine(case, runner, target, settings, (), seconds)
    runner.discard()
    verdict = examine(case, runner, target, settings, checks, seconds, TIMES)
    runner.discard()
    return verdict


class _Extra:
    """The extra runs of one case that was right the first time."""

    def __init__(self, case: Case, outcome: Outcome, runner: Runner, target: Target) -> None:
        self.case, self.outcome, self.runner, self.target = case, outcome, runner, target
        self._moved = False  # whether another case has run in this child since, and taken the memory

    def check(self, check: str, times: int) -> list[Finding]:
        """What this check finds."""
        if check == AGAIN:
            return self._again(times)
        if check == SAME_MEMORY:
            return self._same_memory()
        if check == ALONE:
            return self._alone()
        if check == IDLE:
            return self._idle()
        return self._relation(check)

    def _again(self, times: int) -> list[Finding]:
        if not self.target.repeatable:
            return []
        for number in range(times):
            other = self.runner.run(self.case)
            name = differing(self.outcome, other)
            if name is not None:
                return [self._unsteady(name, AGAIN, f"run {number + 2} of the same case in one process")]
            names = OPERATIONS[self.case.operation].results(dict(self.case.options))
            for name in (names[i] for i in other.reused if i < len(names)):
                message = f"{name} comes back in the memory of an earlier answer, and overwrites it"
                return [finding("stateful", message, output=name, detail=AGAIN)]
        return []

    def _alone(self) -> list[Finding]:
        if not self.target.repeatable:
            return []
        name = differing(self.outcome, self.runner.run_alone(self.case))
        return [] if name is None else [self._unsteady(name, ALONE, "a run alone in a new process")]

    def _idle(self) -> list[Finding]:
        """Outputs that are the same when launches do nothing: no kernel had a part in them.

        With plain values, so that no output is what its memory held before the kernel, a copied input or zeros.
        """
        if not self.target.kernel:
            return []
        operation, plain = OPERATIONS[self.case.operation], other_values(self.case)
        worked, idle = self.runner.run_alone(plain), self.runner.run_alone(plain, idle=True)
        if not (worked.launches and worked.status == idle.status == "returned"):
            return []
        names = operation.results(dict(self.case.options))
        for name, one, other in zip(names, worked.outputs, idle.outputs, strict=False):
            telling = math.prod(one.shape) >= TELLING and name not in operation.views
            if telling and one.data and one.data == other.data:
                message = f"{name} has the same bits when its launches do nothing: it is computed without them"
                return [finding("no_launch", message, output=name, detail=IDLE)]
        return []

    def _unsteady(self, name: str, check: str, what: str) -> Finding:
        """A difference between two runs: state, if new processes agree with each other, else chance."""
        first = self.runner.run_alone(self.case)
        if all(differing(first, self.runner.run_alone(self.case)) is None for _ in range(AGREEING)):
            return finding("stateful", f"{name} has other bits in {what}", detail=check)
        return finding("nondeterministic", f"{name} has other bits in {what}, and new processes disagree too")

    def _same_memory(self) -> list[Finding]:
        changed = other_values(self.case)
        if self._moved:
            self.runner.run(self.case)
        reused = judge(changed, self.runner.run(changed, same_memory=True), self.target)
        if not reused.findings:
            return []
        alone = judge(changed, self.runner.run_alone(changed), self.target)
        new = [f for f in reused.findings if f.bucket not in alone.buckets]
        if not new:
            return []  # wrong anywhere: what drawing finds
        message = f"with other values at the same addresses: {new[0].message}; a new process does not show it"
        return [finding("stateful", message, detail=SAME_MEMORY)]

    def _relation(self, name: str) -> list[Finding]:
        operation = OPERATIONS[self.case.operation]
        if operation.rejects(self.case):
            return []
        first, names = name.removeprefix(RELATION), operation.relations
        names = names[int(first) :] + names[: int(first)] if first.isdecimal() else (name,)
        for name in names:
            related = operation.relate(self.case, name)
            if related is not None:
                break
        else:
            return []
        self._moved = True
        other = self.runner.run(related.case)
        found = as_found(name, operation.results(dict(self.case.options)), self.outcome, other, related)
        # What does not repeat itself keeps no relation either.
        return (self._again(TIMES) or found) if found else []


def other_values(case: Case) -> Case:
    """The case with other, plain values; tensors that were one tensor still are."""
    changed = {}
    for name, spec in case.tensors:
        old = repr((spec.values.kind, spec.values.seed, spec.values.data)).encode()
        changed[name] = replace(spec, values=Values("normal", 2**32 + zlib.crc32(old)))
    return case.with_tensors(changed)
