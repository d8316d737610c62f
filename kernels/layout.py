"""The strides that eager PyTorch gives its results, computed from the operands' shapes and strides alone.

A kernel that stands in for eager code has to allocate what eager code would have allocated. The rules
are those of ATen's TensorIterator (``aten/src/ATen/TensorIterator.cpp``: ``compute_fast_setup_type``,
``reorder_dimensions``, ``allocate_or_resize_outputs``), as they hold on a GPU, and of ``torch.cat``
(``aten/src/ATen/native/TensorShape.cpp``: ``cat_compute_output_memory_format``). PyTorch's meta tensors
do not serve: they break ties between dimensions of size 1 differently.

Everything is in elements, for tensors of four dimensions. Sizes and strides may be symbolic: what is asked of
them is compared, never hashed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Ints = tuple[int, ...]
CHANNELS_LAST = (1, 3, 2, 0)  # the dimensions of (N, C, H, W) from the innermost out
ROW_MAJOR = (3, 2, 1, 0)


class View(NamedTuple):
    """Shape and strides of a tensor."""

    shape: Ints
    strides: Ints


def packed(shape: Ints, order: Ints) -> Ints:
    """Strides without gaps; ``order`` names the dimensions from the innermost out."""
    strides, step = [0] * len(shape), 1
    for dim in order:
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


def contiguous(shape: Ints) -> Ints:
    """Strides of a new contiguous tensor: a dimension of size 0 counts as 1."""
    return packed(tuple(max(size, 1) for size in shape), ROW_MAJOR)


def _is_packed(x: View, order: Ints) -> bool:
    """Whether x has no gaps in this order; strides of dimensions of size 1 do not count."""
    expected = packed(x.shape, order)
    return all(size == 1 or x.strides[i] == expected[i] for i, size in enumerate(x.shape))


def _is_contiguous(x: View) -> bool:
    return math.prod(x.shape) == 0 or _is_packed(x, ROW_MAJOR)


def _is_dense(x: View) -> bool:
    """Whether some order of the dimensions has neither gaps nor overlap."""
    order = sorted(range(4), key=lambda dim: (bool(x.shape[dim] == 1), x.strides[dim]))
    return _is_contiguous(x) or _is_packed(x, tuple(order))


def _compare(a: int, b: int, shape: Ints, operands: Sequence[Ints]) -> int:
    """TensorIterator's ``should_swap``: 1 when dimension a belongs outside b, -1 inside, 0 undecided."""
    for strides in operands:
        if strides[a] == 0 or strides[b] == 0:
            continue
        if strides[a] != strides[b]:
            return 1 if strides[a] > strides[b] else -1
        if shape[a] > shape[b]:
            return 1
    return 0


def _iteration_order(shape: Ints, operands: Sequence[Ints]) -> Ints:
    """TensorIterator's order of the dimensions, innermost first: an insertion sort that keeps ties."""
    order = list(ROW_MAJOR)
    for i in range(1, 4):
        inner = i
        for outer in range(i - 1, -1, -1):
            verdict = _compare(order[outer], order[inner], shape, operands)
            if verdict > 0:
                order[outer], order[inner] = order[inner], order[outer]
                inner = outer
            elif verdict < 0:
                break
    return tuple(order)


def _broadcast(shapes: list[Ints]) -> Ints:
    """``torch.broadcast_shapes`` of shapes of one rank, which is slow: it may import SymPy."""
    joint = []
    for sizes in zip(*shapes, strict=True):
        wide = 1
        for n in sizes:
            if n != 1 and n != wide:
                if wide != 1:
                    raise RuntimeError(f"shapes {shapes} do not broadcast")
                wide = n
        joint.append(wide)
    return tuple(joint)


def elementwise(*operands: View) -> View:
    """The result of a pointwise operation over operands that broadcast; raises RuntimeError as PyTorch."""
    shape = _broadcast([x.shape for x in operands])
    if all(x.shape == shape for x in operands):
        if all(_is_contiguous(x) for x in operands):
            return View(shape, contiguous(shape))
        if all(_is_packed(x, CHANNELS_LAST) for x in operands):
            return View(shape, packed(shape, CHANNELS_LAST))
        if all(_is_dense(x) and x.strides == operands[0].strides for x in operands):
            return View(shape, operands[0].strides)
    spread = [
        tuple(0 if own == 1 != full else step for own, step, full in zip(x.shape, x.strides, shape, strict=True))
        for x in operands
    ]
    order = _iteration_order(shape, spread)
    return View(shape, contiguous(shape) if order == ROW_MAJOR else packed(shape, order))


def _suggests_channels_last(x: View) -> bool:
    """``is_channels_last_strides_2d`` of c10/core/MemoryFormat.h, ties in favour of row-major."""
    least = 0
    if x.strides[1] == 0:
        return False
    for dim in CHANNELS_LAST:
        if x.shape[dim] == 0 or x.strides[dim] < least or (dim == 0 and least == x.strides[1]):
            return False
        least = x.strides[dim] * max(x.shape[dim], 1)
    return True


def concatenated(parts: Sequence[View]) -> View:
    """``torch.cat`` of parts of one shape along the last dimension."""
    shape = (*parts[0].shape[:3], sum(x.shape[3] for x in parts))
    if all(_suggests_channels_last(x) for x in parts):
        return View(shape, packed(shape, CHANNELS_LAST))
    return View(shape, contiguous(shape))
