"""Races between programs: two that write different values to one address, one that reads what another writes.

Accesses are remembered for one launch and compared at its end. Almost always every address was written
once, which one pass over a table tells; only otherwise are addresses sorted and looked at one by one.
Atomic operations are no race with each other, only with plain accesses. In an ordered launch they also
order what comes before one in a program and after one, at the same address, in another (release and
acquire), so a lock protects what it guards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fuzzrope.interpreter.areas import Area, Lens

Array = np.ndarray


@dataclass(slots=True)
class Access:
    """One executed load or store: raw offsets in an area, with the mask they were chosen by."""

    site: Any
    area: Area
    width: int
    index: Array
    raw: Array | None
    chosen: Array | None
    first: Any  # number of the first program, or the number of each
    count: int
    clock: dict[int, int]
    time: int

    def lanes(self) -> tuple[Array, Array]:
        """Byte addresses and program numbers of its lanes."""
        if self.chosen is None:
            index = self.index
            if index.shape[0] == 1 < self.count:
                index = np.broadcast_to(index, (self.count, *index.shape[1:]))
            programs = np.broadcast_to(np.arange(len(index)).reshape(-1, *(1,) * (index.ndim - 1)), index.shape)
            flat = index.reshape(-1)
        else:
            chosen, flat = self.chosen, self.index
            if chosen.shape[0] == 1 < self.count:
                flat = np.tile(flat, self.count)
                chosen = np.broadcast_to(chosen, (self.count, *chosen.shape[1:]))
            programs = np.nonzero(chosen)[0]
        programs = programs.reshape(-1)
        who = self.first[programs] if isinstance(self.first, np.ndarray) else programs + self.first
        return self.area.address + flat * self.width, who

    def bits(self, lanes: int) -> Array:
        """The raw elements written, as unsigned integers (lanes,)."""
        assert self.raw is not None
        raw = self.raw.view(f"u{self.width}").astype(np.uint64)
        if raw.size == 1:
            return np.broadcast_to(raw.reshape(-1), (lanes,))
        raw = raw.reshape(-1)
        return raw if len(raw) == lanes else np.tile(raw, lanes // len(raw))


@dataclass(slots=True)
class Log:
    """The accesses of one launch that may conflict, by storage."""

    machine: Any
    writes: dict[tuple[int, int], list[Access]] = field(default_factory=dict)
    reads: dict[tuple[int, int], list[Access]] = field(default_factory=dict)
    atomics: dict[tuple[int, int], list[Access]] = field(default_factory=dict)
    clock: dict[int, int] = field(default_factory=dict)
    released: dict[int, dict[int, int]] = field(default_factory=dict)
    time: int = 0

    def write(self, site: Any, area: Area, lens: Lens, index: Array, raw: Array, chosen: Array | None) -> None:
        """Remember a store."""
        machine = self.machine
        self.time += 1
        access = Access(site, area, lens.width, index, raw, chosen, self._who(), machine.count, self.clock, self.time)
        self.writes.setdefault(area.storage, []).append(access)

    def read(self, site: Any, area: Area, elem: str, index: Array, m: Array | None) -> None:
        """Remember a load from a storage that this launch also writes."""
        machine = self.machine
        self.time += 1
        chosen = None
        if m is not None:
            shape = np.broadcast_shapes(m.shape, index.shape)
            chosen = np.broadcast_to(m, shape)
            index = np.broadcast_to(index, shape)[chosen]
        width = area.lens(elem).width
        access = Access(site, area, width, index, None, chosen, self._who(), machine.count, self.clock, self.time)
        self.reads.setdefault(area.storage, []).append(access)

    def atomic(self, site: Any, area: Area, lens: Lens, index: Array, chosen: Array) -> None:
        """Remember an atomic operation, which in an ordered launch also acquires and releases."""
        machine, time = self.machine, self.time  # what it releases, it has itself done before
        if machine.ordered:
            self.synchronize(np.unique(area.address + index * lens.width))
        access = Access(site, area, lens.width, index, None, chosen, self._who(), machine.count, self.clock, time)
        self.atomics.setdefault(area.storage, []).append(access)

    def _who(self) -> Any:
        machine = self.machine
        return machine.first if machine.lanes is None else machine.first + machine.lanes

    def synchronize(self, addresses: Array) -> None:
        """An atomic operation of the one program of an ordered launch: it acquires, then releases."""
        self.time += 1
        mine = dict(self.clock)
        for address in addresses.tolist():
            for program, time in self.released.get(address, {}).items():
                mine[program] = max(mine.get(program, -1), time)
        after = mine | {self.machine.first: self.time}
        for address in addresses.tolist():
            self.released[address] = after
        self.clock = mine

    def next_program(self) -> None:
        """The next program of an ordered launch begins: it has seen nothing."""
        self.clock = {}

    def report(self) -> None:
        """Report the races of this launch."""
        for storage, writes in self.writes.items():
            reads = self.reads.get(storage, [])
            if not self._apart(writes, reads):
                self._examine(writes, reads)
        for storage, atomics in self.atomics.items():
            reads = [access for access in self.reads.get(storage, []) if not access.site.what.startswith("volatile")]
            plain = [*self.writes.get(storage, []), *reads]
            if plain:
                self._mixed(plain, atomics)

    @staticmethod
    def _apart(writes: list[Access], reads: list[Access]) -> bool:
        """Whether, quickly seen, no address was accessed twice: every one written once, none of them read."""
        if len(writes) > 256:
            return False
        width, base = writes[0].width, min(access.area.address for access in writes)
        places: list[Array] = []
        total = top = 0
        for access in writes:
            lanes = access.index if access.chosen is None else access.chosen
            if access.width != width or lanes.shape[0] == 1 < access.count:
                return False
            place = _from(base, access)
            if place is None:
                return False
            if place.size:
                places.append(place)
                total += place.size
                top = max(top, int(place.max()))
        if top > 64 * total + 65536:
            return False
        table = np.zeros(top + 1, dtype=bool)
        for place in places:
            table[place] = True
        if np.count_nonzero(table) != total:
            return False
        for access in reads:
            place = _from(base, access) if access.width == width else None
            if place is None or table.take(place, mode="clip").any():
                return False
        return True

    def _examine(self, writes: list[Access], reads: list[Access]) -> None:
        """Compare neighbours among all accesses sorted by address and time; report each pair of sites once."""
        everything = [*writes, *reads]
        columns: list[tuple[Array, ...]] = []
        for number, access in enumerate(everything):
            addresses, programs = access.lanes()
            bits = np.zeros(len(addresses), np.uint64) if access.raw is None else access.bits(len(addresses))
            rank = np.full(len(addresses), number)
            columns.append((addresses, programs, bits, rank, np.full(len(addresses), access.time)))
        address, program, bits, rank, time = (np.concatenate(column) for column in zip(*columns, strict=True))
        is_write = rank < len(writes)
        if len({access.width for access in everything}) > 1:
            address, piece = _in_pieces(everything, address, rank)
            program, bits, rank, time, is_write = (c[piece] for c in (program, bits, rank, time, is_write))
        order = np.lexsort((time, address))
        address, program, bits, rank, is_write = (c[order] for c in (address, program, bits, rank, is_write))
        starts = np.flatnonzero(np.r_[True, address[1:] != address[:-1]])
        group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(address)]))
        # A writer of each address, its first; then the others' accesses that are not ordered with it.
        self._pairs(everything, address, program, bits, rank, is_write, group, starts)

    def _mixed(self, plain: list[Access], atomics: list[Access]) -> None:
        """Report plain accesses of addresses that other programs access atomically at any time.

        Atomic operations on one address are ordered among themselves. So in an ordered launch those next to a
        plain access in time stand for all; otherwise those of the first and the last program do.
        """
        everything = [*plain, *atomics]
        lanes = [(*access.lanes(), access) for access in everything]
        address, program = (np.concatenate([lane[i] for lane in lanes]) for i in (0, 1))
        rank = np.repeat(np.arange(len(lanes)), [len(lane[0]) for lane in lanes])
        address, piece = _in_pieces(everything, address, rank)
        program, rank = program[piece], rank[piece]
        time = np.array([access.time for access in everything])[rank]
        order = np.lexsort((rank, time if self.machine.ordered else program, address))
        address, program, rank = address[order], program[order], rank[order]
        starts = np.flatnonzero(np.r_[True, address[1:] != address[:-1]])
        group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(address)]))
        position, is_atomic = np.arange(len(address)), rank >= len(plain)
        if self.machine.ordered:
            before = np.maximum.accumulate(np.where(is_atomic, position, -1))
            after = np.minimum.accumulate(np.where(is_atomic, position, len(position))[::-1])[::-1]
        else:
            before, after = np.full(len(starts), len(position)), np.full(len(starts), -1)
            np.minimum.at(before, group[is_atomic], position[is_atomic])
            np.maximum.at(after, group[is_atomic], position[is_atomic])
            before, after = before[group], after[group]
        seen: set[tuple[Any, Any]] = set()
        for near in (before, after):
            there = near.clip(0, len(position) - 1)
            conflict = ~is_atomic & is_atomic[there] & (group[there] == group) & (program != program[there])
            for at in np.flatnonzero(conflict).tolist()[:100000]:
                one, other = everything[rank[there[at]]], everything[rank[at]]
                key = (one.site.number, other.site.number)
                if key in seen or _ordered(one, int(program[there[at]]), other, int(program[at])):
                    continue
                seen.add(key)
                count = int((conflict & (rank == rank[at])).sum())
                self._say(one, int(program[there[at]]), other, int(program[at]), int(address[at]), count)

    def _pairs(
        self,
        everything: list[Access],
        address: Array,
        program: Array,
        bits: Array,
        rank: Array,
        is_write: Array,
        group: Array,
        starts: Array,
    ) -> None:
        size = len(address)
        position = np.arange(size)
        # The last write at or before each access, within its address; and the first write of the address.
        last = np.maximum.accumulate(np.where(is_write, position, -1))
        last = np.where(last >= starts[group], last, -1)
        previous = np.r_[-1, last[:-1]]
        previous = np.where(previous >= starts[group], previous, -1)
        first = np.full(len(starts), size)
        np.minimum.at(first, group[is_write], position[is_write])
        earlier = np.where(previous >= 0, previous, first[group])
        valid = (earlier < size) & (earlier != position)
        earlier = np.where(valid, earlier, 0)
        conflict = valid & (program != program[earlier])
        conflict &= ~is_write | (bits != bits[earlier])
        seen: set[tuple[Any, Any]] = set()
        for at in np.flatnonzero(conflict).tolist()[:100000]:
            one, other = everything[rank[earlier[at]]], everything[rank[at]]
            if _ordered(one, int(program[earlier[at]]), other, int(program[at])):
                continue
            key = (one.site.number, other.site.number)
            if key in seen:
                continue
            seen.add(key)
            lanes = int((conflict & (rank == rank[at])).sum())
            self._say(one, int(program[earlier[at]]), other, int(program[at]), int(address[at]), lanes)

    def _say(self, one: Access, first: int, other: Access, second: int, address: int, lanes: int) -> None:
        machine = self.machine
        offset = (address - other.area.address) // other.width
        names = [machine.program(number - machine.first) for number in (first, second)]
        what = "reads" if other.raw is None else "writes another value to" if one.raw is not None else "writes"
        how = "writes" if one.raw is not None else "updates atomically"
        message = f"{names[1]} {what} element {offset} of {other.area.name}, which {names[0]} {how}"
        if one.site.number != other.site.number:
            message += f" at {one.site.text()}"
        machine.report("race", other.site, message, lanes)


def _from(base: int, access: Access) -> Array | None:
    """Element offsets from an address, None if they are not whole."""
    shift, rest = divmod(access.area.address - base, access.width)
    if rest:
        return None
    return access.index + shift if shift else access.index


def _in_pieces(everything: list[Access], address: Array, rank: Array) -> tuple[Array, Array]:
    """Addresses of accesses cut to the smallest width among them, and which access each piece is of."""
    unit = min(access.width for access in everything)
    widths = np.array([access.width for access in everything])[rank] // unit
    piece = np.repeat(np.arange(len(address)), widths)
    step = np.arange(len(piece)) - np.repeat(np.cumsum(widths) - widths, widths)
    return address[piece] + step * unit, piece


def _ordered(one: Access, first: int, other: Access, second: int) -> bool:
    """Whether a lock or flag orders two accesses of an ordered launch."""
    return other.clock.get(first, -1) > one.time or one.clock.get(second, -1) > other.time
