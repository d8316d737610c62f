"""Which tile a launch gets: what the table has for the device and the problem, else the kernel's own rule.

Nothing is tried at run time: the table is data, made beforehand by ``fuzzrope bench --tune`` on a device. Each kernel
names its rule, which holds on any device; :mod:`kernels.pinned` calls kernels with tiles of one's choice.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch

from kernels.tile_table import TABLE

KERNELS = ("rope", "qk", "qk_dq", "qk_dk", "attention", "attention_dq", "attention_dk")
HOPPER = 90  # what a CPU engine runs kernels as


class Tiles(NamedTuple):
    """A tile and how Triton is to compile for it.

    Attributes:
        rows: packed rows of q, or rows of either for ``rope``; a power of two.
        keys: keys, or columns for ``rope``; a power of two.
        warps: of a program.
        stages: of its software pipeline.
        steps: tiles of rows that a program of ``qk`` lets stream by; 0 leaves it to the number of programs.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    steps: int = 0

    @property
    def options(self) -> dict[str, int]:
        """Arguments of a launch of a fused kernel."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.keys, "num_warps": self.warps, "num_stages": self.stages}


class Pins(NamedTuple):
    """Tiles that a call is to have whatever the table says: those named by kernel, and of others the ``number``-th.

    ``number`` counts, round and round, what :func:`shippable` lists; below 0 it says nothing. ``special``: kernels for
    one device alone (:mod:`kernels.special`) run wherever they can, not only where they are quicker.
    """

    named: tuple[tuple[str, Tiles], ...] = ()
    number: int = -1
    special: bool = False


SHIPPED = Pins()


@lru_cache
def architecture(device: torch.device) -> int:
    """Ten times the compute capability of a device; that of Hopper where a CPU stands in for a GPU, 0 of AMD's."""
    if device.type != "cuda":
        return HOPPER
    if torch.version.hip is not None:  # its numbers are others: 9.0 is gfx90a
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@lru_cache
def multiprocessors(device: torch.device, pins: Pins = SHIPPED) -> int:
    """Of a device; few where special kernels are asked for, so that small problems too are shared out unit by unit."""
    if pins.special or device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


def pick(
    kernel: str, device: torch.device, size: int, width: int, length: int, rule: Tiles, pins: Pins = SHIPPED
) -> Tiles:
    """The tile of one launch: that of the nearest length that the table has, as a ratio.

    Args:
        kernel: one of ``KERNELS``.
        device: where it is launched.
        size: bytes of an element of what is multiplied.
        width: columns of a head, those of v included, as a power of two.
        length: what programs share out: rows (of q, packed, or for ``rope`` all), for ``…_dk`` keys.
        rule: the tile where the table has none.
        pins: what the call is to have instead.
    """
    if pins is not SHIPPED:
        for name, tiles in pins.named:
            if name == kernel:
                return tiles
        if pins.number >= 0:
            choices = shippable(kernel, size, width, rule)
            return choices[pins.number % len(choices)]
    entries = TABLE.get((kernel, architecture(device), size, width), ())
    if not entries:
        return rule
    for (here, numbers), (there, _) in pairwise(entries):
        if length * length <= here * there:
            return Tiles(*numbers)
    return Tiles(*entries[-1][1])


def shippable(kernel: str, size: int, width: int, rule: Tiles) -> tuple[Tiles, ...]:
    """The rule's tile, and every one that the table has for such elements and columns, on any device."""
    entries = (
        Tiles(*numbers)
        for (name, _, bytes_, columns), rows in TABLE.items()
        if (name, bytes_, columns) == (kernel, size, width)
        for _, numbers in rows
    )
    return tuple(dict.fromkeys((rule, *entries)))
