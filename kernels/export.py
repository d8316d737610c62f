"""``python -m kernels.export OUT.py``: ``ModelNew`` and all it needs as one file that imports only torch and triton.

The modules' own text is merged in the order of their imports, comments and all; what ``ModelNew`` does not reach is
left out. Imports within the package go; a module that is imported by name (``reference``) leaves that name as a
prefix, ``reference_rope`` for ``reference.rope``, and so does one whose name another has taken already. This module
reads text: it needs neither PyTorch nor a GPU.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PACKAGE, MAIN = "kernels", "ModelNew"
NAMESPACE = "rope_kernels"  # of the package's operators
FOLDER = Path(__file__).parent
HEAD = '''"""RoPE of a query and a key in one Triton launch, bit for bit equal to eager PyTorch: ``ModelNew``.

Its methods ``scores`` and ``attention`` are Triton kernels with rotation inside.

Made by ``python -m kernels.export``: edit the modules it names, not this file.
"""
'''


class ExportError(ValueError):
    """The modules cannot be merged as they are; the message says why."""


@dataclass
class _Part:
    """One statement at the top of a module, or a group of nothing but an import.

    Attributes:
        text: as it goes into the file, comments above it included.
        defines: names it binds.
        uses: names it looks up.
        kept: it is there for what it does, so it stays in any case.
    """

    text: str
    defines: set[str]
    uses: set[str]
    kept: bool


class _Module:
    """One module of the package, read and split."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        self.own = {bound for node in self.tree.body for bound in _bound(node)} - {"_", "__all__"}
        self.taken: dict[str, str] = {}  # name imported from another module -> that module
        self.final: dict[str, str] = {}  # names that change -> what they become
        self.spaces: set[str] = set()  # modules that it imports by name
        self.now: list[str] = []  # modules it needs before its own text, and after
        self.later: list[str] = []
        self.outside: dict[str, str] = {}  # imported name -> statement
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node, self.now if node in self.tree.body else self.later)

    def _import(self, node: ast.Import | ast.ImportFrom, needed: list[str]) -> None:
        if not _is_ours(node):
            for alias in node.names:
                single = (
                    ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0)
                )
                self.outside[alias.asname or alias.name.partition(".")[0]] = ast.unparse(single)
            return
        assert isinstance(node, ast.ImportFrom)
        if any(alias.asname for alias in node.names) or not node.module:
            raise ExportError(f"{self.name}: an import of {PACKAGE} under another name")
        if node.module == PACKAGE:
            self.spaces |= {alias.name for alias in node.names}
            needed += [alias.name for alias in node.names]
            return
        needed.append(node.module.partition(".")[2])
        for alias in node.names:
            if self.taken.setdefault(alias.name, needed[-1]) != needed[-1]:
                raise ExportError(f"{self.name}: {alias.name} of {self.taken[alias.name]} and of {needed[-1]}")

    def parts(self, others: dict[str, _Module]) -> Iterator[_Part]:
        """Its statements in order, once every module has settled its names."""
        lines = self.source.splitlines()
        end = 0
        for node in self.tree.body:
            first, start, end = end, _first_line(node), node.end_lineno or 0
            if _is_docstring(node) or isinstance(node, (ast.Import, ast.ImportFrom)) or "__all__" in _bound(node):
                continue
            above = [line for line in lines[first : start - 1] if line.strip()]
            text = "\n".join([*above, *self._edited(node, lines, others)])
            uses = {self.final.get(name, name) for name in _looked_up(node)}
            uses |= {others[base].final[name] for base, name in _attributes(node) if base in self.spaces}
            bound = _bound(node)
            kept = bound == {"_"} or isinstance(node, ast.Expr)
            yield _Part(text, {self.final.get(name, name) for name in bound}, uses, kept)

    def _edited(self, statement: ast.stmt, lines: list[str], others: dict[str, _Module]) -> list[str]:
        """The statement's lines, names replaced and imports of the package left out."""
        first, last = _first_line(statement), statement.end_lineno or 0
        edits: list[tuple[int, int, str, str]] = []  # line, start in bytes, what is there, what goes there
        gone: set[int] = set()
        for node in ast.walk(statement):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and _is_ours(node):
                gone |= set(range(node.lineno, (node.end_lineno or 0) + 1))
                gone |= {max(gone) + 1} if not lines[max(gone)].strip() else set()
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in self.spaces:
                new = others[node.value.id].final[node.attr]
                edits.append((node.lineno, node.col_offset, f"{node.value.id}.{node.attr}", new))
            elif isinstance(node, ast.Name) and node.id in self.final:
                edits.append((node.lineno, node.col_offset, node.id, self.final[node.id]))
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node is statement and node.name in self.final:
                at = lines[node.lineno - 1].index(f" {node.name}") + 1
                edits.append((node.lineno, at, node.name, self.final[node.name]))
        taken = {bound for node in ast.walk(statement) if node is not statement for bound in _bound(node)}
        hidden = taken & (self.spaces | set(self.final)) - _bound(statement)
        if hidden:
            raise ExportError(f"{self.name}: {hidden.pop()} is also the name of something local")
        for number, start, old, new in sorted(edits, reverse=True):
            before, after = lines[number - 1].encode()[:start].decode(), lines[number - 1].encode()[start:].decode()
            if not after.startswith(old):
                raise ExportError(f"{self.name}: {old} is not where line {number} should have it")
            lines[number - 1] = before + new + after.removeprefix(old)
        return [lines[number - 1] for number in range(first, last + 1) if number not in gone]


