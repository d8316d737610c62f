"""A kernel variant ready to run: its generated programs, and what is known about its launches.

A program is stored as compiled Python with its constants, so that a process that meets a variant again
neither parses IR nor translates it. A digest tells a damaged file, which is made anew.
"""

from __future__ import annotations

import functools
import hashlib
import marshal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fuzzrope.interpreter import intervals, runtime, tensors
from fuzzrope.interpreter.areas import Area
from fuzzrope.interpreter.dataflow import resolve
from fuzzrope.interpreter.dialects import translate
from fuzzrope.interpreter.ir import Type, read
from fuzzrope.interpreter.places import frame_of, show

VERSION = "17"  # of everything that is cached: raise it when translation changes
CACHED_ELEMENTS = 2**17  # of one value in one chunk: what the second-level cache of a core likes


class Spot:
    """A site as the runtime knows it."""

    __slots__ = ("_text", "frame", "number", "what")

    def __init__(self, number: int, what: str, frame: tuple[str, int] | None) -> None:
        self.number, self.what, self.frame = number, what, frame
        self._text = ""

    def text(self) -> str:
        """``file:line: source`` of the operation."""
        if not self._text:
            self._text = show(self.frame)
        return self._text


Run = Callable[..., None]
Fit = Callable[[list[Any], tuple[int, int, int]], bool]


class Program:
    """The executable form of one variant, and on demand the one that watches for overflow.

    Attributes:
        args: names and types of the IR's arguments.
        ordered: whether programs must run one after another.
        stores: arguments written, None for any; ``loads`` likewise.
    """

    def __init__(self, stored: bytes, checked: Callable[[], bytes]) -> None:
        self._stored_checked = checked
        fields = _unpack(stored)
        self.function, self.sites = _load(fields)
        self.args = [(name, Type(*kind)) for name, kind in fields["args"]]
        self.bytes_a_program, self.elements = fields["bytes"], fields["elements"]
        self.ordered, self.alone = fields["ordered"], fields["alone"]
        self.stores, self.loads = set(fields["stores"]), set(fields["loads"])
        self._fit = _fit(fields["fit"])
        self._checked: tuple[Run, list[Spot]] | None = None

    def variant(self, args: list[Any], grid: tuple[int, int, int]) -> tuple[Run, list[Spot]]:
        """The program for a launch with these arguments, and its sites: one that watches where it must."""
        if self._fit(args, grid):
            return self.function, self.sites
        if self._checked is None:
            self._checked = _load(_unpack(self._stored_checked()))
        return self._checked

    def share(self, areas: list[Area]) -> None:
        """Mark the arguments whose storage a launch also writes: their loads are remembered."""
        stores, loads = self.stores, self.loads
        written = {area.storage for area in areas if None in stores or area.name in stores}
        for area in areas:
            area.shared = area.storage in written and (area.name in loads or None in loads)

    def chunk(self, programs: int, memory: int) -> int:
        """How many programs run at once, given a cap in bytes on the memory of their values."""
        if self.ordered or self.alone:
            return 1
        fitting = min(memory // max(self.bytes_a_program, 1), CACHED_ELEMENTS // self.elements)
        return max(1, min(programs, fitting))


def pack(text: str, checked: bool = False, contracts: bool = False) -> bytes:
    """Translate IR into a stored program.

    Raises :class:`fuzzrope.interpreter.translate.UnknownOperationError` for IR it cannot execute.
    """
    module = read(text)
    generated = translate(module, checked, contracts)
    body = marshal.dumps(
        {
            "code": compile(generated.source, "<generated>", "exec"),
            "constants": {name: _freeze(value) for name, value in generated.namespace.items()},
            "sites": [(s.number, s.what, frame_of(module.places, s.place)) for s in generated.sites],
            "args": [(name, (kind.elem, kind.shape, kind.to, kind.block)) for name, kind in generated.args],
            "bytes": generated.bytes_a_program,
            "elements": generated.elements,
            "ordered": generated.ordered,
            "alone": generated.alone,
            "stores": tuple(generated.stores),
            "loads": tuple(generated.loads),
            "fit": marshal.dumps(compile(intervals.source(module, resolve(module)), "<generated>", "exec")),
        }
    )
    return hashlib.sha256(body).digest() + body


def is_intact(stored: bytes) -> bool:
    """Whether a stored program is what was stored."""
    return hashlib.sha256(stored[32:]).digest() == stored[:32]


def _unpack(stored: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = marshal.loads(stored[32:])  # checked, and from the user's own cache
    return fields


def _load(fields: dict[str, Any]) -> tuple[Run, list[Spot]]:
    namespace: dict[str, Any] = {"np": np, "R": runtime, "T": tensors}
    namespace |= {name: _thaw(value) for name, value in fields["constants"].items()}
    exec(fields["code"], namespace)  # generated by pack()
    with np.errstate(all="ignore"):
        return namespace["build"](), [Spot(*site) for site in fields["sites"]]


@functools.lru_cache(maxsize=256)
def _fit(code: bytes) -> Fit:
    """The function behind compiled :mod:`.intervals` code; variants that differ in dtypes alone share it."""
    scope: dict[str, Any] = dict(intervals.NAMESPACE)
    exec(marshal.loads(code), scope)  # generated by pack()
    fit: Fit = scope["fit"]
    return fit


def _freeze(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, np.dtype):
        return ("dtype", value.str)
    if isinstance(value, np.generic):
        return ("scalar", value.dtype.str, value.tobytes())
    assert isinstance(value, str)
    return ("text", value)


def _thaw(value: Any) -> Any:
    kind, *rest = value
    if kind == "array":
        dtype, shape, data = rest
        return np.frombuffer(data, dtype=dtype).reshape(shape)
    if kind == "scalar":
        return np.frombuffer(rest[1], dtype=rest[0])[0]
    return np.dtype(rest[0]) if kind == "dtype" else rest[0]


KIND = f"{sys.implementation.cache_tag}.program"
__all__ = ["KIND", "VERSION", "Program", "Spot", "is_intact", "pack"]
