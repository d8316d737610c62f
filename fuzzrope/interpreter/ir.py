"""Reading Triton IR: the text that Triton's front end prints, as operations with types, regions and places.

Only the shape of the text is known here (MLIR's custom assembly as Triton 3.6 to 3.8 print it); what an
operation means is said where it is translated. Text is data: nothing in it is evaluated.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field


class IrError(Exception):
    """The text has not the form of Triton IR."""


@dataclass(frozen=True, slots=True)
class Type:
    """A value's type: element name (``f32``, ``i1``, ``ptr``, ``desc``, ``piece``), logical shape, what it points to.

    Scalars have ``shape`` None; ``to`` is the element of a pointer, a descriptor or a piece of shared memory,
    ``block`` the shape of a descriptor's block or of a piece.
    """

    elem: str
    shape: tuple[int, ...] | None = None
    to: str = ""
    block: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Number of dimensions; a scalar has none."""
        return len(self.shape) if self.shape else 0

    def with_elem(self, elem: str, to: str = "") -> Type:
        """The same shape with other elements."""
        return Type(elem, self.shape, to)

    def with_shape(self, shape: tuple[int, ...] | None) -> Type:
        """The same elements in another shape."""
        return Type(self.elem, shape, self.to)


@dataclass(slots=True)
class Block:
    """A basic block: label, arguments (name, type), operations."""

    label: str
    args: list[tuple[str, Type]]
    ops: list[Op] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Op:
    """One operation; ``head`` is its text between name and types, without attributes and literals."""

    name: str
    results: list[str]
    operands: list[str]
    head: str
    attrs: dict[str, str]
    types: str
    strings: list[str]
    place: str
    regions: list[list[Block]] = field(default_factory=list)
    ins: list[int] = field(default_factory=list)  # operands as values of the whole module, see dataflow
    outs: list[int] = field(default_factory=list)
    edges: list[tuple[str, list[int]]] = field(default_factory=list)  # where a branch may go, with what


@dataclass(slots=True)
class Func:
    """A function: symbol, arguments and blocks."""

    name: str
    public: bool
    args: list[tuple[str, Type]]
    blocks: list[Block]
    ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Module:
    """All functions of a compilation, and what its places stand for."""

    funcs: dict[str, Func]
    places: dict[str, str]

    @property
    def entry(self) -> Func:
        """The kernel."""
        return next(func for func in self.funcs.values() if func.public)


