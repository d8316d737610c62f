"""Kernels that do for some inputs on some devices what another does for all: asked once a plan, by kernel.

A kernel's own module knows none of them. Those of :mod:`kernels.hopper` are added when ``kernels`` is imported, and a
file that was exported has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from kernels.forms import Meta
from kernels.launch import INTERPRETED
from kernels.tiling import SHIPPED, Pins


class Wish(NamedTuple):
    """What a call asks for.

    Attributes:
        forms: of its inputs, by name.
        dtype: of what it returns.
        scale: what scores are multiplied by.
        causal: whether row i sees the keys up to ``q_offset + i`` alone.
        q_offset: the position of q's first row.
        plain: whether it has no other option that changes scores.
        places: multiprocessors of the device.
    """

    forms: Mapping[str, Meta]
    dtype: torch.dtype
    scale: float
    causal: bool
    q_offset: int
    plain: bool
    places: int


class Special(NamedTuple):
    """One such kernel.

    Attributes:
        architecture: ten times the compute capability that it is for.
        serves: whether it can take inputs of these forms, where all start at multiples of 16 bytes.
        pays: whether it is quicker for them, as measured.
        prepare: plans its launch; what it returns takes inputs and outputs, and launches.
    """

    architecture: int
    serves: Callable[[Wish], bool]
    pays: Callable[[Wish], bool]
    prepare: Callable[[Wish], Callable[..., None]]


SPECIAL: dict[str, list[Special]] = {}  # by what they stand for


def special_for(name: str, architecture: int, wish: Wish, pins: Pins) -> Special | None:
    """The kernel that takes a call instead: the first that serves and pays.

    None where tiles are pinned; where these kernels are asked for, of those that serve the first, or the ``number``-th,
    round and round. Triton's interpreter runs none.
    """
    if INTERPRETED or (pins != SHIPPED and not pins.special):
        return None
    serving = [one for one in SPECIAL.get(name, ()) if one.architecture == architecture and one.serves(wish)]
    if pins.special and serving:
        return serving[max(pins.number, 0) % len(serving)]
    return next((one for one in serving if one.pays(wish)), None)
