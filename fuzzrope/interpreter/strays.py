"""Accesses through pointers of unknown origin, which are byte addresses: whose memory is it?"""

from __future__ import annotations

from typing import Any

import numpy as np

from fuzzrope.interpreter.areas import Area, Lens
from fuzzrope.interpreter.values import STORED, width_of

Array = np.ndarray


class Strays:
    """The part of a machine that looks for the tensor behind an address."""

    def _areas(self: Any, elem: str, address: Array, m: Array | None) -> list[tuple[Area, Lens, Array, Array]]:
        """For each view that has some of these byte addresses: which lanes, and their offsets."""
        found, width = [], width_of(elem)
        left = np.ones(address.shape, dtype=bool) if m is None else np.broadcast_to(m, address.shape).copy()
        for area in [*self.areas, *self.reachable()]:
            if not left.any():
                break
            lens = area.lens(elem)
            off = (address - area.address) // width
            mine = left & ((address - area.address) % width == 0) & lens.inside(off)
            if mine.any():
                found.append((area, lens, mine, off))
                left &= ~mine
        self._left = left
        return found

    def _stray(self: Any, site: Any, elem: str, address: Array) -> None:
        if self._left.any():
            position, program = self._first(self._left)
            message = f"{site.what} at address {int(address[position]):#x}, which belongs to no tensor, by {program}"
            self.report("out_of_bounds", site, message, self._lanes(self._left))

    def _load_anywhere(self: Any, site: Any, elem: str, address: Array, m: Array | None) -> Array:
        if m is not None:
            address = np.broadcast_to(address, np.broadcast_shapes(address.shape, m.shape))
        values = np.zeros(address.shape, dtype=STORED[elem])
        for area, lens, mine, off in self._areas(elem, address, m):
            values[mine] = lens.flat[off[mine]]
            if area.fresh is not None:
                self._uninitialized(site, area, elem, values, off, mine)
            if area.shared:
                self.log.read(site, area, elem, np.where(mine, off, 0), mine)
        self._stray(site, elem, address)
        return values

    def _store_anywhere(self: Any, site: Any, elem: str, address: Array, raw: Array, m: Array | None) -> None:
        shape = np.broadcast_shapes(address.shape, raw.shape, () if m is None else m.shape)
        address = np.broadcast_to(address, shape)
        for area, lens, mine, off in self._areas(elem, address, m):
            self.write(site, area, lens, np.where(mine, off, 0), np.broadcast_to(raw, shape), mine)
        self._stray(site, elem, address)
