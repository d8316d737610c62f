"""The command ``fuzzrope``: one function a verb, exit codes as pytest's."""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import math
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.markup import escape

import fuzzrope
from fuzzrope import corpus as corpus_files
from fuzzrope import shrink
from fuzzrope.corpus import CorpusError, Saved
from fuzzrope.doctor import examine
from fuzzrope.events import Event
from fuzzrope.examine import examine_afresh
from fuzzrope.notebook import reduce
from fuzzrope.operations import OPERATIONS
from fuzzrope.parallel import run_parallel
from fuzzrope.replaying import replay, target_of
from fuzzrope.report import machine, tolerance
from fuzzrope.report.console import ConsoleReport
from fuzzrope.report.listing import print_case, print_targets
from fuzzrope.report.summary import (
    EXIT_FINDINGS,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_NOTHING,
    EXIT_PASS,
    EXIT_USAGE,
    Run,
)
from fuzzrope.repro import ReproError, script
from fuzzrope.run import Runner, RunnerError
from fuzzrope.run.runner import Limits
from fuzzrope.settings import PROFILES, Settings
from fuzzrope.targets import LEVELS, TargetError, find_all

CORPUS = Path("corpus")
DEVICES = ("cpu", "cuda", "auto")
ENGINES = ("ttir", "ttir-fma", "interpret")
COMPILE_SECONDS = 60.0  # deadline of a case on a GPU, where a new variant is compiled first


