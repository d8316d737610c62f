"""The command ``fuzzrope bench``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
import torch._dynamo.config
import torch._functorch.config

from fuzzrope import atomic
from fuzzrope.bench.compiling import compile_all, jobs_of, variant
from fuzzrope.bench.peers import PEERS, Peer
from fuzzrope.bench.report import Report, about, progress, summary
from fuzzrope.bench.rows import GROUPS, ROWS, Row
from fuzzrope.bench.session import Ceilings, Machine, ceilings, measure_all
from fuzzrope.bench.timing import Cuda, GpuTime, LaunchTime
from fuzzrope.bench.tune import kernels_of, legal, tune
from fuzzrope.cli import Usage
from fuzzrope.report.summary import EXIT_FINDINGS, EXIT_NOTHING, EXIT_PASS
from fuzzrope.versions import versions
from kernels.tile_table import TABLE
from kernels.tiling import Tiles, architecture

ROUNDS, QUICK_ROUNDS = 15, 5


def environment() -> dict[str, Any]:
    """What figures depend on: versions, and what PyTorch says of its current device."""
    found: dict[str, Any] = dict(versions())
    about = torch.cuda.get_device_properties()
    found |= {
        "device": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "cache bytes": about.L2_cache_size,
        "memory bytes": about.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if importlib.util.find_spec("liger_kernel"):
        found["liger"] = importlib.metadata.version("liger_kernel")
    return found


def chosen(groups: Sequence[str], only: str | None) -> list[Row]:
    """The rows of these groups, or of all, whose name contains a text."""
    return [row for row in ROWS if row.group in (groups or GROUPS) and (only or "") in f"{row.group} {row.name}"]


def run(
    rows: Sequence[Row],
    peers: Sequence[Peer],
    machine: Machine,
    report: Report,
    rounds: int,
    write: Callable[[], None],
) -> int:
    """Measure the rows, print each as it is done, and give the exit code; ``write`` is called after each, and at last.

    An interruption comes through, once what there is has been written.
    """
    began = time.monotonic()
    try:
        for number, measured in enumerate(measure_all(rows, machine, report.ceilings, peers, rounds), 1):
            report.rows.append(measured)
            report.seconds = time.monotonic() - began
            click.echo("\n".join(progress(measured, number, len(rows))))
            write()
        report.complete = True
    finally:
        report.seconds = time.monotonic() - began
        write()
        if report.rows:
            click.echo("\n" + "\n".join(summary(report.rows)))
    for name in report.lost:
        click.echo(f"ours is wrong or failed: {name}", err=True)
    return EXIT_FINDINGS if report.lost else EXIT_PASS


def tune_tiles(rows: Sequence[Row], machine: Machine, ceiling: Ceilings, path: Path, rounds: int) -> int:
    """Compile and try the tiles of our kernels at these rows, and write the table after each; gives the exit code."""
    pairs = [(kernel, row) for row in rows for kernel in kernels_of(row)]
    if not pairs:
        raise Usage("--tune: these rows have no kernel to tune")
    jobs, began = jobs_of(pairs), time.monotonic()
    refused = compile_all(jobs)
    click.echo(f"{len(jobs)} tiles compiled in {time.monotonic() - began:.0f} s, {len(refused)} of them refused")

    def those_that_compile(kernel: str, row: Row) -> list[Tiles]:
        return [tiles for tiles in legal(kernel, row) if variant(kernel, row, tiles) not in refused]

    def save(text: str) -> None:
        atomic.write(path, text)

    here = architecture(torch.device(machine.device))
    tune(pairs, machine, ceiling, here, TABLE, click.echo, save, rounds, those_that_compile)
    return EXIT_PASS


def prepare_compilers() -> None:
    """Settings of the compilers that measuring needs; this process does nothing else."""
    torch._dynamo.config.recompile_limit = 1000  # one function meets every row
    torch._functorch.config.donated_buffer = False  # a backward pass is run many times


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("groups", nargs=-1, type=click.Choice(GROUPS), metavar="[GROUP]...")
@click.option("--only", metavar="TEXT", help="Rows whose group and name, as printed, contain this.")
@click.option("--quick", is_flag=True, help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write everything there.")
@click.option(
    "--tune",
    "table",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Instead, try every tile of our kernels at these rows, and write kernels/tile_table.py there.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw a picture there (needs matplotlib)."
)
def bench(
    groups: tuple[str, ...],
    only: str | None,
    quick: bool,
    json_path: Path | None,
    table: Path | None,
    plot: Path | None,
) -> None:
    """Measure the kernels beside their peers, on a GPU.

    GROUP is rope, scores, attention or backward; all if none is given. Results are held against float64 before
    anything is timed. The report is written after each row, so an interruption loses nothing that is printed.

    Exit codes: 0 done, 1 a kernel of ours is wrong or failed, 2 interrupted, 4 usage, 5 no GPU.
    """
    rows = chosen(groups, only)
    if not rows:
        raise Usage(f"--only {only}: no row of {', '.join(groups or GROUPS)} has this in its name")
    if table is not None and (json_path or plot):
        raise Usage("--tune writes a table of tiles alone: no --json, no --plot")
    if plot is not None and not importlib.util.find_spec("matplotlib"):
        raise Usage("--plot: matplotlib is not installed; pip install 'fuzzrope[bench]'")
    if not torch.cuda.is_available():
        click.echo("fuzzrope: bench: PyTorch sees no GPU here, so there is nothing to measure", err=True)
        sys.exit(EXIT_NOTHING)
    prepare_compilers()
    rounds, gpu = QUICK_ROUNDS if quick else ROUNDS, Cuda()
    here = environment()
    machine = Machine("cuda", here["cache bytes"], GpuTime(gpu), LaunchTime(gpu))
    report = Report(here, ceilings(machine, rounds))
    click.echo("\n".join(about(here, report.ceilings)))
    if table is not None:
        sys.exit(tune_tiles(rows, machine, report.ceilings, table, rounds))

    def write() -> None:
        if json_path is not None:
            report.write(json_path)

    code = run(rows, PEERS, machine, report, rounds, write)
    if plot is not None:
        from fuzzrope.bench.plot import draw

        draw(report.rows, f"{here['device']}, torch {here['torch']}, triton {here['triton']}", plot)
    sys.exit(code)
