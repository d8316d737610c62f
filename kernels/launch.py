"""What every launch needs to know: who runs it, how wide its indices are, and its tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

INT32_MAX = 2**31 - 1
INTERPRETED = bool(triton.knobs.runtime.interpret)  # it counts when a kernel is decorated, not when it is launched

TL_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def can_launch(device: torch.device) -> bool:
    """Whether a Triton kernel runs on tensors of this device: a GPU, or any with Triton's interpreter."""
    return device.type == "cuda" or INTERPRETED


def broadcast_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Strides that read a dimension of size 1 at its one place, whatever index asks for it.

    PyTorch leaves the stride of a dimension of size 1 arbitrary, so it must never be multiplied.
    """
    return tuple(0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))


def ceil_div(n: int, size: int) -> int:
    """Blocks of ``size`` that cover n >= 0; ``triton.cdiv`` is slower by far on the host."""
    return -(-n // size)


def current_device() -> int:
    """The number of the device that Triton launches on."""
    return 0 if INTERPRETED else triton.runtime.driver.active.get_current_device()


class Tile(NamedTuple):
    """Rows and columns of one program's tile; both are powers of two."""

    rows: int
    columns: int


TILE_ELEMENTS = 1024
TILE_COLUMNS = (16, 64)
TILE_ROWS = (16, 64)


def choose_tile(columns: int) -> Tile:
    """A tile for rows of this many columns: about ``TILE_ELEMENTS`` elements, wide rows in several steps."""
    width = min(max(1 << (columns - 1).bit_length(), TILE_COLUMNS[0]), TILE_COLUMNS[1])
    height = min(max(TILE_ELEMENTS // width, TILE_ROWS[0]), TILE_ROWS[1])
    return Tile(height, width)
