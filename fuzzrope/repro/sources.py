"""The modules of ours that a target is made of, found without importing any, to be pasted into a script."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

OURS = ("fuzzrope", "kernels")


def sources(entry: str) -> str:
    """What ``module:attribute`` needs of ours, as the items of a dict from file name to text."""
    found: dict[str, tuple[str, bool]] = {}
    todo = [entry.partition(":")[0]]
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
