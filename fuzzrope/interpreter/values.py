"""Values of a translated kernel: what the generated program knows about each before it runs.

A value is either *uniform* (one Python int or bool, or one NumPy float, for every program and lane) or an
array with a leading axis over the programs of a chunk, then the tensor's dimensions. Any axis may have
extent 1 where the value does not vary along it, so that splat and broadcast cost nothing; for the
tensor's dimensions ``full`` says so statically, for the programs' axis nothing relies on it.

float16, bfloat16 and the 8-bit floats are carried as float32 arrays that hold representable numbers.
A pointer is an int64 element offset from one argument (``root``), or, without a root, a byte address.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fuzzrope.interpreter.ir import Type

#: How a value of this element type is carried in arrays.
CARRIED: dict[str, str] = {
    "i1": "b1",
    "i8": "i1",
    "i16": "i2",
    "i32": "i4",
    "i64": "i8",
    "index": "i8",
    "ptr": "i8",
    "f32": "f4",
    "f64": "f8",
}
SMALL_FLOATS = ("f16", "bf16", "f8E4M3FN", "f8E5M2", "f8E4M3FNUZ", "f8E5M2FNUZ", "f8E4M3B11FNUZ")
CARRIED |= dict.fromkeys(SMALL_FLOATS, "f4")
BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64}
BITS |= dict.fromkeys(SMALL_FLOATS[2:], 8)

#: How memory that holds this element type is viewed; what is not carried as such is decoded after loading.
STORED: dict[str, str] = {**CARRIED, **dict.fromkeys(SMALL_FLOATS[:2], "u2"), **dict.fromkeys(SMALL_FLOATS[2:], "u1")}
STORED["i1"] = "u1"


def carried(elem: str) -> np.dtype:
    """The NumPy dtype that carries values of an element type."""
    return np.dtype(CARRIED[elem])


def stored_elem(to: str) -> str:
    """The element type in memory behind a pointer: addresses are 64-bit integers there."""
    return "ptr" if to.startswith("!tt.ptr") else to


def width_of(to: str) -> int:
    """Bytes of one element behind a pointer."""
    elem = stored_elem(to)
    return 8 if elem == "ptr" else max(BITS[elem] // 8, 1)


@dataclass(frozen=True, slots=True)
class Val:
    """One SSA value while its kernel is translated.

    Attributes:
        code: a Python name or literal that evaluates to it in the generated program.
        type: its type in the IR.
        uniform: whether it is one scalar for all programs and lanes.
        full: for each tensor dimension, whether an array has its whole extent; () for scalars.
        root: for pointers, the argument it was derived from; None means a byte address.
        const: whether it is known when the program is built.
        twin: code of the same value computed without wrapping, in programs that watch for overflow.
    """

    code: str
    type: Type
    uniform: bool
    full: tuple[bool, ...] = ()
    root: str | None = None
    const: bool = False
    twin: str | None = None

    @property
    def elem(self) -> str:
        """Element type."""
        return self.type.elem

    def retyped(self, kind: Type) -> Val:
        """The same code under another type of the same rank."""
        return replace(self, type=kind)


def is_float(elem: str) -> bool:
    """Whether an element type is a floating-point one."""
    return elem[0] in "fb"


WRAP = {bits: (1 << (bits - 1), (1 << bits) - 1) for bits in (8, 16, 32, 64)}


def wrapped(code: str, elem: str) -> str:
    """Code of a Python integer brought into the range of a signed type."""
    if elem == "i1":
        return f"bool({code} & 1)"
    half, mask = WRAP[BITS[elem]]
    return f"((({code}) + {half} & {mask}) - {half})"


def union(vals: list[Val], rank: int) -> tuple[bool, ...]:
    """Which dimensions are full in an elementwise result of these values."""
    full = [False] * rank
    for val in vals:
        if not val.uniform:
            for dim, whole in enumerate(val.full):
                full[dim] = full[dim] or whole
    return tuple(full)
