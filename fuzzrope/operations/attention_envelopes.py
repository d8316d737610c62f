"""The envelopes of ``rope_attention``: which answers are finite, NaN or infinite, around :mod:`.softmax`.

Rules for what is not finite are in ``docs/bounds.md``, section rope_attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fuzzrope.numbers import Exact, Format, clipped, format_of
from fuzzrope.operations import fused, softmax
from fuzzrope.operations.base import Envelope, Options, Tensors
from fuzzrope.operations.operands import rounding
from fuzzrope.operations.scores import LOG2E, is_tf32, scores, step_of

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class _Kinds:
    """What each score (heads, rows, keys) is for certain; where none holds, variants differ."""

    finite: Array
    nan: Array
    positive: Array
    negative: Array

    @property
    def doubtful(self) -> Array:
        return ~(self.finite | self.nan | self.positive | self.negative)


class _Parts:
    """Arrays of one output, filled head by head."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.high, self.low, self.bound = (np.zeros(shape) for _ in range(3))
        self.exponent = np.zeros(shape, dtype=np.int64)
        self.finite, self.nan, self.positive, self.negative = (np.zeros(shape, dtype=bool) for _ in range(4))

    def put(self, head: int, exact: Exact, bound: Array, *flags: Array) -> None:
        """What was found for one head; flags are finite, nan, positive, negative."""
        known = np.isfinite(bound)
        self.bound[head] = np.where(known, bound, np.inf)
        for mine, part in ((self.high, exact.high), (self.low, exact.low), (self.exponent, exact.exponent)):
            mine[head] = np.where(known, part, 0)
        self.finite[head], self.nan[head], self.positive[head], self.negative[head] = flags

    def envelope(self, wide: bool) -> Envelope:
        """All heads, flat."""
        high, low, exponent = (part.reshape(-1) for part in (self.high, self.low, self.exponent))
        finite, nan, up, down = (part.reshape(-1) for part in (self.finite, self.nan, self.positive, self.negative))
        tame = bool(finite.all()) and not (nan | up | down).any()
        exact = Exact(high, low, exponent) if wide else Exact.of(high)
        never = np.broadcast_to(np.int64(0), high.shape)
        return Envelope(exact, self.bound.reshape(-1), finite, nan, up, down, never, tame)


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of one head before values come in.

    Attributes:
        scores: before softcap.
        capped: after it; the same where there is none.
        found: what softmax makes of them.
        row: what is not finite in its rows.
        fixed: scores that were infinite before softcap made them finite.
    """

    scores: softmax.Scores
    capped: softmax.Scores
    found: softmax.Rows
    row: Row
    fixed: Array


def envelopes(tensors: Tensors, options: Options) -> dict[str, Envelope]:
    """Oracle and bound of o and lse."""
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    rows, keys, width = q.shape[2], k.shape[2], v.shape[3]
    heads, group = q.shape[0] * q.shape[1], q.shape[1] // k.shape[1] if k.shape[1] else 1
    form, how, wide = setting(tensors, options)
    o, lse = _Parts((heads, rows, width)), _Parts((heads, rows))
    values = v.to(torch.float64).numpy().reshape(q.shape[0] * k.shape[1], keys, width)
    with np.errstate(all="ignore"):
        for number, head in enumerate(heads_of(tensors, options)):
            _put_lse(lse, number, head.found, form, head.row)
            _put_o(o, number, head.found, values[number // group], how, head.row)
    return {"o": o.envelope(wide), "lse": lse.envelope(wide)}


def setting(tensors: Tensors, options: Options) -> tuple[Format, softmax.Arithmetic, bool]:
    """The format of scores, what the rest is computed with, and whether the oracle needs pairs of float64."""
    dtype, v = fused.dot_dtype(tensors), tensors["v"].dtype
    return format_of(fused.work_dtype(dtype)), _arithmetic(v, dtype, options), torch.float64 in (dtype, v)


def heads_of(tensors: Tensors, options: Options) -> Iterator[Head]:
    """Each head of q in turn."""
    (batch, per_batch, rows, _), keys = tensors["q"].shape, tensors["k"].shape[2]
    shape, cap = (batch * per_batch, rows, keys), options.get("softcap")
    form, _, wide = setting(tensors, options)
    seen = fused.visible(options, rows, keys)
    given = scores(tensors, options, None, LOG2E)
    kinds = _kinds(given, shape)
    fixed = np.zeros(shape, dtype=bool)
    high, low, error = _plain(given, shape)
    if cap is not None:
        fixed = kinds.positive | kinds.negative
        high = np.where(fixed, np.where(kinds.positive, 1e30, -1e30) * cap, high)
        low, error = (np.where(fixed, 0.0, part) for part in (low, error))
        never = np.zeros(shape, dtype=bool)
        kinds = _Kinds(kinds.finite | fixed, kinds.nan, never, never)
    for head in range(shape[0]):
        own = softmax.Scores(high[head], low[head], error[head], seen & kinds.finite[head])
        capped = own if cap is None else softmax.softcapped(own, float(cap), form, wide)
        of_head = _Kinds(*(flags[head] for flags in (kinds.finite, kinds.nan, kinds.positive, kinds.negative)))
        yield Head(own, capped, softmax.softmaxed(capped, form, wide), Row(of_head, seen), fixed[head])


def _arithmetic(v: torch.dtype, dtype: torch.dtype, options: Options) -> softmax.Arithmetic:
    form, held, sums = (format_of(t) for t in (fused.work_dtype(dtype), v, fused.work_dtype(v)))
    cut = rounding(v, is_tf32(options))
    narrow = held.digits < form.digits
    weight = max(held.roundoff if narrow else 0.0, cut.relative)
    return softmax.Arithmetic(
        scores=form,
        sums=sums,
        out=format_of(torch.promote_types(dtype, v)),
        step=step_of(v, is_tf32(options)),
        relative=(1 + weight) * (1 + cut.relative) - 1,
        absolute=max(held.half_step if narrow else 0.0, cut.absolute),
        values=cut.absolute,
        vanishing=2
        * max(2.0**held.smallest_exponent if narrow else 0.0, cut.absolute, 2.0**form.min_exponent, 2.0**-865),
        limit=sums.max / cut.reach * (1 - 2.0**-8),
    )


def _kinds(given: Envelope, shape: tuple[int, ...]) -> _Kinds:
    finite, nan, up, down = (
        np.broadcast_to(part, given.bound.shape).reshape(shape)
        for part in (given.finite, given.nan, given.positive, given.negative)
    )
    alone = finite.astype(np.int8) + nan + up + down == 1
    return _Kinds(finite & alone, nan & alone, up & alone, down & alone)


def _plain(given: Envelope, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Scores and errors in units of one; what is beyond 2^900 no exponential survives."""
    if given.exact.plain:
        high = given.exact.high.reshape(shape)
        return high, np.zeros(shape), given.bound.reshape(shape)
    exponent = clipped(given.exact.exponent, -2000, 900)
    parts = (np.ldexp(part, exponent) for part in (given.exact.high, given.exact.low, given.bound))
    high, low, error = (np.where(np.isfinite(part), part, 0.0).reshape(shape) for part in parts)
    return high, low, error


