"""Flaw: the rounding depends on the length of the sequence (a vectorized path for even ones), within the bounds."""

from __future__ import annotations

from typing import Any

import torch

from fuzzrope.specimens.finished import FinishedRope, contracted, wide


class ModelNew(FinishedRope):
    """See the module."""

    def chosen(self, x: torch.Tensor) -> Any:
        """One of two ways."""
        return contracted if x.shape[2] % 2 == 0 else wide