def _is_ours(node: ast.Import | ast.ImportFrom) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return any(name.partition(".")[0] == PACKAGE for name in names)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _first_line(node: ast.stmt) -> int:
    """Its line, or that of its first decorator."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _bound(node: ast.AST) -> set[str]:
    """Names that a definition, an argument or an assignment binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.arg):
        return {node.arg}
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _looked_up(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _attributes(node: ast.AST) -> Iterator[tuple[str, str]]:
    for n in ast.walk(node):
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name):
            yield n.value.id, n.attr


def _in_order(name: str, seen: dict[str, _Module | None]) -> dict[str, _Module | None]:
    """All modules that this one needs, each after what it imports at its top."""
    if name in seen:
        return seen
    module = _Module(name)
    place = dict.fromkeys([*seen, name])  # so that a circle ends
    for other in module.now:
        if other not in place:
            _in_order(other, seen)
    seen[name] = module
    for other in module.later:
        _in_order(other, seen)
    return seen


def _settle(modules: dict[str, _Module]) -> None:
    """Decide what every name becomes, so that no two modules define one."""
    spaces = {space for module in modules.values() for space in module.spaces}
    owners: dict[str, str] = {}
    for module in modules.values():
        for name in sorted(module.own):
            new = f"{module.name}_{name}" if module.name in spaces or name in owners else name
            if new in owners:
                raise ExportError(f"{module.name} and {owners[new]} both define {new}")
            owners[new] = module.name
            if new != name:
                module.final[name] = new
    for module in modules.values():
        for name, other in module.taken.items():
            if name in modules[other].final:
                module.final[name] = modules[other].final[name]


def exported() -> str:
    """The file's text; the same for the same modules.

    Raises:
        ExportError: names clash although they have prefixes, or a name that gets one is also a local one.
    """
    modules = {name: module for name, module in _in_order(MAIN, {}).items() if module is not None}
    _settle(modules)
    parts = {module.name: list(module.parts(modules)) for module in modules.values()}
    everything = [part for own in parts.values() for part in own]
    wanted = {MAIN} | {use for part in everything if part.kept for use in part.uses}
    while True:
        more = {use for part in everything if part.defines & wanted for use in part.uses} - wanted
        if not more:
            break
        wanted |= more
    outside = {statement for m in modules.values() for name, statement in m.outside.items() if name in wanted}
    sections = [f"{HEAD}\nfrom __future__ import annotations\n\n{_imports(outside)}"]
    for module in modules.values():
        texts = [part.text for part in parts[module.name] if part.kept or part.defines & wanted]
        if texts:
            doc = ast.get_docstring(module.tree, clean=True) or ""
            about = [f"# {PACKAGE}.{module.name}", *(f"# {line}".rstrip() for line in ["", *doc.splitlines()])]
            sections.append(_spaced(["\n".join(about), *texts]))
    return _own_operators("\n\n".join(section.rstrip("\n") + "\n" for section in sections))


def _own_operators(text: str) -> str:
    """The text with a namespace of its own for its operators, so that it can be imported beside the package."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return re.sub(rf"\b{NAMESPACE}\b", f"{NAMESPACE}_{digest}", text)


def _spaced(texts: list[str]) -> str:
    """Definitions apart, assignments together."""
    found = texts[0]
    for before, text in pairwise(texts):
        apart = any(re.search(r"^(@|class |def )", one, re.MULTILINE) for one in (before, text))
        found += ("\n\n\n" if apart else "\n\n" if before is texts[0] else "\n") + text
    return found


def _imports(statements: set[str]) -> str:
    """Imports of the standard library, then the others, one a line."""
    library = {s for s in statements if s.split()[1].partition(".")[0] in sys.stdlib_module_names}
    groups = (sorted(group, key=lambda s: (s.startswith("from"), s)) for group in (library, statements - library))
    return "\n\n".join("\n".join(group) for group in groups if group)


def main(arguments: list[str]) -> int:
    """Write the file; returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: python -m {PACKAGE}.export OUT.py", file=sys.stderr)
        return 2
    try:
        Path(arguments[0]).write_text(exported(), encoding="utf-8")
    except (OSError, ExportError) as error:
        print(f"{PACKAGE}.export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
