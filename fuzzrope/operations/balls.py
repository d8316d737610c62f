"""Numbers with how far a correct implementation may be off: what bounds of several steps are computed with.

A ball has a centre, exact to float64 or to pairs of float64, and a radius that holds for each element. Radii follow
from radii: |x̂ŷ - xy| <= |x| r_y + r_x (|y| + r_y). What rounds is added by who knows it. Two flags stand beside them:
``odd``, NaN or infinite whoever computes it, and ``open``, whatever one likes, since computers may differ. By
IEEE 754 nothing that an odd number is multiplied by or added to makes it finite again, so odd wins over open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fuzzrope.numbers import Format
from fuzzrope.operations import doubled

Array = np.ndarray
NARROW_ORACLE = 2.0**-52  # what one step of the oracle in float64 errs by
WIDE_ORACLE = 2.0**-96  # and in pairs of float64,
WIDE_UNDERFLOW = 2.0**-1070  # whose low parts may underflow
GROWTH = 1 + 2.0**-40  # radii are rounded too


@dataclass(frozen=True, slots=True)
class Balls:
    """Arrays of one shape: the centre is ``high + low``, and 0 where it is odd or open.

    Attributes:
        high: the centre, or what of it float64 holds.
        low: the rest.
        radius: how far an implementation may be off, finite.
        odd: NaN or infinite for certain.
        open: anything.
        wide: steps are taken in pairs of float64.
    """

    high: Array
    low: Array
    radius: Array
    odd: Array
    open: Array
    wide: bool

    @property
    def size(self) -> Array:
        """The largest magnitude."""
        return np.abs(self.high) + self.radius

    def __getitem__(self, at: Any) -> Balls:
        return self._each(lambda part: part[at])

    def transposed(self) -> Balls:
        """The last two dimensions exchanged."""
        return self._each(lambda part: np.swapaxes(part, -1, -2))

    def reshaped(self, *shape: int) -> Balls:
        """In another shape."""
        return self._each(lambda part: part.reshape(shape))

    def flipped(self) -> Balls:
        """With the other sign."""
        return replace(self, high=-self.high, low=-self.low)

    def _each(self, change: Callable[[Array], Array]) -> Balls:
        return joined([self], lambda parts: change(parts[0]))

    def wider(self, more: Array) -> Balls:
        """With a larger radius."""
        return settled(self.high, self.low, self.radius + more, self.odd, self.open, self.wide)

    def rounded(self, relative: float, absolute: float = 0.0, limit: float = np.inf) -> Balls:
        """Rounded to a format: by so much at most, but that zero stays zero; beyond ``limit`` it may overflow."""
        size = self.size
        lost = np.where(size > 0, relative * size + absolute, 0.0)
        return settled(self.high, self.low, self.radius + lost, self.odd, self.open | (size >= limit), self.wide)

    def scaled(self, factor: float) -> Balls:
        """Times an exact number."""
        return times(self, exactly(np.full((1,) * self.high.ndim, factor), self.wide))

    def marked(self, odd: Array, opened: Array) -> Balls:
        """With more that is odd or open."""
        return settled(self.high, self.low, self.radius, self.odd | odd, self.open | opened, self.wide)


def joined(balls: Sequence[Balls], join: Callable[[list[Array]], Array]) -> Balls:
    """Balls made of others, the same way in each part; of at least one."""
    high, low, radius = (join([getattr(b, part) for b in balls]) for part in ("high", "low", "radius"))
    odd, opened = (join([getattr(b, part) for b in balls]) for part in ("odd", "open"))
    return Balls(high, low, radius, odd, opened, balls[0].wide)


def settled(high: Array, low: Array, radius: Array, odd: Array, opened: Array, wide: bool) -> Balls:
    """Balls of which odd and open ones are worth nothing; those beyond the oracle's range are open."""
    radius = radius * GROWTH
    opened = (opened | ~np.isfinite(high + low + radius)) & ~odd
    worthless = odd | opened
    if worthless.any():
        high, low, radius = (np.where(worthless, 0.0, part) for part in (high, low, radius))
    return Balls(high, low, radius, odd, opened, wide)


def exactly(numbers: Array, wide: bool, low: Array | None = None, radius: Array | None = None) -> Balls:
    """Numbers that everyone knows alike, or to a radius; those that are not finite are odd."""
    zero = np.zeros(numbers.shape)
    odd = ~np.isfinite(numbers)
    never = np.zeros(numbers.shape, dtype=bool)
    return settled(numbers, zero if low is None else low, zero if radius is None else radius, odd, never, wide)


def plus(a: Balls, b: Balls) -> Balls:
    """a + b."""
    if a.wide:
        high, low = doubled.plus((a.high, a.low), (b.high, b.low))
    else:
        high, low = a.high + b.high, np.zeros(np.broadcast_shapes(a.high.shape, b.high.shape))
    own = _own(1, a.wide) * (np.abs(a.high) + np.abs(b.high))
    return settled(high, low, a.radius + b.radius + own, a.odd | b.odd, a.open | b.open, a.wide)


