"""Tiles compiled beforehand, on every core: one process would take an hour for what tuning tries.

Workers call a kernel on small inputs, of which no size is in the compiled code; what they compile is in Triton's cache
on disk, where the process that measures finds it. What they cannot compile or launch is not measured.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import torch

from fuzzrope.bench.inputs import make
from fuzzrope.bench.rows import Row
from fuzzrope.bench.session import run_of
from fuzzrope.bench.tune import legal, pinned_call
from kernels.tiling import Pins, Tiles

SMALL = 64  # rows and keys, so few that no program shares its keys where it does not at the row itself
MANY = 4096  # keys that programs share

Job = tuple[str, Row, Tiles]


def small(row: Row) -> Row:
    """A row of one head of k that compiles to the same code."""
    if row.decodes:
        return replace(row, batch=1, heads=row.group_size, kv_heads=1, keys=MANY, offset=MANY - row.rows)
    return replace(row, batch=1, heads=row.group_size, kv_heads=1, rows=SMALL, keys=SMALL)


def variant(kernel: str, row: Row, tiles: Tiles) -> Job:
    """A kernel, a row and a tile; the same for all that compile to the same code."""
    return kernel, small(replace(row, causal=False, costly=())), tiles._replace(steps=0)


def jobs_of(pairs: Sequence[tuple[str, Row]]) -> list[Job]:
    """What kernels at rows need compiled, each once."""
    return list(dict.fromkeys(variant(kernel, row, tiles) for kernel, row in pairs for tiles in legal(kernel, row)))


def compile_one(job: Job, device: str = "cuda") -> str:
    """Call a kernel with its tile; what it raised, in a line."""
    kernel, row, tiles = job
    try:
        with torch.no_grad():
            run_of(pinned_call(row, Pins(named=((kernel, tiles),))), row, make(row, device, 0))()
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises, the tile is out
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return ""


def compile_all(jobs: Sequence[Job], workers: int | None = None) -> dict[Job, str]:
    """Compile them all; returns those that are refused, with the reason.

    A worker that dies ends the attempt, and what is left is compiled when it is measured.
    """
    context = multiprocessing.get_context("spawn")  # a process that uses CUDA cannot be forked
    count = workers or min(len(os.sched_getaffinity(0)), len(jobs))
    refused: dict[Job, str] = {}
    pool = ProcessPoolExecutor(count, mp_context=context)
    try:
        for job, problem in zip(jobs, pool.map(compile_one, jobs), strict=False):
            if problem:
                refused[job] = problem
    except BrokenProcessPool:
        return refused
    finally:
        pool.shutdown(cancel_futures=True)
    return refused
