"""Running Hypothesis' engine: cases are drawn until one fails, and that one is shrunk.

The engine is entered below ``@given`` and below the strategies, which would spend more on each case than
drawing it costs: on seeding the random generators of other libraries, on contexts, labels and reports that a
campaign does not use. What a case needs is integers and choices; Hypothesis draws, mutates and shrinks those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from random import Random
from typing import Any, TypeVar

import hypothesis
from hypothesis.errors import StopTest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.conjecture.data import ConjectureData
from hypothesis.internal.conjecture.engine import ConjectureRunner
from hypothesis.internal.escalation import InterestingOrigin

T = TypeVar("T")


class Draw:
    """Choices of one example; each shrinks towards the first or lowest that is offered."""

    def __init__(self, data: ConjectureData) -> None:
        self._integer = data.draw_integer

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], within 2^50 of each other; simplest is the one nearest to zero."""
        return self._integer(low, high)

    def flag(self) -> bool:
        """False or True."""
        return bool(self._integer(0, 1))

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self._integer(0, len(options) - 1)]

    def mostly(self, options: Sequence[T]) -> T:
        """The first option about half the time, else one of all."""
        return options[max(self._integer(0, 2 * len(options) - 1) - len(options), 0)]


#: Hypothesis tells failures apart by where they come from; here all come from one place.
_HERE = InterestingOrigin(AssertionError, __file__, 0, (), ())


class _Uniform(providers.HypothesisProvider):
    """Hypothesis' own provider, all integers of a range being equally likely.

    Its own distribution favours small numbers, where here each is a choice of its own, and constants from the
    source files of local modules: which those are depends on the working directory; cases must not.
    """

    def draw_integer(self, min_value: int | None = None, max_value: int | None = None, **_: Any) -> int:
        """An integer in [min_value, max_value], which are given."""
        assert self._random is not None
        assert min_value is not None
        assert max_value is not None
        return min_value + int(self._random.random() * (max_value - min_value + 1))


@lru_cache
def _settings(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        verbosity=hypothesis.Verbosity.quiet,
    )


def search(fails: Callable[[Draw], bool], examples: int, seed: str) -> None:
    """Call ``fails`` with a way to draw, ``examples`` times or until it says yes; then shrink what it drew.

    The last call, if any failed, draws the smallest that did. The seed decides all that is drawn; what
    ``fails`` raises comes through.
    """

    def run(data: ConjectureData) -> None:
        if fails(Draw(data)):
            data.mark_interesting(_HERE)

    engine = ConjectureRunner(run, settings=_settings(examples), random=Random(seed))
    engine.provider = _Uniform
    engine.run()
    for smallest in engine.interesting_test_cases.values():
        with suppress(StopTest):
            run(ConjectureData.for_choices(smallest.choices))
