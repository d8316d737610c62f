"""The CPU engine in the process of the tests: bare for what it computes, as a child sets it up for its checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import triton

from fuzzrope.interpreter.engine import Engine
from fuzzrope.run import driver
from fuzzrope.run.facade import CudaFacade

DIRECTIONS = ("load", "store", "atomic")


@pytest.fixture(scope="session")
def only_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One for all tests: Triton remembers what it compiled a kernel to, and that belongs to an engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield Engine()


@pytest.fixture
def engine(only_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The engine, ready for launches on ordinary tensors, which has noticed nothing yet."""
    monkeypatch.setattr(triton.runtime.driver, "_active", driver.ImaginaryDriver())
    only_engine.reset()
    only_engine.install()
    yield only_engine
    only_engine.uninstall()
    only_engine.reset()


@pytest.fixture(scope="package")
def kinds_of():
    """Run a function with the engine in Triton's place; the kinds of what it noticed."""
    engine, facade = Engine(), CudaFacade()
    before = triton.runtime.driver._active
    driver.install()
    engine.install()
    engine.is_host, engine.fresh = facade.is_host, facade.pattern_of

    def kinds(body):
        engine.reset()
        facade.forget()
        with facade:
            body()
        return {"out_of_bounds" if a["what"] in DIRECTIONS else a["what"] for a in engine.accesses.values()}

    yield kinds
    engine.uninstall()
    triton.runtime.driver._active = before