class Row:
    """Flags (rows, 1) of what a row's visible scores are."""

    def __init__(self, kinds: _Kinds, seen: Array) -> None:
        self.seen, self.dropped = seen, seen & kinds.negative
        self.none = ~np.asarray(seen.any(axis=1, keepdims=True))
        self.doubtful = (seen & kinds.doubtful).any(axis=1, keepdims=True)
        self.nan = (seen & kinds.nan).any(axis=1, keepdims=True)
        self.positive = (seen & kinds.positive).any(axis=1, keepdims=True)
        self.negative = self.dropped.any(axis=1, keepdims=True)
        self.kept = seen & kinds.finite
        self.lost = ~self.none & ~self.kept.any(axis=1, keepdims=True)


def _put_lse(parts: _Parts, head: int, found: softmax.Rows, form: Format, row: Row) -> None:
    exact, bound = softmax.logsumexp(found, form)
    none, doubtful, nan, positive, negative, lost = (
        flag[:, 0] for flag in (row.none, row.doubtful, row.nan, row.positive, row.negative, row.lost)
    )
    broken = nan | positive
    finite = ~none & ~broken & ~lost
    flags = (
        finite | doubtful,
        broken | negative | doubtful,
        (positive & ~nan) | doubtful,
        none | (lost & ~broken) | doubtful,
    )
    parts.put(head, exact, np.where(doubtful, np.inf, bound), *flags)


def _put_o(parts: _Parts, head: int, found: softmax.Rows, values: Array, how: softmax.Arithmetic, row: Row) -> None:
    usual = np.isfinite(values)
    exact, bound = softmax.weighted(found, np.where(usual, values, 0.0), how, row.seen)
    empty = row.none | row.lost
    tiny = how.out.half_step_in(exact.exponent)
    bound = np.where(empty, tiny, bound)
    broken = row.nan | row.positive
    shape = bound.shape
    finite, nan = np.broadcast_to(~broken, shape), np.broadcast_to(broken | row.negative, shape)
    positive = negative = np.zeros(shape, dtype=bool)
    if not usual.all():
        finite, nan, positive, negative = _with_odd_values(found, values, how, row, finite, nan)
    far_up, far_down = softmax.overflowing(row.kept, np.where(usual, values, 0.0), how)
    edge = np.ldexp(1.0 - 2.0 ** -(how.out.digits + 1), clipped(how.out.overflow[2] - exact.exponent, -2000, 1023))
    far_up, far_down = far_up | (exact.high + bound >= edge), far_down | (bound - exact.high >= edge)
    nan = nan | (finite & (far_up | far_down))
    positive, negative = positive | (finite & far_up), negative | (finite & far_down)
    flags = (flag | row.doubtful for flag in (finite, nan, positive, negative))
    parts.put(head, exact, np.where(row.doubtful, np.inf, bound), *flags)


def _with_odd_values(
    found: softmax.Rows, values: Array, how: softmax.Arithmetic, row: Row, finite: Array, nan: Array
) -> tuple[Array, Array, Array, Array]:
    """Flags finite, nan, positive, negative where values are not all finite."""
    bounded = np.minimum(found.rho, softmax.HOPELESS)
    least = found.weights[0] * np.exp(-bounded) / np.maximum(found.most, 1.0)[:, None]
    sure = row.kept & (least > how.vanishing) & np.isfinite(found.rho)
    faint = row.kept & ~sure

    def met(keys: Array, what: Array) -> Array:
        return np.asarray(keys.astype(np.float32) @ what.astype(np.float32) > 0)

    is_nan, up, down = np.isnan(values), values == np.inf, values == -np.inf
    odd = is_nan | up | down
    up_sure, down_sure, up_faint, down_faint = met(sure, up), met(sure, down), met(faint, up), met(faint, down)
    broken = ~finite
    forced = met(row.kept, is_nan) | (up_sure & down_sure)
    allowed = nan | forced | up_faint | down_faint | met(row.dropped, odd) | met(~row.seen, odd)
    ups, downs = up_sure | up_faint, down_sure | down_faint
    positive, negative = ups & ~downs & ~forced & ~broken, downs & ~ups & ~forced & ~broken
    finite = finite & ~forced & ~ups & ~downs
    return finite, allowed | (ups & downs), positive, negative
