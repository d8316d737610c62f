"""Hypothesis' strategies, each made once: working out what it has to know of one costs more than drawing from it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

KEPT = 4096  # strategies; what is drawn from depends on other choices, so there may be many

#: Both of them, the first being False.
BOOLEANS = st.booleans()


@lru_cache(maxsize=KEPT, typed=True)  # 1, 1.0 and True are equal, and not the same choice
def sampled(*choices: Any) -> SearchStrategy[Any]:
    """One of the choices; the first is the simplest."""
    return st.sampled_from(choices)


@lru_cache(maxsize=KEPT)
def integers(low: int, high: int) -> SearchStrategy[int]:
    """Integers in [low, high]."""
    return st.integers(low, high)
