"""How fast is the CPU engine beside Triton's own interpreter? The same launches in one process, one core.

    python -m tests.speed --json reports/baseline/engine-speed.json

Times are those of the launches alone, from ``kernel[grid](...)`` to its return, with every check on and
variants compiled; inputs and allocations are not counted. ``one alone`` is the engine's share of one launch,
without Triton's binding of the arguments. The interpreter runs unchecked.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime import interpreter, jit

from fuzzrope.interpreter import engine as ttir
from fuzzrope.run import driver
from fuzzrope.run.facade import CudaFacade
from fuzzrope.run.pretend import pretend_cuda
from fuzzrope.versions import versions

Call = Callable[[], Any]
FRESH = ("kernels", "fuzzrope.specimens", "tests.zoo")
SECONDS = 1.0  # spent on each launch in each engine, more or less


def _import(name: str, interpret: bool) -> Any:
    """A module whose kernels are decorated for one of the two."""
    for known in [key for key in sys.modules if key.startswith(FRESH)]:
        del sys.modules[known]
    triton.knobs.runtime.interpret = interpret
    try:
        return importlib.import_module(name)
    finally:
        triton.knobs.runtime.interpret = False


@contextmanager
def _interpreted_library() -> Iterator[None]:
    """Triton's own device functions (tl.sum and the like) as the interpreter takes them."""
    replaced: list[tuple[Any, str, Any]] = []
    for module in (tl, tl.standard, tl.random, tl.math):
        for name, value in list(vars(module).items()):
            if isinstance(value, jit.JITFunction):
                replaced.append((module, name, value))
                setattr(module, name, interpreter.InterpretedFunction(value.fn))
    try:
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def _rope(module: str, shape: tuple[int, ...], dtype: torch.dtype, interpret: bool) -> Call:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    cos, sin = (torch.randn((shape[2], shape[3] // 2), generator=generator).to(dtype) for _ in range(2))
    found = _import(module, interpret)
    target = found.ModelNew() if isinstance(found.ModelNew, type) else found.ModelNew

    def call() -> Any:
        triton.knobs.runtime.interpret = interpret  # ours asks whether it can launch at all
        try:
            with CudaFacade():
                return target(q, k, cos, sin)
        finally:
            triton.knobs.runtime.interpret = False

    return call


def _entry(name: str, interpret: bool) -> Call:
    entry = _import("tests.zoo", interpret).ZOO[name]
    return partial(entry.launch, **entry.moved("cpu"))


def launches() -> Iterator[tuple[str, Callable[[bool], Call]]]:
    """Names, and what makes a call under an engine."""
    single, half = torch.float32, torch.float16
    for shape in ((1, 1, 16, 16), (2, 2, 33, 32), (2, 4, 129, 64)):
        for dtype in (single, half):
            text = f"{'x'.join(map(str, shape))} {str(dtype)[6:]}"
            yield f"rope, ours, {text}", partial(_rope, "kernels.ModelNew", shape, dtype)
            yield f"rope, tiled, {text}", partial(_rope, "fuzzrope.specimens.tiled", shape, dtype)
    for shape in ((1, 1, 1, 16), (1, 1, 24, 16), (2, 4, 33, 32)):
        text = f"{'x'.join(map(str, shape))} float32"
        yield f"rope, one row a program, {text}", partial(_rope, "fuzzrope.specimens.unfused_baseline", shape, single)
    names = ("arithmetic-fp32", "arithmetic-fp16", "strided", "block_pointer", "tutorial_softmax", "tutorial_dropout")
    names += ("tutorial_grouped", "attention-full", "attention-causal", "layer_norm", "layer_norm_backward")
    names += ("sum_real-fp32", "cumsum_real-fp32", "dot-fp16-fp16-fp32", "while_loops", "argsort", "welford", "grids")
    for name in names:
        yield f"zoo, {name}", partial(_entry, name)


@contextmanager
def _stopwatch(owner: type, method: str, spent: list[float]) -> Iterator[None]:
    """Add up the time in a method of a class."""
    original = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            if owner is interpreter.GridExecutor:  # it must not pay for our facade
                with torch._C.DisableTorchFunction():
                    return original(*args, **kwargs)
            return original(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - started

    setattr(owner, method, timed)
    try:
        yield
    finally:
        setattr(owner, method, original)


def measure(call: Call, owner: type, method: str, seconds: float) -> float:
    """The median seconds that the launches of a call take."""
    spent = [0.0]
    with _stopwatch(owner, method, spent):
        call()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or (time.perf_counter() < end and len(times) < 2000):
            spent[0] = 0.0
            call()
            times.append(spent[0])
            if times[0] > seconds:
                break
    return statistics.median(times)


def geometric_mean(numbers: list[float]) -> float:
    """Of positive numbers; NaN of none."""
    return math.exp(statistics.fmean(map(math.log, numbers))) if numbers else math.nan


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="names that contain this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pretend_cuda()
    driver.install()
    engine = ttir.Engine()
    engine.install()
    rows = []
    print(f"{'launch':48} {'programs':>8} {'interpreter':>12} {'engine':>10} {'one alone':>10} {'times':>7}")
    for name, make in launches():
        if options.only not in name:
            continue
        call = make(False)
        engine.reset()
        call()
        noticed = list(engine.accesses)
        programs = max((math.prod(launch["grid"]) for launch in engine.launches), default=0)
        count = len(engine.launches)
        if not programs or noticed:
            raise SystemExit(f"{name}: {noticed or 'no launch'}")
        ours = measure(call, jit.JITFunction, "run", SECONDS)
        alone = measure(call, ttir.Kernel, "run", SECONDS / 2) / count
        call = make(True)
        with _interpreted_library():
            stock = measure(call, interpreter.GridExecutor, "__call__", SECONDS)
        rows.append({"launch": name, "programs": programs, "launches": count, "interpreter": stock, "engine": ours})
        rows[-1]["engine_alone_per_launch"] = alone
        times = f"{stock * 1e3:9.2f} ms {ours * 1e3:7.3f} ms {alone * 1e3:7.3f} ms"
        print(f"{name:48} {programs:8} {times} {stock / ours:7.0f}")
    many = geometric_mean([row["interpreter"] / row["engine"] for row in rows if row["programs"] >= 24])
    one = geometric_mean([row["interpreter"] / row["engine"] for row in rows if row["programs"] == 1])
    tiny = {
        kind: next(
            (r["engine_alone_per_launch"] for r in rows if r["launch"] == f"rope, {kind}, 1x1x16x16 float32"), 0.0
        )
        for kind in ("tiled", "ours")
    }
    print(f"geometric mean: {many:.0f} times for grids of 24 programs and more, {one:.0f} times for one program")
    print(f"a tiny RoPE launch, without Triton's binding: {tiny['tiled'] * 1e3:.3f} ms for one tensor (tiled),")
    print(f"{tiny['ours'] * 1e3:.3f} ms for q and k together (ours)")
    if options.json:
        environment = versions() | {"processor": platform.processor() or platform.machine()}
        report = {"format": 1, "environment": environment, "many": many, "one": one, "tiny": tiny, "launches": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
