"""A kernel variant ready to run: its generated programs, and what is known about its launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fuzzrope.interpreter import runtime
from fuzzrope.interpreter.dataflow import resolve
from fuzzrope.interpreter.intervals import Intervals
from fuzzrope.interpreter.ir import read
from fuzzrope.interpreter.places import describe
from fuzzrope.interpreter.translate import Generated, translate

CACHED_ELEMENTS = 2**17  # of one value in one chunk: what the second-level cache of a core likes


class Spot:
    """A site as the runtime knows it."""

    __slots__ = ("_places", "_text", "number", "place", "what")

    def __init__(self, number: int, what: str, place: str, places: dict[str, str]) -> None:
        self.number, self.what, self.place = number, what, place
        self._places, self._text = places, ""

    def text(self) -> str:
        """``file:line: source`` of the operation."""
        if not self._text:
            self._text = describe(self._places, self.place)
        return self._text


class Program:
    """The executable form of one variant's IR.

    Raises :class:`fuzzrope.interpreter.translate.UnknownOperationError` for IR it cannot execute.
    """

    def __init__(self, text: str) -> None:
        self.module = read(text)
        self.plain, self.function = self._build(False)
        self.sites = self._sites(self.plain)
        self._checked: tuple[Callable[..., None], list[Spot]] | None = None
        self.intervals = Intervals(self.module, resolve(self.module))

    def _build(self, checked: bool) -> tuple[Generated, Callable[..., None]]:
        generated = translate(self.module, checked)
        namespace: dict[str, Any] = {"np": np, "R": runtime, **generated.namespace}
        exec(compile(generated.source, "<generated>", "exec"), namespace)  # noqa: S102 - we wrote it
        with np.errstate(all="ignore"):
            return generated, namespace["build"]()

    def _sites(self, generated: Generated) -> list[Spot]:
        return [Spot(s.number, s.what, s.place, self.module.places) for s in generated.sites]

    def variant(self, args: list[Any], grid: tuple[int, int, int]) -> tuple[Callable[..., None], list[Spot]]:
        """The program for a launch with these arguments, and its sites: one that watches where it must."""
        if self.intervals.fit(args, grid):
            return self.function, self.sites
        if self._checked is None:
            generated, function = self._build(True)
            self._checked = function, self._sites(generated)
        return self._checked

    def chunk(self, programs: int, memory: int) -> int:
        """How many programs run at once, given a cap in bytes on the memory of their values."""
        if self.plain.ordered:
            return 1
        fitting = min(memory // max(self.plain.bytes_a_program, 1), CACHED_ELEMENTS // self.plain.elements)
        return max(1, min(programs, fitting))
