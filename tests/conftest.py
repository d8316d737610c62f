"""What the tests share: cases by hand, and runners that live as long as a module."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import triton

from fuzzrope.case import Case, TensorSpec, Values
from fuzzrope.geometry import dense
from fuzzrope.interpreter.engine import Engine
from fuzzrope.run import Runner, Zygote, driver
from fuzzrope.run.runner import Limits
from fuzzrope.targets import Target, find

HOSTILE = Path(__file__).parent / "hostile"


def spec(name: str, shape: tuple[int, ...], dtype: str = "float32", **changes: object) -> TensorSpec:
    """A contiguous tensor of its own storage with normal values."""
    form = {"dtype": dtype, "shape": shape, "strides": dense(shape), "storage": name, "values": Values("normal", 1)}
    return TensorSpec(**{**form, **changes})  # type: ignore[arg-type]  # fields of several types by name


def rope_case(
    batch: int = 1, heads: int = 2, seq: int = 3, width: int = 4, dtype: str = "float32", **tensors: TensorSpec
) -> Case:
    """A plain case of ``rope``, with some tensors replaced."""
    shapes = {"q": (batch, heads, seq, width), "k": (batch, heads, seq, width)}
    shapes |= {"cos": (seq, width // 2), "sin": (seq, width // 2)}
    specs = {
        name: spec(name, shape, dtype, values=Values("normal", seed))
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return Case("rope", tuple({**specs, **tensors}.items()))


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests whose targets mean no harm: to start one takes longer than most tests."""
    with contextlib.closing(Zygote()) as shared:
        yield shared


@pytest.fixture
def runner(zygote: Zygote) -> Iterator[Runner]:
    """A runner to turn to a target."""
    with Runner(find("kernels.reference"), zygote=zygote) as shared:
        yield shared


@pytest.fixture(scope="module")
def runner_of(zygote: Zygote) -> Iterator[Callable[..., Runner]]:
    """Start runners by target, ended with the module."""
    with contextlib.ExitStack() as stack:
        started: dict[tuple[Target, Limits | None], Runner] = {}

        def start(target: Target | str, limits: Limits | None = None) -> Runner:
            target = find(target) if isinstance(target, str) else target
            key = (target, limits)
            if key not in started:
                started[key] = stack.enter_context(Runner(target, "cpu", limits, zygote=zygote))
            return started[key]

        yield start


def hostile(name: str) -> Target:
    """A hostile candidate by the name of its file."""
    return find(str(HOSTILE / f"{name}.py"))


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


@pytest.fixture
def launching(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The engine, to which the fused kernels launch; no launch may do what the engine reports."""
    for name in ("rope_qk", "rope_attention", "fused_operators"):
        monkeypatch.setattr(importlib.import_module(f"kernels.{name}"), "can_launch", lambda device: True)
    yield engine
    assert engine.accesses == {}
