"""Saved cases: one JSON file each, written atomically, and read as if a stranger had written it.

A file we write carries a digest over its own text, so that one changed byte is noticed; a file written by
hand may leave it out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzrope import atomic
from fuzzrope.case import Case, CaseError, Fields
from fuzzrope.findings import KINDS
from fuzzrope.operations import OPERATIONS, Differentiable
from fuzzrope.targets import Target, TargetError, find
from fuzzrope.text import one_line

FORMAT = 1
MAX_FILE = 2**20
_BLANK = "0" * 64


class CorpusError(ValueError):
    """A corpus file that cannot be used; the message is one line: where, what."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A case with what it is expected to show.

    Attributes:
        target: name of the target.
        case: the case.
        expect: (kind, bucket) of every finding it shows, sorted.
        found: seed, device, versions and date of the finding; for people.
        note: free text.
    """

    target: str
    case: Case
    expect: tuple[tuple[str, str], ...]
    found: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def buckets(self) -> tuple[str, ...]:
        """The buckets of the findings it is expected to show."""
        return tuple(bucket for _, bucket in self.expect)

    def to_json(self) -> dict[str, Any]:
        """JSON form without the digest."""
        return {
            "format": FORMAT,
            "target": self.target,
            "operation": self.case.operation,
            "case": self.case.to_json(),
            "expect": {"findings": [{"kind": kind, "bucket": bucket} for kind, bucket in self.expect]},
            "found": self.found,
            "note": self.note,
        }


def path_of(corpus: Path, target: Target, kind: str, case: Case) -> Path:
    """Where a case is kept: ``corpus/<target>/<kind>-<id>.json``."""
    return corpus / target.folder / f"{kind}-{case.id}.json"


def _pretty(value: Any, depth: int = 0) -> str:
    """JSON with the outer levels one key a line, and each tensor on a line of its own."""
    if isinstance(value, dict) and depth < 3 and value:
        pad = "  " * (depth + 1)
        rows = (f"{pad}{json.dumps(key)}: {_pretty(value[key], depth + 1)}" for key in sorted(value))
        return "{\n" + ",\n".join(rows) + "\n" + "  " * depth + "}"
    return json.dumps(value, sort_keys=True, allow_nan=False)


def dump(saved: Saved) -> str:
    """The text of a corpus file, digest included."""
    text = _pretty({**saved.to_json(), "digest": _BLANK}) + "\n"
    return text.replace(_field(_BLANK), _field(hashlib.sha256(text.encode()).hexdigest()), 1)


def _field(digest: str) -> str:
    """The digest as it stands in the text; inside a JSON string its quotes would be escaped."""
    return f'"digest": "{digest}"'


def save(path: Path, saved: Saved) -> None:
    """Write a case so that a kill at any moment leaves either the whole file or none."""
    atomic.write(path, dump(saved))


def _no_constant(text: str) -> Any:
    raise CorpusError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise CorpusError(f"{text[:40]} is beyond the numbers of JSON readers")
    return number


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise CorpusError("an object has the same key twice")
    return made


def load(path: Path) -> Saved:
    """Read and check a corpus file; raises :class:`CorpusError` with one line that says what is wrong."""
    try:
        return _load(path)
    except OSError as error:
        raise CorpusError(one_line(f"{path}: {error.strerror or error}")) from None
    except (CorpusError, CaseError, TargetError) as error:
        raise CorpusError(one_line(f"{path}: {error}")) from None
    except RecursionError:
        raise CorpusError(one_line(f"{path}: is nested too deeply")) from None


def _load(path: Path) -> Saved:
    with path.open("rb") as file:
        raw = file.read(MAX_FILE + 1)
    if len(raw) > MAX_FILE:
        raise CorpusError(f"larger than {MAX_FILE} bytes")
    try:
        text = raw.decode("utf-8")
        data = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError as error:
        raise CorpusError(f"is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise CorpusError(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise CorpusError("is nested too deeply") from None
    except ValueError as error:
        raise CorpusError(f"is not JSON: {error}") from None
    keys = {"format", "target", "operation", "case", "expect", "found", "note"}
    fields = Fields(data, "file", keys, optional=frozenset({"digest"}))
    if fields.integer("format", 0, 2**31) != FORMAT:
        raise CorpusError(f"format {data['format']} is not {FORMAT}, the one this version reads")
    if "digest" in data:
        digest = fields.text("digest", 64)
        blanked = text.replace(_field(digest), _field(_BLANK), 1)
        if hashlib.sha256(blanked.encode()).hexdigest() != digest:
            raise CorpusError("the digest does not fit the text: the file was changed after it was saved")
    operation = fields.choice("operation", tuple(OPERATIONS))
    case = Case.from_json(fields["case"])
    if case.operation != operation:
        raise CorpusError(f"file.case.operation: {case.operation!r} is not the file's {operation!r}")
    if tuple(name for name, _ in case.tensors) != OPERATIONS[operation].inputs:
        raise CorpusError(f"file.case.order: {operation} takes {', '.join(OPERATIONS[operation].inputs)}")
    if case.backward is not None and not isinstance(OPERATIONS[operation], Differentiable):
        raise CorpusError(f"file.case.backward: {operation} is not judged by its gradients")
    expected = Fields(fields["expect"], "file.expect", {"findings"})
    findings = []
    for i, item in enumerate(expected.items("findings", 100)):
        entry = Fields(item, f"file.expect.findings[{i}]", {"kind", "bucket"})
        findings.append((entry.choice("kind", tuple(KINDS)), entry.text("bucket")))
    if not isinstance(data["found"], dict):
        raise CorpusError("file.found: expected an object")
    target = fields.text("target")
    find(target)
    return Saved(target, case, tuple(sorted(findings)), data["found"], fields.text("note", 10000))


def files(paths: list[Path]) -> Iterator[Path]:
    """The corpus files that these files and folders name, in a stable order."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
        else:
            yield path
