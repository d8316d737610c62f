"""The memory behind a pointer argument: exactly the elements of its view, and nothing else.

An address is in bounds if the view that the launch was given has an element there. The gaps of a padded
or sliced view are not in bounds, nor is the rest of its storage.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from fuzzrope.interpreter.values import STORED, width_of

Array = np.ndarray
DENSE_UP_TO = 2**26  # elements of a gapped view's span up to which a table says what belongs to it


_data_ptr = torch.Tensor.data_ptr  # the engine puts its own in its place, to see who asks


_DTYPES = {elem: np.dtype(name) for elem, name in STORED.items()}


class _Memory:
    """Raw memory, presented to NumPy."""

    def __init__(self, address: int, count: int, dtype: np.dtype) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "typestr": dtype.str,
            "version": 3,
        }


@functools.lru_cache(maxsize=1024)
def memory(address: int, count: int, dtype: np.dtype) -> Array:
    """An array (count,) over memory that something else keeps alive while it is used."""
    if count <= 0:
        return np.empty(0, dtype=dtype)
    return np.asarray(_Memory(address, count, dtype))


@functools.lru_cache(maxsize=256)
def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, Array | None, Array | None]:
    """Elements from the first to the last of a view; if it has gaps, a table or the sorted list of members."""
    reach = 1
    count = 1
    for n, s in zip(shape, strides, strict=True):
        reach += (n - 1) * s
        count *= n if s else 1
    if 0 in shape:
        return 0, None, None
    if count == reach and _dense(shape, strides):
        return reach, None, None
    total = np.zeros(1, dtype=np.int64)
    for n, s in zip(shape, strides, strict=True):
        total = np.add.outer(total, np.arange(n if s else 1, dtype=np.int64) * s).reshape(-1)
    if reach <= DENSE_UP_TO:
        table = np.zeros(reach, dtype=bool)
        table[total] = True
        return (reach, None, None) if table.all() else (reach, table, None)
    places = np.unique(total)
    return (reach, None, None) if len(places) == reach else (reach, None, places)


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the dimensions nest without gap or overlap."""
    expected = 1
    for s, n in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n > 1 and s):
        if s != expected:
            return False
        expected *= n
    return True


class Lens:
    """A view's memory as elements of one type: ``flat`` from its first element to its last."""

    __slots__ = ("cover", "elem", "flat", "n", "places", "width")

    def __init__(self, area: Area, elem: str) -> None:
        dtype = _DTYPES[elem]
        self.elem, self.width = elem, dtype.itemsize
        reach, cover, places = _span(area.shape, area.strides)
        if self.width != area.width:
            reach, cover = _other_width(reach, cover, places, area.width, self.width)
            places = None
        self.n, self.cover, self.places = reach, cover, places
        self.flat = memory(area.address, reach, dtype)

    @property
    def gapped(self) -> bool:
        """Whether elements between the first and the last are missing."""
        return self.cover is not None or self.places is not None

    def covers(self, index: Array) -> Array:
        """For indices within [0, n), whether the view has that element."""
        if self.cover is not None:
            return self.cover.take(index)
        if self.places is not None:
            return self.places[np.searchsorted(self.places, index).clip(0, len(self.places) - 1)] == index
        return np.ones(index.shape, dtype=bool)

    def inside(self, index: Array) -> Array:
        """For any indices, whether the view has that element."""
        within = (index >= 0) & (index < self.n)
        if self.gapped:
            within &= self.covers(np.where(within, index, 0)) if self.n else False
        return within


def _other_width(
    reach: int, cover: Array | None, places: Array | None, width: int, wanted: int
) -> tuple[int, Array | None]:
    """Reach and table of a view that is looked at in elements of another width."""
    if places is not None:
        cover = np.zeros(reach, dtype=bool)
        cover[places] = True
    if wanted < width:
        return reach * (width // wanted), None if cover is None else np.repeat(cover, width // wanted)
    whole = reach * width // wanted
    if cover is None:
        return whole, None
    return whole, np.all(cover[: whole * wanted // width].reshape(whole, -1), axis=1)


class Area:
    """One pointer argument: its name, the view it was given, and the storage that view lies in.

    Attributes:
        storage: first byte and byte after the last of the storage.
        fresh: the pattern that its memory held when it was allocated, where that is known.
        shared: whether this launch also writes the storage, so that reads have to be remembered.
    """

    __slots__ = ("address", "fresh", "lenses", "name", "shape", "shared", "storage", "strides", "width")

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.shape, self.strides = tensor.shape, tensor.stride()
        self.address = _data_ptr(tensor)
        self.width = tensor.element_size()
        storage = tensor.untyped_storage()
        low = storage.data_ptr()
        self.storage = (low, low + storage.nbytes())
        if self.address == 0:  # an empty tensor's view has no address
            self.address = low
        self.fresh: int | None = None
        self.shared = False
        self.lenses: dict[str, Lens] = {}

    def lens(self, elem: str) -> Lens:
        """Its memory as elements of a type."""
        found = self.lenses.get(elem)
        if found is None:
            found = self.lenses[elem] = Lens(self, elem)
        return found

    def describe(self, offset: int, elem: str) -> str:
        """Where an element offset that is not in the view lies, in the view's own terms."""
        lens, width = self.lens(elem), width_of(elem)
        address = self.address + offset * width
        view = f"{self.name} {_form(self.shape, self.strides)}"
        if offset < 0:
            where = f"element {offset} of {view}, {-offset} before its first"
        elif offset >= lens.n:
            where = f"element {offset} of {view}, {offset - lens.n + 1} past its last"
        else:
            where = f"element {offset} of {view}, in a gap between its elements"
        return where + (", inside its storage" if self.storage[0] <= address < self.storage[1] else "")


def _form(shape: Any, strides: Any) -> str:
    return f"{'x'.join(map(str, shape)) or 'scalar'} with strides {'/'.join(map(str, strides)) or '-'}"
