"""The fused kernels in the process of the tests: launched on the CPU engine, on ordinary tensors."""

import importlib
from collections.abc import Iterator

import pytest

from fuzzrope.interpreter.engine import Engine


@pytest.fixture
def launching(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The engine, to which the fused kernels launch; no launch may do what the engine reports."""
    for name in ("rope_qk", "rope_attention", "fused_operators"):
        monkeypatch.setattr(importlib.import_module(f"kernels.{name}"), "can_launch", lambda device: True)
    yield engine
    assert engine.accesses == {}
