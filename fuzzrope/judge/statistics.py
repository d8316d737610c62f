"""Wrong a little everywhere: two tests over a whole output whose elements are all within their bounds.

The worst-case bound lets pass what rounds in one direction, or once too often. A correct implementation's
roundings are to nearest, so its errors scatter about zero, and no more than the roundings of the reference
do: a variant that rounds less often errs less. Thresholds are sub-Gaussian and Bernstein tails; they and
what is done about operands that repeat are derived in ``docs/statistics.md``.
"""

from __future__ import annotations

import math

import numpy as np

from fuzzrope.findings import Finding, finding
from fuzzrope.operations import Envelope, Spread
from fuzzrope.operations.spread import MAX_SAMPLES

FALSE_ALARM = 1e-9  # probability that a correct implementation is accused in one case, all tests together
TESTS = 12  # two outputs, three tails (both signs of the bias, the RMS), and two halves that share operands
LOGARITHM = math.log(TESTS / FALSE_ALARM)
MIN_SAMPLES = 256  # below, no flaw that stays within the bounds could pass a threshold
COMMON_LEAN = 0.1  # part of a repeated operand's lean that no variety of operands takes away
SLACK = 1.02  # rounding twice (to float32, then to 16 bits) errs a little more than once
LARGEST = 3.0  # of (error / sigma)^2 of three roundings


def judge_spread(output: str, numbers: np.ndarray, envelope: Envelope) -> list[Finding]:
    """Findings for the numbers (flat) of an output whose elements are all inside their bounds."""
    if envelope.spread is None or numbers.size < MIN_SAMPLES:
        return []
    spread = envelope.spread(slice(0, MAX_SAMPLES))
    with np.errstate(all="ignore"):
        error = envelope.exact.error(numbers)[: spread.reach.size]
        chosen = np.flatnonzero(spread.regular & (spread.squares > 0) & np.isfinite(error))
    if chosen.size < MIN_SAMPLES:
        return []
    sample = _Sample(spread, error, chosen)
    return [*sample.bias(output), *sample.rms(output)]


class _Sample:
    """The regular elements of one output."""

    def __init__(self, spread: Spread, error: np.ndarray, chosen: np.ndarray) -> None:
        self.spread, self.chosen, self.count = spread, chosen, chosen.size
        self.error, self.squares = error[chosen], spread.squares[chosen]
        self._groups: np.ndarray | None = None

    def bias(self, output: str) -> list[Finding]:
        """Errors that lean towards zero or away from it: the mean of sign * error / reach."""
        reach = self.spread.reach[self.chosen]
        total = float((self.error * self.spread.sign[self.chosen] / reach).sum())
        proxies = self.squares / (reach * reach)
        if abs(total) <= math.sqrt(2 * LOGARITHM * float(proxies.sum())):
            return []
        threshold = math.sqrt(2 * LOGARITHM * 2 * self._clustered(np.sqrt(proxies)))
        threshold += self.count * self.spread.lean * self._repeats()
        if abs(total) <= threshold:
            return []
        where = "away from zero" if total > 0 else "towards zero"
        message = (
            f"{output} leans {where}: its errors are {abs(total) / self.count:.3f} of their half ulps on average, "
            f"threshold {threshold / self.count:.3f}, {self._said()}"
        )
        return [finding("mismatch", message, output=output, detail="bias", magnitude=abs(total) / threshold)]

    def rms(self, output: str) -> list[Finding]:
        """Errors larger than the roundings of the reference give: the mean of (error / sigma)^2."""
        expected = SLACK * self.spread.variance[self.chosen] / self.squares
        excess = float((self.error * self.error / self.squares - expected).sum())
        if excess <= math.sqrt(2 * LOGARITHM * 3 * float((expected * expected).sum())):
            return []
        fourth = 3 * self._clustered(expected)
        largest = LARGEST * float(self._sizes().max())
        threshold = math.sqrt(2 * LOGARITHM * 2 * fourth) + 4 * largest * LOGARITHM / 3
        if excess <= threshold:
            return []
        mean = float(expected.sum())
        message = (
            f"{output} errs more than its roundings: RMS {math.sqrt((mean + excess) / self.count):.3f} sigma, "
            f"threshold {math.sqrt((mean + threshold) / self.count):.3f}, {self._said()}"
        )
        return [finding("mismatch", message, output=output, detail="rms", magnitude=excess / threshold)]

    def _said(self) -> str:
        return f"{self.count} samples; a correct kernel is this far off with probability below {FALSE_ALARM:g}"

    def _group(self) -> np.ndarray:
        """For each element the number of its group of equal operands."""
        if self._groups is None:
            self._groups = np.unique(self.spread.same()[self.chosen], return_inverse=True)[1].reshape(-1)
        return self._groups

    def _sizes(self) -> np.ndarray:
        return np.bincount(self._group())

    def _clustered(self, scales: np.ndarray) -> float:
        """Sum over groups of the squared sum of scales: equal operands make equal errors, which add up."""
        return float(np.square(np.bincount(self._group(), scales)).sum())

    def _repeats(self) -> float:
        """How much of a repeated operand's lean may remain: all of it for one operand, less for many."""
        remains = COMMON_LEAN
        for keys in self.spread.operands():
            sizes = np.unique(keys[self.chosen], return_counts=True)[1].astype(float)
            remains += min(1.0, math.sqrt(2 * LOGARITHM * float(np.square(sizes).sum())) / self.count)
        return remains
