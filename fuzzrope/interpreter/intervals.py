"""Whether a launch's 32-bit address arithmetic can wrap at all: interval arithmetic on its arguments.

Mostly it cannot, and the program runs without looking. Where it might, a second program is used that
computes every address twice (:mod:`fuzzrope.interpreter.twins`) and judges the lanes that are accessed.
"""

from __future__ import annotations

from fuzzrope.interpreter.dataflow import Flow, set_of_ops
from fuzzrope.interpreter.ir import Module, Op

_PASS = {
    *("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "tt.unsplat"),
    *("arith.extsi", "arith.index_cast"),
}
#: The bounds (l, h) of a result from those of its operands: a..b and c..d.
_RULES = {
    "arith.addi": "l = a + c; h = b + d",
    "arith.subi": "l = a - d; h = b - c",
    "arith.muli": "l, h = (a * c, b * d) if a >= 0 and c >= 0 else _corners(a, b, c, d)",
    "arith.shli": "l, h = (min(a, a << d), max(b, b << d)) if 0 <= c and d < 64 else _ALL",
    "arith.extui": "l, h = (a, b) if a >= 0 else (0, 2**32 - 1)",
    "arith.trunci": "l = a; h = b",
    "arith.divsi": "l, h = (a // d if a >= 0 else a, b // c if b >= 0 else 0) if c > 0 else _ALL",
    "arith.remsi": "l, h = (0 if a >= 0 else 1 - d, d - 1) if c > 0 else _ALL",
    "arith.minsi": "l = min(a, c); h = min(b, d)",
    "arith.maxsi": "l = max(a, c); h = max(b, d)",
}
Bounds = tuple[str, str]  # code of the lowest and the highest number that a value may be
_INT32 = (-(2**31), 2**31 - 1)
_ALL = (-(2**63), 2**63 - 1)


def corners(a: int, b: int, c: int, d: int) -> tuple[int, int]:
    """Bounds of a product."""
    products = (a * c, a * d, b * c, b * d)
    return min(products), max(products)


NAMESPACE = {"_corners": corners, "_ALL": _ALL}


def source(module: Module, flow: Flow) -> str:
    """Python source of ``fit(args, grid)``: whether no 32-bit sum or product in an address can leave its range."""
    relevant = _closure(module, flow)
    lines = ["def fit(args, grid):"]
    known: dict[int, Bounds] = {}

    def bounds(number: int) -> Bounds:
        return known.get(number, (str(_INT32[0]), str(_INT32[1])))

    def named(number: int) -> str:
        # Names count up, whatever the values' numbers: what is the same in two variants has the same source.
        name = str(len(lines))
        known[number] = f"l{name}", f"h{name}"
        return name

    for position, (number, (_, kind)) in enumerate(zip(module.entry.ids, module.entry.args, strict=True)):
        if number in relevant and kind.elem in ("i8", "i16", "i32", "i64"):
            known[number] = f"args[{position}]", f"args[{position}]"
    for op in set_of_ops(module):
        if op.name == "scf.for":
            induction = op.regions[0][0].ids[0]
            if induction in relevant:
                (low, _), (_, high) = bounds(op.ins[0]), bounds(op.ins[1])
                name = named(induction)
                lines.append(f"    l{name} = {low}; h{name} = max({high} - 1, {low})")
        for out in op.outs:
            if out not in relevant:
                continue
            operands = [bounds(number) for number in op.ins]
            if (same := _known(op, operands)) is not None:
                known[out] = same
            elif code := _rule(op, operands):
                name = named(out)
                lines.append(f"    {code}; l{name} = l; h{name} = h")
                if _may_wrap(op):
                    lines.append("    if l < -2147483648 or h > 2147483647: return False")
    return "\n".join([*lines, "    return True"])


def _known(op: Op, operands: list[Bounds]) -> Bounds | None:
    """Bounds that need no computing, if that is so."""
    if op.name in _PASS:
        return operands[0]
    if op.name == "arith.constant":
        text = op.head.strip().removeprefix("dense<").removesuffix(">")
        return (text, text) if text.lstrip("-").isdigit() else None
    if op.name == "tt.make_range":
        return str(int(op.attrs["start"])), str(int(op.attrs["end"]) - 1)
    if op.name == "tt.get_program_id":
        return "0", f"grid[{'xyz'.index(op.head.strip())}] - 1"
    if op.name == "tt.get_num_programs":
        count = f"grid[{'xyz'.index(op.head.strip())}]"
        return count, count
    return None


def _rule(op: Op, operands: list[Bounds]) -> str:
    """Code that sets l and h, or nothing for what is not followed: a result may then be any 32-bit number."""
    if op.name == "arith.select":
        (c, d), (e, f) = operands[1:]
        return f"l = min({c}, {e}); h = max({d}, {f})"
    rule = _RULES.get(op.name)
    if rule is None:
        return ""
    names = [name for pair in operands for name in pair]
    return f"{', '.join('abcd'[: len(names)])} = {', '.join(names)}; {rule}"


def _last_type(op: Op) -> str:
    text = op.types
    for arrow in (" -> ", " to "):
        text = text.rpartition(arrow)[2]
    return text


def _may_wrap(op: Op | None) -> bool:
    names = ("arith.addi", "arith.subi", "arith.muli", "arith.shli", "arith.trunci")
    return op is not None and op.name in names and "i32" in _last_type(op)


def _closure(module: Module, flow: Flow) -> set[int]:
    """Values in addresses that may wrap, and what their ranges follow from."""
    relevant = {number for number in flow.addresses if _may_wrap(flow.made_by.get(number))}
    pending = list(relevant)
    loops = {op.regions[0][0].ids[0]: op.ins[:2] for op in set_of_ops(module) if op.name == "scf.for"}
    while pending:
        number = pending.pop()
        maker = flow.made_by.get(number)
        sources = list(maker.ins) if maker is not None and not maker.regions else []
        for origin in [*sources, *loops.get(number, [])]:
            if origin not in relevant:
                relevant.add(origin)
                pending.append(origin)
    return relevant
