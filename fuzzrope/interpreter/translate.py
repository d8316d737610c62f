"""From Triton IR to one NumPy program: the generator's core. What each operation becomes is registered.

The result is the source of a Python function and the objects it refers to. Source is made of names that
this package chose, literals it formatted and registered templates; no text from the IR enters it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import triton

from fuzzrope.interpreter.dataflow import Flow, resolve
from fuzzrope.interpreter.ir import Block, Module, Op, Type, read_type, split_types
from fuzzrope.interpreter.places import describe
from fuzzrope.interpreter.values import CARRIED, Val, carried, width_of

Emitter = Callable[["Translator", Op], None]
EMIT: dict[str, Emitter] = {}


class UnknownOperationError(Exception):
    """The engine does not know an operation; it never guesses."""


def emits(*names: str) -> Callable[[Emitter], Emitter]:
    """Register what operations become."""

    def register(function: Emitter) -> Emitter:
        for name in names:
            EMIT[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class Site:
    """An operation that reports: what it does, its place in the source, and what it touches."""

    number: int
    what: str
    place: str


@dataclass(slots=True)
class Generated:
    """A translated kernel: Python source of ``build()``, its namespace, its sites and its appetite.

    ``bytes_a_program`` bounds the memory that the values of one program take; ``ordered`` says that
    programs must run one after another (locks, results of atomic operations), ``alone`` that they do not run
    in lockstep (their warps have roles); ``stores`` and ``loads`` name the arguments written and read, None
    standing for any.
    """

    source: str
    namespace: dict[str, Any]
    sites: list[Site]
    args: list[tuple[str, Type]]
    bytes_a_program: int
    elements: int
    ordered: bool
    alone: bool
    stores: set[str | None]
    loads: set[str | None]


@dataclass(slots=True)
class Frame:
    """The function being translated: where its ``tt.return`` go, and where its variables begin to exist."""

    start: int
    depth: int
    returns: list[tuple[str, list[Val]]] = field(default_factory=list)


class Translator:
    """Walks a module and writes the program; one object a translation."""

    def __init__(self, module: Module, checked: bool = False, contracts: bool = False) -> None:
        self.module, self.checked, self.contracts = module, checked, contracts
        self.products: dict[int, tuple[Val, Val, int]] = {}  # factors by result, and how deep it was made
        self.flow: Flow = resolve(module)
        self.env: dict[int, Val] = {}
        self.namespace: dict[str, Any] = {}
        self.prologue: list[str] = []
        self.known: dict[str, str] = {}
        self.lines: list[str] = []
        self.depth = 2
        self.counter = 0
        self.act = "None"
        self.pids = "pids"
        self.combining = False
        self.alone = self.in_role = False
        self.sites: list[Site] = []
        self.stores: set[str | None] = set()
        self.loads: set[str | None] = set()
        self.bytes = 0
        self.elements = 1
        self.frames: list[Frame] = []
        self.roots: dict[str, str] = {}

    # -- writing ------------------------------------------------------------------------------------

    def name(self, prefix: str = "v") -> str:
        """A name that nothing else has."""
        self.counter += 1
        return f"{prefix}{self.counter}"

    def declare(self, names: list[str], value: str) -> None:
        """Set variables at the beginning of the function being translated, at each of its calls."""
        frame = self.frames[-1]
        self.lines[frame.start : frame.start] = [f"{'    ' * frame.depth}{name} = {value}" for name in names]

    def line(self, text: str) -> None:
        """One line of the program at the current depth."""
        self.lines.append("    " * self.depth + text)

    def constant(self, value: Any) -> str:
        """A name for an object that the program refers to."""
        key = f"{type(value).__name__}:{value!r}" if isinstance(value, (np.generic, np.dtype)) else ""
        if key and key in self.known:
            return self.known[key]
        name = self.name("k")
        self.namespace[name] = value
        if key:
            self.known[key] = name
        return name

    def let(
        self,
        code: str,
        kind: Type,
        uniform: bool,
        full: tuple[bool, ...] = (),
        root: str | None = None,
        const: bool = False,
    ) -> Val:
        """Give a value to a new name: in the program, or once and for all if it is constant."""
        if const:
            known = self.known.get(code)
            if known is None:
                known = self.known[code] = self.name("c")
                self.prologue.append(f"    {known} = {code}")
            return Val(known, kind, uniform, full, root, True)
        name = self.name()
        self.line(f"{name} = {code}")
        if not uniform:
            self.account(kind, full)
        return Val(name, kind, uniform, full, root)

    def account(self, kind: Type, full: tuple[bool, ...]) -> None:
        """Count the memory of an array value."""
        elements = 1
        for extent, whole in zip(kind.shape or (), full, strict=True):
            elements *= extent if whole else 1
        self.bytes += elements * np.dtype(CARRIED.get(kind.elem, "i8")).itemsize
        self.elements = max(self.elements, elements)

    def bind(self, op: Op, *vals: Val) -> None:
        """Set the results of an operation."""
        for number, val in zip(op.outs, vals, strict=True):
            self.env[number] = val

    def ins(self, op: Op) -> list[Val]:
        """The operands of an operation."""
        return [self.env[number] for number in op.ins]

    def site(self, op: Op, what: str) -> str:
        """The code that names this operation to the runtime."""
        for site in self.sites:
            if site.place == op.place and site.what == what and site.place:
                return f"S[{site.number}]"
        self.sites.append(Site(len(self.sites), what, op.place))
        return f"S[{len(self.sites) - 1}]"

    # -- converting ---------------------------------------------------------------------------------

    def negated(self, val: Val) -> Val:
        """A float with its sign changed."""
        return self.let(f"-{val.code}", val.type, val.uniform, val.full, const=val.const)

    def array(self, val: Val) -> str:
        """Code of a value as an array of its carried dtype, extent 1 where it does not vary."""
        if not val.uniform:
            return val.code
        shape = (1,) * (1 + val.type.rank)
        code = f"np.full({shape}, {val.code}, {self.constant(carried(val.elem))})"
        return self.let(code, val.type, False, (False,) * val.type.rank, const=val.const).code

    def spread(self, val: Val, wanted: tuple[bool, ...]) -> Val:
        """The value as an array whose dimensions are full where wanted."""
        if val.uniform:
            shape = (1,) * (1 + val.type.rank)
            twin = f"np.full({shape}, {val.twin})" if val.twin else None
            val = Val(self.array(val), val.type, False, (False,) * val.type.rank, val.root, val.const, twin)
        if all(have or not want for have, want in zip(val.full, wanted, strict=True)):
            return val
        full = tuple(have or want for have, want in zip(val.full, wanted, strict=True))
        shape = tuple(n if whole else 1 for n, whole in zip(val.type.shape or (), full, strict=True))
        made = self.let(f"R.spread({val.code}, {shape})", val.type, False, full, val.root, val.const)
        twin = f"R.spread({val.twin}, {shape})" if val.twin else None
        return replace(made, twin=twin)

    def whole(self, val: Val) -> Val:
        """The value as an array with every dimension full."""
        return self.spread(val, (True,) * val.type.rank)

    def like(self, val: Val, form: Val) -> str:
        """Code of a value in the form (uniform, or array with these full dimensions, root) of another."""
        if val.elem == "ptr" and val.root != form.root:
            val = self.absolute(val)
        if form.uniform:
            return val.code
        return self.spread(val, form.full).code

    def absolute(self, val: Val) -> Val:
        """A pointer as a byte address."""
        if val.elem != "ptr" or val.root is None:
            return val
        code = f"rt.address({self.roots[val.root]}, {val.code}, {width_of(val.type.to)})"
        return self.let(code, val.type, val.uniform, val.full)

    def join(self, one: Val, other: Val, divergent: bool = False) -> Val:
        """The form that holds either of two values; its code is of no use."""
        root = one.root if one.root == other.root else None
        twin = "?" if one.twin or other.twin else None
        if one.uniform and other.uniform and not divergent:
            return Val("?", one.type, True, (), root, False, twin)
        rank = one.type.rank
        mine = one.full if not one.uniform else (False,) * rank
        yours = other.full if not other.uniform else (False,) * rank
        full = tuple(a or b for a, b in zip(mine, yours, strict=True))
        return Val("?", one.type, False, full, root, False, twin)

    # -- walking ------------------------------------------------------------------------------------

    def op(self, op: Op) -> None:
        """Translate one operation."""
        emitter = EMIT.get(op.name)
        if emitter is None:
            raise unknown(op, self.module)
        emitter(self, op)

    def block(self, block: Block) -> list[Val]:
        """Translate a block of a region; the operands of its terminator."""
        for op in block.ops[:-1]:
            self.op(op)
        last = block.ops[-1] if block.ops else None
        if last is None:
            return []
        if last.name not in TERMINATORS:
            self.op(last)
            return []
        return self.ins(last)

    def finish(self, args: list[tuple[str, Type]], ordered: bool) -> Generated:
        """The program."""
        names = ", ".join(["rt", "act", "pids"] + [f"a{i}" for i in range(len(args))])
        source = ["def build():", *self.prologue, f"    def program({names}):", "        S = rt.sites"]
        source += [*self.lines, "    return program"]
        return Generated(
            "\n".join(source),
            self.namespace,
            self.sites,
            args,
            self.bytes,
            self.elements,
            ordered,
            self.alone,
            self.stores,
            self.loads,
        )


TERMINATORS = {"scf.yield", "scf.condition", "tt.reduce.return", "tt.scan.return", "tt.map_elementwise.return"}
TERMINATORS |= {"ttg.warp_yield", "ttg.warp_return"}


def result_types(op: Op) -> list[Type]:
    """The types of an operation's results, as far as its text tells."""
    text = op.types
    for arrow in (" -> ", " to "):
        if arrow in text:
            return split_types(text.rpartition(arrow)[2])
    return split_types(text)[-1:] or [read_type("i1")]


NAMED = ("tt.extern_elementwise", "tt.elementwise_inline_asm")


def unknown(op: Op, module: Module) -> UnknownOperationError:
    """The one line that is said about an operation that the engine does not know."""
    detail = f" ({op.strings[-1]})" if op.strings and op.name in NAMED else ""
    where = describe(module.places, op.place)
    return UnknownOperationError(
        f"the CPU engine does not know {op.name}{detail} (Triton {triton.__version__}), used at {where}"
    )
