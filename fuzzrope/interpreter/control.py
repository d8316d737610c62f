"""Structured control flow in lockstep: programs that do not take part are masked, not waited for.

``tr.act`` names the activity of the code being written: None for all programs, or a bool array over the
programs of the chunk. What is uniform stays a Python ``for`` or ``if``.
"""

from __future__ import annotations

from dataclasses import replace

from fuzzrope.interpreter.dataflow import callee_of, set_of_ops
from fuzzrope.interpreter.ir import Block, Func, Module, Op, Type, split_types
from fuzzrope.interpreter.translate import Frame, Translator, emits, unknown
from fuzzrope.interpreter.values import Val


def must_be_ordered(module: Module) -> bool:
    """Whether programs must run one after another: they wait for each other, or use what atomics return."""
    used = {number for op in set_of_ops(module) for number in op.ins}
    used |= {number for op in set_of_ops(module) for _, values in op.edges for number in values}
    return any(
        op.name in ("tt.atomic_rmw", "tt.atomic_cas") and any(number in used for number in op.outs)
        for op in set_of_ops(module)
    )


class Slots:
    """Variables that carry values around a loop or out of a branch, in one form each."""

    def __init__(self, tr: Translator, forms: list[Val], watched: list[bool]) -> None:
        self.tr = tr
        self.names = [tr.name("x") for _ in forms]
        self.vals = [
            replace(form, code=name, const=False, twin=f"{name}t" if watch else None)
            for form, name, watch in zip(forms, self.names, watched, strict=True)
        ]

    @property
    def every(self) -> list[str]:
        """The names of all variables, twins included."""
        return [name for val in self.vals for name in (val.code, val.twin) if name]

    def assign(self, vals: list[Val], where: str | None = None) -> None:
        """Set the variables, all at once; with ``where``, only for those programs."""
        left, right = [], []
        for slot, val in zip(self.vals, vals, strict=True):
            code = self.tr.like(val, slot)
            pairs = [(slot.code, code)] + ([(slot.twin, self._twin(slot, val, code))] if slot.twin else [])
            for name, value in pairs:
                if name == value:
                    continue
                left.append(name)
                right.append(f"R.merge({where}, {value}, {name})" if where else value)
        if left:
            self.tr.line(f"{', '.join(left)} = {', '.join(right)}")

    def _twin(self, slot: Val, val: Val, code: str) -> str:
        """Code of what a variable's twin is set to, where the variable itself is set to ``code``."""
        if val.twin and val.root == slot.root:
            code = val.twin if slot.uniform else self.tr.spread(val, slot.full).twin or code
        return code if slot.uniform else f"R.wide({code})"


def _watch(tr: Translator, numbers: list[int], kinds: list[Type]) -> list[bool]:
    return [
        tr.checked and number in tr.flow.addresses and kind.elem in ("i32", "i64", "ptr")
        for number, kind in zip(numbers, kinds, strict=True)
    ]


class _Trial:
    """Translate a region only to see the forms of its results."""

    def __init__(self, tr: Translator) -> None:
        self.tr = tr

    def __enter__(self) -> None:
        tr = self.tr
        self.lines, tr.lines = tr.lines, []
        self.bytes, self.env = tr.bytes, dict(tr.env)

    def __exit__(self, *exc: object) -> None:
        self.tr.lines, self.tr.bytes, self.tr.env = self.lines, self.bytes, self.env


def _settled(tr: Translator, block: Block, ids: list[int], inits: list[Val], numbers: list[int], divergent: bool,
             tail: int = 0) -> list[Val]:
    """The forms in which values go around a loop: joined until nothing changes."""
    watched = _watch(tr, numbers, [v.type for v in inits])
    forms = [tr.join(v, v, divergent) for v in inits]
    forms = [replace(f, code="?", const=False) for f in forms]
    for _ in range(8):
        with _Trial(tr):
            slots = Slots(tr, forms, watched)
            for number, val in zip(ids, slots.vals, strict=True):
                tr.env[number] = val
            ends = tr.block(block)[tail:]
            joined = [tr.join(form, end, divergent) for form, end in zip(forms, ends, strict=True)]
        same = all((a.uniform, a.full, a.root) == (b.uniform, b.full, b.root) for a, b in zip(forms, joined, strict=True))
        forms = joined
        if same:
            break
    return forms


@emits("scf.for")
def _for(tr: Translator, op: Op) -> None:
    lower, upper, step = tr.ins(op)[:3]
    inits = tr.ins(op)[3:]
    block = op.regions[0][0]
    kind = lower.type
    divergent = not (lower.uniform and upper.uniform and step.uniform)
    counter = tr.name("i")
    iv_uniform = lower.uniform and step.uniform
    tr.env[block.ids[0]] = Val(counter, kind, iv_uniform)
    numbers = block.ids[1:]
    act = tr.act
    if divergent:
        tr.act = tr.name("m")
    forms = _settled(tr, block, numbers, inits, numbers, divergent)
    slots = Slots(tr, forms, _watch(tr, numbers, [v.type for v in inits]))
    slots.assign(inits)
    for number, val in zip(numbers, slots.vals, strict=True):
        tr.env[number] = val
    if not divergent:
        tr.line(f"for {counter} in range({lower.code}, {upper.code}, {step.code}):")
        tr.depth += 1
        slots.assign(tr.block(block))
        tr.line("pass")
        tr.depth -= 1
    else:
        tr.line(f"{counter} = {lower.code}")
        tr.line("while True:")
        tr.depth += 1
        tr.line(f"{tr.act} = R.narrow({act}, {counter} < {upper.code})")
        tr.line(f"if not {tr.act}.any(): break")
        slots.assign(tr.block(block), tr.act)
        tr.line(f"{counter} = {counter} + {step.code}")
        tr.depth -= 1
        tr.act = act
    tr.bind(op, *slots.vals)


