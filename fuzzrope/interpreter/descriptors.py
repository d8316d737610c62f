"""Tensor descriptors: blocks of a tensor, zero (or NaN) outside it on loads and dropped on stores.

What is inside the tensor that the descriptor describes must also be inside the view it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fuzzrope.interpreter.values import carried, is_float, width_of

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A described tensor: sizes and strides are integers or one integer for each program."""

    area: Any
    elem: str
    offset: Any
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    block: tuple[int, ...]
    nan: bool


def _lanes(value: Any, rank: int) -> Any:
    """A scalar, or one number a program, against ``rank`` dimensions of lanes."""
    return value.reshape(-1, *(1,) * rank) if isinstance(value, np.ndarray) else value


class Descriptors:
    """The part of a machine that makes and uses descriptors."""

    def descriptor(
        self: Any,
        site: Any,
        area: Any,
        elem: str,
        offset: Any,
        shape: list[Any],
        strides: list[Any],
        block: tuple[int, ...],
        nan: bool,
    ) -> Descriptor:
        """Describe a tensor; what the hardware's descriptors cannot describe is reported."""
        width = width_of(elem)
        start = np.asarray(offset if area is self.anywhere else area.address + np.asarray(offset) * width)
        outer = [np.asarray(s) * width for s in strides[:-1]]
        if np.any(np.asarray(strides[-1]) != 1):
            self.report("launch", site, "a tensor descriptor whose last stride is not 1", 1)
        elif np.any(start % 16) or any(np.any(s % 16) for s in outer):
            self.report("launch", site, "a tensor descriptor whose base or strides are not multiples of 16 bytes", 1)
        return Descriptor(area, elem, offset, tuple(shape), tuple(strides), block, nan)

    def _block(self: Any, desc: Descriptor, index: list[Any]) -> tuple[Array, Array]:
        """Offsets of a block's elements (programs, *block), and which lie in the described tensor."""
        rank = len(desc.block)
        off: Any = _lanes(desc.offset, rank)
        inside: Any = True
        scale = width_of(desc.elem) if desc.area is self.anywhere else 1
        for dim, (start, extent) in enumerate(zip(index, desc.block, strict=True)):
            lanes = np.arange(extent, dtype=np.int64).reshape(1, *(-1 if d == dim else 1 for d in range(rank)))
            at = _lanes(start, rank) + lanes
            inside = inside & (at >= 0) & (at < _lanes(desc.shape[dim], rank))
            off = off + at * (np.int64(scale) * _lanes(desc.strides[dim], rank))
        programs = max(len(off), len(inside))
        shape = (programs, *desc.block)
        return np.broadcast_to(off, shape), np.broadcast_to(inside, shape)

    def _rows(self: Any, desc: Descriptor, rows: Array, column: Any, extent: int) -> tuple[Array, Array]:
        """Offsets (programs, rows, extent) of row gather and scatter, and which lie in the tensor."""
        lanes = _lanes(column, 2) + np.arange(extent, dtype=np.int64)[None, None, :]
        at = rows.astype(np.int64)[:, :, None]
        inside = (at >= 0) & (at < _lanes(desc.shape[0], 2)) & (lanes >= 0) & (lanes < _lanes(desc.shape[1], 2))
        off = _lanes(desc.offset, 2) + at * _lanes(desc.strides[0], 2) + lanes
        shape = np.broadcast_shapes(off.shape, inside.shape)
        return np.broadcast_to(off, shape), np.broadcast_to(inside, shape)

    def descriptor_load(self: Any, site: Any, desc: Descriptor, index: list[Any], shape: Any, act: Any) -> Array:
        """A block (programs, *shape)."""
        off, inside = self._block(desc, index)
        values = _load(self, site, desc, off, inside, act)
        return values.reshape(len(values), *shape)

    def descriptor_store(self: Any, site: Any, desc: Descriptor, index: list[Any], value: Array, act: Any) -> None:
        """Write a block."""
        off, inside = self._block(desc, index)
        self.store(site, desc.area, desc.elem, off, value.reshape(-1, *desc.block), inside, act)

    def descriptor_reduce(
        self: Any, site: Any, desc: Descriptor, what: str, index: list[Any], value: Array, act: Any
    ) -> None:
        """Combine a block into memory atomically."""
        off, inside = self._block(desc, index)
        kind = {"inc": "add", "dec": "add"}.get(what, what)
        if kind == "add" and is_float(desc.elem):
            kind = "fadd"
        self.atomic_rmw(site, desc.area, desc.elem, kind, off, value.reshape(-1, *desc.block), inside, act)

    def descriptor_gather(
        self: Any, site: Any, desc: Descriptor, rows: Array, column: Any, shape: Any, act: Any
    ) -> Array:
        """Rows by number, from one column on."""
        off, inside = self._rows(desc, rows, column, shape[1])
        return _load(self, site, desc, off, inside, act)

    def descriptor_scatter(
        self: Any, site: Any, desc: Descriptor, rows: Array, column: Any, value: Array, act: Any
    ) -> None:
        """Write rows by number, from one column on."""
        off, inside = self._rows(desc, rows, column, value.shape[-1])
        self.store(site, desc.area, desc.elem, off, value, inside, act)


def _load(machine: Any, site: Any, desc: Descriptor, off: Array, inside: Array, act: Any) -> Array:
    fill: Any = carried(desc.elem).type(np.nan) if desc.nan and is_float(desc.elem) else carried(desc.elem).type(0)
    return machine.load(site, desc.area, desc.elem, off, inside, act, fill)
