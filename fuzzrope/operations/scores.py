"""Oracle and bound of scaled scores ``scale * rope(q) @ rope(k)^T``; derived in ``docs/bounds.md``, rope_qk."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fuzzrope.numbers import FORMATS, Exact, Format, clipped, format_of, two_product
from fuzzrope.operations import doubled, fused
from fuzzrope.operations.base import Envelope, Options, Tensors
from fuzzrope.operations.operands import Factors, Specials, factors, rounding, specials
from fuzzrope.operations.sums import sum_envelope

Array = np.ndarray
LOG2E = 1.4426950408889634
SCALING = 4  # roundings of a score from scale and log2(e): two constants, their product, the product with both
NARROW = 11  # digits of the formats in which q may not be rounded twice
TENSOR_CORE = 2.0**-22  # lost a term by an accumulator that cuts what it shifts out (see docs/bounds.md)
NARROW_ORACLE = 2.0**-52  # what one step of the oracle in float64 errs by
WIDE_ORACLE = 2.0**-98  # and in pairs of float64


@dataclass(frozen=True, slots=True)
class Products:
    """Sums over D, (heads, rows, keys): exact, of magnitudes, and what errors of the factors make of them."""

    exact: Exact
    sizes: Array
    errors: Array


def step_of(dtype: torch.dtype, tf32: bool) -> float:
    """Relative error of one addition in a dot product of factors of this type."""
    if dtype == torch.float64:
        return 2.0**-53
    return 2.0**-24 if dtype == torch.float32 and not tf32 else TENSOR_CORE


def is_tf32(options: Options) -> bool:
    """Whether float32 factors may be cut to tf32."""
    return bool(options.get("precision", "highest") != "highest")


def scores(tensors: Tensors, options: Options, ends: Format | None, folds: float) -> Envelope:
    """The envelope of scores before masking, flat from (B * Hq, Sq, Sk).

    Args:
        tensors: q, k, cos and sin.
        options: those of the operation.
        ends: the format in which scores come back, or None for scores that are used where they are.
        folds: the largest factor beside the scale that may be multiplied into q before it is rounded.
    """
    q, k, cos, sin = (tensors[name] for name in ("q", "k", "cos", "sin"))
    first, rows, keys, width = options.get("q_offset", 0), q.shape[2], k.shape[2], q.shape[3]
    dtype, tf32, scale = fused.dot_dtype(tensors), is_tf32(options), fused.scale_of(options, q.shape[3])
    loss = rounding(dtype, tf32)
    fold, whole = _folded(scale, folds, format_of(dtype))
    rows_q = factors(q, fused.rows_of(cos, first, rows), fused.rows_of(sin, first, rows), loss, fold, whole)
    group = q.shape[1] // k.shape[1] if k.shape[1] else 1
    rows_k = factors(k, fused.rows_of(cos, 0, keys), fused.rows_of(sin, 0, keys), loss, 0.0, True, group)
    wide = not (rows_q.exact.plain and rows_k.exact.plain)
    products = _wide(rows_q, rows_k) if wide else _narrow(rows_q, rows_k)
    work = format_of(fused.work_dtype(dtype))
    steps = width * step_of(dtype, tf32) / (1 - width * step_of(dtype, tf32))
    oracle = (width + 4) * (WIDE_ORACLE if wide else NARROW_ORACLE)
    with np.errstate(all="ignore"):
        exact = _scaled(products.exact, scale)
        unit = exact.exponent
        size = abs(np.frexp(scale)[0]) if not exact.plain else abs(scale)
        bound = size * (products.errors + (steps + oracle) * products.sizes)
        bound = bound + SCALING * work.roundoff * (np.abs(exact.high) + bound)
        # Each product and sum may be cut at the last bit of the subnormal numbers.
        bound = bound + 4 * (width + 2) * max(1.0, abs(scale)) * work.half_step_in(unit)
        if ends is not None:
            bound = bound + ends.roundoff * (np.abs(exact.high) + bound) + ends.half_step_in(unit)
        # Partial sums may be held before scale is applied, after, or with log2(e) in them.
        widest = max(1.0, 1 / abs(scale), folds) * size if scale else np.inf
        rises, falls = ((products.sizes + sign * products.exact.high) / 2 * widest for sign in (1, -1))
        rises, falls = (np.maximum(part, 0.0) * (1 + 2.0**-8) for part in (rises, falls))
        if scale < 0:
            rises, falls = falls, rises
        # What nobody rounds may be held in float64, where it does not overflow.
        ends = ends or FORMATS["float64"]
        return _settled(exact, bound, rises, falls, work, ends, specials(rows_q, rows_k), scale)


def _folded(scale: float, folds: float, form: Format) -> tuple[float, bool]:
    """What may be multiplied into q before it is rounded, and whether it is a power of two.

    Into 16 bits only a scale that is a power of two: any other rounds q once more, and the scores err as much as
    scores that are rounded before they are scaled.
    """
    power = abs(np.frexp(scale)[0]) == 0.5
    if form.digits <= NARROW:
        return (abs(scale), True) if power else (0.0, True)
    return max(abs(scale) * folds, 1e-30), power and folds == 1.0


def _settled(
    exact: Exact,
    bound: Array,
    rises: Array,
    falls: Array,
    work: Format,
    ends: Format,
    odd: Specials | None,
    scale: float,
) -> Envelope:
    """The rule of :func:`sum_envelope`; where a factor is in doubt anything is allowed."""
    flat = Exact(exact.high.reshape(-1), exact.low.reshape(-1), exact.exponent.reshape(-1), exact.plain)
    bound, rises, falls = bound.reshape(-1), rises.reshape(-1), falls.reshape(-1)
    if odd is None:
        return sum_envelope(flat, bound, rises, falls, work, ends)
    nan, up, down = odd.nan.reshape(-1), odd.positive.reshape(-1), odd.negative.reshape(-1)
    if scale < 0:
        up, down = down, up
    doubtful = odd.doubtful.reshape(-1)
    if scale == 0:
        doubtful = doubtful | up | down
    return anything(sum_envelope(flat, bound, rises, falls, work, ends, nan, up, down), doubtful)


def anything(envelope: Envelope, where: Array) -> Envelope:
    """The envelope with every answer allowed in some places."""
    if not where.any():
        return envelope
    exact = envelope.exact
    high, low, exponent = (np.where(where, 0, part) for part in (exact.high, exact.low, exact.exponent))
    return replace(
        envelope,
        exact=Exact(high, low, exponent, exact.plain),
        bound=np.where(where, np.inf, envelope.bound),
        finite=envelope.finite | where,
        nan=envelope.nan | where,
        positive=envelope.positive | where,
        negative=envelope.negative | where,
        tame=False,
    )


def _scaled(exact: Exact, scale: float) -> Exact:
    if exact.plain:
        return Exact.of(exact.high * scale)
    part, exponent = np.frexp(scale)
    high, low = two_product(exact.high, np.full_like(exact.high, part))
    return Exact(high, low + exact.low * part, exact.exponent + int(exponent))


def _narrow(q: Factors, k: Factors) -> Products:
    """In float64, whose own errors the caller adds to the bound."""
    with np.errstate(all="ignore"):
        right, size = np.swapaxes(k.exact.high, 1, 2), np.swapaxes(np.abs(k.exact.high) + k.error, 1, 2)
        sizes = np.matmul(np.abs(q.exact.high) + q.error, size)
        errors = np.matmul(np.abs(q.exact.high), np.swapaxes(k.error, 1, 2)) + np.matmul(q.error, size)
        return Products(Exact.of(np.matmul(q.exact.high, right)), sizes, errors)


def _wide(q: Factors, k: Factors) -> Products:
    """In pairs of float64, every sum with an exponent of its own, one head at a time."""
    shape = (q.error.shape[0], q.error.shape[1], k.error.shape[1])
    high, low, sizes, errors = (np.zeros(shape) for _ in range(4))
    unit = np.zeros(shape, dtype=np.int64)
    for head in range(shape[0] if shape[1] and shape[2] else 0):
        a, a_low, a_at, a_error = (part[:, None, :] for part in q.of_head(head))
        b, b_low, b_at, b_error = (part[None, :, :] for part in k.of_head(head))
        term, rest = two_product(a, b)
        rest = rest + (a * b_low + a_low * b)
        size = (np.abs(a) + a_error) * (np.abs(b) + b_error)
        at = a_at + b_at
        top = np.where(size > 0, at, -(2**40)).max(axis=2)
        unit[head] = np.where(top == -(2**40), 0, top)
        shift = clipped(at - unit[head][..., None], -2000, 0)
        term, rest, size = (np.ldexp(part, shift) for part in (term, rest, size))
        error = np.ldexp(np.abs(a) * b_error + a_error * (np.abs(b) + b_error), shift)
        high[head], low[head] = doubled.total((term, rest), axis=2)
        sizes[head], errors[head] = size.sum(axis=2), error.sum(axis=2)
    return Products(Exact(high, low, unit), sizes, errors)
