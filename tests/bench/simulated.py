"""A GPU and a host whose clocks are numbers, and small rows, for tests of the benchmark."""

from dataclasses import dataclass, field
from typing import Any

from fuzzrope.bench.rows import Row
from fuzzrope.bench.session import Ceilings, Machine
from fuzzrope.bench.timing import Spread


@dataclass
class SimulatedEvent:
    gpu: "SimulatedGpu"
    at: float = 0.0

    def record(self) -> None:
        self.at = max(self.gpu.busy, self.gpu.host)

    def query(self) -> bool:
        return self.gpu.host >= self.at

    def synchronize(self) -> None:
        self.gpu.host = max(self.gpu.host, self.at)

    def elapsed_time(self, other: Any) -> float:
        return (other.at - self.at) * 1e3


@dataclass
class SimulatedGpu:
    """``busy``: until when the GPU has work; ``queue``: launches that it takes before the host has to wait."""

    host: float = 0.0
    busy: float = 0.0
    queue: int = 10**9
    queued: int = 0
    waits: list[float] = field(default_factory=list)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.launch(0.0, seconds)

    def event(self) -> SimulatedEvent:
        return SimulatedEvent(self)

    def synchronize(self) -> None:
        self.host, self.queued = max(self.host, self.busy), 0

    def now(self) -> float:
        return self.host

    def launch(self, on_host: float, on_gpu: float) -> None:
        self.host += on_host
        self.queued += 1
        if self.queued > self.queue:
            self.synchronize()
        self.busy = max(self.busy, self.host) + on_gpu


@dataclass
class CountingTimer:
    """Gives 1 µs, 2 µs, ... a call, and really calls."""

    meaning: str = "GPU time"
    given: int = 0

    def start(self, runs, result_bytes):
        def batch() -> float:
            for run in runs:
                run()
            self.given += 1
            return self.given * 1e-6

        return batch


ONE = Spread(1.0, 1.0, 1.0, 1)
CEILINGS = Ceilings(1e12, 1e14, ONE, ONE)

SMALL = {
    "rope": Row("rope", 2, 2, 2, 5, 5, 8),
    "rope of groups": Row("rope", 2, 4, 2, 5, 5, 8),
    "rope in float32": Row("rope", 2, 2, 2, 5, 5, 8, "float32", strided=True),
    "scores": Row("scores", 2, 4, 2, 6, 6, 8),
    "causal scores": Row("scores", 1, 4, 2, 6, 6, 8, causal=True),
    "attention": Row("attention", 2, 4, 2, 6, 6, 8),
    "causal attention": Row("attention", 1, 4, 2, 6, 6, 8, causal=True),
    "one row": Row("attention", 2, 4, 2, 1, 9, 8, causal=True, offset=8),
    "backward of rope": Row("backward", 2, 2, 1, 6, 6, 8, of="rope"),
    "backward of scores": Row("backward", 2, 4, 2, 6, 6, 8, of="scores"),
    "backward": Row("backward", 2, 4, 2, 6, 6, 8, causal=True, of="attention"),
}


def machine() -> Machine:
    return Machine("cpu", 2**10, CountingTimer(), CountingTimer("launch included"))
