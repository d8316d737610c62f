"""Warps of one block that share memory: roles, barriers, bulk copies, products that read while the program goes on.

Roles take turns, each until it has to wait; they run one program at a time. A GPU may let any of them fall behind, so
in most programs one does: in each another, which goes on only where no other can. What orders them is followed by
vector clocks: an access of shared memory that another role, a bulk copy or a product may make at the same time is
reported as a race, whatever came of it here. A copy lands when its barrier is waited for. The rules are those of the
PTX manual for ``mbarrier``, ``cp.async.bulk`` and ``wgmma``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fuzzrope.interpreter.shared import Piece
from fuzzrope.interpreter.values import width_of

Array = np.ndarray
MOST_ROLES = 17  # of at least four warps each, and what comes before they part
BULK = -2  # who wrote an element: a bulk copy, or a role by number; -1 is nobody


class DeadlockError(RuntimeError):
    """Every role of a block waits for another."""


@dataclass(slots=True)
class Reading:
    """An access that is not over: elements of a buffer that a product or a store still reads."""

    cells: Array
    at: Array
    site: Any


@dataclass(slots=True)
class Product:
    """A product under way: what it reads, what stands for its result until then, and the result."""

    reads: list[Reading]
    shown: Array
    result: Array


@dataclass(slots=True)
class Role:
    """What a role knows of the others: their times, the bulk copies that it has seen arrive, and what is under way."""

    number: int
    clock: Array
    copies: set[int] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)
    stores: list[Reading] = field(default_factory=list)
    waits: Any = None

    def learn(self, clock: Array, copies: set[int]) -> None:
        """Everything that another knew comes before what this role does from here on."""
        np.maximum(self.clock, clock, out=self.clock)
        self.copies |= copies


@dataclass(slots=True)
class Bulk:
    """A bulk copy under way to a piece."""

    number: int
    piece: Piece
    values: Array
    size: int


@dataclass(slots=True)
class Barrier:
    """An ``mbarrier``: arrivals and bytes that its phase still waits for, and what those who wait for it learn."""

    cells: Array
    count: int
    left: int
    bytes: int = 0
    phase: int = 0
    clock: Array = field(default_factory=lambda: np.zeros(MOST_ROLES, np.int64))
    copies: set[int] = field(default_factory=set)
    passed: tuple[Array, frozenset[int]] = field(default_factory=lambda: (np.zeros(MOST_ROLES, np.int64), frozenset()))
    under_way: list[Bulk] = field(default_factory=list)

    def turn(self) -> None:
        """Begin the next phase if nothing is left of this one."""
        if self.left == 0 and self.bytes == 0:
            self.phase ^= 1
            self.left = self.count
            self.passed = (self.clock.copy(), frozenset(self.copies))


@dataclass(slots=True)
class Traces:
    """Of each element of a buffer: who wrote it last, when (or which bulk copy), and when each role read it."""

    cells: Array
    writer: Array
    written: Array
    read: Array


class Warps:
    """The part of a machine in which warps share memory; used by programs that run alone."""

    role: Role | None = None  # the role that runs; None where nothing is followed

    def watch_warps(self: Any) -> None:
        """Follow from here on who accesses shared memory."""
        self.role = Role(0, np.zeros(MOST_ROLES, np.int64))
        self.role.clock[0] = 1
        self.everyone = [self.role]
        self.barriers: dict[tuple[int, int], Barrier] = {}
        self.traces: dict[int, Traces] = {}
        self.bulks, self.steps = 0, 0

    # -- roles --------------------------------------------------------------------------------------------

    def roles(self: Any, bodies: list[Callable[[], Iterator[None]]]) -> Any:
        """Run roles until all have ended; what the first returns."""
        main, result = self.role, None
        living: list[tuple[Role, Iterator[None]]] = []
        for number, body in enumerate(bodies, 1):
            role = Role(number, main.clock.copy(), set(main.copies))
            role.clock[number] += 1
            living.append((role, body()))
        self.everyone = [main, *(role for role, _ in living)]
        main.clock[0] += 1
        late = self.first % (len(bodies) + 1)  # 0: none
        while living:
            before = self.steps
            for role, steps in sorted(living, key=lambda one: one[0].number == late):
                if role.number == late and self.steps != before:
                    continue
                self.role = role
                try:
                    next(steps)
                except StopIteration as end:
                    living.remove((role, steps))
                    self.steps += 1
                    result = end.value if role.number == 1 else result
                    main.learn(role.clock, role.copies)
                    main.products += role.products
                    main.stores += role.stores
            if self.steps == before:
                self._stuck([role.waits for role, _ in living])
        self.role, self.everyone = main, [main]
        return result

    def _stuck(self: Any, sites: list[Any]) -> None:
        where = "; ".join(dict.fromkeys(site.text() for site in sites))
        raise DeadlockError(f"{self.program(0)} waits for ever: {where}")

    # -- barriers -----------------------------------------------------------------------------------------

    def _barrier(self: Any, site: Any, piece: Piece) -> Barrier:
        key = (id(piece.cells), int(piece.at.reshape(-1)[0]))
        if key not in self.barriers:
            self.report("race", site, f"a barrier is used that was not initialized, by {self.program(0)}", 1)
            self.barriers[key] = Barrier(piece.cells, 1, 1)
        found: Barrier = self.barriers[key]
        return found

    def barrier_init(self: Any, piece: Piece, count: int) -> None:
        """``mbarrier.init``: a phase is over after so many arrivals, and when what they announced has come."""
        self.barriers[id(piece.cells), int(piece.at.reshape(-1)[0])] = Barrier(piece.cells, count, count)

    def barrier_arrive(self: Any, site: Any, piece: Piece, count: int, announced: int, pred: Any) -> None:
        """Arrive, and announce so many bytes of bulk copies. What was done before comes before the next phase."""
        if not _holds(pred):
            return
        barrier = self._barrier(site, piece)
        if count > barrier.left:
            message = f"a barrier of {barrier.count} arrivals gets more in one phase, by {self.program(0)}"
            self.report("race", site, message, 1)
        barrier.left = max(barrier.left - count, 0)
        barrier.bytes += announced
        np.maximum(barrier.clock, self.role.clock, out=barrier.clock)
        barrier.copies |= self.role.copies
        self.role.clock[self.role.number] += 1
        self.steps += 1
        barrier.turn()

    def barrier_passed(self: Any, site: Any, piece: Piece, phase: Any, pred: Any) -> bool:
        """Whether the phase of this parity is over; if only copies are missing they land now."""
        if not _holds(pred):
            return True
        barrier, parity = self._barrier(site, piece), int(np.asarray(phase).reshape(-1)[0]) & 1
        if barrier.phase == parity:
            self._land(barrier)
        if barrier.phase == parity:
            self.role.waits = site
            return False
        self.role.learn(*barrier.passed)
        self.steps += 1
        return True

    def barrier_wait(self: Any, site: Any, piece: Piece, phase: Any, pred: Any) -> None:
        """The same where there is no other role."""
        if not self.barrier_passed(site, piece, phase, pred):
            self._stuck([site])

    def _land(self: Any, barrier: Barrier) -> None:
        for bulk in barrier.under_way:
            bulk.piece.cells[0, bulk.piece.at[0]] = bulk.values[0]
            barrier.bytes -= bulk.size
            barrier.copies.add(bulk.number)
            self.steps += 1
        barrier.under_way.clear()
        barrier.turn()

    # -- copies and products beside the program -----------------------------------------------------------

    def bulk_load(self: Any, site: Any, desc: Any, index: list[Any], piece: Piece, barrier: Piece, pred: Any) -> None:
        """Begin to copy a block of a tensor to a piece; its bytes count against those the barrier announced."""
        if not _holds(pred):
            return
        shape = piece.at.shape[1:]
        values = self.descriptor_load(site, desc, index, shape, None)
        self.touch(site, piece, "write", bulk=True)
        size = int(np.prod(shape)) * width_of(desc.elem)
        self._barrier(site, barrier).under_way.append(Bulk(self.bulks, piece, values, size))

    def bulk_store(self: Any, site: Any, desc: Any, index: list[Any], piece: Piece) -> None:
        """Copy a piece to a block of a tensor; the piece is read until the store has been waited for."""
        self.descriptor_store(site, desc, index, self.piece_load(site, piece), None)
        self.role.stores.append(Reading(piece.cells, piece.at.reshape(-1), site))

    def product_begin(self: Any, site: Any, pieces: list[Piece], result: Array) -> Array:
        """A product reads these pieces until it has been waited for; what stands for its result until then."""
        odd = np.nan if result.dtype.kind == "f" else 0x5A5A5A5A
        shown = np.full_like(result, odd)
        reads = [Reading(piece.cells, piece.at.reshape(-1), site) for piece in pieces]
        self.role.products.append(Product(reads, shown, result))
        return shown

    def product_added(self: Any, total: Any) -> Any:
        """What a product is added to: of one that is under way, its result."""
        return next((one.result for one in self.role.products if one.shown is total), total)

    def product_wait(self: Any, pending: int) -> None:
        """Wait until at most so many products are under way."""
        while len(self.role.products) > pending:
            product = self.role.products.pop(0)
            product.shown[...] = product.result
            for reading in product.reads:
                self._over(reading)

    def bulk_store_wait(self: Any, pending: int) -> None:
        """Wait until at most so many stores read their pieces."""
        while len(self.role.stores) > pending:
            self._over(self.role.stores.pop(0))

    def _over(self: Any, reading: Reading) -> None:
        traces, role = self._traces(reading.cells), self.role
        traces.read[role.number, reading.at] = role.clock[role.number]

    # -- who accesses what --------------------------------------------------------------------------------

    def _traces(self: Any, cells: Array) -> Traces:
        if id(cells) not in self.traces:
            size = cells.shape[1]
            nobody, never = np.full(size, -1), np.zeros(size, np.int64)
            self.traces[id(cells)] = Traces(cells, nobody, never, np.zeros((MOST_ROLES, size), np.int64))
        found: Traces = self.traces[id(cells)]
        return found

    def touch(self: Any, site: Any, piece: Piece, how: str, bulk: bool = False) -> None:
        """Note an access, and report one that nothing orders with an earlier one, where that is followed."""
        if self.role is None:
            return
        traces, role, at = self._traces(piece.cells), self.role, piece.at.reshape(-1)
        other = self._unseen_write(traces, at)
        if other is None and how == "write":
            late = traces.read[:, at] > role.clock[:, None]
            other = "is read by another role" if late.any() else self._being_read(piece.cells, at)
        if other is not None:
            message = f"{site.what} of shared memory that {other}, which nothing has waited for, by {self.program(0)}"
            self.report("race", site, message, at.size)
        if how == "read":
            traces.read[role.number, at] = role.clock[role.number]
        elif bulk:
            self.bulks += 1
            traces.writer[at], traces.written[at] = BULK, self.bulks
        else:
            traces.writer[at], traces.written[at] = role.number, role.clock[role.number]

    def _unseen_write(self: Any, traces: Traces, at: Array) -> str | None:
        writer, written = traces.writer[at], traces.written[at]
        by_bulk = writer == BULK
        if by_bulk.any() and not self.role.copies.issuperset(np.unique(written[by_bulk]).tolist()):
            return "a bulk copy writes"
        by_role = writer >= 0
        if (written[by_role] > self.role.clock[writer[by_role]]).any():
            return "another role writes"
        return None

    def _being_read(self: Any, cells: Array, at: Array) -> str | None:
        for role in self.everyone:
            for reading in [*role.stores, *(one for product in role.products for one in product.reads)]:
                if reading.cells is cells and np.isin(at, reading.at).any():
                    return f"is being read at {reading.site.text()}"
        return None


def _holds(pred: Any) -> bool:
    return bool(np.asarray(pred).reshape(-1)[0])
