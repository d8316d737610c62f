"""Whether a launch's 32-bit address arithmetic can wrap at all: interval arithmetic on its arguments.

Mostly it cannot, and the program runs without looking. Where it might, a second program is used that
computes every address twice (:mod:`fuzzrope.interpreter.twins`) and judges the lanes that are accessed.
"""

from __future__ import annotations

from typing import Any

from fuzzrope.interpreter.dataflow import Flow, set_of_ops
from fuzzrope.interpreter.ir import Module, Op

Range = tuple[int, int]
Step = tuple[str, int, tuple[int, ...], Any]
_PASS = {
    *("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "tt.unsplat"),
    *("arith.extsi", "arith.index_cast"),
}


class Intervals:
    """The address arithmetic of one kernel, ready to be evaluated for a launch."""

    def __init__(self, steps: list[Step], args: dict[int, int]) -> None:
        self.steps, self.args = steps, args

    @classmethod
    def of(cls, module: Module, flow: Flow) -> Intervals:
        """The steps that the address arithmetic of a module takes."""
        made = cls([], dict(enumerate(module.entry.ids)))
        relevant = _closure(module, flow)
        for op in set_of_ops(module):
            if op.name == "scf.for":
                induction = op.regions[0][0].ids[0]
                if induction in relevant:
                    made.steps.append(("for", induction, (op.ins[0], op.ins[1]), None))
            for out in op.outs:
                if out in relevant:
                    made._step(op, out)
        return made

    def _step(self, op: Op, out: int) -> None:
        kind = op.name
        extra: Any = None
        width = 32 if "i32" in _last_type(op) else 64
        if kind == "arith.constant":
            text = op.head.strip().removeprefix("dense<").removesuffix(">")
            if text in ("true", "false") or not text.lstrip("-").isdigit():
                return
            extra = int(text)
        elif kind == "tt.make_range":
            extra = (int(op.attrs["start"]), int(op.attrs["end"]) - 1)
        elif kind in ("tt.get_program_id", "tt.get_num_programs"):
            extra = "xyz".index(op.head.strip())
        elif kind in _PASS:
            kind = "pass"
        elif not kind.startswith("arith."):
            return
        self.steps.append((kind, out, tuple(op.ins), (extra, width)))

    def fit(self, args: list[Any], grid: tuple[int, int, int]) -> bool:
        """Whether no 32-bit sum or product in an address can leave its range in this launch."""
        ranges: dict[int, Range] = {
            number: (args[i], args[i]) for i, number in self.args.items() if type(args[i]) is int
        }
        for kind, out, ins, data in self.steps:
            if kind == "for":
                low, high = ranges.get(ins[0], _FULL), ranges.get(ins[1], _FULL)
                ranges[out] = (low[0], max(high[1] - 1, low[0]))
                continue
            extra, width = data
            if kind == "arith.constant":
                ranges[out] = (extra, extra)
            elif kind == "tt.make_range":
                ranges[out] = extra
            elif kind == "tt.get_program_id":
                ranges[out] = (0, grid[extra] - 1)
            elif kind == "tt.get_num_programs":
                ranges[out] = (grid[extra], grid[extra])
            else:
                operands = [ranges.get(number, _FULL) for number in ins]
                found = operands[0] if kind == "pass" else _combine(kind, operands)
                if found is None:
                    continue
                if width == 32 and (found[0] < -(2**31) or found[1] >= 2**31):
                    return False
                ranges[out] = found
        return True


_FULL: Range = (-(2**31), 2**31 - 1)


def _combine(kind: str, x: list[Range]) -> Range | None:
    (a, b), (c, d) = x[0], x[1] if len(x) > 1 else (0, 0)
    if kind == "arith.addi":
        return a + c, b + d
    if kind == "arith.subi":
        return a - d, b - c
    if kind == "arith.muli":
        corners = (a * c, a * d, b * c, b * d)
        return min(corners), max(corners)
    if kind == "arith.shli":
        return (min(a, a << d), max(b, b << d)) if 0 <= c and d < 64 else (-(2**63), 2**63)
    if kind == "arith.extui":
        return (a, b) if a >= 0 else None
    if kind == "arith.trunci":
        return a, b
    if kind == "arith.divsi":
        return (min(a, a // c if a < 0 else 0), max(b // c, 0)) if c > 0 else None
    if kind == "arith.remsi":
        return (0 if a >= 0 else 1 - d, d - 1) if c > 0 else None
    if kind == "arith.minsi":
        return min(a, c), min(b, d)
    if kind == "arith.maxsi":
        return max(a, c), max(b, d)
    if kind == "arith.select":
        return min(c, x[2][0]), max(d, x[2][1])
    return None


def _last_type(op: Op) -> str:
    text = op.types
    for arrow in (" -> ", " to "):
        text = text.rpartition(arrow)[2]
    return text


def _closure(module: Module, flow: Flow) -> set[int]:
    """Values in addresses, and what their ranges follow from."""
    relevant = set(flow.addresses)
    pending = list(relevant)
    bounds = {op.regions[0][0].ids[0]: op.ins[:2] for op in set_of_ops(module) if op.name == "scf.for"}
    while pending:
        number = pending.pop()
        maker = flow.made_by.get(number)
        sources = list(maker.ins) if maker is not None and not maker.regions else []
        for source in [*sources, *bounds.get(number, [])]:
            if source not in relevant:
                relevant.add(source)
                pending.append(source)
    return relevant
