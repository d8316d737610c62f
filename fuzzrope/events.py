"""What a campaign says while it runs. Every output - console, JSON, the event log - is made from these."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzzrope.case import Case
from fuzzrope.findings import Finding
from fuzzrope.judge import Errors
from fuzzrope.targets import Target


@dataclass(frozen=True)
class Started:
    """A campaign on a target begins: its declared strata, and by group what the engine leaves out and why."""

    target: Target
    seed: int
    blocks: tuple[int, ...]
    strata: tuple[str, ...]
    left_out: dict[str, int]
    reasons: dict[str, str]

    @property
    def declared(self) -> dict[str, int]:
        """Number of declared strata by group."""
        return dict(Counter(name.partition(":")[0] for name in self.strata))


@dataclass(frozen=True)
class Example:
    """A drawn case was run and judged."""

    case: Case
    examples: int
    strata: frozenset[str]
    reached: int
    skipped: str = ""


@dataclass(frozen=True)
class Seen:
    """A bucket was seen for the first time, after so many examples and seconds; its case is not minimized yet."""

    finding: Finding
    case: Case
    path: Path | None
    examples: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Minimized:
    """The smallest case of a bucket. ``complete`` is False when time ran out first."""

    finding: Finding
    case: Case
    path: Path | None
    complete: bool
    steps: int


@dataclass(frozen=True)
class Finished:
    """The campaign on a target is over. ``reached`` and ``missed`` are stratum names.

    Of ``examples`` cases drawn, ``executed`` were judged, and ``differentiated`` of these with gradients.
    """

    target: Target
    examples: int
    executed: int
    seconds: float
    reached: frozenset[str]
    missed: tuple[str, ...]
    errors: dict[str, Errors] = field(default_factory=dict)
    by_output: dict[tuple[str, str], Errors] = field(default_factory=dict)
    differentiated: int = 0
    restarts: int = 0
    interrupted: bool = False
    skipped: dict[str, int] = field(default_factory=dict)


Event = Started | Example | Seen | Minimized | Finished
