"""The contract of ``rope``: reference, oracle with its error bound, and what its arguments must be.

q (B, Hq, S, D) and k (Bk, Hk, S, D) are rotated by tables cos and sin (R, D/2) that are cut to S rows and
broadcast against each half as PyTorch does. How its cases are drawn is in :mod:`.rope_cases`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch

from fuzzrope.case import FLOATS, Case
from fuzzrope.draw import Draw
from fuzzrope.numbers import Exact, Format, clipped, difference, format_of, product
from fuzzrope.operations import rope_backward, rope_cases, rope_gradients, rope_relations, rope_strata
from fuzzrope.operations.base import NO_OPTIONS, Envelope, Options, Stratum, Tensors
from fuzzrope.operations.relations import Related
from fuzzrope.operations.spread import Spread, two_products

MAX_NARROW = 24  # digits of formats whose products float64 holds exactly


class Rope:
    """Rotary position embedding of a query and a key."""

    name = "rope"
    inputs: tuple[str, ...] = ("q", "k", "cos", "sin")
    views: Mapping[str, str] = {"cos": "cos", "sin": "sin"}
    relations: tuple[str, ...] = rope_relations.NAMES
    contiguous = False

    def results(self, options: Options) -> tuple[str, ...]:
        """q and k rotated, then cos and sin."""
        return self.inputs

    def rejects(self, case: Case) -> str | None:
        """Integer dtypes, wrong ranks, odd or different head_dim and mixed devices."""
        for name, rank in (("q", 4), ("k", 4), ("cos", 2), ("sin", 2)):
            if case[name].dtype not in FLOATS:
                return f"{name} is {case[name].dtype}"
            if len(case[name].shape) != rank:
                return f"{name} has {len(case[name].shape)} dimensions"
        if len({spec.device for _, spec in case.tensors}) > 1:
            return "the tensors are on different devices"
        if case["q"].shape[3] % 2:
            return f"head_dim {case['q'].shape[3]} is odd"
        if case["q"].shape[3] != case["k"].shape[3]:
            return "q and k differ in head_dim"
        return None

    def reference(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, torch.Tensor]:
        """Eager PyTorch, on tensors (batch, position, head, dimension) and back."""
        q, k, cos, sin = (tensors[name] for name in self.inputs)
        length, half = q.shape[2], q.transpose(1, 2).shape[3] // 2
        cos, sin = cos[:length, :], sin[:length, :]
        c, s = cos.unsqueeze(0).unsqueeze(2), sin.unsqueeze(0).unsqueeze(2)
        rotated = {}
        for name, x in (("q", q.transpose(1, 2)), ("k", k.transpose(1, 2))):
            x1, x2 = x[..., :half], x[..., half:]
            rotated[name] = torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], dim=-1).transpose(1, 2)
        return {**rotated, "cos": c.squeeze(0).squeeze(1), "sin": s.squeeze(0).squeeze(1)}

    def envelopes(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, Envelope]:
        """Those of q and k; see :meth:`envelope`."""
        q, k = (self._products(output, tensors) for output in ("q", "k"))
        if q.formats != k.formats:
            return {"q": q.envelope(), "k": k.envelope()}
        # One envelope around both costs little more than one of them: cases are small.
        both = q.joined(k).envelope()
        return {"q": both.part(0, q.count), "k": both.part(q.count, q.count + k.count)}

    def fitted(self, case: Case) -> Case:
        """See :mod:`.rope_backward`."""
        return rope_backward.fitted(case)

    def gradients(
        self, tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], options: Options = NO_OPTIONS
    ) -> dict[str, Envelope]:
        """See :mod:`.rope_gradients`."""
        return rope_gradients.gradients(tensors, cotangents, requires)

    def backward_strata(self) -> tuple[Stratum, ...]:
        """See :mod:`.rope_backward`."""
        return rope_backward.strata()

    def envelope(self, output: str, tensors: Tensors) -> Envelope:
        """Bound of x1*c - x2*s and x2*c + x1*s against the exact value; see :func:`_envelope`."""
        return self._products(output, tensors).envelope()

    def _products(self, output: str, tensors: Tensors) -> _Products:
        x, cos, sin = tensors[output], tensors["cos"], tensors["sin"]
        length, half = tensors["q"].shape[2], tensors["q"].shape[3] // 2
        cos_type, sin_type = torch.promote_types(x.dtype, cos.dtype), torch.promote_types(x.dtype, sin.dtype)
        o_type = torch.promote_types(cos_type, sin_type)
        formats = (format_of(cos_type), format_of(sin_type), format_of(o_type))
        numbers, c, s = (t.to(torch.float64).numpy() for t in (x, cos[:length], sin[:length]))
        halves = numbers.reshape(*numbers.shape[:-1], 2, half)  # (batch, head, position, half, column)
        c, s = c[:, None, :], s[:, None, :]
        shape = np.broadcast_shapes(halves.shape, c.shape, s.shape)
        count = math.prod(shape)
        if max(form.digits for form in formats) <= MAX_NARROW:
            with np.errstate(all="ignore"):
                left, across = halves * c, halves * s
            right = np.empty_like(across)
            right[..., 0, :] = across[..., 1, :]
            np.negative(across[..., 0, :], out=right[..., 1, :])
            ac, bs = (np.broadcast_to(t, shape).reshape(-1) for t in (left, right))
            return _Products(formats, count, lambda: _operands(halves, c, s), (ac, bs))
        return _Products(formats, count, lambda: _operands(halves, c, s))

    def relate(self, case: Case, relation: str) -> Related | None:
        """See :mod:`.rope_relations`."""
        return rope_relations.relate(case, relation)

    def probes(self) -> tuple[Case, ...]:
        """The benchmark's own shape, and a larger one that shows a tile."""
        return rope_cases.probes()

    def strata(self, blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
        """See :mod:`.rope_strata`."""
        return rope_strata.strata(blocks)

    def classify(self, case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
        """See :mod:`.rope_strata`."""
        return rope_strata.classify(case, blocks) | rope_backward.classify(case)

    def draw(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """See :mod:`.rope_cases`."""
        return rope_backward.differentiated(draw, pins, rope_cases.draw_case(draw, pins, blocks))

    def simpler(self, case: Case) -> list[Case]:
        """See :mod:`.rope_cases`."""
        return rope_cases.simpler(case)


@dataclass(frozen=True, slots=True)
class _Products:
    """The elements a*c - b*s of an output.

    Attributes:
        formats: of the two products and of the result.
        count: how many they are, n.
        operands: works out a, c, b, s, as (4, n).
        exact: the products (n,), where float64 holds them.
    """

    formats: tuple[Format, Format, Format]
    count: int
    operands: Callable[[], np.ndarray]
    exact: tuple[np.ndarray, np.ndarray] | None = None

    def envelope(self) -> Envelope:
        if self.exact is None:
            a, c, b, s = self.operands()
            return _envelope(a, c, b, s, *self.formats)
        return _narrow_envelope(*self.exact, self.operands, *self.formats)

    def joined(self, other: _Products) -> _Products:
        """The elements of both, which are of the same formats."""
        exact = None
        if self.exact is not None and other.exact is not None:
            (left, right), (other_left, other_right) = self.exact, other.exact
            exact = np.concatenate([left, other_left]), np.concatenate([right, other_right])

        def operands() -> np.ndarray:
            return np.concatenate([self.operands(), other.operands()], axis=1)

        return _Products(self.formats, self.count + other.count, operands, exact)


def _operands(halves: np.ndarray, c: np.ndarray, s: np.ndarray) -> np.ndarray:
    """a, c, b, s of all elements a*c - b*s, as (4, n)."""
    shape = np.broadcast_shapes(halves.shape, c.shape, s.shape)
    operands = np.empty((4, *shape))
    operands[0], operands[1], operands[3] = halves, c, s
    operands[2, ..., 0, :], operands[2, ..., 1, :] = halves[..., 1, :], halves[..., 0, :]
    np.negative(operands[3, ..., 1, :], out=operands[3, ..., 1, :])
    return operands.reshape(4, -1)


def _rounded_to_infinity(value: Exact, form: Format) -> np.ndarray:
    """Whether rounding to ``form`` overflows."""
    limit, below, top = form.overflow
    reach = value.exponent.max(initial=-1) + np.frexp(np.abs(value.high).max(initial=0.0))[1]
    if reach < top:  # the usual case: all are below 2^(top - 1), so the rest need not be looked at
        return np.zeros(value.high.shape, dtype=bool)
    high, low = value.at(np.full(value.exponent.shape, top, dtype=np.int64))
    # Exact: near the limit high - 1 has few bits, elsewhere its sign decides.
    return (np.abs(high) - limit) + (low * np.sign(high) - below) >= 0


def _magnitude(value: Exact, exponent: np.ndarray) -> np.ndarray:
    high, low = value.at(exponent)
    return np.abs(high + low)


def _narrow_envelope(
    ac: np.ndarray, bs: np.ndarray, operands: Callable[[], np.ndarray], p: Format, r: Format, o: Format
) -> Envelope:
    """:func:`_envelope` for formats up to float32, from the products in float64, where they are exact.

    Their difference is rounded once, to 2^-53, which the slack covers with room for the bound's own rounding.
    """
    with np.errstate(all="ignore"):
        exact = ac - bs
        left, right, size = np.abs(ac), np.abs(bs), np.abs(exact)
        slack = left * (p.roundoff + 2.0**-52) + right * (r.roundoff + 2.0**-52) + (p.half_step + r.half_step)
        bound = slack + o.roundoff * (size + slack) + o.half_step
        zero = (ac == 0) & (bs == 0)
        zero_sign = np.where(zero, np.where(np.signbit(exact), -1, 1), 0)
        reach = size + bound
        tame = reach.max(initial=0.0) < o.rounds_to_infinity
        if tame and left.max(initial=0.0) < p.rounds_to_infinity and right.max(initial=0.0) < r.rounds_to_infinity:
            never = np.broadcast_to(np.False_, exact.shape)
            spread = _spread(Exact.of(ac), Exact.of(bs), Exact.of(exact), (p, r, o), None, operands)
            return Envelope(Exact.of(exact), bound, ~never, never, never, never, zero_sign, not zero.any(), spread)
        left_finite, right_finite = np.isfinite(ac), np.isfinite(bs)
        finite = left_finite & right_finite
        left_far = left_finite & (left >= p.rounds_to_infinity)
        right_far = right_finite & (right >= r.rounds_to_infinity)
        nan, positive, negative = _special(ac, bs, left_finite, right_finite, left_far, right_far)
        far = finite & (reach >= o.rounds_to_infinity)
        exact, bound = np.where(finite, exact, 0.0), np.where(finite, bound, 0.0)
        positive, negative = positive | (far & (exact > 0)), negative | (far & (exact < 0))
        spread = _spread(
            Exact.of(ac), Exact.of(bs), Exact.of(exact), (p, r, o), finite & ~(nan | positive | negative), operands
        )
        zero_sign = np.where(finite, zero_sign, 0)
        return Envelope(Exact.of(exact), bound, finite, nan, positive, negative, zero_sign, False, spread)


def _spread(
    ac: Exact,
    bs: Exact,
    exact: Exact,
    formats: tuple[Format, Format, Format],
    sure: np.ndarray | None,
    operands: Callable[[], np.ndarray],
) -> Callable[[slice], Spread]:
    """What works out the scatter of ac - bs when asked for, None standing for sure everywhere."""

    def work_out(at: slice) -> Spread:
        left, right, result = (value.part(at) for value in (ac, bs, exact))
        certain = True if sure is None else sure[at]
        return two_products(left, right, result, formats, certain, lambda: tuple(operands()[:, at]))

    return work_out


def _special(
    ac: np.ndarray,
    bs: np.ndarray,
    left_finite: np.ndarray,
    right_finite: np.ndarray,
    left_far: np.ndarray,
    right_far: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where ac - bs may be NaN, +inf and -inf, given which products are finite, and which may overflow."""
    left, right = np.where(left_finite, np.copysign(0.0, ac), ac), np.where(right_finite, np.copysign(0.0, bs), bs)
    outcomes = [left - right]
    if left_far.any() or right_far.any():
        far_left = np.where(left_far, np.copysign(np.inf, ac), left)
        far_right = np.where(right_far, np.copysign(np.inf, bs), right)
        outcomes += [far_left - right, left - far_right, far_left - far_right]
    nan, positive, negative = zip(*((np.isnan(x), x == np.inf, x == -np.inf) for x in outcomes), strict=True)
    return reduce(np.logical_or, nan), reduce(np.logical_or, positive), reduce(np.logical_or, negative)


def _envelope(a: np.ndarray, c: np.ndarray, b: np.ndarray, s: np.ndarray, p: Format, r: Format, o: Format) -> Envelope:
    """What may come out of a*c - b*s with products in formats p and r and the result in o.

    Eager PyTorch rounds each product, then the difference, so with unit roundoffs u and half the smallest
    subnormals h of the three formats (Higham, Accuracy and Stability, 2.1 and 2.8)

        |computed - exact| <= E + u_o (|exact| + E) + h_o,   E = |ac| u_p + h_p + |bs| u_r + h_r.

    A correct variant rounds less often (contraction, wider arithmetic inside), never more coarsely, so it
    stays inside too. A finite product beyond a format's range may have become infinite, or not, depending
    on the variant: each of the four combinations is allowed, and nothing else. Infinite and NaN operands
    leave no such freedom: IEEE 754 decides.
    """
    left_finite, right_finite = np.isfinite(a) & np.isfinite(c), np.isfinite(b) & np.isfinite(s)
    finite = left_finite & right_finite
    with np.errstate(all="ignore"):
        ac, bs = (product(*(np.where(np.isfinite(t), t, 0.0) for t in pair)) for pair in ((a, c), (b, s)))
        exact = difference(ac, bs)
        # Powers of two near the larger product: units in which nothing of interest over- or underflows.
        unit = np.maximum(np.maximum(ac.exponent, bs.exponent), o.smallest_exponent - 8)
        exact = Exact(*exact.at(unit), unit)

        def half_step(form: Format) -> np.ndarray:
            return np.ldexp(0.5, clipped(form.smallest_exponent - unit, -2000, 900))

        slack = _magnitude(ac, unit) * (p.roundoff + 2.0**-100) + half_step(p)
        slack += _magnitude(bs, unit) * (r.roundoff + 2.0**-100) + half_step(r)
        bound = slack + o.roundoff * (np.abs(exact.high) + slack) + half_step(o)

        # The two products as IEEE sees them.
        left, right = a * c, b * s
        left_far = left_finite & _rounded_to_infinity(ac, p)
        right_far = right_finite & _rounded_to_infinity(bs, r)
        nan, positive, negative = _special(left, right, left_finite, right_finite, left_far, right_far)
        reach = Exact(np.abs(exact.high) + bound, np.zeros_like(bound), unit)
        far = finite & _rounded_to_infinity(reach, o)
        zero = finite & (ac.high == 0) & (bs.high == 0)
        positive, negative = positive | (far & (exact.high > 0)), negative | (far & (exact.high < 0))
        sure = finite & ~(nan | positive | negative)
        return Envelope(
            exact=exact,
            bound=bound,
            finite=finite,
            nan=nan,
            positive=positive,
            negative=negative,
            spread=_spread(ac, bs, exact, (p, r, o), sure, lambda: np.stack([a, c, b, s])),
            zero_sign=np.where(zero, np.where(np.signbit(left - right), -1, 1), 0),
        )
