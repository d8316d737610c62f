"""The CPU engine in the process of the tests: installed for one test, and taken out again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import triton

from fuzzrope.interpreter.engine import Engine
from fuzzrope.run.driver import ImaginaryDriver


@pytest.fixture(scope="session")
def only_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One for all tests: Triton remembers what it compiled a kernel to, and that belongs to an engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield Engine()


@pytest.fixture
def engine(only_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The engine, ready for launches on ordinary tensors, which has noticed nothing yet."""
    monkeypatch.setattr(triton.runtime.driver, "_active", ImaginaryDriver())
    only_engine.reset()
    only_engine.install()
    yield only_engine
    only_engine.uninstall()
    only_engine.reset()
