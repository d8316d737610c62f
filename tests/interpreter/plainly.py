"""Kernels as plain Python: their own text, one program after another, with NumPy behind ``tl``.

It knows what Python means by loops, branches and returns, and nothing of Triton. For kernels of integers
whose sums fit, and of the functions named here.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import sys
import textwrap
import types

import numpy as np


class Pointer:
    """An array, and where in it."""

    def __init__(self, array, offset=0):
        self.array, self.offset = array, np.asarray(offset, np.int64)

    def __add__(self, count):
        return Pointer(self.array, self.offset + np.asarray(count, np.int64))

    def __sub__(self, count):
        return Pointer(self.array, self.offset - np.asarray(count, np.int64))


def load(pointer, mask=None, other=0):
    if mask is None:
        return pointer.array[pointer.offset]
    offset, mask = np.broadcast_arrays(pointer.offset, mask)
    return np.where(mask, pointer.array[np.where(mask, offset, 0)], other).astype(pointer.array.dtype)[()]


def store(pointer, value, mask=True):
    offset, value, mask = np.broadcast_arrays(pointer.offset, value, mask)
    pointer.array[offset[mask]] = value[mask]


def count(first, last=None, step=1, **hints):
    return range(first) if last is None else range(first, last, step)


def language(program, grid):
    """What stands for ``triton.language`` in one program."""
    return types.SimpleNamespace(
        **{
            name: getattr(np, name)
            for name in ("int32", "where", "minimum", "maximum", "zeros", "full", "broadcast_to")
        },
        **{"trans": np.transpose, "reshape": np.reshape, "load": load, "store": store},
        **{"range": count, "static_range": range, "constexpr": int},
        program_id=lambda axis: np.int32(program[axis]),
        num_programs=lambda axis: np.int32(grid[axis]),
        arange=lambda first, last: np.arange(first, last, dtype=np.int32),
        sum=lambda x, axis: np.sum(x, axis, dtype=x.dtype),
        max=np.max,
        cumsum=lambda x, axis: np.cumsum(x, axis, dtype=x.dtype),
        cast=lambda x, dtype: np.asarray(x).astype(dtype)[()],
    )


def functions_of(module):
    """The functions of a module without their decorators, as code."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(module)))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        node.decorator_list = []
    return compile(tree, "plainly", "exec", flags=__future__.annotations.compiler_flag)


def run(kernel, grid, *args, **constants):
    """Launch a ``@triton.jit`` function; arrays among the arguments are written."""
    code = functions_of(sys.modules[kernel.fn.__module__])
    with np.errstate(all="ignore"):
        for number in range(int(np.prod(grid))):
            program = np.unravel_index(number, grid[::-1])[::-1]
            space = {"tl": language(program, grid)}
            exec(code, space)
            given = [Pointer(x) if isinstance(x, np.ndarray) else np.int32(x) for x in args]
            space[kernel.fn.__name__](*given, **constants)
