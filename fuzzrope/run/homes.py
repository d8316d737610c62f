"""Which memory tensors live in, and whether they share any. For the child."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

Home = tuple[torch.device, int]


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    if tensor.numel() == 0:
        return (0, 0)
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def home(tensor: torch.Tensor) -> Home:
    """The memory a tensor lives in, as device and address; tensors of different homes share none."""
    return tensor.device, 0 if tensor.device.type == "meta" else tensor.untyped_storage().data_ptr()


def home_of(item: Any) -> Home | None:
    """The memory of a plain strided tensor; None for anything else."""
    return home(item) if type(item) is torch.Tensor and item.layout is torch.strided else None


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one home share an element's address; they may interleave without."""
    if one.device.type == "meta":
        return False
    (a, b), (c, d) = _span(one), _span(other)
    if max(a, c) >= min(b, d):
        return False
    return a == c or bool(np.intersect1d(_places(one), _places(other)).size)


def _places(tensor: torch.Tensor) -> np.ndarray:
    """Byte addresses of the elements."""
    total = np.array([tensor.data_ptr()], dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        steps = np.arange(size if stride else min(size, 1), dtype=np.int64) * stride * tensor.element_size()
        total = np.add.outer(total, steps).reshape(-1)
    return total


class Answers:
    """Keeps the last answer alive, so that the next has to find memory of its own."""

    def __init__(self) -> None:
        self._last: list[torch.Tensor] = []

    def reused(self, items: list[Any], inputs: Iterable[torch.Tensor]) -> list[int]:
        """The numbers of those of an answer's items that lie in memory of the answer before; the inputs' is no one's.

        The new answer takes the place of the old.
        """
        given = {home(tensor) for tensor in inputs}
        own = [(i, item) for i, item in enumerate(items) if home_of(item) not in given | {None} and item.numel()]
        before = {home(tensor) for tensor in self._last}
        self._last = [item for _, item in own]
        return [i for i, item in own if home(item) in before]
