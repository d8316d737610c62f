"""Flaw: which of two correct ways of rounding is taken is left to chance (atomics, or a race)."""

from __future__ import annotations

import random
from typing import Any

import torch

from fuzzrope.specimens.finished import FinishedRope, contracted, wide


class ModelNew(FinishedRope):
    """See the module."""

    def chosen(self, x: torch.Tensor) -> Any:
        """One of two ways."""
        return contracted if random.random() < 0.5 else wide
