"""Places in kernels' sources: from the IR's locations to ``file:line: text``."""

from __future__ import annotations

import linecache
import os

import triton

from fuzzrope.interpreter.ir import frames

_TRITON = os.path.dirname(triton.__file__) + os.sep


def describe(places: dict[str, str], place: str) -> str:
    """``file:line: text`` of the innermost frame that is not Triton's own library."""
    found = frames(places, place)
    own = [frame for frame in found if not frame[0].startswith(_TRITON)] or found
    if not own:
        return "?"
    file, line = own[0]
    return f"{os.path.basename(file)}:{line}: {linecache.getline(file, line).strip()}"
