"""What generated programs call on whole tensors: put together, counted, reduced, scanned, multiplied.

The first axis is that of the programs. Sums in reductions and products are rounded in another order than on
hardware.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fuzzrope.interpreter import formats, runtime
from fuzzrope.interpreter.values import BITS, carried

Array = np.ndarray


def lanes(*values: Array) -> tuple[Any, ...]:
    """The common shape of arrays, then each of them as a row of elements."""
    shape = np.broadcast_shapes(*(value.shape for value in values))
    return shape, *(np.broadcast_to(value, shape).reshape(-1) for value in values)


def shaped(shape: tuple[int, ...], *values: Array) -> tuple[Array, ...]:
    """Rows of elements (or one for all) in a shape again."""
    return tuple(
        np.broadcast_to(value, (value.size if value.size > 1 else math.prod(shape),)).reshape(shape) for value in values
    )


def join(a: Array, b: Array) -> Array:
    """Two arrays side by side in a new last dimension."""
    return np.stack(np.broadcast_arrays(a, b), axis=-1)


def cat(a: Array, b: Array) -> Array:
    """One array after another in the first dimension."""
    programs = max(len(a), len(b))
    return np.concatenate([np.broadcast_to(x, (programs, *x.shape[1:])) for x in (a, b)], axis=1)


def histogram(values: Array, mask: Array | None, bins: int) -> Array:
    """How often each number below ``bins`` occurs, for each program."""
    programs = len(values) if mask is None else max(len(values), len(mask))
    values = np.broadcast_to(values, (programs, *values.shape[1:]))
    keep = (values >= 0) & (values < bins)
    if mask is not None:
        keep = keep & mask
    flat = values.astype(np.int64) + np.arange(programs)[:, None] * bins
    return np.bincount(flat[keep], minlength=programs * bins).reshape(programs, bins).astype(np.int32)


def _part(value: Array, axis: int, part: slice) -> Array:
    return value[(slice(None),) * axis + (part,)]


def reduce(combine: Callable[..., tuple[Array, ...]], values: tuple[Array, ...], axis: int) -> tuple[Array, ...]:
    """Neighbours combined in a tree along an axis, which disappears."""
    extent = values[0].shape[axis]
    while extent > 1:
        even = [_part(value, axis, slice(0, extent - extent % 2, 2)) for value in values]
        odd = [_part(value, axis, slice(1, None, 2)) for value in values]
        left = [_part(value, axis, slice(extent - 1, extent)) for value in values] if extent % 2 else None
        values = combine(*even, *odd)
        if left:
            values = tuple(np.concatenate(pair, axis=axis) for pair in zip(values, left, strict=True))
        extent = (extent + 1) // 2
    return tuple(value[(slice(None),) * axis + (0,)] for value in values)


def scan(
    combine: Callable[..., tuple[Array, ...]], values: tuple[Array, ...], axis: int, reverse: bool
) -> tuple[Array, ...]:
    """Every prefix combined, in the order of the axis or against it."""
    flip = (slice(None),) * axis + (slice(None, None, -1),)
    if reverse:
        values = tuple(value[flip] for value in values)
    extent, reach = values[0].shape[axis], 1
    while reach < extent:
        left = [_part(value, axis, slice(0, extent - reach)) for value in values]
        right = [_part(value, axis, slice(reach, None)) for value in values]
        combined = combine(*left, *right)
        values = tuple(
            np.concatenate([np.broadcast_to(_part(old, axis, slice(0, reach)), _head(new, axis, reach)), new], axis)
            for old, new in zip(values, combined, strict=True)
        )
        reach *= 2
    return tuple(value[flip] for value in values) if reverse else values


def _head(like: Array, axis: int, extent: int) -> tuple[int, ...]:
    return (*like.shape[:axis], extent, *like.shape[axis + 1 :])


def dot(a: Array, b: Array, c: Any, elem: str, out: str, precision: str) -> Array:
    """a @ b + c for each program; integers exactly, floats as exact products summed in float32 or float64."""
    if elem[0] == "i":
        # Below 2^24 (2^53) every partial sum is exact in float32 (float64), whatever the order.
        small = a.shape[-1] * 2 ** (2 * BITS[elem] - 2) <= 2**24
        wider = np.float32 if small else np.float64
        product = np.matmul(a.astype(wider), b.astype(wider)).astype(np.int64)
        return (product + c).astype(carried(out))
    if elem == "f32" and precision.startswith("tf32"):
        return _dot_tf32(a, b, c, precision)
    if elem == "f32" and precision.startswith("bf16"):
        return _dot_split(a, b, c, int(precision[-1]))
    return runtime.rounded(np.matmul(a, b) + c, out)


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def scaled(values: Array, scale: Array | None, form: str, left: bool, packed: bool) -> Array:
    """A factor of a microscaled product (OCP MX 1.0) as bfloat16 numbers, which sm_90 multiplies.

    Scales (programs, rows of the other side's sum, K / 32) are powers of two by their biased exponent; 255
    is NaN. Two e2m1 share a byte along the summed axis, or along the other one if not ``packed``.
    """
    axis = (-1 if left else -2) if packed else (-2 if left else -1)
    if form == "e2m1":
        bits = values.view(np.uint8)
        shape = list(bits.shape)
        shape[axis] *= 2
        numbers = np.moveaxis(_E2M1[np.stack([bits & 15, bits >> 4])], 0, axis if axis == -1 else -2)
        numbers = numbers.reshape(shape)
    else:
        numbers = values
    if scale is None:
        return numbers
    exponent = scale.view(np.uint8).astype(np.int32)
    factor = np.where(exponent == 255, np.float32(np.nan), np.ldexp(np.float32(1), exponent - 127))
    factor = np.repeat(factor, 32, axis=-1)
    return formats.round_bf16(numbers * (factor if left else np.swapaxes(factor, -1, -2)))


def _dot_tf32(a: Array, b: Array, c: Any, precision: str) -> Array:
    if precision == "tf32":  # the tensor cores drop the low bits (measured on an H200)
        return np.matmul(formats.round_tf32(a, "rtz"), formats.round_tf32(b, "rtz")) + c
    high_a, high_b = formats.round_tf32(a, "rna"), formats.round_tf32(b, "rna")
    low_a, low_b = formats.round_tf32(a - high_a, "rna"), formats.round_tf32(b - high_b, "rna")
    cross = np.matmul(low_a, high_b) + np.matmul(high_a, low_b)
    cross = np.where(np.isnan(cross), np.float32(0), cross)  # as Triton's own decomposition does
    return np.matmul(high_a, high_b) + cross + c


def _dot_split(a: Array, b: Array, c: Any, terms: int) -> Array:
    """bf16x3 and bf16x6: each factor as a sum of three bfloat16 numbers, the larger products kept."""
    parts = []
    for factor in (a, b):
        first = formats.round_bf16(factor)
        second = formats.round_bf16(factor - first)
        parts.append((first, second, formats.round_bf16(factor - first - second)))
    pairs = [(1, 0), (0, 1)] if terms == 3 else [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1)]
    total: Any = np.float32(0)
    for i, j in pairs:
        total = total + np.matmul(parts[0][i], parts[1][j])
    total = np.where(np.isnan(total), np.float32(0), total)
    return np.matmul(parts[0][0], parts[1][0]) + total + c
