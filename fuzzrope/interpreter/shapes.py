"""Operations that make, move and combine tensors: ranges, shapes, reductions, products.

Reductions combine neighbours in a tree and scans double their reach at every step, both in the order of
the axis; hardware may associate otherwise. Products of 16-bit and narrower floats are exact in float32;
their sum is rounded in the order of the machine's BLAS.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from fuzzrope.interpreter.functions import function
from fuzzrope.interpreter.ir import Func, Op, Type
from fuzzrope.interpreter.translate import Translator, emits, result_types, unknown
from fuzzrope.interpreter.values import Val


@emits("tt.get_program_id", "tt.get_num_programs")
def _program(tr: Translator, op: Op) -> None:
    if tr.combining:
        raise unknown(op, tr.module)  # inside a function of elements, which have no number
    axis = "xyz".index(op.head.strip())
    kind = Type("i32")
    if op.name == "tt.get_num_programs":
        tr.bind(op, tr.let(f"rt.grid[{axis}]", kind, True))
    else:
        tr.bind(op, Val(f"{tr.pids}[{axis}]", kind, False))


@emits("tt.make_range")
def _make_range(tr: Translator, op: Op) -> None:
    kind = result_types(op)[0]
    start, end = int(op.attrs["start"]), int(op.attrs["end"])
    array = np.arange(start, end, dtype=np.int64).astype(np.uint32).view(np.int32)[None, :]
    tr.bind(op, Val(tr.constant(array), kind, False, (True,), const=True))


@emits("tt.splat")
def _splat(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    if a.uniform:
        tr.bind(op, a.retyped(kind))
        return
    shape = (-1, *(1,) * kind.rank)
    made = tr.let(f"{a.code}.reshape({shape})", kind, False, (False,) * kind.rank, a.root)
    tr.bind(op, replace(made, twin=f"{a.twin}.reshape({shape})" if a.twin else None))


@emits("tt.unsplat")
def _unsplat(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = a.type.with_shape(None)
    if a.uniform:
        tr.bind(op, a.retyped(kind))
    else:
        made = tr.let(f"{a.code}.reshape(-1)", kind, False, (), a.root, a.const)
        tr.bind(op, replace(made, twin=f"{a.twin}.reshape(-1)" if a.twin else None))


@emits("tt.broadcast")
def _broadcast(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    before = a.type.shape or ()
    full = tuple(f and n == m for f, n, m in zip(a.full, before, kind.shape or (), strict=True)) if a.full else ()
    tr.bind(op, replace(a, type=kind, full=full))


@emits("tt.expand_dims")
def _expand_dims(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    if a.uniform:
        tr.bind(op, a.retyped(kind))
        return
    axis = int(op.attrs["axis"])
    index = "[" + ", ".join([":"] * (axis + 1) + ["None"]) + "]"
    full = (*a.full[:axis], False, *a.full[axis:])
    made = tr.let(a.code + index, kind, False, full, a.root, a.const)
    tr.bind(op, replace(made, twin=f"{a.twin}{index}" if a.twin else None))


@emits("tt.reshape")
def _reshape(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    if a.uniform:
        tr.bind(op, a.retyped(kind))
        return
    whole = tr.whole(a)
    shape = (-1, *(kind.shape or ()))
    made = tr.let(f"{whole.code}.reshape({shape})", kind, False, (True,) * kind.rank, a.root, a.const)
    tr.bind(op, replace(made, twin=f"{whole.twin}.reshape({shape})" if whole.twin else None))


@emits("tt.trans")
def _trans(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    if a.uniform:
        tr.bind(op, a.retyped(kind))
        return
    order = [int(n) for n in re.findall(r"-?\d+", op.attrs["order"].partition(":")[2])]
    axes = (0, *(n + 1 for n in order))
    full = tuple(a.full[n] for n in order)
    made = tr.let(f"{a.code}.transpose({axes})", kind, False, full, a.root, a.const)
    tr.bind(op, replace(made, twin=f"{a.twin}.transpose({axes})" if a.twin else None))


@emits("tt.join")
def _join(tr: Translator, op: Op) -> None:
    a, b = _together(tr, *tr.ins(op))
    kind = result_types(op)[0]
    code = f"T.join({a.code}, {b.code})"
    tr.bind(op, tr.let(code, kind, False, (*a.full, True), a.root, a.const and b.const))


@emits("tt.split")
def _split(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    if a.uniform:
        tr.bind(op, a.retyped(kind), a.retyped(kind))
        return
    a = tr.spread(a, (*(False,) * (a.type.rank - 1), True))
    halves = [tr.let(f"{a.code}[..., {i}]", kind, False, a.full[:-1], a.root, a.const) for i in (0, 1)]
    tr.bind(op, *halves)


@emits("tt.cat")
def _cat(tr: Translator, op: Op) -> None:
    a, b = _together(tr, *tr.ins(op))
    a, b = (tr.spread(v, (True, *(False,) * (v.type.rank - 1))) for v in (a, b))
    kind = result_types(op)[0]
    tr.bind(op, tr.let(f"T.cat({a.code}, {b.code})", kind, False, a.full, a.root, a.const and b.const))


def _together(tr: Translator, a: Val, b: Val) -> tuple[Val, Val]:
    """Two values as arrays of one form, for putting them side by side."""
    if a.elem == "ptr" and a.root != b.root:
        a, b = tr.absolute(a), tr.absolute(b)
    form = tr.join(a, b, divergent=True)
    return tr.spread(a, form.full), tr.spread(b, form.full)


@emits("tt.gather")
def _gather(tr: Translator, op: Op) -> None:
    a, index = (tr.whole(val) for val in tr.ins(op))
    kind = result_types(op)[0]
    axis = int(op.attrs["axis"]) + 1
    site = tr.site(op, "gather")
    tr.bind(op, tr.let(f"rt.gather({site}, {a.code}, {index.code}, {axis}, {tr.act})", kind, False, index.full))


@emits("tt.histogram")
def _histogram(tr: Translator, op: Op) -> None:
    vals = tr.ins(op)
    kind = result_types(op)[0]
    source = tr.whole(vals[0])
    mask = tr.whole(vals[1]).code if len(vals) > 1 else "None"
    assert kind.shape is not None
    code = f"T.histogram({source.code}, {mask}, {kind.shape[0]})"
    tr.bind(op, tr.let(code, kind, False, (True,), const=False))


@emits("tt.reduce", "tt.scan")
def _reduce(tr: Translator, op: Op) -> None:
    vals = tr.ins(op)
    axis = int(op.attrs["axis"])
    combine = _combine(tr, op)
    wanted = tuple(dim == axis for dim in range(vals[0].type.rank))
    vals = [tr.spread(val, wanted) for val in vals]
    scan = op.name == "tt.scan"
    kinds = _kinds(op, vals, axis, scan)
    arrays = ", ".join(val.code for val in vals)
    name = tr.name()
    kind_of = "scan" if scan else "reduce"
    reverse = f", {op.attrs.get('reverse') == 'true'}" if scan else ""
    tr.line(f"{name} = T.{kind_of}({combine}, ({arrays},), {axis + 1}{reverse})")
    full = tuple(any(val.full[dim] for val in vals) for dim in range(len(wanted)))
    if not scan:
        full = tuple(f for dim, f in enumerate(full) if dim != axis)
    results = []
    for i, kind in enumerate(kinds):
        results.append(tr.let(f"{name}[{i}]", kind, False, full if kind.shape else ()))
    tr.bind(op, *results)


def _kinds(op: Op, vals: list[Val], axis: int, scan: bool) -> list[Type]:
    kinds = []
    for val in vals:
        shape = val.type.shape or ()
        left = shape if scan else tuple(n for dim, n in enumerate(shape) if dim != axis)
        kinds.append(val.type.with_shape(left or None))
    return kinds


def _combine(tr: Translator, op: Op) -> str:
    """A nested function of the program that combines two tuples of arrays."""
    blocks = op.regions[0]
    block = blocks[0]
    name, form = tr.name("f"), tr.name()
    arguments = [tr.name("a") for _ in block.args]
    tr.line(f"def {name}({', '.join(arguments)}):")
    tr.depth += 1
    outside = tr.act, tr.pids, tr.combining
    tr.act = "None"  # whose result is not wanted is combined as well
    straight = len(blocks) == 1 and not any(one.regions or one.name == "tt.call" for one in block.ops)
    if not straight:  # elements that take different ways are masked like programs
        tr.line(f"{form}, {', '.join(arguments)} = T.lanes({', '.join(arguments)})")
    tr.pids, tr.combining = f"({arguments[0]},)", True
    values = [Val(code, kind, False) for (_, kind), code in zip(block.args, arguments, strict=True)]
    ends = function(tr, Func(name, False, block.args, blocks, ids=block.ids), values)
    made = ", ".join(tr.array(val) for val in ends)
    tr.line(f"return ({made},)" if straight else f"return T.shaped({form}, {made})")
    tr.depth -= 1
    tr.act, tr.pids, tr.combining = outside
    return name


@emits("tt.map_elementwise")
def _map_elementwise(tr: Translator, op: Op) -> None:
    if int(op.attrs.get("pack", "1")) != 1:
        raise unknown(op, tr.module)
    vals = tr.ins(op)
    combine = _combine(tr, op)
    full = tuple(any(not v.uniform and v.full[d] for v in vals) for d in range(vals[0].type.rank))
    name = tr.name()
    tr.line(f"{name} = {combine}({', '.join(tr.array(val) for val in vals)})")
    tr.bind(op, *(tr.let(f"{name}[{i}]", kind, False, full) for i, kind in enumerate(result_types(op))))


@emits("tt.dot")
def _dot(tr: Translator, op: Op) -> None:
    a, b, c = tr.ins(op)
    kind = result_types(op)[0]
    precision = re.search(r"inputPrecision = (\w+)", op.head)
    mode = precision[1] if precision else "ieee"
    a, b = tr.whole(a), tr.whole(b)
    code = f"T.dot({a.code}, {b.code}, {c.code}, {a.elem!r}, {kind.elem!r}, {mode!r})"
    tr.bind(op, tr.let(code, kind, False, (True,) * kind.rank))


@emits("tt.dot_scaled")
def _dot_scaled(tr: Translator, op: Op) -> None:
    vals = {name: tr.env[number] for name, number in zip(op.operands, op.ins, strict=True)}
    factors, _, total = op.head.partition(" lhs = ")[0].rpartition(",")
    sides = []
    for side, text in zip(("lhs", "rhs"), factors.split(","), strict=True):
        names = re.findall(r"%[\w$.\-]+(?:#\d+)?", text)
        form = re.search(rf"{side} = (\w+)", op.head)
        assert form is not None
        scale = tr.whole(vals[names[1]]).code if len(names) > 1 else "None"
        packed = op.attrs.get(f"{side}_k_pack", "true") == "true"
        sides.append(f"T.scaled({tr.whole(vals[names[0]]).code}, {scale}, {form[1]!r}, {side == 'lhs'}, {packed})")
    kind = result_types(op)[0]
    code = f"np.matmul({', '.join(sides)}) + {vals[total.strip()].code}"
    tr.bind(op, tr.let(code, kind, False, (True,) * kind.rank))
