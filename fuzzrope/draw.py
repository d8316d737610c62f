"""Running Hypothesis' engine: cases are drawn until one fails, and that one is shrunk.

The engine is entered below ``@given``, which would spend more on each case than drawing it costs: on seeding
the random generators of other libraries, on contexts, signatures and reports that a campaign does not use.
Strategies that need such a context (``map``, ``flatmap``, ``composite``) are therefore not for drawing here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import hypothesis
from hypothesis.errors import StopTest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.conjecture.data import ConjectureData
from hypothesis.internal.conjecture.engine import ConjectureRunner
from hypothesis.internal.escalation import InterestingOrigin

Draw = Callable[[Any], Any]

#: Hypothesis tells failures apart by where they come from; here all come from one place.
_HERE = InterestingOrigin(AssertionError, __file__, 0, (), ())


class _PlainProvider(providers.HypothesisProvider):
    """Hypothesis' own provider without constants taken from the source files of local modules.

    Which modules are local depends on the working directory and the installation; cases must not.
    """

    def _maybe_draw_constant(self, *args: Any, **kwargs: Any) -> None:
        return None


def search(fails: Callable[[Draw], bool], examples: int, seed: str) -> None:
    """Call ``fails`` with a way to draw, ``examples`` times or until it says yes; then shrink what it drew.

    The last call, if any failed, draws the smallest that did. The seed decides all that is drawn; what
    ``fails`` raises comes through.
    """

    def run(data: ConjectureData) -> None:
        if fails(data.draw):
            data.mark_interesting(_HERE)

    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        verbosity=hypothesis.Verbosity.quiet,
    )
    engine = ConjectureRunner(run, settings=settings, random=Random(seed))
    engine.provider = _PlainProvider
    engine.run()
    for smallest in engine.interesting_test_cases.values():
        with suppress(StopTest):
            run(ConjectureData.for_choices(smallest.choices))
