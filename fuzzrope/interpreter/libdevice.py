"""Mathematical functions by the names that Triton's IR calls them: the ``math`` dialect and libdevice.

Each computes in float64; the caller rounds to the format of the result, so results are within half an ulp
and a little of the true value. What has no NumPy equal comes from torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fuzzrope.interpreter import formats

Array = np.ndarray
Function = Callable[..., Array]


def _torch(function: Callable[..., torch.Tensor]) -> Function:
    def call(*values: Array) -> Array:
        with torch._C.DisableTorchFunction():
            wide = [torch.from_numpy(np.array(value, dtype=np.float64)) for value in values]
            return function(*wide).numpy()

    return call


def _away(x: Array) -> Array:
    """To the nearest integer, ties away from zero."""
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(1.0, x), whole)


def _rsqrt(x: Array) -> Array:
    return 1.0 / np.sqrt(x)


MATH: dict[str, Function] = {
    name: getattr(np, numpy_name)
    for name, numpy_name in {
        **{n: n for n in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh")},
        **{n: n for n in ("sinh", "cosh", "cbrt", "floor", "ceil", "trunc", "sqrt")},
        **{"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh"},
        **{"atanh": "arctanh", "atan2": "arctan2", "powf": "power"},
    }.items()
}
MATH |= {"rsqrt": _rsqrt, "erf": _torch(torch.erf), "round": _away}

_NAMED: dict[str, Function] = {
    **{name: MATH[name] for name in MATH if name != "powf"},
    "pow": np.power,
    "fmod": np.fmod,
    "remainder": lambda x, y: x - y * np.rint(x / y),
    "hypot": np.hypot,
    "rhypot": lambda x, y: 1.0 / np.hypot(x, y),
    "fdim": lambda x, y: np.where(np.isnan(x) | np.isnan(y), np.nan, np.maximum(x - y, 0.0)),
    "exp10": lambda x: np.power(10.0, x),
    "erfc": _torch(torch.special.erfc),
    "erfinv": _torch(torch.special.erfinv),
    "erfcx": _torch(torch.special.erfcx),
    "lgamma": _torch(torch.lgamma),
    "tgamma": lambda x: np.where(x > 0, 1.0, np.nan) * np.exp(_torch(torch.lgamma)(x)),
    "j0": _torch(torch.special.bessel_j0),
    "j1": _torch(torch.special.bessel_j1),
    "y0": _torch(torch.special.bessel_y0),
    "y1": _torch(torch.special.bessel_y1),
    "cyl_bessel_i0": _torch(torch.special.i0),
    "cyl_bessel_i1": _torch(torch.special.i1),
    "normcdf": _torch(torch.special.ndtr),
    "sinpi": lambda x: np.sin(np.pi * np.fmod(x, 2.0)),
    "cospi": lambda x: np.cos(np.pi * np.fmod(x, 2.0)),
    "rint": np.rint,
    "nearbyint": np.rint,
    "fabs": np.abs,
    "copysign": np.copysign,
    "nextafter": np.nextafter,
    "rcbrt": lambda x: 1.0 / np.cbrt(x),
}
_FAST = ("sinf", "cosf", "tanf", "expf", "exp10f", "logf", "log2f", "log10f", "powf", "fdividef", "tanhf")


def _wide(function: Function) -> Function:
    return lambda *values: function(*(np.asarray(value).astype(np.float64) for value in values))


def _table() -> dict[str, Function]:
    table: dict[str, Function] = {}
    for name, function in _NAMED.items():
        table[f"__nv_{name}"] = _wide(function)
        table[f"__nv_{name}f"] = _wide(function)
    # Steps to the neighbour in the format itself.
    table["__nv_nextafterf"] = np.nextafter
    for name in _FAST:
        if name == "fdividef":
            table["__nv_fast_fdividef"] = _wide(np.divide)
        else:
            table[f"__nv_fast_{name}"] = table[f"__nv_{name}"]
    for suffix in ("", "f", "d"):
        table[f"__nv_isnan{suffix}"] = np.isnan
        table[f"__nv_isinf{suffix}"] = np.isinf
        table[f"__nv_signbit{suffix}"] = np.signbit
    table["__nv_finitef"] = table["__nv_isfinited"] = np.isfinite
    table["__nv_fsqrt_rn"] = table["__nv_dsqrt_rn"] = _wide(np.sqrt)
    table["__nv_frsqrt_rn"] = _wide(_rsqrt)
    table["__nv_fdiv_rn"] = table["__nv_ddiv_rn"] = np.divide
    table["__nv_fadd_rn"] = table["__nv_dadd_rn"] = np.add
    table["__nv_fmul_rn"] = table["__nv_dmul_rn"] = np.multiply
    table["__nv_fsub_rn"] = table["__nv_dsub_rn"] = np.subtract
    table["__nv_frcp_rn"] = table["__nv_drcp_rn"] = lambda x: (1 / x).astype(x.dtype)
    table["__nv_abs"] = table["__nv_llabs"] = np.abs
    table["__nv_min"] = table["__nv_llmin"] = np.minimum
    table["__nv_max"] = table["__nv_llmax"] = np.maximum
    table["__nv_fminf"] = table["__nv_fmin"] = np.fmin
    table["__nv_fmaxf"] = table["__nv_fmax"] = np.fmax
    table["__nv_clz"] = lambda x: _leading_zeros(x, 32)
    table["__nv_clzll"] = lambda x: _leading_zeros(x, 64)
    table["__nv_popc"] = table["__nv_popcll"] = _ones
    table["__nv_mulhi"] = lambda x, y: (x.astype(np.int64) * y.astype(np.int64)) >> 32
    table["__nv_float_as_int"] = lambda x: x.view(np.int32)
    table["__nv_int_as_float"] = lambda x: x.view(np.float32)
    table["__nv_llrintf"] = table["__nv_llrint"] = _whole(np.rint, 64, True)
    table["__nv_llroundf"] = table["__nv_llround"] = _whole(_away, 64, True)
    table["__nv_saturatef"] = lambda x: np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)
    return table | _conversions() | _fused()


def _conversions() -> dict[str, Function]:
    """Between formats with a rounding mode in the name; what does not fit in an integer saturates."""
    table: dict[str, Function] = {}
    kinds = (("int", 32, True), ("uint", 32, False), ("ll", 64, True), ("ull", 64, False))
    for name, bits, signed in kinds:
        for mode, function in (("rn", np.rint), ("rd", np.floor), ("ru", np.ceil), ("rz", np.trunc)):
            table[f"__nv_float2{name}_{mode}"] = table[f"__nv_double2{name}_{mode}"] = _whole(function, bits, signed)
        table[f"__nv_{name}2float_rn"] = _nearest("f32", signed)
        table[f"__nv_{name}2double_rn"] = _nearest("f64", signed)
    table["__nv_double2float_rn"] = lambda x: x
    table["__nv_float_as_uint"] = lambda x: x.view(np.int32)
    table["__nv_uint_as_float"] = lambda x: x.view(np.float32)
    table["__nv_double_as_longlong"] = lambda x: x.view(np.int64)
    table["__nv_longlong_as_double"] = lambda x: x.view(np.float64)
    return table


def _fused() -> dict[str, Function]:
    table: dict[str, Function] = {}
    for name in ("fma", "fma_rn"):
        table[f"__nv_{name}"] = lambda x, y, z: formats.fma(x, y, z, "f64")
        table[f"__nv_{name.replace('fma', 'fmaf')}"] = lambda x, y, z: formats.fma(x, y, z, "f32")
    for name in ("ldexp", "scalbn"):
        table[f"__nv_{name}"] = table[f"__nv_{name}f"] = lambda x, n: np.ldexp(x.astype(np.float64), n)
    table["__nv_powi"] = table["__nv_powif"] = _wide(np.power)
    table["__nv_hadd"] = lambda x, y: (x.astype(np.int64) + y) >> 1
    table["__nv_rhadd"] = lambda x, y: (x.astype(np.int64) + y + 1) >> 1
    table["__nv_umulhi"] = lambda x, y: (x.view(np.uint32).astype(np.uint64) * y.view(np.uint32)) >> np.uint64(32)
    table["__nv_ffs"] = table["__nv_ffsll"] = lambda x: np.where(x == 0, 0, _ones((x & -x) - 1) + 1)
    return table


def _whole(function: Callable[[Array], Array], bits: int, signed: bool) -> Function:
    return lambda x: formats.float_to_int(function(x), bits, signed)


def _nearest(elem: str, signed: bool) -> Function:
    return lambda x: formats.int_to_float(x if signed else x.view(f"u{x.dtype.itemsize}"), elem)


def _leading_zeros(x: Array, bits: int) -> Array:
    value, count = x.view(f"u{bits // 8}").copy(), np.full(x.shape, bits, dtype=np.int32)
    for _ in range(bits):
        count -= value != 0
        value >>= value.dtype.type(1)
    return count


def _ones(x: Array) -> Array:
    return np.bitwise_count(x.view(f"u{x.dtype.itemsize}")).astype(np.int32)


FUNCTIONS = _table()
