"""Metamorphic relations: another case whose answer must be the same, bit for bit, in named elements.

An operation declares which of these it promises. Values are spelled out as the target sees them, so that
they can be permuted, cut and replaced; NaN payloads are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from fuzzrope.build import build
from fuzzrope.case import Case, Values
from fuzzrope.geometry import dense

Array = np.ndarray
Index = tuple[slice | int, ...]

MAX_ELEMENTS = 6000  # of all tensors together: more are costly to spell out


@dataclass(frozen=True)
class Related:
    """A case, and of each output the elements here and there that must be equal.

    ``power``: there, they are 2^power times as large.
    """

    case: Case
    equal: tuple[tuple[str, Index, Index], ...]
    power: int = 0


def spelled_out(case: Case) -> dict[str, Array] | None:
    """The elements of each tensor as float64, overlaps resolved; None if they are too many."""
    if sum(spec.numel for _, spec in case.tensors) > MAX_ELEMENTS:
        return None
    tensors = build(case, apart=False).tensors
    return {name: tensor.to(torch.float64).numpy() for name, tensor in tensors.items()}


def written(case: Case, arrays: Mapping[str, Array]) -> Case:
    """The case with these elements, contiguous and each tensor in memory of its own."""
    changed = {}
    for name, numbers in arrays.items():
        values = Values("listed", 0, tuple(numbers.reshape(-1).tolist()))
        shape = tuple(numbers.shape)
        form = {"shape": shape, "strides": dense(shape), "offset": 0, "storage": name, "values": values}
        changed[name] = replace(case[name], **form)  # type: ignore[arg-type]  # fields of several types by name
    return replace(case.with_tensors(changed), backward=None)