_NAME = re.compile(r"%[\w$.\-]+(?:#\d+)?")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ATTRS = re.compile(r"<?\{([^{}]*)\}>?")
_ATTR = re.compile(r"([\w.]+)(?:\s*=\s*(array<[^>]*>|#[\w.]+<[^>]*>|[^,]+))?")
_PLACE = re.compile(r" loc\((#loc\d*|unknown)\)$")
_INLINE_PLACE = re.compile(r" loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
_RESULTS = re.compile(r"^((?:%[\w$.\-]+(?::\d+)?(?:, )?)+) = ")
_ARG = re.compile(r"(%[\w$.\-]+): ([^%]+?)(?=, %|$)")
_OPNAME = re.compile(r'^"?([\w.]+)"?')
_SPACES = re.compile(r"\s*\{[^{}]*\}")


@functools.lru_cache(maxsize=4096)
def read_type(text: str) -> Type:
    """The type that a text denotes."""
    text = text.strip()
    if text.startswith("tensor<"):
        inner = text[7:-1]
        inner = inner.partition(", #")[0]
        shape: list[int] = []
        while (match := re.match(r"(\d+)x", inner)) is not None:
            shape.append(int(match[1]))
            inner = inner[match.end() :]
        elem = read_type(inner)
        return Type(elem.elem, tuple(shape), elem.to)
    if text.startswith("!tt.ptr<"):
        depth = text.rfind(", ")  # an address space, if any
        inner = text[8 : depth if depth > 0 and text[depth + 2 : -1].isdigit() else -1]
        return Type("ptr", None, inner)
    if text.startswith("!tt.tensordesc<"):
        inner = text[15:-1]
        block = read_type(inner if inner.startswith("tensor<") else f"tensor<{inner}>")
        return Type("desc", None, block.elem, block.shape or ())
    if text.startswith("!ttg.memdesc<"):
        piece = read_type(f"tensor<{text[13:-1].partition(', #')[0]}>")
        return Type("piece", None, piece.elem, piece.shape or ())
    return Type(text[1:] if text[:2] in ("si", "ui") else text)


def split_types(text: str) -> list[Type]:
    """The types in a list separated by commas."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    found, depth, start = [], 0, 0
    for position, char in enumerate(text):
        if char in "<(":
            depth += 1
        elif char in ">)" and text[position - 1] != "-":
            depth -= 1
        elif char == "," and depth == 0:
            found.append(text[start:position])
            start = position + 1
    found.append(text[start:])
    return [read_type(item) for item in found if item.strip()]


class _Reader:
    def __init__(self, lines: list[str]) -> None:
        self.lines, self.at = lines, 0

    def region(self) -> tuple[list[Block], str]:
        """Blocks up to the line that closes the region, and that line."""
        blocks: list[Block] = [Block("", [])]
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            self.at += 1
            if not line or line.startswith("#") or line.startswith("//"):
                continue
            if line.startswith("}"):
                return blocks, line
            if line.startswith("^"):
                head = _INLINE_PLACE.sub("", line.partition("  //")[0]).rstrip()
                label, _, rest = head.rstrip(":").partition("(")
                args = [(name, read_type(kind)) for name, kind in _ARG.findall(rest.rstrip(")"))] if rest else []
                if blocks[-1].ops or blocks[-1].label:
                    blocks.append(Block(label, args))
                else:
                    blocks[-1] = Block(label, args)
                continue
            blocks[-1].ops.append(self.op(line))
        raise IrError("a region is not closed")

    def op(self, line: str) -> Op:
        """The operation that begins on this line, with its regions."""
        place = ""
        opens = line.endswith("{")
        if opens:
            line = line[:-1].rstrip()
        elif (match := _PLACE.search(line)) is not None:
            place, line = match[1], line[: match.start()]
        results: list[str] = []
        if (match := _RESULTS.match(line)) is not None:
            for item in match[1].split(", "):
                name, _, count = item.partition(":")
                results += [f"{name}#{i}" for i in range(int(count))] if count else [name]
            line = line[match.end() :]
        name_match = _OPNAME.match(line)
        if name_match is None:
            raise IrError(f"no operation: {line[:80]}")
        strings: list[str] = []

        def literal(found: re.Match[str]) -> str:
            strings.append(found[1])
            return '""'

        rest = line[name_match.end() :]
        if '"' in rest:
            rest = _STRING.sub(literal, rest)
        attrs: dict[str, str] = {}
        if "{" in rest:
            for body in _ATTRS.findall(rest):
                for key, value in _ATTR.findall(body):
                    attrs[key] = (value or "true").partition(" : ")[0].strip()
            rest = _ATTRS.sub("", rest)
        name = name_match[1]
        head, _, types = (rest, "", "") if name.startswith("cf.") else rest.partition(" : ")
        op = Op(name, results, _NAME.findall(head), head, attrs, types, strings, place)
        if opens:
            self.regions(op)
        elif name == "ttg.warp_specialize":
            self.roles(op)
        return op

    def roles(self, op: Op) -> None:
        """Read the regions that warps of different roles run; each has a line of its own to open it."""
        while (head := self.lines[self.at].strip()).startswith(("default", "partition")):
            self.at += 1
            args = _ARG.findall(_INLINE_PLACE.sub("", head).partition("(")[2].rpartition(") num_warps")[0])
            blocks, end = self.region()
            blocks[0].args = [(name, read_type(kind)) for name, kind in args]
            op.regions.append(blocks)
            if (match := _PLACE.search(end)) is not None:
                op.place = match[1]

    def regions(self, op: Op) -> None:
        """Read the regions of an operation and what stands on its closing line."""
        while True:
            blocks, end = self.region()
            op.regions.append(blocks)
            if not end.endswith("{"):
                break
        if (match := _PLACE.search(end)) is not None:
            op.place, end = match[1], end[: match.start()]
        _, colon, types = end.partition(") : ")
        if colon:
            op.types = types


_FUNC = re.compile(r"tt\.func (public|private)?\s*@(\"[^\"]+\"|[\w.$\-]+)\((.*)$")


def read(text: str) -> Module:
    """The functions in a module's text; raises :class:`IrError` if it has another form."""
    lines = text.splitlines()
    places = {}
    funcs: dict[str, Func] = {}
    for line in lines:
        if line.startswith("#loc"):
            key, _, value = line.partition(" = ")
            places[key] = value
    reader = _Reader(lines)
    while reader.at < len(lines):
        line = lines[reader.at].strip()
        reader.at += 1
        if not line.startswith("tt.func"):
            continue
        line = _INLINE_PLACE.sub("", line)
        match = _FUNC.match(line)
        if match is None:
            raise IrError(f"no function: {line[:80]}")
        signature = re.split(r"\)(?: -> |\s+attributes |\s*\{$)", match[3], maxsplit=1)[0]
        signature = _SPACES.sub("", signature)
        args = [(name, read_type(kind)) for name, kind in _ARG.findall(signature)]
        if not line.endswith("{"):
            continue
        blocks, _ = reader.region()
        name = match[2].strip('"')
        funcs[name] = Func(name, match[1] == "public", args, blocks)
    if not any(func.public for func in funcs.values()):
        raise IrError("no kernel in this module")
    return Module(funcs, places)


_AT = re.compile(r'"([^"]+)":(\d+):(\d+)')
_REF = re.compile(r"#loc\d*")


def frames(places: dict[str, str], place: str) -> list[tuple[str, int]]:
    """File and line of a place, innermost call first."""
    if not place or place == "unknown":
        return []
    value = places.get(place, "")
    if (match := _AT.search(value)) is not None and "callsite" not in value:
        return [(match[1], int(match[2]))]
    found: list[tuple[str, int]] = []
    for reference in _REF.findall(value):
        if reference != place:
            found += frames(places, reference)
    return found
