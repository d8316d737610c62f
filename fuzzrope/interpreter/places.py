"""Places in kernels' sources: from the IR's locations to ``file:line: text``."""

from __future__ import annotations

import linecache
import os

import triton

from fuzzrope.interpreter.ir import frames

_TRITON = os.path.dirname(triton.__file__) + os.sep


def frame_of(places: dict[str, str], place: str) -> tuple[str, int] | None:
    """File and line of the innermost frame that is not Triton's own library, if there is one."""
    found = frames(places, place)
    own = [frame for frame in found if not frame[0].startswith(_TRITON)] or found
    return own[0] if own else None


def show(frame: tuple[str, int] | None) -> str:
    """``file:line: text``."""
    if frame is None:
        return "?"
    file, line = frame
    return f"{os.path.basename(file)}:{line}: {linecache.getline(file, line).strip()}"


def describe(places: dict[str, str], place: str) -> str:
    """``file:line: text`` of a place."""
    return show(frame_of(places, place))
