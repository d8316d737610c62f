"""Rotated rows as the factors of a dot product: exact, how far a factor may be off, and what else it may be.

The derivation is in ``docs/bounds.md``, section rope_qk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fuzzrope.numbers import Exact, Format, clipped, format_of
from fuzzrope.operations.rope import Rope

Array = np.ndarray
TF32_DIGITS = 11  # 10 stored bits, of which hardware may cut what follows: 2^-10
ROPE = Rope()


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a factor loses on its way into a product, relative and absolute; ``reach`` widens its range."""

    relative: float
    absolute: float
    reach: float = 1.0


def rounding(dtype: torch.dtype, tf32: bool) -> Rounding:
    """Of a factor that is held in ``dtype`` already; with ``tf32`` a float32 one is cut to 10 stored bits."""
    if tf32 and dtype == torch.float32:
        cut = 2.0 ** (1 - TF32_DIGITS)
        return Rounding(cut, 2.0**-136, 1 + cut)
    return Rounding(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Factors:
    """One factor of dot products: arrays (heads, rows, D); ``error`` is in units of 2^exact.exponent.

    Flags say what a factor is: NaN, +inf and -inf for certain; ``nil``, zero for certain; ``faint``, maybe zero
    or of either sign; ``doubtful``, finite or not, depending on who computes it. They are None where every
    factor is finite for certain.
    """

    exact: Exact
    error: Array
    nan: Array | None = None
    positive: Array | None = None
    negative: Array | None = None
    nil: Array | None = None
    faint: Array | None = None
    doubtful: Array | None = None

    @property
    def tame(self) -> bool:
        """Whether every factor is finite for certain."""
        return self.nan is None

    def of_head(self, head: int) -> tuple[Array, Array, Array, Array]:
        """Significands (high, low), exponents and errors (rows, D) of one head, magnitudes at most two."""
        high, low = self.exact.high[head], self.exact.low[head]
        exponent, error = self.exact.exponent[head].astype(np.int64), self.error[head]
        shift = np.frexp(np.maximum(np.abs(high), error))[1].astype(np.int64)
        scaled = (np.ldexp(part, clipped(-shift, -2000, 900)) for part in (high, low, error))
        high, low, error = scaled
        return high, low, exponent + shift, error


def factors(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, loss: Rounding, fold: float, whole: bool, repeat: int = 1
) -> Factors:
    """Rotated x (B, H, S, D) as factors (B * H * repeat, S, D), by tables with a row for each position or one.

    Args:
        x: the rows.
        cos: their rows of the table.
        sin: likewise.
        loss: what rounding to the type of the product costs.
        fold: the largest number that may be multiplied into the rows before they are rounded once more, or 0.
        whole: it is a power of two, so that only numbers that become subnormal are rounded.
        repeat: how many heads of q use one head.
    """
    batch, heads, rows, width = x.shape
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype)
    form = format_of(dtype)
    envelope = ROPE.envelope("q", {"q": x, "cos": cos, "sin": sin})

    def shaped(flat: Array) -> Array:
        whole = np.broadcast_to(flat, (batch * heads * rows * width,)).reshape(batch * heads, rows, width)
        return np.repeat(whole, repeat, axis=0) if repeat != 1 else whole

    exact = envelope.exact
    high, low, exponent = exact.high, exact.low, exact.exponent
    error = np.where(_unturned(exact, cos, sin, form, (*x.shape[:3], 2, width // 2)), 0.0, envelope.bound)
    size = np.abs(high) + error
    with np.errstate(all="ignore"):
        more = loss.relative + (form.roundoff if fold and not whole else 0.0)
        if more or fold:
            steps = np.ldexp(loss.absolute, clipped(-exponent, -2000, 900))
            steps = (steps + form.half_step_in(exponent)) / min(fold, 1.0) if fold else steps
            error = error + more * size + steps
        top = loss.reach * max(fold, 1.0) * (1 + 2 * form.roundoff)
        edge = _edge(form, exact)
        far = top * (size + error) >= edge
    numbers = Exact(shaped(high), shaped(low), shaped(exponent), exact.plain)
    if envelope.finite.all() and not far.any() and not (envelope.nan | envelope.positive | envelope.negative).any():
        return Factors(numbers, shaped(error))
    finite, counted = envelope.finite, envelope.nan.astype(np.int8) + envelope.positive + envelope.negative
    # What may overflow in one variant stays finite in one that computes in a wider format.
    doubtful = np.where(finite, far | (counted > 0), counted > 1)
    nan, up, down = (flag & ~finite for flag in (envelope.nan, envelope.positive, envelope.negative))
    finite = finite & ~doubtful
    nil = finite & (envelope.zero_sign != 0)
    faint = finite & ~nil & (np.abs(high) <= error)
    flags = (nan & ~doubtful, up & ~doubtful, down & ~doubtful, nil, faint, doubtful)
    numbers = Exact(shaped(np.where(finite, high, 0.0)), shaped(low * finite), shaped(exponent), exact.plain)
    return Factors(numbers, shaped(np.where(finite, error, 0.0)), *(shaped(flag) for flag in flags))


def _unturned(exact: Exact, cos: torch.Tensor, sin: torch.Tensor, form: Format, shape: tuple[int, ...]) -> Array:
    """Which factors (n,) are x times a power of two: sin is zero there, and nothing is left to be rounded."""
    powers, zeros = (t.to(torch.float64).numpy()[:, None, :] for t in (cos, sin))
    kept = np.broadcast_to((np.abs(np.frexp(powers)[0]) == 0.5) & (zeros == 0), shape).reshape(-1)
    if not kept.any():
        return kept
    normal = np.frexp(exact.high)[1] + exact.exponent > form.min_exponent
    return kept & (normal | (exact.high == 0))


def _edge(form: Format, exact: Exact) -> Array:
    """The least magnitude that rounds to infinity, in the units of ``exact``."""
    one, below, exponent = form.overflow
    if exact.plain:
        return np.asarray(form.rounds_to_infinity)
    return np.ldexp(one + below, clipped(exponent - exact.exponent, -2000, 1023))


@dataclass(frozen=True, slots=True)
class Specials:
    """What is not finite in dot products (heads, rows, keys): for certain, and where variants may differ."""

    nan: Array
    positive: Array
    negative: Array
    doubtful: Array


def specials(q: Factors, k: Factors) -> Specials | None:
    """By IEEE 754 from the flags of both factors, or None where all is finite."""
    if q.tame and k.tame:
        return None
    q, k = _flagged(q), _flagged(k)
    parts = []
    for x in (q, k):
        sign = np.sign(x.exact.high) * ~(x.faint | x.nil | x.doubtful)  # type: ignore[operator] # flags are set
        signed = (sign > 0) | x.positive, (sign < 0) | x.negative
        infinite = x.positive | x.negative  # type: ignore[operator] # as above
        parts.append((*signed, infinite))
    (up_q, down_q, inf_q), (up_k, down_k, inf_k) = parts

    def met(*pairs: tuple[Array | None, Array | None]) -> Array:
        """Whether for some d the one flag holds in q and the other in k."""
        count = sum(
            np.matmul(np.asarray(a, np.float32), np.swapaxes(np.asarray(b, np.float32), 1, 2)) for a, b in pairs
        )
        return np.asarray(count) > 0

    everything_q, everything_k = np.ones(up_q.shape, bool), np.ones(up_k.shape, bool)
    nan = met((q.nan, everything_k), (everything_q, k.nan), (inf_q, k.nil), (q.nil, inf_k))
    positive = met((q.positive, up_k), (q.negative, down_k), (up_q, k.positive), (down_q, k.negative))
    negative = met((q.positive, down_k), (q.negative, up_k), (up_q, k.negative), (down_q, k.positive))
    doubtful = met((q.doubtful, everything_k), (everything_q, k.doubtful), (inf_q, k.faint), (q.faint, inf_k))
    return Specials(nan, positive, negative, doubtful & ~nan)


def _flagged(x: Factors) -> Factors:
    if not x.tame:
        return x
    never = np.zeros(x.error.shape, dtype=bool)
    faint = np.abs(x.exact.high) <= x.error
    return Factors(x.exact, x.error, never, never, never, never, faint, never)
