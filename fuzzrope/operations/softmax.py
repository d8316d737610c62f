"""Oracle and bound of softmax attention over known scores, one head at a time.

The derivation is in ``docs/bounds.md``, section rope_attention; the names here are those used there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fuzzrope.numbers import Exact, Format, clipped
from fuzzrope.operations import doubled

Array = np.ndarray
EXP = 4  # unit roundoffs that exp and exp2 may err by: 2 ulp, as ex2.approx of PTX
TANH = 8  # unit roundoffs of 1 that tanh may err by, absolutely: it may be made of exp
LEAST_TILE = 16  # keys at a time
HOPELESS = 300.0  # errors of an exponent beyond which weights are unknown
NARROW_ORACLE = 2.0**-52


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What a correct implementation computes with.

    Attributes:
        scores: the format of scores, exponents and the sum of weights.
        sums: that of sums of products of weights and values.
        out: the format of the result.
        step: relative error of one addition in the product of weights and values.
        relative, absolute: what weights lose when rounded to the type of their product, values' relative loss included.
        values: what values lose absolutely.
        vanishing: the weight below which one may become zero.
        limit: the least magnitude of a sum of values that may overflow.
    """

    scores: Format
    sums: Format
    out: Format
    step: float
    relative: float
    absolute: float
    values: float
    vanishing: float
    limit: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores (rows, keys) of one head: pairs of float64, how far off they may be, and which keys count.

    ``kept`` are finite scores of visible keys; all others have no weight.
    """

    high: Array
    low: Array
    error: Array
    kept: Array


@dataclass(frozen=True, slots=True)
class Rows:
    """What softmax makes of scores: weights relative to the largest, their sum, and how wrong each may be.

    ``rho`` bounds the error of the logarithm of a weight, ``count`` is how many keys a row has.
    """

    weights: tuple[Array, Array]
    total: tuple[Array, Array]
    top: tuple[Array, Array]
    rho: Array
    least: Array
    most: Array
    count: Array
    wide: bool


def softcapped(scores: Scores, cap: float, form: Format, wide: bool) -> Scores:
    """cap * tanh(score / cap), whose slope is at most 1, and less where it saturates."""
    u = form.roundoff
    if wide:
        quotient = doubled.over((scores.high, scores.low), (np.full_like(scores.high, cap), np.zeros_like(scores.low)))
        high, low = doubled.times(doubled.tanh(quotient), (np.full_like(scores.high, cap), np.zeros_like(scores.low)))
    else:
        high = cap * np.tanh(scores.high / cap)
        low = np.zeros_like(high)
    error = scores.error + 2 * u * np.abs(scores.high)
    left = np.minimum((np.abs(scores.high) - error) / cap, 350.0)
    saturated = np.where(left > 0, 2 * cap / (np.exp(2 * np.maximum(left, 0.0)) + 1), np.inf)
    error = np.minimum(error, saturated) + cap * (TANH * u + 2.0**-50) + 4 * u * np.abs(high)
    return Scores(high, low, error, scores.kept)


def softmaxed(scores: Scores, form: Format, wide: bool) -> Rows:
    """Weights exp(score - largest), and the bound of their logarithm's error."""
    u = form.roundoff
    kept = scores.kept
    count = np.asarray(kept.sum(axis=1))
    masked = np.where(kept, scores.high, -np.inf)
    at = masked.argmax(axis=1)[:, None] if kept.shape[1] else np.zeros((kept.shape[0], 1), dtype=int)
    some = np.asarray(count > 0)[:, None]
    if kept.shape[1]:
        top = tuple(np.where(some, np.take_along_axis(part, at, 1), 0.0) for part in (scores.high, scores.low))
    else:
        top = (np.zeros((kept.shape[0], 1)), np.zeros((kept.shape[0], 1)))
    high, low = np.where(kept, scores.high, top[0]), np.where(kept, scores.low, top[1])
    if wide:
        x = doubled.minus((high, low), (top[0] + np.zeros_like(high), top[1] + np.zeros_like(high)))
        weights = tuple(part * kept for part in doubled.exp(x))
        total = doubled.total((weights[0], weights[1]), axis=1)
    else:
        x = (high - top[0], np.zeros_like(high))
        weights = (np.exp(x[0]) * kept, np.zeros_like(high))
        total = (weights[0].sum(axis=1), np.zeros(kept.shape[0]))
    merges = count[:, None] / LEAST_TILE + 5  # rescalings, and a merge of split keys
    rho = 4 * np.abs(high) + 4 * np.abs(top[0]) + 3 * np.abs(x[0]) + 2 * np.log(count + 1.0)[:, None] + merges * EXP
    rho = np.where(kept, scores.error + rho * u, 0.0)
    hopeless = np.asarray((rho > HOPELESS).any(axis=1))
    bounded = np.minimum(rho, HOPELESS)
    most = (weights[0] * np.exp(bounded)).sum(axis=1)
    least = (weights[0] * np.exp(-bounded)).sum(axis=1)
    rho = np.where(hopeless[:, None], np.inf, rho)
    return Rows(weights, total, (top[0][:, 0], top[1][:, 0]), rho, least, most, count, wide)


