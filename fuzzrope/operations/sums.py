"""What a correct sum may come out as when nothing is said about the order of its terms.

Dot products, reductions of gradients and normalisations all end in such a sum. Its error bound is the
caller's; the rule for NaN and infinities is the same for all and stands here.
"""

from __future__ import annotations

import numpy as np

from fuzzrope.numbers import Exact, Format
from fuzzrope.operations.base import Envelope

Array = np.ndarray


def sum_envelope(
    exact: Exact,
    bound: Array,
    rises: Array,
    falls: Array,
    passes: Format,
    ends: Format,
    nan: Array | None = None,
    positive: Array | None = None,
    negative: Array | None = None,
) -> Envelope:
    """The envelope of a sum of terms that may be added in any order, all arrays flat and of one length.

    IEEE 754 decides what is not finite: a NaN among the terms, or infinities of both signs, give NaN; one sort
    of infinity gives itself. Partial sums of finite terms lie between ``-falls`` and ``rises``, and some order
    reaches both ends; so where an end is beyond the range of a format that partial sums pass through, an
    infinity of that sign is allowed, and NaN where infinities of both signs can have met. Nothing else is.

    Args:
        exact: the true sum of the finite terms.
        bound: how far a finite answer may be from it, in units of 2^exact.exponent.
        rises: sum of the positive finite terms, in the same units.
        falls: sum of the negative finite terms without its sign, in the same units.
        passes: the format of least range in which a term or a partial sum may be held.
        ends: the format of the result.
        nan: where a term is NaN, or 0 times infinity; nowhere if not given.
        positive: where a term is +infinity.
        negative: where a term is -infinity.
    """
    shape = exact.high.shape
    never = np.broadcast_to(np.False_, shape)
    nan, positive, negative = (never if flags is None else flags for flags in (nan, positive, negative))
    with np.errstate(all="ignore"):
        far_up = rises + bound >= _limit(passes, exact)
        far_down = falls + bound >= _limit(passes, exact)
        size = np.abs(exact.high)
        edge = _limit(ends, exact)
        # Where the bound exceeds the sum, its sign is not known either.
        over_up, over_down = exact.high + bound >= edge, bound - exact.high >= edge
        finite = ~(nan | positive | negative)
        up = positive | (finite & (far_up | over_up))
        down = negative | (finite & (far_down | over_down))
        may_fall, may_rise = down | far_down, up | far_up
        forced = nan | (positive & negative)
        return Envelope(
            exact=exact,
            bound=bound,
            finite=finite & (size - bound < edge),
            nan=forced | (may_rise & may_fall),
            positive=up & ~forced,
            negative=down & ~forced,
            zero_sign=np.broadcast_to(np.int64(0), shape),
            tame=bool(finite.all()) and not (far_up | far_down | over_up | over_down).any(),
        )


def _limit(form: Format, exact: Exact) -> Array:
    """The least magnitude that rounds to infinity, in units of 2^exact.exponent."""
    one, below, exponent = form.overflow
    if exact.plain:
        return np.asarray(form.rounds_to_infinity)
    return np.ldexp(one + below, exponent - exact.exponent)
