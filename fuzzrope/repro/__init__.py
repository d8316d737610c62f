"""A saved case as a script that needs only torch and what it accuses: for people who have no fuzzrope.

The script holds the inputs number by number, with their strides, offsets and shared storages, the source of the
target (our adapter, or the modules of a specimen), the contract in eager PyTorch, and the answers that are allowed. It
shows what one run can show by itself; :data:`SHOWN` lists these kinds. Outputs and gradients of every operation.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch

from fuzzrope.case import TensorSpec
from fuzzrope.corpus import Saved
from fuzzrope.repro.answers import answers, number
from fuzzrope.repro.sources import sources
from fuzzrope.targets import find
from fuzzrope.values import expand

#: Kinds of finding that a script can show: those that outputs, gradients and inputs tell after one run.
SHOWN = ("mutation", "alias", "exception", "type", "shape", "dtype", "nonfinite", "mismatch", "gradient")

#: Details of such findings that it cannot: they are of many runs, of a whole output, or of memory that we poison.
HIDDEN = ("relation ", "bias", "rms", "uninitialized", "requires")

#: Elements of one tensor that a script holds.
MAX_NUMBERS = 4096


class ReproError(ValueError):
    """A case that no script can show; the message is one line."""


def script(saved: Saved) -> str:
    """The text of the script; raises :class:`ReproError` for a case that it could not show."""
    target, case = find(saved.target), saved.case
    hidden = [bucket for kind, bucket in saved.expect if not _shows(kind, bucket)]
    if hidden and len(hidden) == len(saved.expect):
        raise ReproError(f"{hidden[0]}: only fuzzrope can show this; scripts show {', '.join(SHOWN)}")
    large = [name for name, spec in case.specs if spec.numel > MAX_NUMBERS]
    if large:
        raise ReproError(f"{large[0]} has more than {MAX_NUMBERS} elements; `fuzzrope minimize` it first")
    allowed = answers(case, MAX_NUMBERS)
    if isinstance(allowed, str):
        raise ReproError(allowed)
    if saved.expect and not allowed and not any(kind == "mutation" for kind, _ in saved.expect):
        raise ReproError("the contract demands an error here; scripts show that for inputs that were changed alone")
    backward = None
    if case.backward is not None:
        backward = (case.backward.requires, tuple(name for name, _ in case.backward.cotangents))
    options = dict(case.options)
    eager = "rope" if case.operation == "rope_options" else case.operation
    parts = {
        "TARGET": target.name,
        "EXPECTED": "".join(f"  {bucket}\n" for bucket in saved.buckets) or "  nothing\n",
        "FOUND": ", ".join(f"{key} {value}" for key, value in sorted(saved.found.get("versions", {}).items())),
        "NEEDS": repr(target.needs),
        "BUCKETS": repr(list(saved.buckets)),
        "LAUNCHES": repr(target.kernel or target.launches),
        "ENTRY": repr(str(Path(target.entry).resolve()) if target.is_file else target.entry),
        "EAGER": repr(eager),
        "PRECISION": repr(options.pop("precision", "highest")),
        "OPTIONS": repr(options),
        "BACKWARD": repr(backward),
        "SOURCES": "" if target.is_file else sources(target.entry),
        "TENSORS": "".join(f"    {_tensor(name, spec)},\n" for name, spec in case.specs),
        "ANSWERS": "".join(f"    {one.literal()},\n" for one in allowed),
        "CONTRACT": _contract(),
    }
    text = files("fuzzrope.repro").joinpath("template.txt").read_text(encoding="utf-8")
    for key, value in parts.items():
        text = text.replace(f"@{key}@", value)
    return text


def _shows(kind: str, bucket: str) -> bool:
    detail = bucket.split(":", 2)[2] if bucket.count(":") > 1 else ""
    return kind in SHOWN and not detail.startswith(HIDDEN)


def _contract() -> str:
    """The functions of :mod:`.eager`, without what stands before them."""
    text = files("fuzzrope.repro").joinpath("eager.py").read_text(encoding="utf-8")
    return text.partition("import Tensor\n")[2].strip()


def _tensor(name: str, spec: TensorSpec) -> str:
    form = (name, spec.dtype, spec.shape, spec.strides, spec.offset, spec.storage, spec.device)
    return f"({', '.join(map(repr, form))}, {_numbers(spec)})"


def _numbers(spec: TensorSpec) -> str:
    """The elements in row-major order, as Python writes them: exact for every dtype."""
    made = expand(spec.values, getattr(torch, spec.dtype), spec.numel)
    if not made.is_floating_point():
        return repr(made.tolist())
    return "[" + ", ".join(map(number, made.double().tolist())) + "]"