@emits("scf.while")
def _while(tr: Translator, op: Op) -> None:
    inits = tr.ins(op)
    before, after = op.regions[0][0], op.regions[1][0]
    act, inner = tr.act, tr.name("m")
    # A first look: does the condition differ between programs, and in which forms do values go around?
    divergent = False
    numbers = before.ids
    watched = _watch(tr, numbers, [v.type for v in inits])
    forms = [replace(tr.join(v, v), code="?", const=False) for v in inits]
    passed: list[Val] = []
    for _ in range(10):
        tr.act = inner if divergent else act
        with _Trial(tr):
            for number, val in zip(numbers, Slots(tr, forms, watched).vals, strict=True):
                tr.env[number] = val
            cond, *passed = tr.block(before)
            diverges = divergent or not cond.uniform
            for number, val in zip(after.ids, passed, strict=True):
                tr.env[number] = val
            ends = tr.block(after)
            joined = [tr.join(form, end, diverges) for form, end in zip(forms, ends, strict=True)]
        same = diverges == divergent and all(
            (a.uniform, a.full, a.root) == (b.uniform, b.full, b.root) for a, b in zip(forms, joined, strict=True)
        )
        forms, divergent = joined, diverges
        if same:
            break
    tr.act = act
    slots = Slots(tr, forms, watched)
    slots.assign(inits)
    leaving = [replace(tr.join(v, v, divergent), code="?", const=False) for v in passed]
    results = Slots(tr, leaving, _watch(tr, op.outs, [v.type for v in passed]))
    for name in results.every:
        tr.line(f"{name} = None")
    if divergent:
        tr.line(f"{inner} = R.everyone({act}, pids)")
        tr.act = inner
    tr.line("while True:")
    tr.depth += 1
    for number, val in zip(numbers, slots.vals, strict=True):
        tr.env[number] = val
    cond, *passed = tr.block(before)
    if divergent:
        results.assign(passed, inner)
        tr.line(f"{inner} = {inner} & {cond.code}")
        tr.line(f"if not {inner}.any(): break")
    else:
        results.assign(passed)
        tr.line(f"if not {cond.code}: break")
    for number, val in zip(after.ids, passed, strict=True):
        tr.env[number] = val
    slots.assign(tr.block(after))
    tr.depth -= 1
    tr.act = act
    tr.bind(op, *results.vals)


@emits("scf.if")
def _if(tr: Translator, op: Op) -> None:
    (cond,) = tr.ins(op)
    regions = [region[0] for region in op.regions] + ([Block("", [])] if len(op.regions) < 2 else [])
    act = tr.act
    acts = [act, act] if cond.uniform else [tr.name("m"), tr.name("m")]
    ends: list[list[Val]] = []
    for region, mine in zip(regions, acts, strict=True):
        with _Trial(tr):
            tr.act = mine
            ends.append(tr.block(region))
    tr.act = act
    forms = [
        replace(tr.join(a, b, not cond.uniform), code="?", const=False) for a, b in zip(*ends, strict=True)
    ] if op.outs else []
    slots = Slots(tr, forms, _watch(tr, op.outs, [f.type for f in forms]))
    if cond.uniform:
        for head, region in ((f"if {cond.code}:", regions[0]), ("else:", regions[1])):
            tr.line(head)
            tr.depth += 1
            slots.assign(tr.block(region) if region.ops else [])
            tr.line("pass")
            tr.depth -= 1
    else:
        for name in slots.every:
            tr.line(f"{name} = None")
        for sign, region, mine in (("", regions[0], acts[0]), ("~", regions[1], acts[1])):
            if not region.ops:
                continue
            tr.line(f"{mine} = R.narrow({act}, {sign}{cond.code})")
            tr.line(f"if {mine}.any():")
            tr.depth += 1
            tr.act = mine
            slots.assign(tr.block(region), mine)
            tr.line("pass")
            tr.depth -= 1
            tr.act = act
    tr.bind(op, *slots.vals)


# -- functions and their blocks -----------------------------------------------------------------------


def function(tr: Translator, func: Func, arguments: list[Val] | None = None) -> list[Val]:
    """Translate a function's body; its results. Early returns make blocks, which only lead forward."""
    if arguments is not None:
        for number, val in zip(func.ids, arguments, strict=True):
            tr.env[number] = val
    tr.frames.append(Frame())
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
            if op.name not in ("cf.br", "cf.cond_br") or any(order[to] <= index for to, _ in op.edges):
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
        slots[to] = Slots(tr, forms, _watch(tr, block.ids, [f.type for f in forms]))
        for name in slots[to].every:
            tr.lines.insert(0, f"        {name} = None")
    tr.line(f"if R.alive({edge}):")
    tr.depth += 1
    slots[to].assign(vals, edge)
    tr.line("pass")
    tr.depth -= 1


@emits("tt.return")
def _return(tr: Translator, op: Op) -> None:
    where = tr.name("m")
    tr.lines.insert(0, f"        {where} = False")  # for when its block is not entered at all
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


@emits("ttg.barrier", "gpu.barrier", "ttg.local_barrier", "llvm.intr.assume", "tt.debug_barrier")
def _nothing(tr: Translator, op: Op) -> None:
    """In lockstep every program of a block is always at the same place."""
