"""The contract of ``rope``: reference, oracle with its error bound, and what its arguments must be.

q (B, Hq, S, D) and k (Bk, Hk, S, D) are rotated by tables cos and sin (R, D/2) that are cut to S rows and
broadcast against each half as PyTorch does. How its cases are drawn is in :mod:`.rope_cases`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch

from fuzzrope.case import FLOATS, Case
from fuzzrope.draw import Draw
from fuzzrope.numbers import Exact, Format, clipped, difference, format_of, product
from fuzzrope.operations import rope_cases, rope_strata
from fuzzrope.operations.base import Envelope, Stratum, Tensors


class Rope:
    """Rotary position embedding of a query and a key."""

    name = "rope"
    inputs: tuple[str, ...] = ("q", "k", "cos", "sin")
    outputs: tuple[str, ...] = ("q", "k", "cos", "sin")
    views: Mapping[str, str] = {"cos": "cos", "sin": "sin"}

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

    def reference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
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

    def envelope(self, output: str, tensors: Tensors) -> Envelope:
        """Bound of x1*c - x2*s and x2*c + x1*s against the exact value; see :func:`_envelope`."""
        x, cos, sin = tensors[output], tensors["cos"], tensors["sin"]
        length, half = tensors["q"].shape[2], tensors["q"].shape[3] // 2
        cos_type, sin_type = torch.promote_types(x.dtype, cos.dtype), torch.promote_types(x.dtype, sin.dtype)
        formats = [format_of(t) for t in (cos_type, sin_type, torch.promote_types(cos_type, sin_type))]
        numbers, c, s = (t.to(torch.float64).numpy() for t in (x, cos[:length], sin[:length]))
        x1, x2 = numbers[..., :half], numbers[..., half:]
        shape = np.broadcast_shapes(x1.shape, c.shape, s.shape)
        operands = np.empty((4, *shape[:-1], 2, shape[-1]))
        for operand, of_halves in zip(operands, ((x1, x2), (c, c), (x2, x1), (s, -s)), strict=True):
            operand[..., 0, :], operand[..., 1, :] = of_halves
        a, c, b, s = operands.reshape(4, -1)
        return _envelope(a, c, b, s, *formats)

    def probes(self) -> tuple[Case, ...]:
        """The benchmark's own shape, and a larger one that shows a tile."""
        return rope_cases.probes()

    def strata(self, blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
        """See :mod:`.rope_strata`."""
        return rope_strata.strata(blocks)

    def classify(self, case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
        """See :mod:`.rope_strata`."""
        return rope_strata.classify(case, blocks)

    def draw(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """See :mod:`.rope_cases`."""
        return rope_cases.draw_case(draw, pins, blocks)

    def simpler(self, case: Case) -> list[Case]:
        """See :mod:`.rope_cases`."""
        return rope_cases.simpler(case)


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

        # The two products as IEEE sees them: their sign, and whether they are or may become infinite.
        left, right = a * c, b * s
        left_kind = np.where(left_finite, np.copysign(0.0, left), left)
        right_kind = np.where(right_finite, np.copysign(0.0, right), right)
        outcomes = [left_kind - right_kind]
        left_far = left_finite & _rounded_to_infinity(ac, p)
        right_far = right_finite & _rounded_to_infinity(bs, r)
        if left_far.any() or right_far.any():
            left_far_value = np.where(left_far, np.copysign(np.inf, left), left_kind)
            right_far_value = np.where(right_far, np.copysign(np.inf, right), right_kind)
            outcomes += [left_far_value - right_kind, left_kind - right_far_value, left_far_value - right_far_value]
        reach = Exact(np.abs(exact.high) + bound, np.zeros_like(bound), unit)
        far = finite & _rounded_to_infinity(reach, o)
        zero = finite & (ac.high == 0) & (bs.high == 0)
        return Envelope(
            exact=exact,
            bound=bound,
            finite=finite,
            nan=reduce(np.logical_or, (np.isnan(x) for x in outcomes)),
            positive=reduce(np.logical_or, (x == np.inf for x in outcomes)) | (far & (exact.high > 0)),
            negative=reduce(np.logical_or, (x == -np.inf for x in outcomes)) | (far & (exact.high < 0)),
            zero_sign=np.where(zero, np.where(np.signbit(left - right), -1, 1), 0),
        )
