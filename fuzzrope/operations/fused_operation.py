"""What both fused operations say of themselves alike: how their cases are drawn, and what is not promised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuzzrope.case import Case
from fuzzrope.draw import Draw
from fuzzrope.operations import fused_backward, fused_cases, fused_strata
from fuzzrope.operations.base import Stratum
from fuzzrope.operations.relations import Related


class FusedOperation:
    """The part of the protocol that depends on the operation's name alone."""

    name: str
    views: Mapping[str, str] = {}
    relations: tuple[str, ...] = ()  # tiles may depend on sizes and strides, and sums on tiles
    contiguous = True

    def relate(self, case: Case, relation: str) -> Related | None:
        """None: nothing is promised bit for bit."""
        return None

    def probes(self) -> tuple[Case, ...]:
        """See :mod:`.fused_cases`."""
        return fused_cases.probes(self.name)

    def strata(self, blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
        """See :mod:`.fused_strata`."""
        return fused_strata.strata(self.name, blocks)

    def classify(self, case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
        """See :mod:`.fused_strata`."""
        return fused_strata.classify(case, blocks) | fused_backward.classify(case, blocks)

    def draw(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """See :mod:`.fused_cases`."""
        case = fused_cases.draw_case(self.name, draw, pins, blocks)
        return fused_backward.differentiated(draw, pins, case)

    def fitted(self, case: Case) -> Case:
        """See :mod:`.fused_backward`."""
        return fused_backward.fitted(case)

    def backward_strata(self) -> tuple[Stratum, ...]:
        """See :mod:`.fused_backward`."""
        return fused_backward.strata(self.name)

    def simpler(self, case: Case) -> list[Case]:
        """See :mod:`.fused_cases`."""
        return fused_cases.simpler(case)
