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
    """The kernel that takes a call instead; none where tiles are pinned, and any that can where those are asked for.

    Triton's interpreter runs none.
    """
    if INTERPRETED or (pins != SHIPPED and not pins.special):
        return None
    for one in SPECIAL.get(name, ()):
        if one.architecture == architecture and one.serves(wish) and (pins.special or one.pays(wish)):
            return one
    return None
