"""Elementwise operations on floating-point numbers: the dialects ``arith`` and ``math``, and Triton's own.

They round once to their format: float32 and float64 by NumPy, float16 and bfloat16 as float32 rounded
afterwards, which is exact for + - * / and the square root (double rounding is innocuous with 24 >= 2p + 2
digits; Figueroa, "When is double rounding innocuous?", 1995).
"""

from __future__ import annotations

from fuzzrope.interpreter.arithmetic import put, through
from fuzzrope.interpreter.ir import Op
from fuzzrope.interpreter.libdevice import FUNCTIONS
from fuzzrope.interpreter.translate import Translator, emits, result_types, unknown
from fuzzrope.interpreter.values import BITS, Val, wrapped


@emits("arith.sitofp", "arith.uitofp")
def _to_float(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    through(tr, op, f"R.{op.name[6:]}", [a], kind, repr(kind.elem))


@emits("arith.fptosi", "arith.fptoui")
def _to_int(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    through(tr, op, "R.fptoi", [a], kind, str(BITS[kind.elem]), str(op.name == "arith.fptosi"))


def converted(tr: Translator, op: Op, a: Val, mode: str) -> None:
    """A value of one floating-point format in another."""
    kind = result_types(op)[0]
    if kind.elem == "f64":
        put(tr, op, a.code if a.elem == "f64" else f"{a.code}.astype(np.float64)", [a], kind)
    elif BITS[a.elem] < 32 and kind.elem == "f32":
        put(tr, op, a.code, [a], kind)
    elif a.elem == "f64" or mode != "rtne" or BITS[kind.elem] == 8:
        through(tr, op, "R.convert", [a], kind, repr(kind.elem), repr(mode))
    else:
        put(tr, op, rounded(tr, a.code, kind.elem, a.uniform), [a], kind)


def rounded(tr: Translator, code: str, elem: str, uniform: bool) -> str:
    """Code of a float32 result rounded to the format it belongs to."""
    if elem in ("bf16", "f16"):
        return f"R.{elem}_one({code})" if uniform else f"R.{elem}({code})"
    return code


@emits("arith.truncf", "arith.extf")
def _resize_float(tr: Translator, op: Op) -> None:
    mode = "rtz" if "toward_zero" in op.head else "rtne"
    converted(tr, op, tr.ins(op)[0], mode)


@emits("tt.fp_to_fp")
def _fp_to_fp(tr: Translator, op: Op) -> None:
    mode = "rtz" if "rtz" in op.head else "rtne"
    converted(tr, op, tr.ins(op)[0], mode)


_FLOATS = {"addf": "{0} + {1}", "subf": "{0} - {1}", "mulf": "{0} * {1}", "divf": "{0} / {1}"}


@emits("arith.addf", "arith.subf", "arith.mulf", "arith.divf", "tt.precise_divf")
def _floats(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    if tr.contracts and op.name in ("arith.addf", "arith.subf") and _contracted(tr, op, a, b):
        return
    code = _FLOATS[op.name.rpartition(".")[2].removeprefix("precise_")].format(a.code, b.code)
    put(tr, op, rounded(tr, code, a.elem, a.uniform and b.uniform), [a, b], a.type)
    if op.name == "arith.mulf":
        tr.products[op.outs[0]] = a, b, tr.depth


def _contracted(tr: Translator, op: Op, a: Val, b: Val) -> bool:
    """A sum with a product of the same block, the first if both are, as a GPU's compiler makes it: rounded once."""
    for number, other, left in ((op.ins[0], b, True), (op.ins[1], a, False)):
        x, y, depth = tr.products.get(number, (a, b, -1))
        if depth == tr.depth:
            minus = op.name == "arith.subf"
            x = tr.negated(x) if minus and not left else x
            other = tr.negated(other) if minus and left else other
            through(tr, op, "R.fma", [x, y, other], a.type, repr(a.elem))
            return True
    return False


@emits("arith.remf")
def _remf(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    put(tr, op, f"np.fmod({a.code}, {b.code})", [a, b], a.type)


@emits("arith.negf")
def _negf(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    put(tr, op, f"-{a.code}", [a], a.type)


@emits("arith.minnumf", "arith.maxnumf", "arith.minimumf", "arith.maximumf")
def _minmax_float(tr: Translator, op: Op) -> None:
    a, b = tr.ins(op)
    through(tr, op, f"R.{op.name[6:]}", [a, b], a.type)


@emits("tt.clampf")
def _clampf(tr: Translator, op: Op) -> None:
    vals = tr.ins(op)
    through(tr, op, "R.clampf", vals, vals[0].type, str("propagateNan = all" in op.head))


@emits("math.fma")
def _fma(tr: Translator, op: Op) -> None:
    vals = tr.ins(op)
    through(tr, op, "R.fma", vals, vals[0].type, repr(vals[0].elem))


@emits("math.absi")
def _absi(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    put(tr, op, wrapped(f"abs({a.code})", a.elem) if a.uniform else f"np.abs({a.code})", [a], a.type)


_EXACT = {"math.absf": "np.abs", "math.floor": "np.floor", "math.ceil": "np.ceil", "math.trunc": "np.trunc"}
_EXACT |= {"math.roundeven": "np.rint"}


@emits(*_EXACT)
def _exact(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    if op.name in ("math.floor", "math.ceil") and a.elem != "f64":
        through(tr, op, f"R.{op.name[5:]}", [a], a.type)
        return
    put(tr, op, f"{_EXACT[op.name]}({a.code})", [a], a.type)


@emits("math.sqrt", "tt.precise_sqrt")
def _sqrt(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    put(tr, op, rounded(tr, f"np.sqrt({a.code})", a.elem, a.uniform), [a], a.type)


_FUNCTIONS = (
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "erf", "rsqrt"),
    *("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "cbrt", "round", "powf", "atan2"),
)


@emits(*(f"math.{name}" for name in _FUNCTIONS))
def _function(tr: Translator, op: Op) -> None:
    vals = tr.ins(op)
    through(tr, op, "R.function", vals, vals[0].type, repr(op.name[5:]), repr(vals[0].elem))


@emits("tt.extern_elementwise")
def _extern(tr: Translator, op: Op) -> None:
    vals = tr.ins(op)
    symbol = op.strings[-1]
    if symbol not in FUNCTIONS:
        raise unknown(op, tr.module)
    kind = result_types(op)[0]
    through(tr, op, "R.extern", vals, kind, repr(symbol), repr(kind.elem))
