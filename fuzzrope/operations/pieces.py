"""Envelopes put together from others: one after another, and some elements of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fuzzrope.numbers import Exact
from fuzzrope.operations.base import Envelope

_EXACT = ("high", "low", "exponent")
_FIELDS = ("bound", "finite", "nan", "positive", "negative", "zero_sign")


def stacked(parts: Sequence[Envelope]) -> Envelope:
    """Envelopes one after another; of more than one, what scatters by itself is no longer known."""
    if len(parts) == 1:
        return parts[0]
    columns = [[np.broadcast_to(getattr(part.exact, name), part.finite.shape) for part in parts] for name in _EXACT]
    high, low, exponent = map(np.concatenate, columns)
    bound, finite, nan, positive, negative, zero_sign = (
        np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS
    )
    exact = Exact(high, low, exponent, all(part.exact.plain for part in parts))
    tame = all(part.tame for part in parts)
    return Envelope(exact, bound, finite, nan, positive, negative, zero_sign, tame)


def picked(envelope: Envelope, at: np.ndarray) -> Envelope:
    """The elements with these numbers, in this order; what scatters by itself is no longer known."""
    high, low, exponent = (np.broadcast_to(getattr(envelope.exact, name), envelope.finite.shape)[at] for name in _EXACT)
    bound, finite, nan, positive, negative, zero_sign = (getattr(envelope, name)[at] for name in _FIELDS)
    exact = Exact(high, low, exponent, envelope.exact.plain)
    return Envelope(exact, bound, finite, nan, positive, negative, zero_sign, envelope.tame)
