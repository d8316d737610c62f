"""Gradients of ``rope_attention``: from the cotangents of o and lse to those of scores and of v.

For one row, P the weights, do and dl the cotangents of o and lse,

    dP_j = do · v_j,   δ = do · o = Σ_j P_j dP_j,   dS_j = P_j (dP_j - δ + dl) (1 - tanh²),   dv_j = Σ_i,h P_ij do_i.

Bounds are derived in ``docs/bounds-gradients.md``; from scores on it is :mod:`.fused_gradients`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fuzzrope.numbers import clipped, format_of
from fuzzrope.operations import doubled, fused, softmax
from fuzzrope.operations.attention_envelopes import Head, heads_of
from fuzzrope.operations.attention_envelopes import setting as forward_setting
from fuzzrope.operations.balls import Balls, dot, exactly, gamma, joined, least_of, plus, settled, summed, times
from fuzzrope.operations.base import Envelope, Options, Tensors
from fuzzrope.operations.fused_gradients import NEAR, Setting, envelopes, grouped, pulled
from fuzzrope.operations.operands import rounding
from fuzzrope.operations.scores import is_tf32, step_of

Array = np.ndarray
HOPELESS = 40.0  # errors of an exponent beyond which a weight is unknown


@dataclass(frozen=True, slots=True)
class _Cotangents:
    """Those of one head: of o (rows, Dv) and of lse (rows,), None where it is not used."""

    o: Array | None
    lse: Array | None


@dataclass(frozen=True, slots=True)
class _States:
    """Which rows (rows, 1) of a gradient are not finite, and which may or may not be."""

    odd: Array
    open: Array


class _Attention:
    """What the heads of one case share."""

    def __init__(self, tensors: Tensors, options: Options) -> None:
        self.setting = Setting.of(tensors, options)
        self.tensors, self.options = self.setting.tensors, options
        self.form, self.how, self.wide = forward_setting(self.tensors, options)
        self.v_type = self.tensors["v"].dtype
        self.held, self.sums = format_of(self.v_type), format_of(fused.work_dtype(self.v_type))
        self.roundoff = max(self.form.roundoff, self.sums.roundoff)
        self.limit = min(self.form.max, self.sums.max) * NEAR
        self.step = step_of(self.v_type, is_tf32(options))
        self.seen = self.setting.seen

    def head(self, head: Head, values: Array, given: _Cotangents) -> tuple[Balls, Balls]:
        """Gradients of scaled scores (rows, keys), and what the head adds to that of v, (keys, Dv)."""
        weights = self.weights(head)
        if given.o is None:
            nothing = exactly(np.zeros(self.seen.shape), self.wide)
            inner, dv, broken = nothing, exactly(np.zeros((len(values), 0)), self.wide), None
        else:
            inner, broken = self.inner(head, weights, values, given.o)
            do = self.setting.cast(exactly(given.o, self.wide), self.v_type)
            held = self.setting.cast(weights, self.v_type).marked(weights.odd, weights.open)
            nil = ~self.seen.T[None]
            dv = dot(held[None].transposed(), do[None], self.step, least_of(self.sums), self.limit, nil)[0]
            dv = dv.rounded(4 * self.roundoff)
        if given.lse is not None:
            dl = exactly(given.lse[:, None], self.wide)
            sizes = inner.size + dl.size
            inner = plus(inner, dl).wider(4 * self.roundoff * sizes).rounded(0.0, 0.0, self.limit)
        ds = times(weights, inner).rounded(4 * self.form.roundoff, 4 * least_of(self.form))
        ds = self.settle(ds, head, self.states(head, broken, given))
        return (ds if self.options.get("softcap") is None else self.uncapped(ds, head)), dv

    def weights(self, head: Head) -> Balls:
        """P, from scores and lse as they were rounded, or from a softmax of its own."""
        found, row, u = head.found, head.row, self.form.roundoff
        lse, lse_bound = softmax.logsumexp(found, self.form)
        some = found.count > 0
        total = tuple(np.where(some, part, at)[:, None] for part, at in zip(found.total, (1.0, 0.0), strict=True))
        if self.wide:
            shape = found.weights[0].shape
            high, low = doubled.over(found.weights, tuple(part + np.zeros(shape) for part in total))  # type: ignore[arg-type] # a pair
        else:
            high, low = found.weights[0] / total[0], np.zeros(found.weights[0].shape)
        far = np.where(row.kept, np.abs(head.capped.high - lse.high[:, None]), 0.0)
        rho = found.rho + lse_bound[:, None] + u * (2 * np.abs(lse.high)[:, None] + 3 * far + 16)
        vanishing = 2 * max(2.0**self.form.min_exponent, 2.0**-865 if self.wide else 0.0)
        own = (len(high[0]) + 800 if len(high) else 0) * 2.0 ** (-90 if self.wide else -52)
        radius = high * (np.expm1(np.minimum(rho, HOPELESS)) + own) + vanishing
        radius = np.where(row.kept, np.where(rho > HOPELESS, np.inf, radius), 0.0)
        never = np.zeros(high.shape, dtype=bool)
        plain = settled(np.where(row.kept, high, 0.0), low * row.kept, radius, never, never, self.wide)
        return self.settle(plain, head, _States(row.nan, row.positive | row.negative | row.doubtful | row.lost))

    def inner(self, head: Head, weights: Balls, values: Array, cotangent: Array) -> tuple[Balls, _States]:
        """dP - δ (rows, keys), and the rows that values and cotangents break."""
        usual, cut = np.isfinite(values), rounding(self.v_type, is_tf32(self.options))
        known = exactly(cotangent, self.wide)
        v = exactly(np.where(usual, values, 0.0), self.wide).rounded(cut.relative, cut.absolute)
        do = self.setting.cast(exactly(np.where(known.odd, 0.0, cotangent), self.wide), self.v_type)
        dp = dot(do[None], v[None].transposed(), self.step, least_of(self.sums), self.limit)[0]
        # Eager divides do by the sum of weights, and rounds the product to v's type.
        steps = (1 + head.found.total[0])[:, None]
        dp = dp.rounded(4 * self.roundoff)
        dp = self.setting.cast(dp, self.v_type).wider(np.where(dp.size > 0, least_of(self.held) * steps, 0.0))
        delta = self.delta(head, weights, do, known, dp, values)
        inner = plus(dp, delta.flipped())
        inner = inner.wider(4 * self.roundoff * (dp.size + delta.size))
        far = dp.size + delta.size >= self.limit
        odd_v = ~usual.all(axis=1)[None, :]
        broken = known.odd.any(axis=1, keepdims=True) | (self.seen & odd_v).any(axis=1, keepdims=True)
        far = (far | dp.open | delta.open | weights.open | (~self.seen & odd_v)).any(axis=1, keepdims=True)
        return inner, _States(broken, far)

    def delta(self, head: Head, weights: Balls, do: Balls, known: Balls, dp: Balls, values: Array) -> Balls:
        """do · o by o as it was rounded, or Σ P dP: the radius is the larger of both."""
        usual = np.where(np.isfinite(values), values, 0.0)
        exact, bound = softmax.weighted(head.found, usual, self.how, self.seen)
        bound = np.where(head.row.none | head.row.lost, 0.0, bound)
        shift = clipped(exact.exponent, -2000, 2000)
        high, low, bound = (np.ldexp(part, shift) for part in (exact.high, exact.low, bound))
        never = np.zeros(high.shape, dtype=bool)
        o = settled(high, low, bound + (2.0**-1070 if self.wide else 0.0), never, never, self.wide)
        plain = settled(known.high, known.low, known.radius, never, do.open, self.wide)
        first = summed(times(plain, o), (1,), self.roundoff)
        first = first.wider(self.roundoff * first.size).rounded(0.0, 4 * (len(values) + 2) * least_of(self.sums))
        second = weights.radius * dp.size + np.abs(weights.high) * dp.radius
        count = gamma(len(values) + 4, self.roundoff)
        second = (second + count * weights.size * dp.size).sum(axis=1, keepdims=True) * (1 + 2.0**-20)
        # Eager's o is not divided by the sum of weights yet where it is multiplied by do.
        whole = 1 + head.found.most[:, None]
        reached = (plain.size * o.size).sum(axis=1, keepdims=True) * whole >= self.limit
        # An o that was infinite before it was divided is so for a cotangent of zero too.
        up, down = softmax.overflowing(head.row.kept, usual, self.how)
        reached = reached | (up | down).any(axis=1, keepdims=True)
        return first.wider(np.maximum(second - first.radius, 0.0)).marked(np.zeros(reached.shape, dtype=bool), reached)

    def states(self, head: Head, broken: _States | None, given: _Cotangents) -> _States:
        """Rows of dS that are not finite. Without o an infinite lse may hide what is infinite in a score."""
        row = head.row
        odd, far = row.nan, row.negative | row.doubtful | row.lost | row.positive
        if given.lse is not None:
            odd = odd | ~np.isfinite(given.lse)[:, None]
        if broken is not None:
            reaches = bool(given.o is not None and given.o.shape[1])
            odd = odd | broken.odd | (row.positive & reaches)
            far = far | broken.open
        return _States(odd & ~row.none, far | (odd & row.none))

    def settle(self, x: Balls, head: Head, states: _States) -> Balls:
        """x (rows, keys) in the states of its rows: what is masked is zero, but may be anything beside what is not."""
        masked = ~self.seen
        zero = np.where(masked, 0.0, 1.0)
        odd = self.seen & states.odd
        opened = (self.seen & (x.open | x.odd | states.open)) | (masked & (states.odd | states.open))
        return settled(x.high * zero, x.low * zero, x.radius * zero, odd, opened, self.wide)

    def uncapped(self, ds: Balls, head: Head) -> Balls:
        """Times 1 - tanh², tanh with the error that it has in scores."""
        cap, u = float(self.options["softcap"]), self.form.roundoff
        shape = head.capped.high.shape
        whole = (np.full(shape, cap), np.zeros(shape))
        if self.wide:
            t = doubled.over((head.capped.high, head.capped.low), whole)
            high, low = doubled.minus((np.ones(shape), np.zeros(shape)), doubled.times(t, t))
        else:
            t = head.capped.high / cap, whole[1]
            high, low = 1 - t[0] * t[0], whole[1]
        error = head.capped.error / cap
        radius = (2 * np.abs(t[0]) + error) * error + 4 * u
        factor = settled(high, low, radius, np.zeros(shape, dtype=bool), head.fixed, self.wide)
        reach = max(1.0, cap)  # it may be multiplied by the cap before it is divided by it
        ds = ds.rounded(0.0, 0.0, self.limit / reach)
        capped = times(ds, factor).rounded(6 * u, 4 * least_of(self.form) * reach)
        nil = ~self.seen & ~(ds.odd | ds.open)
        return settled(capped.high, capped.low, capped.radius, capped.odd, capped.open & ~nil, self.wide)


def gradients(
    tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], options: Options
) -> dict[str, Envelope]:
    """Envelopes of the gradients of these inputs; v has none where only lse is in use."""
    attention = _Attention(tensors, options)
    q, k, v = (attention.tensors[name] for name in ("q", "k", "v"))
    heads, group = q.shape[0] * q.shape[1], q.shape[1] // k.shape[1] if k.shape[1] else 1
    values = v.to(torch.float64).numpy().reshape(v.shape[0] * v.shape[1], *v.shape[2:])
    given = {name: t.detach().to(torch.float64).numpy().reshape(heads, *t.shape[2:]) for name, t in cotangents.items()}
    o, lse = given.get("o"), given.get("lse")
    with np.errstate(all="ignore"):
        found = [
            attention.head(head, values[i // group], _Cotangents(*(None if x is None else x[i] for x in (o, lse))))
            for i, head in enumerate(heads_of(attention.tensors, options))
        ]
        empty = exactly(np.zeros((0, q.shape[2], k.shape[2])), attention.wide)
        parts = pulled(_stacked([ds for ds, _ in found], empty), attention.setting)
        if o is not None:
            empty = exactly(np.zeros((0, k.shape[2], v.shape[3])), attention.wide)
            dv = attention.setting.cast(_stacked([dv for _, dv in found], empty), v.dtype)
            total, _ = grouped(dv, tuple(v.shape), q.shape[1], attention.sums)
            parts["v"].append(total)
        return envelopes({name: some for name, some in parts.items() if some}, tensors, requires)


def _stacked(heads: list[Balls], empty: Balls) -> Balls:
    return joined(heads, np.stack) if heads else empty
