"""What a target must leave as it found it: the functions and settings that checkers and runtimes rely on.

Thousands of names are looked at after every case, in memory that the case has driven from the caches. So a
namespace is compared name by name only if it has changed at all, where the interpreter tells.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import math
import operator
import os
import random
import sys
import threading
import time
import traceback
import types
from typing import Any

import numpy
import torch
import torch.nn.functional
import torch.testing
import triton
import triton.testing

_WATCHED: tuple[tuple[str, Any], ...] = (
    ("torch", torch),
    ("torch.Tensor", torch.Tensor),
    ("torch.nn.Module", torch.nn.Module),
    ("torch.nn.functional", torch.nn.functional),
    ("torch.testing", torch.testing),
    ("torch.cuda", torch.cuda),
    ("triton", triton),
    ("triton.testing", triton.testing),
    ("numpy", numpy),
    ("numpy.testing", numpy.testing),
    ("builtins", builtins),
    ("math", math),
    ("time", time),
    ("random", random),
    ("os", os),
    ("sys", sys),
)
_CALLABLE: tuple[type, ...] = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.GetSetDescriptorType,
)
_CALLABLE += (types.WrapperDescriptorType, type)
#: Python rebinds these itself; importing torch._dynamo rebinds the first three.
_IGNORED = {
    "torch.manual_seed",
    "torch.nn.Module.__init__",
    "torch.nn.Module.__setstate__",
    "builtins._",
    "sys.stdout",
    "sys.stderr",
    "sys.stdin",
    "sys.excepthook",
    "sys.displayhook",
}


_LIBRARY = (os.path.dirname(os.__file__), "<frozen")
_TINY = 1e-310  # subnormal
_RECURSION = sys.getrecursionlimit()  # Inductor raises it


def _settings() -> dict[str, Any]:
    """Global settings of torch that change what the same code computes."""
    return {
        "default dtype": torch.get_default_dtype(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "sums of float16 products": torch._C._get_cublas_allow_fp16_reduced_precision_reduction(),
        "sums of bfloat16 products": torch._C._get_cublas_allow_bf16_reduced_precision_reduction(),
        "tf32 in cuDNN": torch._C._get_cudnn_allow_tf32(),
        "gradient mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "flush denormal": _TINY * 1.0 == 0.0,
        "number of threads": torch.get_num_threads(),
        "recursion limit": min(sys.getrecursionlimit(), _RECURSION),
        "working directory": os.getcwd(),
        "torch function modes": torch._C._len_torch_function_stack(),
    }


def _version(names: dict[str, Any]) -> ctypes.c_uint64:
    """The number in a dictionary that every change replaces: ``ma_version_tag`` of PEP 509 (CPython to 3.13)."""
    return ctypes.c_uint64.from_address(id(names) + 3 * ctypes.sizeof(ctypes.c_void_p))


def _has_versions() -> bool:
    """Whether this interpreter keeps that number; tried, because what else lies there is nobody's promise."""
    names: dict[str, Any] = {"a": 1, "b": 2}
    version, seen = _version(names), []
    for change in (
        names.copy,
        lambda: names.update(a=2),
        lambda: names.pop("b"),
        lambda: names.update(c=1),
        names.clear,
    ):
        change()
        seen.append(version.value)
        names.get("a")
        if version.value != seen[-1]:
            return False
    return len(set(seen)) == len(seen)


_VERSIONED = sys.implementation.name == "cpython" and _has_versions()


class _Names:
    """The callables of one module or class as they were, and whether they still are."""

    def __init__(self, name: str, owner: Any, inherited: frozenset[str] = frozenset()) -> None:
        self.name, self.owner = name, owner
        functions = {
            key: value
            for key, value in vars(owner).items()
            if isinstance(value, _CALLABLE) and f"{name}.{key}" not in _IGNORED
        }
        self.keys, self.values = tuple(functions), tuple(functions.values())
        self._now = operator.itemgetter(*self.keys) if len(self.keys) > 1 else None
        self.inherited = inherited - vars(owner).keys()
        # A class shows its dictionary only through a proxy, whose one referent it is.
        names = gc.get_referents(vars(owner))[0] if isinstance(owner, type) else vars(owner)
        self._version, self._known = _version(names) if _VERSIONED else None, -1

    def intact(self) -> bool:
        """Whether every name is bound to what it was, and nothing inherited is overridden; quick."""
        version = self._version.value if self._version is not None else 0
        if version == self._known:
            return True
        intact = self._compare()
        if intact and self._version is not None:
            self._known = version
        return intact

    def _compare(self) -> bool:
        names = vars(self.owner)
        try:
            now = self._now(names) if self._now is not None else tuple(names[key] for key in self.keys)
        except KeyError:
            return False
        # Identity, not equality: a stand-in may say that it equals anything.
        return all(map(operator.is_, now, self.values)) and names.keys().isdisjoint(self.inherited)

    def changed(self) -> list[str]:
        """The names that are not what they were."""
        names = vars(self.owner)
        rebound = [key for key, value in zip(self.keys, self.values, strict=True) if names.get(key) is not value]
        return [f"{self.name}.{key}" for key in [*rebound, *sorted(self.inherited & names.keys())]]


def _families(name: str, owner: Any) -> list[_Names]:
    """A module; or a class and all it inherits from, so that an override shows too."""
    if not isinstance(owner, type):
        return [_Names(name, owner)]
    found: list[_Names] = []
    inherited: frozenset[str] = frozenset()
    for base in reversed(owner.__mro__):
        found.append(_Names(name, base, inherited))
        inherited |= vars(base).keys()
    return found


def threads_left() -> str:
    """``file:line in function`` of another thread that runs code which is not installed; empty if there is none.

    Installed libraries may keep threads; they wait for work in code of theirs or of Python's own library.
    """
    others = sys._current_frames()
    del others[threading.get_ident()]  # a frame that knows itself would keep all that it sees until it is collected
    for frame in others.values():
        for place in reversed(traceback.extract_stack(frame)):
            if not place.filename.startswith(_LIBRARY) and "site-packages" not in place.filename:
                return f"{os.path.basename(place.filename)}:{place.lineno} in {place.name}"
    return ""


class Seal:
    """A picture of the process, and what changed since."""

    def __init__(self) -> None:
        # What a facade puts in the place of these classes is looked up when it is there.
        clocks = [(f"torch.cuda.{name}", getattr(torch.cuda, name)) for name in ("Event", "Stream")]
        self._families = [family for name, owner in (*_WATCHED, *clocks) for family in _families(name, owner)]
        self._settings = _settings()

    def expect_precision(self) -> None:
        """The float32 matmul precision as it is now is the one to be left as found."""
        self._settings["float32 matmul precision"] = torch.get_float32_matmul_precision()

    def broken(self) -> list[str]:
        """Names of what is not as it was, at most ten."""
        changed: list[str] = []
        for family in self._families:
            if not family.intact():
                changed += family.changed()
        changed += [name for name, value in _settings().items() if self._settings[name] != value]
        return changed[:10]
