"""One campaign on several processes: each takes its shard of the rounds, the events come out as one stream.

With the same seed and the same number of jobs the same cases are drawn.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path

from fuzzrope.campaign import Emit, run_campaign
from fuzzrope.events import Event, Example, Finished, Minimized, Seen, Started
from fuzzrope.judge import Errors
from fuzzrope.run import Runner, RunnerError
from fuzzrope.settings import Settings
from fuzzrope.targets import Target

Message = tuple[int, Event | str]


def run_parallel(
    target: Target, settings: Settings, folder: Path | None, emit: Emit, jobs: int, runner: Runner | None = None
) -> Finished:
    """Like :func:`fuzzrope.campaign.run_campaign` on ``jobs`` processes; the budget of examples is shared.

    ``runner`` is for one job; several have their own.
    """
    if jobs == 1:
        return run_campaign(target, settings, folder, emit, runner)
    context = multiprocessing.get_context("spawn")
    queue: Queue[Message] = context.Queue()
    share = replace(settings, max_examples=-(-settings.max_examples // jobs))
    workers = [
        context.Process(target=_work, args=(queue, index, target, replace(share, shard=(index, jobs)), folder))
        for index in range(jobs)
    ]
    for worker in workers:
        worker.start()
    merge = _Merge(emit, jobs)
    try:
        while not merge.complete:
            try:
                merge.take(*queue.get())
            except KeyboardInterrupt:
                continue  # every worker got it too, and says so in its last event
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()
    finished = merge.finished()
    emit(finished)
    return finished


def _work(queue: Queue[Message], index: int, target: Target, settings: Settings, folder: Path | None) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def say(event: Event) -> None:
        if os.getppid() != parent.pid:
            os._exit(1)  # killed: nobody listens any more, and what was found is saved
        queue.put((index, event))

    try:
        run_campaign(target, settings, folder, say)
    except RunnerError as error:
        queue.put((index, str(error)))
    except KeyboardInterrupt:
        queue.put((index, "interrupted while starting"))


class _Merge:
    """Turns the events of several workers into those of one campaign."""

    def __init__(self, emit: Emit, jobs: int) -> None:
        self._emit, self._jobs = emit, jobs
        self._started: Started | None = None
        self._examples: Counter[int] = Counter()
        self._reached: set[str] = set()
        self._buckets: set[str] = set()
        self._done: list[Finished] = []

    @property
    def complete(self) -> bool:
        """Whether every worker has said its last."""
        return len(self._done) == self._jobs

    def take(self, index: int, event: Event | str) -> None:
        """Pass an event on, merged with what the others said; raises RunnerError for a worker that failed."""
        if isinstance(event, str):
            raise RunnerError(event)
        if isinstance(event, Finished):
            self._done.append(event)
        elif isinstance(event, Started):
            if self._started is None:
                self._started = event
                self._emit(event)
        elif isinstance(event, Example):
            self._examples[index] = event.examples
            self._reached |= event.strata & frozenset(self._started.strata if self._started else ())
            self._emit(replace(event, examples=self._examples.total(), reached=len(self._reached)))
        elif not (isinstance(event, Minimized) and event.finding.bucket in self._buckets):
            if isinstance(event, Minimized):
                self._buckets.add(event.finding.bucket)
            self._emit(replace(event, examples=self._examples.total()) if isinstance(event, Seen) else event)

    def finished(self) -> Finished:
        """The summary of all workers."""
        reached = frozenset().union(*(done.reached for done in self._done))
        errors: dict[str, Errors] = {}
        by_output: dict[tuple[str, str], Errors] = {}
        skipped: Counter[str] = Counter()
        for done in self._done:
            skipped.update(done.skipped)
            for dtype, one in done.errors.items():
                errors.setdefault(dtype, Errors()).add(one)
            for output, one in done.by_output.items():
                by_output.setdefault(output, Errors()).add(one)
        return Finished(
            target=self._done[0].target,
            examples=sum(done.examples for done in self._done),
            executed=sum(done.executed for done in self._done),
            differentiated=sum(done.differentiated for done in self._done),
            seconds=max(done.seconds for done in self._done),
            reached=reached,
            missed=tuple(name for done in self._done for name in done.missed if name not in reached),
            errors=errors,
            by_output=by_output,
            restarts=sum(done.restarts for done in self._done),
            interrupted=any(done.interrupted for done in self._done),
            skipped=dict(skipped),
        )
