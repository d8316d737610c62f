"""How a time is taken, the same way for every peer.

GPU time: the GPU is set to wait, calls are queued behind the wait between two events, and only a batch counts that the
host has queued completely before the wait is over. So what Python and the launches cost on the host is not in it; what
the GPU does between two kernels is. No graphs are captured: peers with code of their own on the host stay as they are.
Results are kept until the batch is over, so that each call writes to memory of its own.

Launch included: the time on the host's clock of a loop of calls with one synchronization at its end.

Calls take the sets of inputs in turn, and peers take turns batch by batch, so that a clock that drifts does so for all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Run = Callable[[], Any]  # one call on one set of inputs

BATCH_SECONDS = 0.004  # of GPU time that a batch should take, if it can
FEWEST, MOST = 3, 40  # calls of a batch
LAUNCHED = 200  # calls of a batch whose launches are measured
SHORTEST_WAIT, LONGEST_WAIT = 0.0005, 0.3  # seconds; a host that needs longer for a batch waits for the GPU itself
MARGIN = 2.0  # times what the host took for the last batch that the GPU waits for the next


class HostBoundError(Exception):
    """A peer's host code waits for the GPU, so that its GPU time cannot be told from the host's."""


@dataclass(frozen=True)
class Spread:
    """Seconds a call: the median over batches, the 10th and the 90th percentile, and how many batches there were."""

    median: float
    low: float
    high: float
    batches: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """The spread of at least one batch's seconds a call."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        return cls(statistics.median(seconds), tenths[0], tenths[-1], len(seconds))


class Event(Protocol):
    """A point in what the GPU does."""

    def record(self) -> None:
        """Put it behind all that is queued."""

    def query(self) -> bool:
        """Whether the GPU is past it."""

    def synchronize(self) -> None:
        """Wait until the GPU is past it."""

    def elapsed_time(self, other: Any) -> float:
        """Milliseconds of the GPU from here to another."""


class Gpu(Protocol):
    """What timing needs of a GPU and of the host's clock."""

    def wait(self, seconds: float) -> None:
        """Queue a wait of about so many seconds."""

    def event(self) -> Event:
        """A new event."""

    def synchronize(self) -> None:
        """Wait until the GPU has done all that is queued."""

    def now(self) -> float:
        """Seconds on the host's clock."""


class Cuda:
    """PyTorch's current device; the speed of its clock, by which it waits, is measured once."""

    def __init__(self) -> None:
        torch.cuda._sleep(1000)  # loads the kernel
        start, end = self.event(), self.event()
        start.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        end.synchronize()
        self._cycles_a_second = 10_000_000 / (start.elapsed_time(end) * 1e-3)

    def wait(self, seconds: float) -> None:
        """See :class:`Gpu`; ``_sleep`` is private to PyTorch, and what PyTorch's own tests wait with."""
        torch.cuda._sleep(int(seconds * self._cycles_a_second))

    def event(self) -> Event:
        """See :class:`Gpu`."""
        made: Event = torch.cuda.Event(enable_timing=True)
        return made

    def synchronize(self) -> None:
        """See :class:`Gpu`."""
        torch.cuda.synchronize()

    def now(self) -> float:
        """See :class:`Gpu`."""
        return time.perf_counter()


class Timer(Protocol):
    """A way to take a time."""

    meaning: str
    """What the time is of, for a report."""

    def start(self, runs: Sequence[Run], result_bytes: int) -> Callable[[], float]:
        """Warm up; what comes back runs one batch, and gives its seconds a call.

        ``runs`` are the same call on different inputs, which are taken in turn; ``result_bytes`` are what one call
        returns.
        """


class GpuTime:
    """Time of the GPU alone; see the module."""

    meaning = "GPU time"

    def __init__(self, gpu: Gpu, most_bytes: int = 16 * 2**30) -> None:
        self.gpu, self.most_bytes = gpu, most_bytes

    def start(self, runs: Sequence[Run], result_bytes: int) -> Callable[[], float]:
        """See :class:`Timer`; the batches raise :class:`HostBoundError` where no wait is long enough."""
        batches = _Batches(self.gpu, runs)
        batches()
        batches.calls = FEWEST - 1
        wanted = int(BATCH_SECONDS / max(batches(), 1e-9))
        room = self.most_bytes // max(result_bytes, 1)
        batches.calls = max(1, min(max(wanted, FEWEST), MOST, room))
        return batches


class _Batches:
    """Batches of one peer: how many calls each has, what a call takes the host to queue, and whose turn it is."""

    def __init__(self, gpu: Gpu, runs: Sequence[Run]) -> None:
        self.gpu, self.runs = gpu, runs
        self.calls, self.pace, self.next = 1, 0.0, 0

    def __call__(self) -> float:
        """Seconds of the GPU a call of a batch that the host has queued in time."""
        late = 0
        while (wait := max(MARGIN * self.pace * self.calls, SHORTEST_WAIT)) <= LONGEST_WAIT:
            start, end = self.gpu.event(), self.gpu.event()
            self.gpu.synchronize()
            self.gpu.wait(wait)
            start.record()
            began = self.gpu.now()
            kept = [self.runs[(self.next + i) % len(self.runs)]() for i in range(self.calls)]
            in_time, queued = not start.query(), self.gpu.now() - began
            end.record()
            end.synchronize()
            del kept
            self.next += self.calls
            self.pace = queued / self.calls if in_time else max(queued, wait) / self.calls
            if in_time:
                return start.elapsed_time(end) * 1e-3 / self.calls
            late += 1
            if late > 1:  # once a thousand launches are queued, the host waits however long the GPU does
                self.calls = max(self.calls // 2, 1)
        raise HostBoundError("its host code waits for the GPU, or is too slow for its GPU time to be told apart")


class LaunchTime:
    """Time of calls one after another as the host sees it, with one synchronization; see the module."""

    meaning = "launch included"

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def start(self, runs: Sequence[Run], result_bytes: int) -> Callable[[], float]:
        """See :class:`Timer`."""

        def batch() -> float:
            self.gpu.synchronize()
            began = self.gpu.now()
            for i in range(LAUNCHED):
                runs[i % len(runs)]()
            self.gpu.synchronize()
            return (self.gpu.now() - began) / LAUNCHED

        batch()
        return batch


def in_turns(batches: Sequence[Callable[[], float]], rounds: int) -> list[list[float] | Exception]:
    """Seconds a call of each peer in each round, or what it raised; a peer that raises costs the others nothing."""
    found: list[list[float] | Exception] = [[] for _ in batches]
    for _ in range(rounds):
        for i, batch in enumerate(batches):
            times = found[i]
            if isinstance(times, Exception):
                continue
            try:
                times.append(batch())
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its own result
                found[i] = error
    return found
