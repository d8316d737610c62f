"""What a person sees: progress while it runs, findings as they come, and a table at the end."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fuzzrope.events import Event, Example, Finished, Minimized, Seen, Started
from fuzzrope.findings import KINDS
from fuzzrope.report.summary import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_PASS, Found, Run, TargetRun, replay_command

#: Groups of strata folded for the table, by the first word of their name.
FAMILIES = {
    "dtype": "dtype mixes of q, k, cos, sin",
    "size": "sizes 0, 1, 2",
    "head_dim": "head dimensions",
    "edge": "sizes at block edges",
    "beyond": "sizes beyond two blocks",
    "layout": "strides: permuted, sliced, expanded …",
    "misaligned": "misaligned storage offsets",
    "memory": "q and k in one buffer",
    "heads": "GQA and other batch",
    "tables": "table shapes that broadcast",
    "values": "values: NaN, ±inf, ±0, subnormal …",
    "invalid": "invalid input must raise",
}


WORDS = {
    EXIT_PASS: ("PASS", "bold green"),
    EXIT_FINDINGS: ("FAIL", "bold red"),
    EXIT_INTERRUPTED: ("INTERRUPTED", "bold yellow"),
}
NOT_ENOUGH = ("NOT ENOUGH", "bold yellow")

PLAIN_EVERY = 10.0  # seconds between lines of progress where there is no terminal


def family(group: str) -> str:
    """The row of the table in which a group of strata is counted."""
    return FAMILIES.get(group.split()[0], group)


class ConsoleReport:
    """Renders events on a terminal; on anything else, a plain line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._run = Run()
        self._live: Live | None = None
        self._since = self._last_line = time.monotonic()
        self._examples = self._reached = self._declared = 0
        self._doing = ""

    def take(self, event: Event) -> None:
        """Show one event."""
        self._run.take(event)
        if isinstance(event, Started):
            self._begin(event)
        elif isinstance(event, Example):
            self._examples, self._reached = event.examples, event.reached
        elif isinstance(event, Seen):
            self._doing = f"shrinking {event.finding.bucket}"
        elif isinstance(event, Minimized):
            self._doing = ""
            self._print_finding(self._run.targets[-1].found[-1])
        elif isinstance(event, Finished):
            self._end()
        if self._live is not None:
            self._live.update(self._status())
        elif isinstance(event, Example) and time.monotonic() - self._last_line > PLAIN_EVERY:
            self._last_line = time.monotonic()
            self.console.print(self._status(), style="dim")

    def close(self, broken: dict[str, str]) -> None:
        """One line a target, where there were several; ``broken`` maps those the machinery failed on to why."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        table = Table("target", "verdict", "kinds of finding", "examples", "seconds", title="all", title_justify="left")
        for run in self._run.targets:
            if run.finished is None:
                continue
            kinds = ", ".join(dict.fromkeys(found.finding.kind for found in run.found))
            word, style = WORDS.get(Run([run]).exit_code, NOT_ENOUGH)
            done = run.finished
            table.add_row(
                escape(run.started.target.name), Text(word, style), kinds, f"{done.examples:,}", f"{done.seconds:.1f}"
            )
        for name, why in broken.items():
            table.add_row(escape(name), Text("BROKEN", "bold yellow"), escape(why), "", "")
        self.console.print(table)

    def _begin(self, event: Started) -> None:
        target = event.target
        manner = [target.operation, target.level + (", bit for bit" if target.exact else "")]
        head = Text.assemble((target.name, "bold"), f"  {' · '.join(manner)} · seed {event.seed}")
        self.console.print(head)
        self._examples = self._reached = 0
        self._declared = sum(event.declared.values())
        self._since = self._last_line = time.monotonic()
        if self.console.is_terminal:
            self._live = Live(self._status(), console=self.console, refresh_per_second=8, transient=True)
            self._live.start()

    def _status(self) -> Text:
        seconds = max(time.monotonic() - self._since, 1e-9)
        done = min(self._reached / max(self._declared, 1), 1.0)
        bar = "━" * round(24 * done)
        return Text.assemble(
            (bar, "green"),
            ("━" * (24 - len(bar)), "dim"),
            f"  {self._reached}/{self._declared} strata  {self._examples:,} examples  ",
            (f"{self._examples / seconds:.0f}/s", "cyan"),
            f"  {seconds:.0f} s  ",
            (f"{len(self._run.targets[-1].found)} findings", "red" if self._run.targets[-1].found else "green"),
            (f"  {self._doing}", "yellow"),
        )

    def _end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.console.print(self._table(self._run.targets[-1]))

    def _print_finding(self, found: Found) -> None:
        one = found.finding
        self.console.print(Text.assemble((f"✗ {one.kind}", "bold red"), f"  {KINDS[one.kind]}"))
        self.console.print(Text(f"  {one.message}"), soft_wrap=True)
        for name, spec in found.case.specs:
            form = f"{name:>5} {spec.dtype:<8} {_tuple(spec.shape)} strides {_tuple(spec.strides)}"
            extra = f" offset {spec.offset}" if spec.offset else ""
            shared = f" in {spec.storage}" if spec.storage != name else ""
            self.console.print(Text(f"  {form}{extra}{shared}  {spec.values.kind}", style="dim"), soft_wrap=True)
        if not found.complete:
            self.console.print(Text("  (not minimized to the end)", style="yellow"))
        command = replay_command(found, self._run.targets[-1].started)
        self.console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)

    def _table(self, run: TargetRun) -> Group:
        done = run.finished
        assert done is not None
        errors = Table(title="error against the oracle, per output dtype", title_justify="left", title_style="")
        for heading in ("dtype", "elements", "worst error / bound", "from eager", "RMS / eager's", "worst case"):
            errors.add_column(heading, justify="left" if heading in ("dtype", "worst case") else "right")
        for dtype, e in sorted(done.errors.items()):
            ratio = "–" if e.rms_ratio is None else f"{e.rms_ratio:.3f}"
            errors.add_row(
                dtype,
                f"{e.count:,}",
                f"{e.over_bound:.3f}",
                f"{e.max_ulp:,} ulp" if e.max_ulp < 10**6 else f"{e.max_ulp:.0e} ulp",
                ratio,
                e.worst_id,
            )
        strata = Table(
            title="strata: the regions this campaign promised to visit", title_justify="left", title_style=""
        )
        for heading in ("region", "reached", "left out"):
            strata.add_column(heading, justify="right" if heading == "reached" else "left")
        for row in self._strata_rows(run):
            strata.add_row(*row)
        rows = [*([errors] if done.errors else []), *([strata] if done.executed else [])]
        return Group(*rows, *self._closing(run))

    def _strata_rows(self, run: TargetRun) -> list[tuple[str, str, str]]:
        declared: Counter[str] = Counter()
        missed: Counter[str] = Counter()
        left: dict[str, str] = {}
        for group, count in run.started.declared.items():
            declared[family(group)] += count
        assert run.finished is not None
        for name in run.finished.missed:
            missed[family(name.partition(":")[0])] += 1
        for group, count in run.started.left_out.items():
            left[family(group)] = f"{count}: {run.started.reasons[group]}"
        return [
            (name, f"{count - missed[name]}/{count}", escape(left.get(name, ""))) for name, count in declared.items()
        ]

    def _closing(self, run: TargetRun) -> list[Text]:
        done = run.finished
        assert done is not None
        lines = []
        for reason, count in done.skipped.items():
            lines.append(Text(f"{count} cases were not judged: {reason}", style="yellow"))
        if done.missed and not run.found:
            shown = ", ".join(done.missed[:3]) + (" …" if len(done.missed) > 3 else "")
            hint = "" if done.interrupted else "; give more --max-time or --max-examples"
            lines.append(Text(f"{len(done.missed)} declared strata were not reached ({shown}){hint}", style="yellow"))
        rate = done.examples / max(done.seconds, 1e-9)
        total = sum(run.started.declared.values())
        counts = f"{done.examples:,} examples in {done.seconds:.1f} s ({rate:.0f}/s) · "
        counts += f"{total - len(done.missed)}/{total} strata · {len(run.found)} findings"
        if done.restarts:
            counts += f" · {done.restarts} child restarts"
        one = Run([run])
        word = WORDS.get(one.exit_code, NOT_ENOUGH)
        lines.append(Text.assemble(word, f"  {run.started.target.name}: {counts}"))
        return lines


def _tuple(numbers: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, numbers)) + ")"
