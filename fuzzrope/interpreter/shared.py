"""Shared memory of Gluon kernels: buffers of each program, pieces of them, and copies that land when waited for.

A copy that runs beside its program may land at any time until it has been waited for. Here it lands at the wait and
never before, so that what is read too early is what was there. A buffer is full of odd numbers until it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fuzzrope.interpreter.values import carried, is_float

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a buffer: the elements ``at`` (chunk or 1, *shape) of each program's ``cells`` (chunk, elements)."""

    cells: Array
    at: Array


@dataclass(frozen=True, slots=True)
class Copy:
    """What lands in a piece; for each program of the chunk the number of its group, -1 where none is waited for."""

    piece: Piece
    values: Array
    group: Array


class SharedMemory:
    """The part of a machine that has shared memory; what it keeps is by program of the whole chunk."""

    def buffer(self: Any, elem: str, shape: tuple[int, ...]) -> Piece:
        """A new buffer, which nothing has written."""
        kind = carried(elem)
        odd = kind.type(np.nan) if is_float(elem) else np.array(0x5A5A5A5A5A5A5A5A).astype(kind)
        size = int(np.prod(shape, dtype=np.int64))
        return Piece(np.full((self.chunk, size), odd), np.arange(size).reshape(1, *shape))

    def piece_at(self: Any, site: Any, piece: Piece, index: Any, act: Array | None) -> Piece:
        """One of the parts along a piece's first dimension: the same for all programs, or each its own."""
        extent = piece.at.shape[1]
        number = np.asarray(index, np.int64).reshape(-1)
        self._inside(site, number, extent, act)
        number = number.clip(0, extent - 1)
        if len(number) == 1:
            return Piece(piece.cells, piece.at[:, number[0]])
        each = self._by_program(number)
        whole = np.broadcast_to(piece.at, (self.chunk, *piece.at.shape[1:]))
        return Piece(piece.cells, whole[np.arange(self.chunk), each])

    @staticmethod
    def piece_part(piece: Piece, starts: tuple[int, ...], shape: tuple[int, ...]) -> Piece:
        """A block of a piece."""
        part = (slice(start, start + extent) for start, extent in zip(starts, shape, strict=True))
        return Piece(piece.cells, piece.at[(slice(None), *part)])

    @staticmethod
    def piece_turned(piece: Piece, order: tuple[int, ...]) -> Piece:
        """A piece with its dimensions in another order."""
        return Piece(piece.cells, piece.at.transpose(0, *(n + 1 for n in order)))

    @staticmethod
    def piece_shaped(piece: Piece, shape: tuple[int, ...]) -> Piece:
        """A piece in another shape, row by row."""
        return Piece(piece.cells, piece.at.reshape(-1, *shape))

    def piece_load(self: Any, site: Any, piece: Piece) -> Array:
        """What a piece holds (programs, *shape)."""
        self.touch(site, piece, "read")
        values: Array = piece.cells[self._cells(piece.at)]
        return values

    def piece_store(self: Any, site: Any, piece: Piece, value: Array, act: Array | None) -> None:
        """Write carried values."""
        self.touch(site, piece, "write")
        self._put(piece.cells, piece.at, value, act)

    def piece_gather(self: Any, site: Any, piece: Piece, index: Array, axis: int, act: Array | None) -> Array:
        """The elements whose place along an axis is told, all other places being their own."""
        chosen = self._chosen(site, piece, index, axis, act)
        self.touch(site, Piece(piece.cells, chosen), "read")
        values: Array = piece.cells[self._cells(chosen)]
        return values

    def piece_scatter(
        self: Any, site: Any, piece: Piece, index: Array, value: Array, axis: int, act: Array | None
    ) -> None:
        """Write to such elements; of several values for one, any may win, and here the last does."""
        chosen = self._chosen(site, piece, index, axis, act)
        self.touch(site, Piece(piece.cells, chosen), "write")
        self._put(piece.cells, chosen, value, act)

    def _chosen(self: Any, site: Any, piece: Piece, index: Array, axis: int, act: Array | None) -> Array:
        """The elements of a piece at these indices (programs, *shape) along an axis."""
        extent = piece.at.shape[axis + 1]
        self._inside(site, index, extent, act)
        each = self._by_program(index.clip(0, extent - 1).astype(np.int64))
        whole = np.broadcast_to(piece.at, (self.chunk, *piece.at.shape[1:]))
        return np.take_along_axis(whole, each, axis + 1)

    def _inside(self: Any, site: Any, index: Array, extent: int, act: Array | None) -> None:
        wrong = (index < 0) | (index >= extent)
        mask = self.mask(None, act, index.ndim)
        if mask is not None:
            wrong = wrong & mask
        if wrong.any():
            position, program = self._first(wrong)
            number = np.broadcast_to(index, wrong.shape)[position]
            message = f"{site.what} of part {number} of {extent} in shared memory, by {program}"
            self.report("out_of_bounds", site, message, self._lanes(wrong))

    def _running(self: Any) -> Array:
        """The programs of the chunk that run now."""
        return np.arange(self.chunk) if self.lanes is None else self.lanes

    def _by_program(self: Any, values: Array) -> Array:
        """Values of the programs that run now, among those of the chunk."""
        found = np.zeros((self.chunk, *values.shape[1:]), values.dtype)
        found[self._running()] = values
        return found

    def _active(self: Any, act: Array | None) -> Array:
        """Whether each program of the chunk takes part."""
        found: Array = self._by_program(np.ones(len(self._running()), bool) if act is None else act)
        return found

    def _cells(self: Any, at: Array) -> tuple[Array, Array]:
        """Rows and columns of cells, for the programs that run now."""
        rows = self._running()
        return rows.reshape(-1, *(1,) * (at.ndim - 1)), at if len(at) == 1 else at[rows]

    def _put(self: Any, cells: Array, at: Array, value: Array, act: Array | None) -> None:
        rows, columns = np.broadcast_arrays(*self._cells(at))
        value = np.broadcast_to(value, columns.shape)
        if act is not None:
            act = np.broadcast_to(act, len(rows))
            rows, columns, value = rows[act], columns[act], value[act]
        cells[rows, columns] = value

    # -- copies beside the program ------------------------------------------------------------------------

    def copy_begin(self: Any, site: Any, piece: Piece, values: Array, act: Array | None) -> None:
        """Begin a copy; it belongs to the group that each program will commit next."""
        self.touch(site, piece, "write")
        values = np.broadcast_to(values, (len(self._running()), *piece.at.shape[1:]))
        group = np.where(self._active(act), self.groups, -1)
        self.copies.append(Copy(piece, self._by_program(values), group))

    def copy_commit(self: Any, act: Array | None) -> None:
        """End a group of copies."""
        self.groups = self.groups + self._active(act)

    def copy_wait(self: Any, pending: int, act: Array | None) -> None:
        """Wait until at most so many of the groups that were committed have not landed."""
        last = np.where(self._active(act), self.groups - pending, 0)
        kept = []
        for copy in self.copies:
            landing = (copy.group >= 0) & (copy.group < last)
            rows = np.flatnonzero(landing)
            at = np.broadcast_to(copy.piece.at, copy.values.shape)
            copy.piece.cells[rows.reshape(-1, *(1,) * (at.ndim - 1)), at[rows]] = copy.values[rows]
            group = np.where(landing, -1, copy.group)
            if (group >= 0).any():
                kept.append(Copy(copy.piece, copy.values, group))
        self.copies = kept
