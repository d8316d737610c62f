"""Functions: their blocks and early returns, calls, and what a kernel says to its caller."""

from __future__ import annotations

from dataclasses import replace

from fuzzrope.interpreter.control import Slots, watch
from fuzzrope.interpreter.dataflow import callee_of
from fuzzrope.interpreter.ir import Block, Func, Op, read_type, split_types
from fuzzrope.interpreter.translate import Frame, Translator, emits, unknown
from fuzzrope.interpreter.values import Val


def function(tr: Translator, func: Func, arguments: list[Val] | None = None) -> list[Val]:
    """Translate a function's body; its results. Early returns make blocks, which only lead forward."""
    if arguments is not None:
        for number, val in zip(func.ids, arguments, strict=True):
            tr.env[number] = val
    tr.frames.append(Frame(len(tr.lines), tr.depth))
    act = tr.act
    if len(func.blocks) == 1:
        _straight(tr, func.blocks[0])
    else:
        _blocks(tr, func)
    tr.act = act
    returns = tr.frames.pop().returns
    if len(returns) <= 1:
        return returns[0][1] if returns else []
    forms = list(returns[0][1])
    for _, vals in returns[1:]:
        forms = [tr.join(a, b, True) for a, b in zip(forms, vals, strict=True)]
    watched = [any(vals[i].twin for _, vals in returns) for i in range(len(forms))]
    slots = Slots(tr, [replace(f, code="?", const=False) for f in forms], watched)
    for name in slots.every:
        tr.line(f"{name} = None")
    for where, vals in returns:
        tr.line(f"if R.alive({where}):")
        tr.depth += 1
        slots.assign(vals, where)
        tr.line("pass")
        tr.depth -= 1
    return slots.vals


def _straight(tr: Translator, block: Block) -> None:
    for op in block.ops:
        tr.op(op)


def _blocks(tr: Translator, func: Func) -> None:
    """Blocks in order, each under the activity of the edges that lead to it; loops among them are refused."""
    order = {block.label.lstrip("^"): i for i, block in enumerate(func.blocks)}
    arrivals = {block.label.lstrip("^"): tr.name("m") for block in func.blocks}
    slots: dict[str, Slots] = {}
    for label in arrivals:
        if order[label]:
            tr.line(f"{arrivals[label]} = False")
    for index, block in enumerate(func.blocks):
        label = block.label.lstrip("^")
        if index:
            tr.act = arrivals[label]
            tr.line(f"if R.alive({tr.act}):")
            tr.depth += 1
            for number, val in zip(block.ids, slots[label].vals if label in slots else [], strict=True):
                tr.env[number] = val
        for op in block.ops:
            if not op.name.startswith("cf."):
                tr.op(op)
                continue
            if op.name not in ("cf.br", "cf.cond_br"):
                raise unknown(op, tr.module)
            cond = tr.ins(op)[0] if op.ins else None
            for sign, (to, values) in zip(("", "~"), op.edges, strict=False):
                edge = tr.name("m")
                test = "True" if cond is None else _condition(cond, sign)
                tr.line(f"{edge} = R.step({tr.act}, {test})")
                _arrive(tr, slots, to, [tr.env[n] for n in values], edge, func.blocks[order[to]])
                tr.line(f"{arrivals[to]} = R.either({arrivals[to]}, {edge})")
        if index:
            tr.line("pass")
            tr.depth -= 1


def _condition(cond: Val, sign: str) -> str:
    if cond.uniform:
        return f"(not {cond.code})" if sign else f"bool({cond.code})"
    return sign + cond.code


def _arrive(tr: Translator, slots: dict[str, Slots], to: str, vals: list[Val], edge: str, block: Block) -> None:
    """Hand values over to a block's arguments, for the programs that take this edge."""
    if not vals:
        return
    if to not in slots:
        forms = [replace(v, code="?", const=False, uniform=False, full=(True,) * v.type.rank) for v in vals]
        forms = [replace(f, root=None) if f.elem == "ptr" else f for f in forms]
        slots[to] = Slots(tr, forms, watch(tr, block.ids, [f.type for f in forms]))
        tr.declare(slots[to].every, "None")
    tr.line(f"if R.alive({edge}):")
    tr.depth += 1
    slots[to].assign(vals, edge)
    tr.line("pass")
    tr.depth -= 1


@emits("tt.return", "tt.reduce.return", "tt.scan.return", "tt.map_elementwise.return")
def _return(tr: Translator, op: Op) -> None:
    where = tr.name("m")
    tr.declare([where], "False")  # for when its block is not entered at all
    tr.line(f"{where} = {tr.act}")
    tr.frames[-1].returns.append((where, tr.ins(op)))


@emits("tt.call")
def _call(tr: Translator, op: Op) -> None:
    callee = tr.module.funcs.get(callee_of(op))
    if callee is None:
        raise unknown(op, tr.module)
    results = function(tr, callee, tr.ins(op))
    kinds = split_types(op.types.rpartition(" -> ")[2]) if op.outs else []
    tr.bind(op, *(val.retyped(kind) for val, kind in zip(results, kinds, strict=True)))


@emits("tt.assert")
def _assert(tr: Translator, op: Op) -> None:
    (cond,) = tr.ins(op)
    text = tr.constant(op.strings[0] if op.strings else "")
    tr.line(f"rt.check({tr.site(op, 'assert')}, {cond.code}, {tr.act}, {text})")


@emits("tt.print")
def _print(tr: Translator, op: Op) -> None:
    text = tr.constant(op.strings[0] if op.strings else "")
    tr.line(f"rt.show({text}, {tr.act})")


@emits("llvm.intr.assume")
def _assume(tr: Translator, op: Op) -> None:
    (cond,) = tr.ins(op)
    tr.line(f"rt.assume({tr.site(op, 'assume')}, {cond.code}, {tr.act})")


@emits("tt.elementwise_inline_asm")
def _assembly(tr: Translator, op: Op) -> None:
    """Of assembly, what says when a launch begins that overlaps the one in front of it; its result is a dummy."""
    instruction = op.strings[0].partition(";")[0].strip()
    if instruction not in ("griddepcontrol.wait", "griddepcontrol.launch_dependents"):
        raise unknown(op, tr.module)
    if instruction == "griddepcontrol.wait":
        tr.line("rt.wait_for_launch()")
    tr.bind(op, *(tr.let("0", read_type("i32"), True, const=True) for _ in op.outs))


@emits("ttg.barrier", "gpu.barrier", "ttg.local_barrier", "tt.debug_barrier")
def _nothing(tr: Translator, op: Op) -> None:
    """In lockstep every program of a block is always at the same place."""
