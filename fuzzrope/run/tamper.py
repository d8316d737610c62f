"""What a target must leave as it found it: the functions and settings that checkers and runtimes rely on."""

from __future__ import annotations

import builtins
import math
import os
import random
import sys
import time
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
#: Python rebinds these itself; importing torch._dynamo rebinds the last.
_IGNORED = {
    "torch.manual_seed",
    "builtins._",
    "sys.stdout",
    "sys.stderr",
    "sys.stdin",
    "sys.excepthook",
    "sys.displayhook",
}


def _settings() -> dict[str, Any]:
    """Global settings of torch that change what the same code computes."""
    return {
        "default dtype": torch.get_default_dtype(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "gradient mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "flush denormal": float(torch.tensor(1e-40) * 1.0) == 0.0,
        "number of threads": torch.get_num_threads(),
        "recursion limit": sys.getrecursionlimit(),
        "working directory": os.getcwd(),
        "torch function modes": torch._C._len_torch_function_stack(),
    }


def _namespace(owner: Any) -> dict[str, Any]:
    """Names of a module, or of a class with all it inherits, so that an override shows too."""
    if not isinstance(owner, type):
        return vars(owner)
    names: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        names.update(vars(base))
    return names


class Seal:
    """A picture of the process, and what changed since."""

    def __init__(self) -> None:
        self._functions = [(name, owner, self._callables(name, owner)) for name, owner in _WATCHED]
        self._settings = _settings()

    @staticmethod
    def _callables(name: str, owner: Any) -> dict[str, Any]:
        return {
            key: value
            for key, value in _namespace(owner).items()
            if isinstance(value, _CALLABLE) and f"{name}.{key}" not in _IGNORED
        }

    def broken(self) -> list[str]:
        """Names of what is not as it was, at most ten."""
        changed = []
        for name, owner, functions in self._functions:
            now = _namespace(owner)
            changed += [f"{name}.{key}" for key, value in functions.items() if now.get(key) is not value]
        changed += [name for name, value in _settings().items() if self._settings[name] != value]
        return changed[:10]
