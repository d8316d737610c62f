"""Measuring: the ceilings of the machine, then row by row every peer that serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from fuzzrope.bench import gate
from fuzzrope.bench.inputs import Inputs, Work, make_all, work_of
from fuzzrope.bench.peers import Call, Peer
from fuzzrope.bench.rows import Row
from fuzzrope.bench.timing import Run, Spread, Timer, in_turns
from fuzzrope.text import one_line

OK, WRONG, FAILED, ABSENT = "ok", "wrong", "failed", "absent"

COPIED_BYTES = 2**31
PRODUCT = 8192  # rows, columns and terms of the product whose rate is the ceiling


@dataclass(frozen=True)
class Machine:
    """Where is measured: a device of PyTorch's, its largest cache in bytes, and how both kinds of time are taken."""

    device: str
    cache: int
    gpu: Timer
    launch: Timer


@dataclass(frozen=True)
class Ceilings:
    """What the device can do: bytes a second, read and written together, and operations a second of bf16 products."""

    copied: float
    multiplied: float
    copy: Spread
    product: Spread


@dataclass(frozen=True)
class Cell:
    """One peer at one row.

    Attributes:
        status: ``ok``; ``wrong``, if its results are not those of the row; ``failed``; or ``absent``, if the library is
            not installed.
        reason: why there is no time, in a line.
        error: how far its results are off, if it gave any.
        times: seconds a call, if they are right.
    """

    peer: Peer
    status: str
    reason: str = ""
    error: gate.Error | None = None
    times: Spread | None = None


@dataclass(frozen=True)
class Measured:
    """One row with all its peers; ``floor`` is in seconds, ``bound`` says by which of ``bytes`` and ``products``."""

    row: Row
    work: Work
    floor: float
    bound: str
    sets: int
    meaning: str
    cells: tuple[Cell, ...]


def ceilings(machine: Machine, rounds: int, copied: int = COPIED_BYTES, size: int = PRODUCT) -> Ceilings:
    """Copy ``copied`` bytes and multiply bf16 matrices (size, size) of normal numbers, in turns."""
    source = torch.empty(copied // 2, dtype=torch.bfloat16, device=machine.device).normal_()
    target = torch.empty_like(source)
    a, b = (torch.empty((size, size), dtype=torch.bfloat16, device=machine.device).normal_() for _ in "ab")
    product = torch.empty_like(a)
    runs: tuple[Run, ...] = (lambda: target.copy_(source), lambda: torch.mm(a, b, out=product))
    found = in_turns([machine.gpu.start([run], 0) for run in runs], rounds)
    spreads = []
    for times in found:
        if isinstance(times, Exception):
            raise times
        spreads.append(Spread.of(times))
    return Ceilings(2 * copied / spreads[0].median, 2 * size**3 / spreads[1].median, *spreads)


def run_of(call: Call, row: Row, inputs: Inputs) -> Run:
    """One call on one set; in rows of ``backward``, autograd's pass through a call that has been made."""
    if row.group != "backward":
        return lambda: call(inputs)
    names = ("q", "k", "v") if row.operation == "attention" else ("q", "k")
    leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in names}
    with torch.enable_grad():
        results = call(replace(inputs, **leaves))
    return lambda: torch.autograd.grad(results, tuple(leaves.values()), inputs.given, retain_graph=True)


def _bytes_of(results: gate.Tensors) -> int:
    return sum(x.numel() * x.element_size() for x in results)


class Bench:
    """One row at work: its inputs, and the truth about them once it has been asked for."""

    def __init__(self, row: Row, machine: Machine) -> None:
        self.row, self.timer = row, machine.launch if row.launch else machine.gpu
        self.sets = make_all(row, machine.device, machine.cache)
        self.truths: dict[bool, gate.Tensors] = {}

    def prepare(self, peer: Peer) -> Cell | tuple[gate.Error, Callable[[], float]]:
        """Make and check a peer: its error and its batches, or its cell if it has nothing to time."""
        call = peer.make(self.row)
        results = run_of(call, self.row, self.sets[0].copy())()
        if peer.rotates not in self.truths:
            self.truths[peer.rotates] = gate.truth(self.row, self.sets[0], peer.rotates)
        error = gate.error_of(results, self.truths[peer.rotates], getattr(torch, self.row.dtype))
        if not gate.passes(error, self.row):
            return Cell(peer, WRONG, f"off by {error.whole:.1e}, {error.row:.1e} in a row", error)
        size = _bytes_of(results)
        del results  # or timing would find its memory taken
        return error, self.timer.start([run_of(call, self.row, inputs) for inputs in self.sets], size)


def _failed(peer: Peer, error: Exception) -> Cell:
    if isinstance(error, ModuleNotFoundError):
        return Cell(peer, ABSENT, one_line(str(error)))
    if isinstance(error, torch.OutOfMemoryError):
        return Cell(peer, FAILED, "out of memory")
    first = str(error).strip().partition("\n")[0]
    return Cell(peer, FAILED, one_line(f"{type(error).__name__}: {first}", 200))


def measure(
    row: Row,
    machine: Machine,
    ceiling: Ceilings,
    peers: Sequence[Peer],
    rounds: int,
    bench: Bench | None = None,
) -> Measured:
    """All peers that serve a row. A peer that raises or runs out of memory costs its own cell alone.

    ``bench`` is the row at work, if others were measured at it before.
    """
    serving = [peer for peer in peers if peer.serves(row)]
    cells: dict[str, Cell] = {}
    ready: dict[str, tuple[gate.Error, Callable[[], float]]] = {}
    sets, timer = 0, machine.launch if row.launch else machine.gpu
    with torch.no_grad():
        for peer in serving:
            try:
                bench = bench or Bench(row, machine)
                prepared = bench.prepare(peer)
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its own result
                cells[peer.name] = _failed(peer, error)
                continue
            if isinstance(prepared, Cell):
                cells[peer.name] = prepared
            else:
                ready[peer.name] = prepared
        if bench is not None:
            sets = len(bench.sets)
        found = in_turns([batch for _, batch in ready.values()], rounds)
    by_name = {peer.name: peer for peer in serving}
    for (name, (off, _)), times in zip(ready.items(), found, strict=True):
        peer = by_name[name]
        cells[name] = (
            _failed(peer, times) if isinstance(times, Exception) else Cell(peer, OK, "", off, Spread.of(times))
        )
    work = work_of(row)
    floor, bound = work.floor(ceiling.copied, ceiling.multiplied)
    return Measured(row, work, floor, bound, sets, timer.meaning, tuple(cells[peer.name] for peer in serving))


def measure_all(
    rows: Sequence[Row], machine: Machine, ceiling: Ceilings, peers: Sequence[Peer], rounds: int
) -> Iterator[Measured]:
    """Rows in order, one by one as they are done; memory goes back to the device in between."""
    for row in rows:
        yield measure(row, machine, ceiling, peers, rounds)
        if machine.device != "cpu":
            torch.cuda.empty_cache()
