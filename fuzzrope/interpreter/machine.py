"""The runtime of one launch: every load and store of a generated program comes here and is checked.

Programs of a chunk run in lockstep; chunks, and the programs of an ordered launch, run in the order of
their linear number (x fastest). An access outside its view is recorded; it still happens inside the
view's storage and is dropped elsewhere, so that a wild pointer costs a finding and not the process. Lanes
that are masked off are neither touched nor checked. A masked load without ``other`` gives NaN (or odd
integers) there: the value is undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fuzzrope.interpreter import formats
from fuzzrope.interpreter.areas import Area, Lens, memory
from fuzzrope.interpreter.atomics import Atomics
from fuzzrope.interpreter.debugging import Debugging
from fuzzrope.interpreter.descriptors import Descriptors
from fuzzrope.interpreter.races import Log
from fuzzrope.interpreter.shared import Copy, SharedMemory
from fuzzrope.interpreter.strays import Strays
from fuzzrope.interpreter.values import BITS, SMALL_FLOATS, STORED, carried, is_float
from fuzzrope.interpreter.warps import Warps

Array = np.ndarray
_U64 = np.dtype(np.uint64)
_highest = np.maximum.reduce


def _widened(off: Array, shape: tuple[int, ...]) -> Array:
    """Offsets spread over the lanes of a mask that varies along more dimensions."""
    if all(n <= m or n == 1 for n, m in zip(shape, off.shape, strict=True)):
        return off
    return np.broadcast_to(off, np.broadcast_shapes(off.shape, shape))


def _undefined(elem: str) -> Any:
    if elem == "i1":
        return True
    if is_float(elem):
        return carried(elem).type(np.nan)
    return int.from_bytes(b"\x5a" * max(BITS.get(elem, 64) // 8, 1), "little")


UNDEFINED = {elem: _undefined(elem) for elem in STORED}

Reporter = Callable[[str, Any, str, int], None]


class Anywhere:
    """Stands for the argument of pointers whose origin is not known: they are byte addresses."""

    name = "?"


class Machine(Atomics, Debugging, Descriptors, SharedMemory, Strays, Warps):
    """One launch.

    Attributes:
        grid: programs in x, y and z.
        first: linear number of the chunk's first program; ``count`` of its ``chunk`` programs run.
        overlaps: it begins before the launch in front of it has ended, and must not touch memory before it waits.
        report: called with what happened (``out_of_bounds``, ``uninitialized``, ``overflow``), the site,
            a description and the number of lanes.
    """

    anywhere = Anywhere()

    def __init__(self, grid: tuple[int, int, int], sites: list[Any], report: Reporter) -> None:
        self.grid, self.sites, self.report = grid, sites, report
        self.ordered = self.overlaps = False
        self.begin(0, 1)
        self.lanes: Array | None = None
        self._masks: dict[int, tuple[Array, bool]] = {}
        self.areas: list[Area] = []
        self.reachable: Callable[[], list[Area]] = list
        self.log = Log(self)

    def begin(self, first: int, count: int) -> None:
        """Run a chunk of programs next."""
        self.first, self.count, self.chunk = first, count, count
        self.hasty = self.overlaps
        self.copies: list[Copy] = []
        self.groups = np.zeros(count, np.int64)

    # -- describing -----------------------------------------------------------------------------------

    def program(self, lane: int) -> str:
        """A program of the chunk by its position in it."""
        number = self.first + (lane if self.lanes is None else int(self.lanes[lane]))
        x, y = self.grid[0], self.grid[1]
        return f"program ({number % x}, {number // x % y}, {number // (x * y)})"

    def _first(self, where: Array) -> tuple[tuple[int, ...], str]:
        position = tuple(int(n) for n in np.unravel_index(int(where.argmax()), where.shape))
        return position, self.program(position[0] if where.shape[0] > 1 else 0)

    def enter(self, mask: Array) -> tuple[Any, Any, Array] | None:
        """Go on with these programs of the chunk alone, until :meth:`leave`; None if they are all."""
        if mask.all():
            return None
        chosen = np.flatnonzero(mask)
        outer = (self.lanes, self.count)
        self.lanes = chosen if self.lanes is None else self.lanes[chosen]
        self.count = len(chosen)
        return (*outer, chosen)

    def leave(self, chosen: tuple[Any, Any, Array] | None) -> None:
        """The other programs again."""
        if chosen is not None:
            self.lanes, self.count = chosen[:2]

    def address(self, area: Area, offset: Any, width: int) -> Any:
        """The byte address of an element offset."""
        return area.address + offset * width

    # -- masks ----------------------------------------------------------------------------------------

    def _known(self, mask: Array) -> Array | None:
        """None for a mask that holds everywhere; looked at once, as most masks guard several accesses."""
        known = self._masks.get(id(mask))
        if known is None:
            if len(self._masks) > 16:
                self._masks.clear()
            known = self._masks[id(mask)] = (mask, bool(mask.all()))  # holding it keeps its id its own
        return None if known[1] else mask

    def mask(self, mask: Any, act: Array | None, rank: int) -> Array | None:
        """A lane mask and the activity of programs as one array; None stands for all lanes."""
        if mask is True:
            mask = None
        elif mask is False or mask is np.False_:
            return np.zeros((1,) * rank, dtype=bool)
        elif mask is np.True_:
            mask = None
        if act is None:
            return None if mask is None else self._known(mask)
        wide = act.reshape(-1, *(1,) * (rank - 1)) if rank > 1 else act
        return wide if mask is None else mask & wide

    @staticmethod
    def _offsets(off: Any, mask: Array | None, value: Any = None) -> Array:
        """Offsets as an array of the rank of the access."""
        if isinstance(off, np.ndarray):
            return off
        rank = max(np.ndim(mask) if mask is not None else 1, np.ndim(value), 1)
        return np.full((1,) * rank, off, dtype=np.int64)

    # -- loads ----------------------------------------------------------------------------------------

    def load(
        self, site: Any, area: Any, elem: str, off: Any, mask: Any, act: Any, other: Any, exact: Any = None
    ) -> Array:
        """The elements at offsets (programs, lanes) of an argument, as carried values."""
        m = self.mask(mask, act, max(getattr(off, "ndim", 1), getattr(mask, "ndim", 1)))
        if self.hasty:
            self.hurried(site, m)
        if type(off) is not np.ndarray:
            off = self._offsets(off, m, mask)
        if m is None and type(mask) is np.ndarray and mask.shape != off.shape:
            off = _widened(off, mask.shape)
        if area is self.anywhere:
            values = self._load_anywhere(site, elem, off, m)
        else:
            lens = area.lenses.get(elem) or area.lens(elem)
            index = off if m is None else off * m
            if _highest(index.view(_U64), None) < lens.n and (not lens.gapped or lens.covers(index).all()):
                values = lens.flat.take(index)
            else:
                values = self._load_wild(site, area, lens, off, m)
            if exact is not None:
                self._overflow(site, area, off, exact, m)
            if area.fresh is not None:
                self._uninitialized(site, area, elem, values, off, m)
            if area.shared:
                self.log.read(site, area, elem, index, m)
        if elem in SMALL_FLOATS:
            values = formats.decode(values, elem)
        elif elem == "i1":
            values = values != 0
        if m is None:
            return values
        return np.where(m, values, UNDEFINED[elem] if other is None else other)

    def load_one(
        self, site: Any, area: Any, elem: str, off: int, mask: Any, act: Any, other: Any, exact: Any = None
    ) -> Any:
        """One element, the same for all programs, as a scalar."""
        value = self.load(site, area, elem, off, mask, act, other, exact).reshape(-1)
        if act is not None and len(value) > 1:
            value = value[act]
        return value[0] if is_float(elem) else value[0].item()

    def _load_wild(self, site: Any, area: Area, lens: Lens, off: Array, m: Array | None) -> Array:
        """Loads of which some leave the view."""
        good, bad = self._judge(site, area, lens, off, m)
        values = np.empty(good.shape, lens.flat.dtype)
        values.fill(UNDEFINED[lens.elem] if lens.elem not in SMALL_FLOATS else np.iinfo(values.dtype).max)
        off = np.broadcast_to(off, good.shape)
        values[good] = lens.flat[off[good]]
        if bad.any():
            within, flat, base = self._storage(area, lens, off)
            within &= bad
            values[within] = flat[off[within] + base]
        return values

    def _storage(self, area: Area, lens: Lens, off: Array) -> tuple[Array, Array, int]:
        """Which offsets lie in the view's storage; the storage as elements; where the view starts in it."""
        low, high = area.storage
        base = (area.address - low) // lens.width
        start = area.address - base * lens.width
        flat = memory(start, (high - start) // lens.width, lens.flat.dtype)
        return (off >= -base) & (off < len(flat) - base), flat, base

    def _judge(self, site: Any, area: Area, lens: Lens, off: Array, m: Array | None) -> tuple[Array, Array]:
        """Active lanes inside and outside the view; those outside are reported."""
        inside = lens.inside(off)
        if m is None:
            good, bad = inside, ~inside
        else:
            good, bad = inside & m, ~inside & m
        if bad.any():
            position, program = self._first(bad)
            offset = int(np.broadcast_to(off, bad.shape)[position])
            where = area.describe(offset, lens.elem)
            self.report("out_of_bounds", site, f"{site.what} of {where}, by {program}", self._lanes(bad))
        return good, bad

    def _lanes(self, where: Array) -> int:
        return int(where.sum()) * (self.count if len(where) == 1 else 1)

    def _overflow(self, site: Any, area: Area, off: Array, exact: Any, m: Array | None) -> None:
        wrong = np.asarray(off != exact)
        if m is not None:
            wrong = wrong & m
        if wrong.any():
            position, program = self._first(wrong)
            meant = int(np.broadcast_to(exact, wrong.shape)[position])
            got = int(np.broadcast_to(off, wrong.shape)[position])
            message = f"the index of this {site.what} of {area.name} wrapped at 32 bits: {meant} became {got}"
            self.report("overflow", site, f"{message}, in {program}", self._lanes(wrong))

    def _uninitialized(self, site: Any, area: Area, elem: str, values: Array, off: Array, m: Array | None) -> None:
        if values.dtype.itemsize != area.width:
            return
        blank = values.view(f"u{area.width}") == area.fresh
        if m is not None:
            blank = blank & m
        if blank.any():
            position, program = self._first(blank)
            offset = int(np.broadcast_to(off, blank.shape)[position])
            message = f"{site.what} of element {offset} of {area.name}, which nothing has written, by {program}"
            self.report("uninitialized", site, message, self._lanes(blank))

    # -- stores ---------------------------------------------------------------------------------------

    def store(
        self, site: Any, area: Any, elem: str, off: Any, value: Any, mask: Any, act: Any, exact: Any = None
    ) -> None:
        """Write carried values to offsets (programs, lanes) of an argument; the last lane wins."""
        m = self.mask(mask, act, max(getattr(x, "ndim", 1) for x in (off, mask, value)))
        if self.hasty:
            self.hurried(site, m)
        if type(off) is not np.ndarray:
            off = self._offsets(off, m, value)
        raw = self.encoded(value, elem)
        if area is self.anywhere:
            self._store_anywhere(site, elem, off, raw, m)
            return
        lens = area.lenses.get(elem) or area.lens(elem)
        index = off if m is None else off * m
        if exact is not None:
            self._overflow(site, area, off, exact, m)
        if not (_highest(index.view(_U64), None) < lens.n and (not lens.gapped or lens.covers(index).all())):
            good, bad = self._judge(site, area, lens, off, m)
            within, flat, base = self._storage(area, lens, off)
            within = within & bad
            if within.any():
                shape = np.broadcast_shapes(within.shape, raw.shape)
                where = np.broadcast_to(within, shape)
                flat[np.broadcast_to(off, shape)[where] + base] = np.broadcast_to(raw, shape)[where]
            if not good.any():
                return
            m, index = good, np.where(good, off, 0)
        self.write(site, area, lens, index, raw, m)

    def write(self, site: Any, area: Area, lens: Lens, index: Array, raw: Array, m: Array | None) -> None:
        """Write raw elements to offsets that are known to be in bounds where the mask holds."""
        shape = index.shape
        if raw.shape != shape:
            if raw.size == 1:
                raw = raw.reshape(-1)
            else:
                shape = np.broadcast_shapes(shape, raw.shape)
                raw = np.broadcast_to(raw, shape)
        if m is not None and m.shape != shape:
            shape = np.broadcast_shapes(shape, m.shape)
            m = np.broadcast_to(m, shape)
        if index.shape != shape:
            index = np.broadcast_to(index, shape)
        if m is None:
            lens.flat[index] = raw
            self.log.write(site, area, lens, index, raw, None)
            return
        if raw.size > 1:
            raw = (raw if raw.shape == shape else np.broadcast_to(raw, shape))[m]
        chosen = index[m]
        lens.flat[chosen] = raw
        self.log.write(site, area, lens, chosen, raw, m)

    @staticmethod
    def encoded(value: Any, elem: str) -> Array:
        """Carried values as the elements that memory holds."""
        if elem in SMALL_FLOATS:
            return formats.encode(value if isinstance(value, np.ndarray) else np.full(1, value, np.float32), elem)
        dtype = np.dtype(STORED[elem])
        if not isinstance(value, np.ndarray):
            return np.full(1, value, dtype)
        return value.view(dtype) if value.dtype == bool else value

    # -- the rest -----------------------------------------------------------------------------------------

    def gather(self, site: Any, source: Array, index: Array, axis: int, act: Array | None) -> Array:
        """``tl.gather``: elements of each program's own tensor along an axis."""
        extent = source.shape[axis]
        wrong = (index < 0) | (index >= extent)
        m = self.mask(None, act, index.ndim)
        if m is not None:
            wrong = wrong & m
        if wrong.any():
            position, program = self._first(wrong)
            message = f"gather of element {int(index[position])} along an axis of {extent}, by {program}"
            self.report("out_of_bounds", site, message, self._lanes(wrong))
        programs = max(len(source), len(index))
        source, index = (np.broadcast_to(x, (programs, *x.shape[1:])) for x in (source, index))
        return np.take_along_axis(source, index.clip(0, extent - 1).astype(np.int64), axis)
