"""Places in sources, as ``file:line: text``: from the IR's locations, and from the stack."""

from __future__ import annotations

import linecache
import os
import sys
from pathlib import Path
from types import FrameType

import torch
import triton

from fuzzrope.interpreter.ir import frames

_TRITON = os.path.dirname(triton.__file__) + os.sep
_OURS = Path(__file__).resolve().parents[1]
#: Code that a target's author did not write; what starts with "<" was generated.
_NOT_THEIRS: tuple[str, ...] = (_TRITON, os.path.dirname(torch.__file__) + os.sep, "<")
_NOT_THEIRS += tuple(f"{_OURS / room}{os.sep}" for room in ("interpreter", "run"))


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


def caller() -> str:
    """``file:line: text`` of the innermost frame that is the target's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THEIRS):
        frame = frame.f_back
    return show(None if frame is None else (frame.f_code.co_filename, frame.f_lineno))
