"""Layouts: how strides come about, and what a given set of strides is.

The two directions are written apart on purpose: a campaign counts a layout as visited by what
:func:`traits` sees in the finished strides, not by what :func:`arrange` was asked for.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from fuzzrope.build import distinct, offsets
from fuzzrope.case import ITEMSIZE, Case, TensorSpec
from fuzzrope.draw import Draw

FAR = 2**30  # a stride, in elements, that takes a third batch beyond 32-bit offsets
ALIGNMENT = 16  # bytes that a vectorized access wants


def longest(case: Case) -> int:
    """The largest extent of any of its tensors."""
    return max((size for _, spec in case.tensors for size in spec.shape), default=0)


@lru_cache
def orders(rank: int) -> tuple[str, ...]:
    """All orders of the dimensions, outermost first, as digits; the first is row-major."""
    return tuple("".join(map(str, order)) for order in itertools.permutations(range(rank)))


def dense(shape: tuple[int, ...], order: str | None = None) -> tuple[int, ...]:
    """Strides without gaps, ``order`` naming the dimensions from the outermost in."""
    strides, step = [0] * len(shape), 1
    for dim in reversed([int(d) for d in order] if order else range(len(shape))):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


@lru_cache
def layouts(rank: int) -> tuple[str, ...]:
    """Names of all layouts of a tensor of this rank."""
    permuted = tuple(f"permuted {order}" for order in orders(rank)[1:])
    special = ("sliced", "padded", "expanded", "overlapping", "odd ones")
    return ("contiguous", *permuted, *special, *(("far batch",) if rank == 4 else ()))


def least_sizes(layout: str, rank: int) -> tuple[int, ...]:
    """Sizes below which a tensor of this layout would not show it: a permutation needs every dimension."""
    if layout.startswith("permuted"):
        return (2,) * rank
    if layout == "far batch":
        return (3,) + (1,) * (rank - 1)
    if layout in ("padded", "expanded", "overlapping", "sliced"):
        return (1,) * (rank - 2) + (2, 4)
    return (1,) * rank


def arrange(draw: Draw, shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Draw strides of the named layout for this shape."""
    rank = len(shape)
    if layout.startswith("permuted"):
        return dense(shape, layout.split()[1])
    if layout == "sliced":
        steps = [draw.integer(1, 3) for _ in shape[:-1]] + [draw.integer(2, 3)]
        whole = dense(tuple(n * step for n, step in zip(shape, steps, strict=True)))
        return tuple(stride * step for stride, step in zip(whole, steps, strict=True))
    if layout == "padded":
        extra = [0] + [draw.integer(0, 2) for _ in shape[1:-1]] + [draw.integer(1, 9)]
        return dense(tuple(n + more for n, more in zip(shape, extra, strict=True)))
    if layout == "expanded":
        wide = [dim for dim in range(rank) if shape[dim] > 1] or [0]
        flat = {draw.choice(wide)} | {dim for dim in wide if draw.flag()}
        kept = dense(tuple(1 if dim in flat else n for dim, n in enumerate(shape)))
        return tuple(0 if dim in flat else stride for dim, stride in enumerate(kept))
    if layout == "overlapping":
        strides = list(dense(shape))
        outer = draw.choice([dim for dim in range(rank - 1) if shape[dim] > 1] or [0])
        strides[outer] = draw.integer(1, max(strides[outer] - 1, 1))
        return tuple(strides)
    if layout == "odd ones":
        odd = (7, 0, 1, 3, 2**20, 2**31 + 1)
        return tuple(
            draw.choice([o for o in odd if o != s]) if n == 1 else s for n, s in zip(shape, dense(shape), strict=True)
        )
    if layout == "far batch":
        # A stride beyond 32 bits would be passed in 64, and an index that wraps in 32 would not show.
        return (draw.choice((FAR, FAR + 8)), *dense(shape)[1:])
    return dense(shape)


def traits(spec: TensorSpec) -> set[str]:
    """The layouts of :func:`layouts` that these strides are; a tensor without elements has none."""
    shape, strides = spec.shape, spec.strides
    if spec.numel == 0:
        return set()
    found = set()
    real = [dim for dim in range(len(shape)) if shape[dim] > 1]
    plain = dense(shape)
    if any(strides[dim] != plain[dim] for dim in range(len(shape)) if shape[dim] == 1):
        found.add("odd ones")
    if all(strides[dim] == plain[dim] for dim in real):
        found.add("contiguous")
    elif len(real) == len(shape):
        # Where all sizes exceed one, dense strides are told apart by their own order.
        order = "".join(map(str, sorted(real, key=lambda dim: -strides[dim])))
        found |= {f"permuted {order}"} if strides == dense(shape, order) else set()
    if any(strides[dim] == 0 for dim in real):
        found.add("expanded")
    elif not distinct(shape, strides) and len(set(offsets(spec).tolist())) < spec.numel:
        found.add("overlapping")
    elif real:
        inner = min(real, key=lambda dim: strides[dim])
        reach = sum((shape[dim] - 1) * strides[dim] for dim in real) + 1
        if strides[inner] > 1:
            found.add("sliced")
        elif reach > math.prod(shape) and max(strides[dim] for dim in real) < FAR:
            found.add("padded")
    if any((shape[dim] - 1) * strides[dim] >= 2 * FAR for dim in real):  # two batches would not wrap yet
        found.add("far batch")
    return found


def misaligned(spec: TensorSpec) -> bool:
    """Whether the first element is off the boundary that a vectorized access wants."""
    return spec.numel > 0 and spec.offset * ITEMSIZE[spec.dtype] % ALIGNMENT != 0