class Usage(click.ClickException):
    """Bad input: one clear line and exit code 4."""

    exit_code = EXIT_USAGE

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"fuzzrope: {self.format_message()}", err=True)


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise Usage("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return ("cuda" if available else "cpu") if name == "auto" else name


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise Usage(f"--shard {text}: expected I/N with I from 1 to N")
    return int(index) - 1, int(count)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(fuzzrope.__version__, prog_name="fuzzrope")
def cli() -> None:
    """The judge of GPU kernels that is not fooled.

    Exit codes: 0 nothing found, 1 findings, 2 interrupted, 3 internal error, 4 usage, 5 nothing ran or a
    declared stratum was not reached.
    """


@cli.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--max-examples", type=click.IntRange(1), help="Cases to draw for a target.")
@click.option(
    "--max-time",
    type=click.FloatRange(0, min_open=True),
    help="Seconds for a target; minimizing what was found may take 60 more.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Same seed, same cases; random if not given, 0 in CI.")
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True)
@click.option("--engine", type=click.Choice(ENGINES), default="ttir", show_default=True)
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes to share the work.")
@click.option("--level", type=click.Choice(LEVELS), help="How strictly to judge; the target's own if not given.")
@click.option("--gradients", type=click.Choice(["some", "all"]), help="Cases to differentiate; some if not given.")
@click.option("--max-findings", type=click.IntRange(1), help="Stop after so many different findings.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="quick", show_default=True)
@click.option("--shard", metavar="I/N", help="Do every N-th round, starting with the I-th.")
@click.option("--corpus", type=click.Path(path_type=Path, file_okay=False), default=CORPUS, show_default=True)
@click.option("--reports", type=click.Path(path_type=Path, file_okay=False), default=Path("reports"), show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the report there.")
def fuzz(targets: tuple[str, ...], **options: Any) -> None:
    """Judge kernels: draw cases, run, compare, shrink and keep what fails.

    TARGET is a registered name (see `fuzzrope list`), a file.py that defines ModelNew, or a folder: each of its files
    that defines one is judged. Without any, kernels.ModelNew is judged.
    """
    if options["max_time"] is not None and not math.isfinite(options["max_time"]):
        raise Usage("--max-time: expected a number of seconds")
    seed = options["seed"]
    if seed is None:
        seed = 0 if os.environ.get("CI") else secrets.randbelow(2**31)
    settings = PROFILES[options["profile"]].with_changes(
        seed=seed,
        max_examples=options["max_examples"],
        max_time=options["max_time"],
        max_findings=options["max_findings"],
        level=options["level"],
        gradients=options["gradients"],
        device=_device(options["device"]),
        engine=options["engine"],
        shard=_shard(options["shard"]),
    )
    if settings.device == "cuda":
        settings = settings.with_changes(limits=Limits(seconds=COMPILE_SECONDS))
    try:
        chosen = [one.at(settings.level) for name in targets or ("kernels.ModelNew",) for one in find_all(name)]
        for line in filter(None, (one.missing for one in chosen)):
            raise Usage(line)
    except TargetError as error:
        raise Usage(str(error)) from None
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = options["reports"] / f"{stamp}-seed{seed}-{os.getpid()}"
    run, log = Run(), machine.EventLog(folder / "events.jsonl")
    screen = ConsoleReport(_console())
    handlers = (run.take, log.take, screen.take)

    def emit(event: Event) -> None:
        for handler in handlers:
            handler(event)

    gc.freeze()  # all that is imported stays: collections of garbage need not go through it
    gc.set_threshold(50_000)  # most of what a case makes is gone before a collection would find it in use
    with contextlib.closing(Runner(chosen[0], settings.device, settings.limits, settings.engine)) as runner:
        for target in chosen:
            try:
                if run_parallel(target, settings, options["corpus"], emit, options["jobs"], runner).interrupted:
                    break
            except RunnerError as error:
                if len(chosen) == 1:
                    raise
                run.broken[target.name] = str(error)  # the next one may fare better
                runner.close()
    log.close()
    if len(chosen) > 1:
        screen.close(run.broken)
    report = json.dumps(machine.report(run, machine.environment(settings), seed), indent=1, sort_keys=True) + "\n"
    for path in (folder / "report.json", options["json_path"]):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(report)
    tolerance.write(run, folder)
    sys.exit(run.exit_code)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _load(paths: tuple[Path, ...]) -> list[tuple[Path, Saved]]:
    try:
        return [(path, corpus_files.load(path)) for path in corpus_files.files(list(paths))]
    except CorpusError as error:
        raise Usage(str(error)) from None


@cli.command("replay")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True)
@click.option("--engine", type=click.Choice(ENGINES), default="ttir", show_default=True)
def replay_command(paths: tuple[Path, ...], device: str, engine: str) -> None:
    """Run saved cases again: each must show exactly what it is expected to show.

    PATHS are corpus files or folders; without any, the folder corpus.
    """
    settings = Settings(device=_device(device), engine=engine)
    items = _load(paths or (CORPUS,))
    console, failed, ran = _console(), 0, 0
    for done in replay(items, settings):
        if done.verdict.skipped:
            console.print(f"[yellow]–[/] {done.path}: not judged: {escape(done.verdict.skipped)}", soft_wrap=True)
            continue
        ran += 1
        if done.as_expected:
            shown = ", ".join(bucket for _, bucket in done.shown) or "nothing, as expected"
            console.print(f"[green]✓[/] {done.path}: {shown}", soft_wrap=True)
            continue
        failed += 1
        console.print(f"[bold red]✗[/] {done.path}", soft_wrap=True)
        for bucket in sorted({b for _, b in done.saved.expect} - done.verdict.buckets):
            console.print(f"    expected and not shown: {bucket}", soft_wrap=True, markup=False)
        for finding in done.verdict.findings:
            if (finding.kind, finding.bucket) not in done.saved.expect:
                console.print(
                    f"    shown and not expected: {finding.bucket}: {finding.message}", soft_wrap=True, markup=False
                )
        console.print(f"  fuzzrope replay {done.path}", style="cyan", soft_wrap=True)
    console.print(f"{ran} cases replayed, {failed} not as expected, {len(items) - ran} not judged")
    sys.exit(EXIT_FINDINGS if failed else EXIT_PASS if ran else EXIT_NOTHING)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--bucket", help="The finding to keep; the file's first if not given.")
@click.option("--max-time", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True)
def minimize(path: Path, bucket: str | None, max_time: float) -> None:
    """Find a smaller case in the same bucket; it is saved beside PATH, which stays."""
    import time

    ((_, saved),) = _load((path,))
    kinds = {b: k for k, b in saved.expect}
    if bucket is None:
        bucket = next((b for b, k in kinds.items() if path.name.startswith(k)), next(iter(kinds), None))
    if bucket is None or bucket not in kinds:
        raise Usage(f"{path}: expects no finding {bucket or ''}; nothing to keep while minimizing".replace("  ", " "))
    target, settings, until = target_of(saved), Settings(), time.monotonic() + max_time
    if target.missing:
        raise Usage(target.missing)
    wanted = bucket
    with Runner(target, settings.device, settings.limits, settings.engine) as runner:

        def keep(case: Any) -> bool:
            if time.monotonic() > until:
                raise shrink.OutOfTimeError
            return wanted in examine_afresh(case, runner, target, settings, (wanted,)).buckets

        if not keep(saved.case):
            raise Usage(f"{path}: does not show {bucket} here; see `fuzzrope replay {path}`")
        smallest, complete = reduce(saved.case, keep, OPERATIONS[saved.case.operation])
        runner.discard()
        verdict = examine_afresh(smallest, runner, target, settings, (wanted,))
    console = _console()
    if smallest == saved.case:
        console.print(f"{path}: is a minimum of {bucket}", soft_wrap=True)
        return
    kept = next(f for f in verdict.findings if f.bucket == bucket)
    new = path.parent / f"{kept.kind}-{smallest.id}.json"
    expect = tuple(sorted({(f.kind, f.bucket) for f in verdict.findings}))
    note = saved.note if complete else "minimizing ran out of time"
    corpus_files.save(new, Saved(saved.target, smallest, expect, saved.found, note))
    console.print(f"{new}: {'a minimum' if complete else 'smaller'} of {bucket}", soft_wrap=True)
    console.print(f"fuzzrope replay {new}", style="cyan", soft_wrap=True)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write there, not to the screen.")
def repro(path: Path, output: Path | None) -> None:
    """Write a saved case as a script that imports only torch and the library, or the candidate's file.

    The script prints what is wrong and exits with 1 while the flaw is there. It covers outputs of rope.
    """
    ((_, saved),) = _load((path,))
    try:
        text = script(saved)
    except ReproError as error:
        raise Usage(f"{path}: {error}") from None
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


@cli.command("list")
def list_command() -> None:
    """Show what can be judged, and the kinds of finding."""
    print_targets(_console())


@cli.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def show(path: Path) -> None:
    """Show a saved case: its tensors, what it is expected to show, and how to replay it."""
    ((_, saved),) = _load((path,))
    print_case(_console(), path, saved)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.py")
def export(path: Path) -> None:
    """Write kernels.ModelNew and all it needs as one file, which imports only torch and triton."""
    maker = Path(fuzzrope.__file__).parent.parent / "kernels" / "export.py"  # run, not imported: it is a target's
    done = subprocess.run([sys.executable, "-I", str(maker), str(path)], capture_output=True, text=True)
    if done.returncode:
        raise Usage(done.stderr.strip().rpartition("\n")[2])


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[GROUP]... [OPTIONS]")
def bench(arguments: tuple[str, ...]) -> None:
    """Measure the kernels beside their peers, on a GPU; `fuzzrope bench --help` says more."""
    # Becomes another program, for it runs kernels in its own process.
    os.execv(sys.executable, [sys.executable, "-m", "fuzzrope.bench", *arguments])


@cli.command("doctor")
def doctor_command() -> None:
    """Check this installation: versions, the child process, the engine, a GPU."""
    sys.exit(EXIT_PASS if examine(_console()) else EXIT_INTERNAL)


def main(command: click.Command = cli) -> None:
    """Run the command line; every way out has its exit code and no traceback for bad input."""
    try:
        command.main(standalone_mode=False)
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        click.echo(f"fuzzrope: {error.format_message()}{hint}", err=True)
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("fuzzrope: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except RunnerError as error:
        click.echo(f"fuzzrope: {error}", err=True)
        sys.exit(EXIT_INTERNAL)
    except BrokenPipeError:
        os._exit(EXIT_INTERRUPTED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"fuzzrope: {where}{error.strerror or error}", err=True)
        sys.exit(EXIT_INTERNAL)