def times(a: Balls, b: Balls) -> Balls:
    """a * b."""
    shape = np.broadcast_shapes(a.high.shape, b.high.shape)
    if a.wide:
        high, low = doubled.times((a.high, a.low), (b.high, b.low))
    else:
        high, low = a.high * b.high, np.zeros(shape)
    radius = np.abs(a.high) * b.radius + a.radius * b.size
    size = a.size * b.size
    radius = radius + _own(1, a.wide) * size + ((a.size > 0) & (b.size > 0)) * _lost(1, a.wide)
    return settled(high, low, radius, a.odd | b.odd, a.open | b.open, a.wide)


def summed(a: Balls, axes: tuple[int, ...], step: float) -> Balls:
    """The sum along some dimensions, which stay as ones; one addition errs by ``step``."""
    count = int(np.prod([a.high.shape[axis] for axis in axes], dtype=np.int64))
    high, low = a.high, a.low
    for axis in axes:
        if a.wide:
            high, low = (np.expand_dims(part, axis) for part in doubled.total((high, low), axis))
        else:
            high, low = (part.sum(axis=axis, keepdims=True) for part in (high, low))
    size = a.size.sum(axis=axes, keepdims=True)
    radius = a.radius.sum(axis=axes, keepdims=True) + (gamma(count, step) + _own(count, a.wide)) * size
    odd, opened = (np.asarray(flag.any(axis=axes, keepdims=True)) for flag in (a.odd, a.open))
    return settled(high, low, radius, odd, opened, a.wide)


def dot(a: Balls, b: Balls, step: float, least: float, limit: float, nil: Array | None = None) -> Balls:
    """Products (heads, rows, n) x (heads, n, columns), their terms added in any order.

    Args:
        a: the left factors.
        b: the right ones.
        step: what one addition errs by, relative to the sizes of all terms; a term goes through n at most.
        least: what may be cut from a product or a sum at the last subnormal bit.
        limit: sums of such a size may overflow.
        nil: where the left factor is a zero that one need not multiply, (rows, n): what is odd opposite is open.
    """
    count = a.high.shape[-1]
    if a.wide:
        high, low = _wide_product(a, b)
    else:
        high = np.matmul(a.high, b.high)
        low = np.zeros(high.shape)
    sizes = np.matmul(a.size, b.size)
    radius = np.matmul(np.abs(a.high), b.radius) + np.matmul(a.radius, b.size)
    radius = radius + (gamma(count, step) + _own(count, a.wide)) * sizes
    moved = met(a.size > 0, b.size > 0) if a.wide else sizes > 0  # a product may underflow to zero
    radius = radius + moved * (4 * (count + 2) * least + _lost(count, a.wide))
    odd, opened = np.zeros(high.shape, dtype=bool), sizes >= limit
    if (a.odd | a.open).any() or (b.odd | b.open).any():
        skipped = np.zeros(a.high.shape, dtype=bool) if nil is None else np.broadcast_to(nil, a.high.shape)
        odd = a.odd.any(axis=-1, keepdims=True) | met(~skipped, b.odd)
        opened = opened | a.open.any(axis=-1, keepdims=True) | b.open.any(axis=-2, keepdims=True) | met(skipped, b.odd)
    return settled(high, low, radius, odd, opened, a.wide)


def met(a: Array, b: Array) -> Array:
    """Whether for some n the one flag (..., rows, n) holds and the other (..., n, columns)."""
    return np.asarray(np.matmul(a.astype(np.float32), b.astype(np.float32)) > 0)


def least_of(form: Format) -> float:
    """Half the smallest subnormal number of a format, or for float64, which does not hold that, the whole."""
    return max(form.half_step, 2.0**-1074)


def gamma(count: int, step: float) -> float:
    """Higham's gamma of that many roundings."""
    return count * step / (1 - count * step)


def _wide_product(a: Balls, b: Balls) -> tuple[Array, Array]:
    """In pairs of float64, one head at a time."""
    heads = [np.zeros((2, a.high.shape[1], b.high.shape[2]))]
    for head in range(a.high.shape[0]):
        left = a.high[head][:, :, None], a.low[head][:, :, None]
        right = b.high[head][None], b.low[head][None]
        heads.append(np.stack(doubled.total(doubled.times(left, right), axis=1)))
    found = np.stack(heads[1:]) if len(heads) > 1 else np.zeros((0, 2, *heads[0].shape[1:]))
    return found[:, 0], found[:, 1]


def _own(count: int, wide: bool) -> float:
    return (count + 4) * (WIDE_ORACLE if wide else NARROW_ORACLE)


def _lost(count: int, wide: bool) -> float:
    return (count + 4) * WIDE_UNDERFLOW if wide else 0.0
