"""What an operation has to say about itself: reference, oracle, bound, and how its cases are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from fuzzrope.case import Case
from fuzzrope.draw import Draw
from fuzzrope.numbers import Exact
from fuzzrope.operations.relations import Related
from fuzzrope.operations.spread import Spread

Tensors = Mapping[str, torch.Tensor]
Options = Mapping[str, Any]
NO_OPTIONS: Options = {}


@dataclass(frozen=True, slots=True)
class Envelope:
    """All answers that a correct implementation may give to one output, element by element (flat arrays).

    Attributes:
        exact: the true result, where it is finite.
        bound: how far a finite answer may be from it, in units of 2^exact.exponent.
        finite, nan, positive, negative: whether a finite answer, NaN, +inf, -inf is allowed.
        zero_sign: +1 or -1 where the answer is a zero whose sign is determined, else 0.
        tame: every answer is finite, and none is a zero of determined sign.
        spread: how correct answers to some of the elements scatter within the bound, if the operation can say; see
            :mod:`.spread`.
    """

    exact: Exact
    bound: np.ndarray
    finite: np.ndarray
    nan: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    zero_sign: np.ndarray
    tame: bool = False
    spread: Callable[[slice], Spread] | None = None

    def part(self, start: int, stop: int) -> Envelope:
        """The answers to some of the elements."""
        at, whole = slice(start, stop), self.spread

        def spread(within: slice) -> Spread:
            assert whole is not None
            return whole(slice(start + within.start, min(start + within.stop, stop)))

        bound, finite, nan = self.bound[at], self.finite[at], self.nan[at]
        positive, negative, zero_sign = self.positive[at], self.negative[at], self.zero_sign[at]
        scatter = None if whole is None else spread
        return Envelope(self.exact.part(at), bound, finite, nan, positive, negative, zero_sign, self.tame, scatter)


@dataclass(frozen=True, slots=True)
class Stratum:
    """A region of cases that a campaign promises to visit.

    ``pins`` are the choices that force a drawn case into it; ``name`` is ``group: member``.
    """

    name: str
    pins: tuple[tuple[str, Any], ...]

    @property
    def group(self) -> str:
        """The part of the name that reports fold by."""
        return self.name.partition(":")[0]


class Operation(Protocol):
    """A mathematical contract."""

    name: str
    inputs: tuple[str, ...]
    views: Mapping[str, str]
    """Outputs that come back as views of an input, unchanged."""
    contiguous: bool
    """Outputs are contiguous, whatever the inputs' strides; if not, their strides are the reference's."""

    def results(self, options: Options) -> tuple[str, ...]:
        """Names of what comes back under these options, in order; a single result comes bare, not in a tuple."""

    def rejects(self, case: Case) -> str | None:
        """Why the contract demands a ValueError or TypeError for this case, or None."""

    def reference(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, torch.Tensor]:
        """The eager PyTorch computation that defines behaviour; raises what PyTorch raises."""

    def envelopes(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, Envelope]:
        """Oracle and error bound of every computed output, by name."""

    relations: tuple[str, ...]
    """Names of the metamorphic relations that hold bit for bit; empty where none does."""

    def relate(self, case: Case, relation: str) -> Related | None:
        """The case that a relation leads to from this valid one, or None where it says nothing."""

    def probes(self) -> tuple[Case, ...]:
        """Plain cases with which every campaign begins; their launches tell the block sizes in play."""

    def strata(self, blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
        """The strata that a campaign declares, given the block sizes in play."""

    def classify(self, case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
        """Names of the strata that a case lies in, judged by its geometry and values alone."""

    def draw(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """Draw a case with choices of ``draw``, with some choices pinned."""

    def simpler(self, case: Case) -> list[Case]:
        """Cases with dimensions that belong together reduced together, boldest first, for minimizing."""


@runtime_checkable
class Differentiable(Operation, Protocol):
    """An operation whose gradients are judged too."""

    def fitted(self, case: Case) -> Case:
        """The case with cotangents of the dtypes and shapes of its outputs, for a case whose inputs were changed."""

    def gradients(
        self, tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], options: Options = NO_OPTIONS
    ) -> dict[str, Envelope]:
        """Oracle and bound of the gradient of each required input that a used output depends on, by name."""

    def backward_strata(self) -> tuple[Stratum, ...]:
        """The strata that a campaign adds for a target which promises gradients."""
