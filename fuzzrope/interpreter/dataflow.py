"""Which operation's result each operand is, and which integers end up in addresses.

MLIR reuses names in sibling regions, so every value gets a number of its own first. The slice of address
arithmetic is what has to be watched for 32-bit overflow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fuzzrope.interpreter.ir import Block, Func, IrError, Module, Op

_EDGE = re.compile(r"\^(\w+)(?:\(([^)]*)\))?")
_NAME = re.compile(r"%[\w$.\-]+(?:#\d+)?")


@dataclass(slots=True)
class Flow:
    """What a module's values are made of.

    Attributes:
        made_by: the operation that defines a value; block and function arguments have none.
        comes_from: the values that may become a region's argument or result.
        addresses: values that an address is computed from.
    """

    made_by: dict[int, Op] = field(default_factory=dict)
    comes_from: dict[int, list[int]] = field(default_factory=dict)
    addresses: set[int] = field(default_factory=set)
    count: int = 0


def forward(blocks: list[Block]) -> list[Block]:
    """A function's blocks with every one after those that lead to it, as its text need not have them.

    Triton makes blocks of early returns only; loops have operations of their own.
    """
    found = {block.label: block for block in blocks}
    order: list[Block] = []
    state: dict[str, bool] = {}  # whether all that a block leads to has been placed

    def visit(block: Block) -> None:
        state[block.label] = False
        for op in block.ops:
            for label in _EDGE.findall(op.head) if op.name.startswith("cf.") else []:
                there = "^" + label[0]
                if state.get(there) is False:
                    raise IrError("a loop among the blocks of a function")
                if there not in state:
                    visit(found[there])
        state[block.label] = True
        order.append(block)

    visit(blocks[0])
    return order[::-1]


class _Resolver:
    def __init__(self, module: Module) -> None:
        self.module, self.flow = module, Flow()
        self.returns: dict[str, list[list[int]]] = {}

    def fresh(self) -> int:
        self.flow.count += 1
        return self.flow.count

    def join(self, targets: list[int], sources: list[int]) -> None:
        for target, source in zip(targets, sources, strict=True):
            self.flow.comes_from.setdefault(target, []).append(source)

    def func(self, func: Func) -> None:
        func.blocks = forward(func.blocks)
        func.ids = [self.fresh() for _ in func.args]
        scope = {name: number for (name, _), number in zip(func.args, func.ids, strict=True)}
        self.returns[func.name] = []
        self.blocks(func.blocks, scope)
        labels = {block.label: block for block in func.blocks}
        for block in func.blocks:
            for op in block.ops:
                for label, values in op.edges:
                    self.join(labels["^" + label].ids, values)
                if op.name == "tt.return":
                    self.returns[func.name].append(op.ins)

    def blocks(self, blocks: list[Block], scope: dict[str, int]) -> None:
        for block in blocks:
            block.ids = [self.fresh() for _ in block.args]
            scope |= {name: number for (name, _), number in zip(block.args, block.ids, strict=True)}
            for op in block.ops:
                self.op(op, scope)

    def lookup(self, name: str, scope: dict[str, int]) -> int:
        if name not in scope:
            raise IrError(f"{name} is used before it is defined")
        return scope[name]

    def op(self, op: Op, scope: dict[str, int]) -> None:
        flow = self.flow
        bound: list[str] = []
        operands = op.operands
        if op.name == "scf.for":
            bound, operands = [operands[0], *operands[4::2]], [*operands[1:4], *operands[5::2]]
        elif op.name == "scf.while":
            bound, operands = operands[0::2], operands[1::2]
        op.ins = [self.lookup(name, scope) for name in operands]
        op.outs = [self.fresh() for _ in op.results]
        for number in op.outs:
            flow.made_by[number] = op
        if op.name.startswith("cf."):
            found = _EDGE.findall(op.head)
            op.edges = [(label, [self.lookup(n, scope) for n in _NAME.findall(args)]) for label, args in found]
            op.ins = [self.lookup(n, scope) for n in _NAME.findall(op.head.partition("^")[0])]
        op.regions = [forward(region) for region in op.regions]
        for index, region in enumerate(op.regions):
            inner = dict(scope)
            if bound and index == 0:
                ids = [self.fresh() for _ in bound]
                region[0].ids = ids
                inner |= dict(zip(bound, ids, strict=True))
                self.ops(region[0], inner)
            else:
                self.blocks(region, inner)
        scope |= dict(zip(op.results, op.outs, strict=True))
        self.structure(op)

    def ops(self, block: Block, scope: dict[str, int]) -> None:
        for op in block.ops:
            self.op(op, scope)

    def structure(self, op: Op) -> None:
        """How values pass through the regions of an operation."""
        ends = [region[-1].ops[-1].ins if region[-1].ops else [] for region in op.regions]
        if op.name == "scf.for":
            args, inits = op.regions[0][0].ids[1:], op.ins[3:]
            for target in (args, op.outs):
                self.join(target, inits)
                if op.outs:
                    self.join(target, ends[0])
        elif op.name == "scf.if" and op.outs:
            for end in ends:
                self.join(op.outs, end)
        elif op.name == "scf.while":
            before, after = op.regions[0][0].ids, op.regions[1][0].ids
            self.join(before, op.ins)
            self.join(before, ends[1])
            self.join(after, ends[0][1:])
            self.join(op.outs, ends[0][1:])

    def calls(self, blocks: list[Block]) -> None:
        for block in blocks:
            for op in block.ops:
                if op.name == "tt.call":
                    callee = self.module.funcs[callee_of(op)]
                    self.join(callee.ids, op.ins)
                    for values in self.returns[callee.name]:
                        self.join(op.outs, values)
                for region in op.regions:
                    self.calls(region)


def callee_of(op: Op) -> str:
    """The symbol that a call names."""
    match = re.search(r'@("[^"]*"|[\w.$\-]+)', op.head)
    if match is None:
        raise IrError("a call without a symbol")
    return op.strings[0] if match[1] == '""' and op.strings else match[1].strip('"')


#: What an address is followed back through; anything else (a load, a mask's bits) ends the search.
THROUGH = {
    *(f"arith.{name}" for name in ("addi", "subi", "muli", "shli", "extsi", "extui", "trunci", "index_cast")),
    *(f"arith.{name}" for name in ("select", "divsi", "remsi", "minsi", "maxsi")),
    *("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.addptr", "tt.reshape", "tt.trans", "tt.unsplat"),
    *("scf.for", "scf.if", "scf.while", "tt.call"),
}


def resolve(module: Module) -> Flow:
    """Number the values of a module (in place) and say what they are made of."""
    resolver = _Resolver(module)
    for func in module.funcs.values():
        resolver.func(func)
    for func in module.funcs.values():
        resolver.calls(func.blocks)
    flow = resolver.flow
    pending = [op.ins[1] for op in set_of_ops(module) if op.name == "tt.addptr"]
    while pending:
        value = pending.pop()
        if value in flow.addresses:
            continue
        flow.addresses.add(value)
        pending += flow.comes_from.get(value, [])
        maker = flow.made_by.get(value)
        if maker is not None and maker.name in THROUGH and not maker.regions and maker.name != "tt.call":
            pending += maker.ins[1:] if maker.name == "arith.select" else maker.ins
    return flow


def set_of_ops(module: Module) -> list[Op]:
    """Every operation, regions included, in order."""
    found: list[Op] = []

    def visit(blocks: list[Block]) -> None:
        for block in blocks:
            for op in block.ops:
                found.append(op)
                for region in op.regions:
                    visit(region)

    for func in module.funcs.values():
        visit(func.blocks)
    return found