def logsumexp(rows: Rows, form: Format) -> tuple[Exact, Array]:
    """The logarithm of the sum of exponentials of each row, and its bound; rows without keys are worth nothing."""
    u = form.roundoff
    some = rows.count > 0
    total = (np.where(some, rows.total[0], 1.0), np.where(some, rows.total[1], 0.0))
    if rows.wide:
        log = doubled.log(total)
        exact = Exact(*doubled.plus(rows.top, log), np.zeros(some.shape, dtype=np.int64))
    else:
        log = (np.log(total[0]), np.zeros_like(total[0]))
        exact = Exact.of(rows.top[0] + log[0])
    hopeless = np.isinf(rows.rho).any(axis=1)
    up = np.log(np.maximum(rows.most, 1e-300) / total[0])
    down = -np.log(np.maximum(rows.least, 1e-300) / total[0])
    spread = np.where(hopeless, np.inf, np.maximum(up, down))
    additions = (rows.count + 2 * (rows.count / LEAST_TILE + 5)) * u
    rounding = 4 * np.abs(rows.top[0]) + 4 * np.abs(log[0]) + 4 + 2 * np.abs(exact.high)
    own = 0.0 if rows.wide else (rows.count + 8 + np.abs(exact.high)) * NARROW_ORACLE
    return exact, spread * (1 + 2.0**-20) + 2 * additions + rounding * u + own + form.half_step


def weighted(rows: Rows, values: Array, how: Arithmetic, seen: Array) -> tuple[Exact, Array]:
    """The mean (rows, D) of finite values (keys, D) under these weights, and its bound."""
    shape = (seen.shape[0], values.shape[1])
    if rows.wide:
        v_far, unit = _scaled(rows.weights[0], values, how.out)
        scaled = np.where(rows.weights[0][:, :, None] > 0, v_far, 0.0)
        v: tuple[Array, Array] = (scaled, np.zeros_like(scaled))
        weights = tuple(np.broadcast_to(part[:, :, None], scaled.shape) for part in rows.weights)
        mean = doubled.total(doubled.times((weights[0], weights[1]), v), axis=1)
        whole = np.where(rows.count > 0, rows.total[0], 1.0)[:, None] + np.zeros(shape)
        rest = rows.total[1][:, None] + np.zeros(shape)
        exact = Exact(*doubled.over(mean, (whole, rest)), unit)
    else:
        v_far, unit = values[None], np.zeros(shape, dtype=np.int64)
        total = np.where(rows.count > 0, rows.total[0], 1.0)
        exact = Exact.of(rows.weights[0] @ values / total[:, None])
    return exact, _bound(rows, v_far, exact, unit, how, seen)


def overflowing(kept: Array, values: Array, how: Arithmetic) -> tuple[Array, Array]:
    """Of which means (rows, D) the sum may rise, or fall, beyond the range before it is divided by that of weights."""
    rises, falls = (np.maximum(side, 0.0) for side in (values, -values))
    return kept.astype(float) @ rises >= how.limit, kept.astype(float) @ falls >= how.limit


def _scaled(weights: Array, values: Array, form: Format) -> tuple[Array, Array]:
    """Values (rows, keys, D) in units 2^(rows, D) of the largest product of weight and value.

    A value without weight may be infinite in these units, others are below 2^900.
    """
    parts, exponents = np.frexp(values)
    at = np.frexp(weights)[1][:, :, None].astype(np.int64) + exponents[None].astype(np.int64)
    at = np.where((weights[:, :, None] > 0) & (values[None] != 0), at, -(2**40))
    unit = np.maximum(at.max(axis=1, initial=-(2**40)), form.smallest_exponent - 8)
    shift = clipped(exponents[None].astype(np.int64) - unit[:, None, :], -2000, 2000)
    return np.ldexp(parts[None] + np.zeros(at.shape), shift), unit


def _bound(rows: Rows, v: Array, exact: Exact, unit: Array, how: Arithmetic, seen: Array) -> Array:
    """How far a mean may be off: ``v`` (rows or 1, keys, D) and the mean in units of 2^unit."""
    u, p, n = how.scores.roundoff, rows.weights[0][:, :, None], rows.count[:, None]
    rho = np.minimum(rows.rho, HOPELESS)[:, :, None]
    hopeless = np.isinf(rows.rho).any(axis=1)[:, None]
    kept = (rows.rho > 0)[:, :, None]
    apart = np.where(kept, np.abs(v - exact.high[:, None, :]), 0.0)
    size = np.where(kept, np.abs(v), 0.0)
    least = np.where(n > 0, rows.least[:, None], 1.0)
    lost = max(2.0 ** (how.scores.min_exponent), 2.0**-865 if rows.wide else 0.0)
    hull, largest = apart.max(axis=1, initial=0.0), size.max(axis=1, initial=0.0)
    moved = np.where(p > 0, p * np.expm1(rho) * apart, 0.0).sum(axis=1) / least + n * lost * hull / least
    moved = np.where(hopeless, hull, np.minimum(moved * (1 + 2.0**-20), hull))
    mean = np.where(p > 0, p * np.exp(rho) * size, 0.0).sum(axis=1) / least
    mean = np.where(hopeless, largest, np.minimum(mean, largest))
    rescalings = n / LEAST_TILE + 5
    above = (n + 2 * rescalings + 4) * how.step + how.relative
    below = (n + 2 * rescalings + 4) * u
    own = (n + 8) * 2.0**-90 if rows.wide else (n + 800) * NARROW_ORACLE
    relative = (1 + above) * (1 + 6 * max(u, how.sums.roundoff)) / (1 - below) - 1
    all_sizes = size.sum(axis=1)
    steps = (how.absolute * all_sizes if how.absolute else 0.0) + 4 * (seen.shape[1] + 4) * how.sums.half_step_in(unit)
    steps = steps + np.ldexp(how.values, clipped(-unit, -2000, 900))
    bound = moved + relative * mean + own * mean + steps * (1 + relative)
    return bound + how.out.roundoff * (np.abs(exact.high) + bound) + how.out.half_step_in(unit)
