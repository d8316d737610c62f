"""Elementwise operations on integers and on bits: constants, arithmetic, comparison, selection, widths.

Integers wrap at their width.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from fuzzrope.interpreter import twins
from fuzzrope.interpreter.access import recast
from fuzzrope.interpreter.formats import decode
from fuzzrope.interpreter.ir import Op, Type
from fuzzrope.interpreter.translate import Translator, emits, result_types, unknown
from fuzzrope.interpreter.values import BITS, SMALL_FLOATS, WRAP, Val, carried, is_float, union, wrapped


def put(tr: Translator, op: Op, code: str, vals: list[Val], kind: Type | None = None) -> None:
    """Bind the result of an elementwise operation with the union of its operands' forms."""
    kind = kind or result_types(op)[0]
    uniform = all(val.uniform for val in vals)
    full = () if uniform else union([v for v in vals if v.uniform or v.type.rank == kind.rank], kind.rank)
    tr.bind(op, tr.let(code, kind, uniform, full, const=all(val.const for val in vals)))
    if tr.checked and op.outs[0] in tr.flow.addresses:
        twins.follow(tr, op, vals)


def typed(tr: Translator, val: Val) -> str:
    """Code of a value as an array of its carried dtype, also if it is uniform."""
    if not val.uniform:
        return val.code
    code = f"np.full(1, {val.code}, {tr.constant(carried(val.elem))})"
    return tr.let(code, val.type, True, const=True).code if val.const else code


def through(tr: Translator, op: Op, function: str, vals: list[Val], kind: Type | None = None, *extra: str) -> None:
    """Bind the result of a runtime function that takes and gives arrays."""
    kind = kind or result_types(op)[0]
    code = f"{function}({', '.join([*(typed(tr, val) for val in vals), *extra])})"
    if all(val.uniform for val in vals):
        code = f"R.one({code})"
    put(tr, op, code, vals, kind)


@emits("arith.constant")
def _constant(tr: Translator, op: Op) -> None:
    kind = result_types(op)[0] if op.types else Type("i1")
    text = op.head.strip()
    if text.startswith("dense<"):
        text = text[6:-1]
    if text in ("true", "false"):
        tr.bind(op, Val(str(text == "true"), kind, True, const=True))
    elif text.startswith("["):
        numbers = [_number(item, kind.elem) for item in re.findall(r"[^\s,\[\]]+", text)]
        array = np.array(numbers, dtype=carried(kind.elem)).reshape((1, *(kind.shape or ())))
        tr.bind(op, Val(tr.constant(array), kind, False, (True,) * kind.rank, const=True))
    elif is_float(kind.elem):
        tr.bind(op, Val(tr.constant(_number(text, kind.elem)), kind, True, const=True))
    else:
        tr.bind(op, Val(f"({_number(text, kind.elem)})", kind, True, const=True))


def _number(text: str, elem: str) -> np.generic | int | bool:
    if text in ("true", "false"):
        return text == "true"
    if not is_float(elem):
        return int(text, 0)
    if text.startswith("0x"):
        bits = np.array([int(text, 16)], dtype=f"u{BITS[elem] // 8}")
        if elem in SMALL_FLOATS:
            return np.float32(decode(bits, elem)[0])
        return bits.view(carried(elem))[0]
    return carried(elem).type(text)


@emits("ub.poison")
def _poison(tr: Translator, op: Op) -> None:
    kind = result_types(op)[0]
    if is_float(kind.elem):
        tr.bind(op, Val(tr.constant(carried(kind.elem).type(np.nan)), kind, True, const=True))
    else:
        tr.bind(op, Val("False" if kind.elem == "i1" else "0", kind, True, const=True))


_PYTHON = {"addi": "{0} + {1}", "subi": "{0} - {1}", "muli": "{0} * {1}"}
_BITWISE = {"andi": "&", "ori": "|", "xori": "^"}


