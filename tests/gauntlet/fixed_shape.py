"""The checker that a candidate usually meets: five trials, one shape, shared inputs, allclose at 1e-4.

Written in the style of KernelBench's, on the CPU engine and behind the same facade as the judge's child:

    python -m tests.gauntlet.fixed_shape FILE ...

prints ``FILE pass`` or ``FILE fail`` for each. A candidate runs in a fork of its own; as for many a harness, an
exit code of zero passes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from typing import Any

import torch

from fuzzrope.run import driver
from fuzzrope.run.engines import make_engine
from fuzzrope.run.facade import CudaFacade
from fuzzrope.run.loading import load
from fuzzrope.run.pretend import pretend_cuda

TRIALS, TOLERANCE, SECONDS = 5, 1e-4, 60.0
BATCH, HEADS, LENGTH, WIDTH = 2, 8, 4, 16  # of seed.txt, the benchmark's one shape


def reference_forward(q: Any, k: Any, cos: Any, sin: Any) -> tuple[Any, ...]:
    """The benchmark's ``Model``."""
    half = q.shape[-1] // 2
    c, s = cos[: q.shape[2]], sin[: q.shape[2]]
    halves = [(x[..., :half], x[..., half:]) for x in (q, k)]
    return *(torch.cat([a * c - b * s, b * c + a * s], dim=-1) for a, b in halves), c, s


def correctness_trials(path: str) -> bool:
    """Whether every trial of a candidate agrees with the reference."""
    model = load(path)
    for trial in range(TRIALS):
        torch.manual_seed(trial)
        x = (BATCH, HEADS, LENGTH, WIDTH)
        inputs = [torch.randn(shape, device="cuda") for shape in (x, x, (LENGTH, WIDTH // 2), (LENGTH, WIDTH // 2))]
        expected = reference_forward(*inputs)
        output = model(*inputs)
        for one, other in zip(output, expected, strict=False):
            if one.shape != other.shape or not torch.allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE):
                return False
    return True


def _judge(path: str) -> None:
    """In a fork: exit code 0 for a pass."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    engine, facade = make_engine("ttir", 2**30, False), CudaFacade()
    engine.install()
    engine.is_host, engine.fresh = facade.is_host, facade.pattern_of
    pretend_cuda()
    driver.install()
    try:
        with facade:
            passed = correctness_trials(path)
    except SystemExit as leaving:
        os._exit(int(leaving.code or 0))
    except BaseException:  # noqa: BLE001 - whatever a candidate raises, it failed
        os._exit(1)
    os._exit(0 if passed else 1)


def passes(path: str) -> bool:
    """Whether the checker passes a candidate, in a fork of this process."""
    pid = os.fork()
    if pid == 0:
        _judge(path)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, "pass" if passes(name) else "fail", flush=True)
