"""The CPU engine in the process of the tests, seen as a child sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fuzzrope.interpreter.engine import Engine
from fuzzrope.run.facade import CudaFacade

DIRECTIONS = ("load", "store", "atomic")


@pytest.fixture
def kinds_of(engine: Engine) -> Iterator[Callable[[Callable[[], object]], set[str]]]:
    """Run a function as a child does, tensors dressed up; the kinds of what the engine noticed."""
    facade = CudaFacade()
    before = engine.is_host, engine.fresh
    engine.is_host, engine.fresh = facade.is_host, facade.pattern_of

    def kinds(body: Callable[[], object]) -> set[str]:
        engine.reset()
        facade.forget()
        with facade:
            body()
        return {"out_of_bounds" if a["what"] in DIRECTIONS else a["what"] for a in engine.accesses.values()}

    yield kinds
    engine.is_host, engine.fresh = before
