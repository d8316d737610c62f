"""Counts of non-negative numbers by size, eight bins to a factor of two, that can be added up."""

from __future__ import annotations

import numpy as np

PER_OCTAVE = 8
LOWEST, HIGHEST = -64, 16  # powers of two that are told apart; what is smaller, zero too, falls in the lowest bin
_FIRST = (1023 + LOWEST) * PER_OCTAVE
_BINS = (HIGHEST - LOWEST) * PER_OCTAVE


class Histogram:
    """How many numbers fell into each bin; the bins are those of a float64's exponent and next three bits."""

    def __init__(self) -> None:
        self.counts: np.ndarray | None = None

    def count(self, numbers: np.ndarray) -> None:
        """Count float64 numbers (n,), none of them negative or NaN."""
        bins = np.ascontiguousarray(numbers).view(np.int64) >> 49
        bins = np.minimum(np.maximum(bins - _FIRST, 0), _BINS - 1)
        self._add(np.bincount(bins, minlength=_BINS))

    def merge(self, other: Histogram) -> None:
        """Count what another counted too."""
        if other.counts is not None:
            self._add(other.counts)

    def _add(self, counts: np.ndarray) -> None:
        self.counts = counts if self.counts is None else self.counts + counts

    @property
    def median(self) -> float | None:
        """The median to within a tenth of itself, 0 for the lowest bin; None without numbers."""
        if self.counts is None or not self.counts.any():
            return None
        at = int(np.searchsorted(np.cumsum(self.counts), self.counts.sum() / 2))
        octave, step = divmod(at, PER_OCTAVE)
        return float((1 + (step + 0.5) / PER_OCTAVE) * 2.0 ** (octave + LOWEST)) if at else 0.0

    @property
    def octaves(self) -> dict[int, int]:
        """Count by floor(log2), empty bins left out; the lowest holds zeros too."""
        if self.counts is None:
            return {}
        folded = self.counts.reshape(-1, PER_OCTAVE).sum(axis=1)
        return {LOWEST + i: int(n) for i, n in enumerate(folded) if n}
