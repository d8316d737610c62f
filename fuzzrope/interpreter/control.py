"""Structured control flow in lockstep: programs that do not take part are masked, not waited for.

``tr.act`` names the activity of the code being written: None for all programs, or a bool array over the
programs of the chunk. What is uniform stays a Python ``for`` or ``if``.
"""

from __future__ import annotations

from dataclasses import replace

from fuzzrope.interpreter.dataflow import set_of_ops
from fuzzrope.interpreter.ir import Block, Module, Op, Type
from fuzzrope.interpreter.translate import Translator, emits
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

    def put_back(self, vals: list[Val], mask: str, chosen: str) -> None:
        """Set the variables for those programs alone that ran a branch."""
        for slot, val in zip(self.vals, vals, strict=True):
            code = self.tr.like(val, slot)
            pairs = [(slot.code, code)] + ([(slot.twin, self._twin(slot, val, code))] if slot.twin else [])
            for name, value in pairs:
                self.tr.line(f"{name} = R.put_back({value}, {name}, {mask}, {chosen})")


def watch(tr: Translator, numbers: list[int], kinds: list[Type]) -> list[bool]:
    """Which of these values need a twin, where overflow is watched for."""
    return [
        tr.checked and number in tr.flow.addresses and kind.elem in ("i32", "i64", "ptr")
        for number, kind in zip(numbers, kinds, strict=True)
    ]


def _same(forms: list[Val], others: list[Val]) -> bool:
    return all((a.uniform, a.full, a.root) == (b.uniform, b.full, b.root) for a, b in zip(forms, others, strict=True))


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


def _settled(tr: Translator, block: Block, inits: list[Val], numbers: list[int], divergent: bool) -> list[Val]:
    """The forms in which values go around a loop: joined until nothing changes."""
    watched = watch(tr, numbers, [v.type for v in inits])
    forms = [tr.join(v, v, divergent) for v in inits]
    forms = [replace(f, code="?", const=False) for f in forms]
    for _ in range(8):
        with _Trial(tr):
            slots = Slots(tr, forms, watched)
            for number, val in zip(numbers, slots.vals, strict=True):
                tr.env[number] = val
            ends = tr.block(block)
            joined = [tr.join(form, end, divergent) for form, end in zip(forms, ends, strict=True)]
        same = _same(forms, joined)
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
    forms = _settled(tr, block, inits, numbers, divergent)
    slots = Slots(tr, forms, watch(tr, numbers, [v.type for v in inits]))
    slots.assign(inits)
    for number, val in zip(numbers, slots.vals, strict=True):
        tr.env[number] = val
    if not divergent:
        tr.line(f"for {counter} in R.steps({lower.code}, {upper.code}, {step.code}):")
        tr.depth += 1
        slots.assign(tr.block(block))
        tr.line("pass")
        tr.depth -= 1
    else:
        tr.line(f"{counter} = {lower.code if iv_uniform else tr.array(lower)}")
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
    watched = watch(tr, numbers, [v.type for v in inits])
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
        same = diverges == divergent and _same(forms, joined)
        forms, divergent = joined, diverges
        if same:
            break
    tr.act = act
    slots = Slots(tr, forms, watched)
    slots.assign(inits)
    leaving = [replace(tr.join(v, v, divergent), code="?", const=False) for v in passed]
    results = Slots(tr, leaving, watch(tr, op.outs, [v.type for v in passed]))
    for name in results.every:
        tr.line(f"{name} = None")
    if divergent:
        tr.line(f"{inner} = R.everyone({act}, {tr.pids})")
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
            tr.act = mine if cond.uniform or tr.combining else "None"
            ends.append(tr.block(region))
    tr.act = act
    pairs = zip(*ends, strict=True) if op.outs else []
    forms = [replace(tr.join(a, b, not cond.uniform), code="?", const=False) for a, b in pairs]
    slots = Slots(tr, forms, watch(tr, op.outs, [f.type for f in forms]))
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
            if tr.combining:
                tr.act = mine
                slots.assign(tr.block(region), mine)
            else:
                _among(tr, region, mine, slots)
            tr.line("pass")
            tr.depth -= 1
            tr.act = act
    tr.bind(op, *slots.vals)


def _among(tr: Translator, region: Block, mine: str, slots: Slots) -> None:
    """Translate a branch for the programs that take it alone: what they use is gathered, results are put back."""
    chosen, pids, outer = tr.name("n"), tr.name("p"), tr.pids
    tr.line(f"{chosen} = rt.enter({mine})")
    tr.line(f"{pids} = R.pick_all({outer}, {chosen})")
    env = dict(tr.env)
    for number in sorted(_captured(region)):
        val = tr.env.get(number)
        if val is None or val.uniform or val.const:
            continue
        if val.code.startswith(f"{outer}["):
            tr.env[number] = replace(val, code=val.code.replace(outer, pids, 1))
            continue
        name = tr.name()
        tr.line(f"{name} = R.pick({val.code}, {chosen})")
        if val.twin:
            tr.line(f"{name}t = R.pick({val.twin}, {chosen})")
        tr.env[number] = replace(val, code=name, twin=f"{name}t" if val.twin else None)
    tr.act, tr.pids = "None", pids
    slots.put_back(tr.block(region), mine, chosen)
    tr.line(f"rt.leave({chosen})")
    tr.pids = outer
    tr.env = env


def _captured(block: Block) -> set[int]:
    """Values used in a block and its regions; those defined there are among them."""
    found: set[int] = set()
    for op in block.ops:
        found.update(op.ins)
        for region in op.regions:
            for inner in region:
                found |= _captured(inner)
    return found