@emits("arith.addi", "arith.subi", "arith.muli", "arith.andi", "arith.ori", "arith.xori")
def _integers(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    short = op.name[6:]
    if a.elem == "i1":
        short = {"addi": "xori", "subi": "xori", "muli": "andi"}.get(short, short)
    if short in _BITWISE:
        put(tr, op, f"{a.code} {_BITWISE[short]} {b.code}", [a, b], a.type)
        return
    code = _PYTHON[short].format(a.code, b.code)
    put(tr, op, wrapped(code, a.elem) if a.uniform and b.uniform else code, [a, b], a.type)


@emits(*(f"arith.{n}" for n in ("divsi", "remsi", "divui", "remui", "shli", "shrsi", "shrui", "ceildivsi")))
@emits("arith.floordivsi", "arith.ceildivui")
def _division(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    if op.name in ("arith.divsi", "arith.remsi") and not (a.uniform and b.uniform):
        put(tr, op, f"R.{op.name[6:]}({a.code}, {b.code})", [a, b], a.type)  # NumPy takes the scalar as it is
        return
    through(tr, op, f"R.{op.name[6:]}", [a, b], a.type)


@emits("arith.minsi", "arith.maxsi")
def _minmax(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    short = op.name[6:9]
    code = f"{short}({a.code}, {b.code})" if a.uniform and b.uniform else f"np.{short}imum({a.code}, {b.code})"
    put(tr, op, code, [a, b], a.type)


@emits("arith.minui", "arith.maxui", "tt.mulhiui")
def _unsigned(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    through(tr, op, f"R.{op.name.partition('.')[2]}", [a, b], a.type)


@emits("arith.mului_extended", "arith.mulsi_extended", "arith.addui_extended")
def _extended(tr: Translator, op: Op) -> None:
    raise unknown(op, tr.module)


_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@emits("arith.cmpi")
def _cmpi(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    predicate = op.head.split(",")[0].strip()
    kind = a.type.with_elem("i1")
    if predicate[0] == "u":
        left, right = (_as_unsigned(tr, val) for val in (a, b))
        put(tr, op, f"{left} {_COMPARE[predicate[1:]]} {right}", [a, b], kind)
        return
    sign = _COMPARE[predicate.removeprefix("s")]
    put(tr, op, f"{a.code} {sign} {b.code}", [a, b], kind)


def _as_unsigned(tr: Translator, val: Val) -> str:
    if val.elem == "i1":
        return val.code
    if val.uniform:
        return f"({val.code} & {WRAP[BITS[val.elem]][1]})"
    return f"{val.code}.view({tr.constant(np.dtype(f'u{BITS[val.elem] // 8}'))})"


@emits("arith.cmpf")
def _cmpf(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    predicate = op.head.split(",")[0].strip()
    kind = a.type.with_elem("i1")
    if predicate == "oeq":
        put(tr, op, f"{a.code} == {b.code}", [a, b], kind)
    elif predicate == "une":
        put(tr, op, f"{a.code} != {b.code}", [a, b], kind)
    elif predicate[0] == "o" and predicate[1:] in ("lt", "le", "gt", "ge"):
        put(tr, op, f"{a.code} {_COMPARE[predicate[1:]]} {b.code}", [a, b], kind)
    else:
        through(tr, op, "R.cmpf", [a, b], kind, repr(predicate))


@emits("arith.select")
def _select(tr: Translator, op: Op) -> None:
    cond, a, b = tr.ins(op)
    kind = a.type
    if cond.uniform:
        if a.elem == "ptr" and a.root != b.root:
            a, b = tr.absolute(a), tr.absolute(b)
        form = tr.join(a, b)
        name = tr.name()
        left, right = tr.like(a, form), tr.like(b, form)
        tr.line(f"{name} = {left} if {cond.code} else {right}")
        tr.bind(op, Val(name, kind, form.uniform, form.full, form.root))
        if tr.checked and (a.twin or b.twin):
            twin = f"({twins.meant(a)} if {cond.code} else {twins.meant(b)})"
            tr.bind(op, Val(name, kind, form.uniform, form.full, form.root, False, twin))
        return
    if a.elem == "ptr" and a.root != b.root:
        a, b = tr.absolute(a), tr.absolute(b)
    root = a.root
    code = cond.code
    if cond.type.rank != kind.rank:  # one condition for a whole tensor
        code = f"{code}.reshape({(-1, *(1,) * kind.rank)})"
    full = union([v for v in (cond, a, b) if v.type.rank == kind.rank], kind.rank)
    text = f"np.where({code}, {a.code}, {b.code})"
    if a.uniform and b.uniform:
        text += f".astype({tr.constant(carried(kind.elem))})"
    made = tr.let(text, kind, False, full, root)
    if tr.checked and (a.twin or b.twin):
        watched = tr.let(f"np.where({code}, {twins.meant(a)}, {twins.meant(b)})", kind, False, full)
        made = replace(made, twin=watched.code)
    tr.bind(op, made)


# -- widths and formats -------------------------------------------------------------------------------


@emits("arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast", "arith.index_castui")
def _resize(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    short, source, target = op.name[6:], BITS[a.elem], BITS[kind.elem]
    if short.startswith("index_cast"):
        short = "trunci" if target < source else "extui" if short.endswith("ui") else "extsi"
    dtype = tr.constant(carried(kind.elem))
    if a.uniform:
        if short == "trunci":
            code = wrapped(a.code, kind.elem)
        elif a.elem == "i1":
            code = f"{'-' if short == 'extsi' else ''}int({a.code})"
        else:
            code = a.code if short == "extsi" else f"({a.code} & {WRAP[source][1]})"
    elif short == "trunci":
        code = f"({a.code} & 1).astype({dtype})" if kind.elem == "i1" else f"{a.code}.astype({dtype})"
    elif short == "extsi":
        code = f"{a.code}.astype({dtype})"
        code = f"-{code}" if a.elem == "i1" else code
    else:
        code = f"{_as_unsigned(tr, a)}.astype({dtype})"
    put(tr, op, code, [a], kind)


@emits("arith.bitcast", "tt.bitcast")
def _bitcast(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    if kind.elem == "ptr":
        tr.bind(op, recast(tr, a, kind))
    elif kind.elem == a.elem:
        tr.bind(op, a.retyped(kind))
    else:
        through(tr, op, "R.bitcast", [a], kind, repr(a.elem), repr(kind.elem))
