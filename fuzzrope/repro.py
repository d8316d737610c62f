"""A saved case as a script that needs only torch and what it accuses: for people who have no fuzzrope.

The script holds the inputs number by number, with their strides, offsets and shared storages, the source of the
target (our adapter, or the modules of a specimen), the reference written out, and a comparison. It shows what one run
can show by itself; :data:`SHOWN` lists these kinds.
"""

from __future__ import annotations

import ast
import importlib.util
import struct
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import torch

from fuzzrope.case import TensorSpec
from fuzzrope.corpus import Saved
from fuzzrope.targets import Target, find
from fuzzrope.values import expand

#: Kinds of finding that a script can show: those that outputs and inputs tell after one run.
SHOWN = ("mutation", "alias", "exception", "type", "shape", "dtype", "nonfinite", "mismatch")

#: Elements of one tensor that a script holds.
MAX_NUMBERS = 4096

OURS = ("fuzzrope", "kernels")


class ReproError(ValueError):
    """A case that no script can show; the message is one line."""


def script(saved: Saved) -> str:
    """The text of the script; raises :class:`ReproError` for a case that it could not show."""
    target, case = find(saved.target), saved.case
    if case.operation != "rope" or case.backward is not None:
        what = "gradients" if case.backward is not None else case.operation
        raise ReproError(f"scripts are written for the outputs of rope, and this case is of {what}")
    hidden = sorted({kind for kind, _ in saved.expect if kind not in SHOWN})
    if hidden and len(hidden) == len({kind for kind, _ in saved.expect}):
        raise ReproError(f"{hidden[0]}: only fuzzrope can show this; scripts show {', '.join(SHOWN)}")
    large = [name for name, spec in case.specs if spec.numel > MAX_NUMBERS]
    if large:
        raise ReproError(f"{large[0]} has more than {MAX_NUMBERS} elements; `fuzzrope minimize` it first")
    expected = "".join(f"  {bucket}\n" for bucket in saved.buckets) or "  nothing\n"
    parts = {
        "TARGET": target.name,
        "EXPECTED": expected,
        "FOUND": ", ".join(f"{key} {value}" for key, value in sorted(saved.found.get("versions", {}).items())),
        "NEEDS": repr(target.needs),
        "BUCKETS": repr(list(saved.buckets)),
        "LAUNCHES": repr(target.kernel or target.launches),
        "ENTRY": repr(str(Path(target.entry).resolve()) if target.is_file else target.entry),
        "SOURCES": _sources(target),
        "TENSORS": "".join(f"    {_tensor(name, spec)},\n" for name, spec in case.specs),
    }
    text = files("fuzzrope").joinpath("repro_template.txt").read_text(encoding="utf-8")
    for key, value in parts.items():
        text = text.replace(f"@{key}@", value)
    return text


def _tensor(name: str, spec: TensorSpec) -> str:
    form = (name, spec.dtype, spec.shape, spec.strides, spec.offset, spec.storage or name, spec.device)
    return f"({', '.join(map(repr, form))}, {_numbers(spec)})"


def _numbers(spec: TensorSpec) -> str:
    """The elements in row-major order, as Python writes them: exact for every dtype."""
    made = expand(spec.values, getattr(torch, spec.dtype), spec.numel)
    if not made.is_floating_point():
        return repr(made.tolist())
    return "[" + ", ".join(_number(x) for x in made.double().tolist()) + "]"


def _number(x: float) -> str:
    if x - x == 0:
        return repr(x)
    sign = "-" if struct.pack(">d", x)[0] & 128 else ""
    return f"{sign}{'nan' if x != x else 'inf'}"


def _sources(target: Target) -> str:
    """The modules of ours that the target is made of, as the items of a dict from name to text."""
    if target.is_file:
        return ""
    found: dict[str, tuple[str, bool]] = {}
    todo = [target.entry.partition(":")[0]]
    while todo:
        name = todo.pop()
        if name in found or name.partition(".")[0] not in OURS:
            continue
        path = _file(name)
        if path is None:  # an attribute, not a module
            continue
        text = path.read_text(encoding="utf-8")
        found[name] = (text, path.name == "__init__.py")
        package = name if found[name][1] else name.rpartition(".")[0]
        todo += [*_imported(text, package), name.rpartition(".")[0]]
    return "".join(
        f"    {(name.replace('.', '/') + ('/__init__.py' if package else '.py'))!r}: {_quoted(text)},\n"
        for name, (text, package) in sorted(found.items())
    )


def _file(name: str) -> Path | None:
    """Where a module of ours is, without importing it."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or spec.origin is None:
        return None
    base = Path(spec.origin).parent.joinpath(*rest)
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imported(text: str, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _quoted(text: str) -> str:
    """A raw literal over several lines where the text allows it: it is there to be read."""
    if "'''" in text or text.endswith("\\"):
        return repr(text)
    return f"r'''{text}'''"
