"""What a generated program is called with, besides memory: numbers, and the numbers of its programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fuzzrope.interpreter import formats


def scalar(value: Any, elem: str) -> Any:
    """A number as a value of an element type: integers wrap, floats are rounded."""
    if elem == "i32" and type(value) is int and -(2**31) <= value < 2**31:
        return value
    if elem == "i1":
        return bool(value)
    if elem[0] == "i":
        bits = int(elem[1:])
        half = 1 << bits - 1
        return ((int(value) + half) & ((1 << bits) - 1)) - half
    if elem == "f64":
        return np.float64(value)
    single = np.float32(value)
    if elem == "f32":
        return single
    return formats.round_to(np.full(1, value, np.float64), elem)[0]


_PIDS: dict[tuple[tuple[int, int, int], int, int], tuple[np.ndarray, ...]] = {}


def program_ids(grid: tuple[int, int, int], first: int, count: int) -> tuple[np.ndarray, ...]:
    """Program numbers along x, y and z of a chunk, each (programs,) int32."""
    key = (grid, first, count)
    found = _PIDS.get(key)
    if found is None:
        number = np.arange(first, first + count, dtype=np.int64)
        x, y = grid[0], grid[1]
        found = tuple(n.astype(np.int32) for n in (number % x, number // x % y, number // (x * y)))
        if len(_PIDS) > 512:
            _PIDS.clear()
        _PIDS[key] = found
    return found
