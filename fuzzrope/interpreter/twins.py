"""Address arithmetic a second time, without wrapping: in programs that watch for 32-bit overflow.

A twin is the value that the kernel's author meant. An access whose address differs from its twin's has
been computed from a product or sum that did not fit. What takes a value apart on purpose (bit operations,
unsigned shifts, remainders) ends the comparison: hashes and random numbers wrap by design. A twin is a
Python integer or an int64 array.
"""

from __future__ import annotations

from dataclasses import replace

from fuzzrope.interpreter.ir import Op
from fuzzrope.interpreter.translate import Translator
from fuzzrope.interpreter.values import Val, wrapped

_SOURCE = {
    "arith.addi": ("{0} + {1}", "{0} + {1}"),
    "arith.subi": ("{0} - {1}", "{0} - {1}"),
    "arith.muli": ("{0} * {1}", "{0} * {1}"),
    "arith.shli": ("{0} << {1}", "np.left_shift({0}, {1})"),
    "arith.divsi": ("R.one(R.divsi(R.wide([{0}]), R.wide([{1}])))", "R.divsi(R.wide({0}), R.wide({1}))"),
    "arith.minsi": ("min({0}, {1})", "np.minimum({0}, {1})"),
    "arith.maxsi": ("max({0}, {1})", "np.maximum({0}, {1})"),
    "arith.extsi": ("{0}", "{0}"),
    "arith.trunci": ("{0}", "{0}"),
    "arith.index_cast": ("{0}", "{0}"),
}
_MAY_WRAP = ("arith.addi", "arith.subi", "arith.muli", "arith.shli")


def meant(val: Val) -> str:
    """Code of the twin of a value, or of the value itself where it has none."""
    code = val.twin or val.code
    return code if val.uniform else f"R.wide({code})"


def pointer(base: Val, offset: Val, width: int) -> str:
    """Code of the twin of a pointer and an offset in elements of some bytes."""
    if base.uniform and offset.uniform:
        return wrapped(f"{meant(base)} + {meant(offset)} * {width}", "i64")
    return " + ".join([meant(base), f"np.int64({width}) * {meant(offset)}"])


def follow(tr: Translator, op: Op, vals: list[Val]) -> None:
    """Give the result just bound its twin, if it may differ from it."""
    made = tr.env[op.outs[0]]
    templates = _SOURCE.get(op.name)
    starts = op.name in _MAY_WRAP and made.elem == "i32"
    if templates is None or made.elem == "i1" or not (starts or any(val.twin for val in vals)):
        return
    code = templates[not made.uniform].format(*map(meant, vals))
    if made.uniform and op.name in _MAY_WRAP:
        code = wrapped(code, "i64")
    if made.const and not any(val.twin for val in vals):
        return  # constant folding would have refused
    twin = tr.let(code, made.type, made.uniform, made.full)
    tr.env[op.outs[0]] = replace(made, twin=twin.code)
