"""Gradients of ``rope_qk``, and of what ``rope_attention`` shares with it: from those of scores to q, k and the tables.

With dS the gradient of scaled scores, x and y the rotated rows of q and k,

    dx = scale Σ_j dS_ij y_j,   dy = scale Σ_i,h dS_ij x_i   (h: the heads of q that use one of k),

which are then rotated back, and multiplied by q and k for the tables. The derivation of the bounds is in
``docs/bounds-gradients.md``; no code is shared with the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fuzzrope.numbers import Exact, Format, clipped, format_of
from fuzzrope.operations import fused
from fuzzrope.operations.balls import (
    WIDE_UNDERFLOW,
    Balls,
    dot,
    exactly,
    joined,
    least_of,
    plus,
    settled,
    summed,
    times,
)
from fuzzrope.operations.base import Envelope, Options, Tensors
from fuzzrope.operations.operands import Factors, factors, rounding
from fuzzrope.operations.scores import LOG2E, SCALING, is_tf32, step_of

Array = np.ndarray
Parts = dict[str, list[Balls]]
ROTATING = 5  # roundings of a term on its way back to q or k: a head's, the product and before it, a conversion, a sum
TABULATING = 5  # and to a table: the product and before it, a sum, a conversion, a sum of two uses
NEAR = 1 - 2.0**-6  # of the range of a format, beyond which something may overflow


@dataclass(frozen=True, slots=True)
class Setting:
    """What both operations compute with.

    Attributes:
        tensors: the inputs, which require no gradient.
        options: the operation's.
        dot: the dtype of products of scores' gradients.
        work: the format they are summed in.
        seen: which keys each row sees, (rows, keys).
        wide: the oracle needs pairs of float64.
    """

    tensors: Tensors
    options: Options
    dot: torch.dtype
    work: Format
    seen: Array
    wide: bool

    @classmethod
    def of(cls, tensors: Tensors, options: Options) -> Setting:
        """That of these inputs."""
        dtype = fused.dot_dtype(tensors)
        seen = fused.visible(options, tensors["q"].shape[2], tensors["k"].shape[2])
        wide = any(t.dtype == torch.float64 for t in tensors.values())
        detached = {name: t.detach() for name, t in tensors.items()}
        return cls(detached, options, dtype, format_of(fused.work_dtype(dtype)), seen, wide)

    def cast(self, balls: Balls, dtype: torch.dtype, reach: float = 1.0) -> Balls:
        """Rounded on the way into a product of this dtype, maybe before or after it is multiplied by ``reach``."""
        form, cut = format_of(dtype), rounding(dtype, is_tf32(self.options))
        relative = form.roundoff + cut.relative
        return balls.rounded(relative, (least_of(form) + cut.absolute) * max(1.0, reach), form.max / cut.reach * NEAR)


def gradients(
    tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], options: Options
) -> dict[str, Envelope]:
    """Envelopes of the gradients of ``rope_qk``: the gradient of scores is their cotangent where they are seen."""
    setting = Setting.of(tensors, options)
    with np.errstate(all="ignore"):
        g = cotangents["scores"].to(torch.float64).numpy()
        g = np.where(setting.seen, g.reshape(g.shape[0] * g.shape[1], *g.shape[2:]), 0.0)
        return envelopes(pulled(exactly(g, setting.wide), setting), tensors, requires)


def pulled(ds: Balls, setting: Setting) -> Parts:
    """What gradients (B * Hq, Sq, Sk) of scaled scores make of those of q, k, cos and sin.

    A tensor has several parts, which are rounded to its type and added.
    """
    tensors, options, seen, work = setting.tensors, setting.options, setting.seen, setting.work
    q, k = tensors["q"], tensors["k"]
    scale, tf32 = fused.scale_of(options, q.shape[3]), is_tf32(options)
    reach = max(1.0, abs(scale))
    limit = work.max * NEAR
    step, least = step_of(setting.dot, tf32), least_of(work) * reach
    unscaled = ds.rounded(0.0, 0.0, format_of(setting.dot).max * NEAR)
    ds = unscaled.scaled(scale).rounded(SCALING * work.roundoff)
    ds = setting.cast(ds, setting.dot, abs(scale))
    unscaled = setting.cast(unscaled, setting.dot)
    rows_q, rows_k = _operands(setting, scale)
    dx = dot(ds, rows_k, step, least, limit, ~seen).rounded(SCALING * work.roundoff)
    dy = dot(ds.transposed(), rows_q, step, least, limit, ~seen.T).rounded(SCALING * work.roundoff)
    # Sums may be scaled at last, and overflow before.
    before = np.matmul(unscaled.transposed().size, rows_q.size)
    dx, dy = _opened(dx, np.matmul(unscaled.size, rows_k.size) >= limit), _opened(dy, before >= limit)
    found: Parts = {name: [] for name in tensors}
    dx = setting.cast(dx, _turned(tensors, "q")).reshaped(*q.shape)
    _rotated_back("q", dx, dx.size, np.asarray(~seen.any(axis=1)), setting, found)
    dy = setting.cast(dy, _turned(tensors, "k"))  # of each head of q, before they are added
    dy, sizes = grouped(dy, tuple(k.shape), q.shape[1], work)
    # Heads that share one of k may be summed together, and scaled before or after that.
    for terms in (np.matmul(ds.transposed().size, rows_q.size), before):
        dy = _opened(dy, _of_groups(terms, tuple(k.shape), q.shape[1]) >= limit)
    _rotated_back("k", setting.cast(dy, _turned(tensors, "k")), sizes, np.asarray(~seen.any(axis=0)), setting, found)
    return found


def _opened(x: Balls, where: Array) -> Balls:
    """Anything is allowed there: a sum may overflow on the way."""
    return x.marked(np.zeros(where.shape, dtype=bool), where)


def grouped(x: Balls, shape: tuple[int, ...], heads: int, work: Format) -> tuple[Balls, Array]:
    """(B * Hq, rows, columns) summed over the heads that use one of k, in the shape of k, and their sizes summed."""
    batch, heads_k, rows, width = shape
    apart = x.reshaped(batch, heads_k, heads // heads_k if heads_k else 1, rows, width)
    total = summed(apart, (2,), work.roundoff)
    return total.reshaped(*shape), _of_groups(x.size, shape, heads)


def _of_groups(sizes: Array, shape: tuple[int, ...], heads: int) -> Array:
    """(B * Hq, rows, columns) summed over the heads that use one of k."""
    batch, heads_k, rows, width = shape
    return np.asarray(sizes.reshape(batch, heads_k, heads // heads_k if heads_k else 1, rows, width).sum(axis=2))


def _turned(tensors: Tensors, name: str) -> torch.dtype:
    """The dtype that eager rotates in."""
    return fused.promoted(tensors[x].dtype for x in (name, "cos", "sin"))


def _operands(setting: Setting, scale: float) -> tuple[Balls, Balls]:
    """Rotated q and k as factors, k repeated for the heads that use it; scale and log2(e) may be folded into either."""
    tensors, options = setting.tensors, setting.options
    q, k = tensors["q"], tensors["k"]
    loss = rounding(setting.dot, is_tf32(options))
    fold = max(abs(scale) * LOG2E, 1e-30)
    group = q.shape[1] // k.shape[1] if k.shape[1] else 1
    found = []
    for x, first, repeat in ((q, options.get("q_offset", 0), 1), (k, 0, group)):
        cos, sin = (fused.rows_of(tensors[name], first, x.shape[2]) for name in ("cos", "sin"))
        found.append(_as_balls(factors(x, cos, sin, loss, fold, False, repeat), setting.wide))
    return found[0], found[1]


def _as_balls(x: Factors, wide: bool) -> Balls:
    exact, shift = x.exact, clipped(x.exact.exponent, -2000, 2000)
    high, low, radius = exact.high, np.broadcast_to(exact.low, exact.high.shape), x.error
    if not exact.plain:
        high, low, radius = (np.ldexp(part, shift) for part in (high, low, radius))
        radius = radius + WIDE_UNDERFLOW
    never = np.zeros(high.shape, dtype=bool)
    if x.nan is None or x.positive is None or x.negative is None or x.doubtful is None:
        return settled(high, low, radius, never, never, wide)
    return settled(high, low, radius, x.nan | x.positive | x.negative, x.doubtful, wide)


def _rotated_back(name: str, g: Balls, sizes: Array, still: Array, setting: Setting, found: Parts) -> None:
    """Add what the gradient g of rotated rows makes of that of the rows and of both tables.

    ``sizes`` are those of what was summed into g; ``still`` says of which rows nothing is seen: whether a zero is
    multiplied there by something that is not finite is nobody's business.
    """
    tensors, wide = setting.tensors, setting.wide
    x, first = tensors[name], setting.options.get("q_offset", 0) if name == "q" else 0
    batch, heads, rows, width = x.shape
    halves = (batch, heads, rows, 2, width // 2)
    at = still[:, None]
    g1, g2 = (g.reshaped(*halves)[..., half, :] for half in (0, 1))
    z1, z2 = (sizes.reshape(halves)[..., half, :] for half in (0, 1))
    x1, x2 = (exactly(x.to(torch.float64).numpy(), wide).reshaped(*halves)[..., half, :] for half in (0, 1))
    tables = {t: fused.rows_of(tensors[t], first, rows).to(torch.float64).numpy() for t in ("cos", "sin")}
    c, s = (exactly(tables[t], wide) for t in ("cos", "sin"))

    def product(table: str) -> Format:
        return format_of(torch.promote_types(x.dtype, tensors[table].dtype))

    loss = _Loss(ROTATING, format_of(x.dtype), (product("cos"), product("sin")))
    upper = _loosened(plus(times(g1, c), times(g2, s)), at)
    upper = loss.taken(upper, z1 * c.size + z2 * s.size, np.maximum(z1, z2), c.size + s.size)
    lower = _loosened(plus(times(g2, c), times(g1, s).flipped()), at)
    lower = loss.taken(lower, z2 * c.size + z1 * s.size, np.maximum(z1, z2), c.size + s.size)
    both = joined([upper, lower], lambda parts: np.stack(parts, axis=3))
    found[name].append(both.reshaped(*x.shape))
    for table, (a, b), (za, zb), turn in (("cos", (g1, g2), (z1, z2), False), ("sin", (g2, g1), (z2, z1), True)):
        second = times(b, x2)
        term = _loosened(plus(times(a, x1), second.flipped() if turn else second), at)
        axes = (0, 1, *((2,) if tensors[table].shape[0] == 1 else ()), *((3,) if tables[table].shape[1] == 1 else ()))
        sums = summed(term, axes, format_of(fused.work_dtype(tensors[table].dtype)).roundoff)
        sizes, factor = (
            (part).sum(axis=axes, keepdims=True) for part in (za * x1.size + zb * x2.size, x1.size + x2.size)
        )
        largest = np.maximum(z1, z2).max(axis=axes, keepdims=True, initial=0.0)
        loss = _Loss(
            TABULATING, format_of(tensors[table].dtype), (product(table),), term.high.size // max(sums.high.size, 1)
        )
        found[table].append(_placed(loss.taken(sums, sizes, largest, factor)[0, 0], tuple(tensors[table].shape), first))


@dataclass(frozen=True, slots=True)
class _Loss:
    """What sums of products lose on their way to an input.

    Attributes:
        steps: how often a term is rounded.
        form: the format of the input, no finer than any that a term is rounded to.
        products: those that a gradient is converted to before it is multiplied.
        count: how many products go into one sum.
    """

    steps: int
    form: Format
    products: tuple[Format, ...]
    count: int = 1

    def taken(self, x: Balls, sizes: Array, largest: Array, factor: Array) -> Balls:
        """x with this loss: from terms of such sizes in sum, gradients no larger, and factors of such a sum."""
        more = np.expm1(self.steps * np.log1p(self.form.roundoff)) * (sizes + x.radius)
        cut = (2 * self.count + self.steps + factor) * max(least_of(form) for form in (self.form, *self.products))
        far = sizes >= self.form.max * NEAR
        for form in self.products:
            far = far | (largest >= form.max * NEAR)
        return x.wider(more + np.where(sizes > 0, cut, 0.0)).marked(np.zeros(sizes.shape, dtype=bool), far)


def _loosened(x: Balls, where: Array) -> Balls:
    """What is odd there may be anything."""
    return settled(x.high, x.low, x.radius, x.odd & ~where, x.open | (x.odd & where), x.wide)


def _placed(x: Balls, shape: tuple[int, ...], first: int) -> Balls:
    """Rows as those of a table from ``first`` on; the others are zero."""
    first = 0 if shape[0] == 1 else first

    def put(parts: list[Array]) -> Array:
        whole = np.zeros(shape, dtype=parts[0].dtype)
        whole[first : first + len(parts[0])] = parts[0]
        return whole

    return joined([x], put)


def envelopes(parts: Mapping[str, list[Balls]], tensors: Tensors, requires: tuple[str, ...]) -> dict[str, Envelope]:
    """Envelopes of the gradients of these inputs; where one tensor is several inputs, all their parts are added."""
    found = {}
    for name in requires:
        own = [part for other, some in parts.items() if tensors[other] is tensors[name] for part in some]
        if own:
            found[name] = _envelope(own, format_of(tensors[name].dtype))
    return found


def _envelope(parts: list[Balls], form: Format) -> Envelope:
    total, sizes = parts[0], parts[0].size
    for part in parts[1:]:
        total, sizes = plus(total, part), sizes + part.size
    total = _Loss(len(parts), form, ()).taken(total, sizes, sizes, np.zeros(sizes.shape))
    flat = total.reshaped(-1)
    least = least_of(form)  # what an exact zero may be off by, so that nothing is divided by zero
    bound = np.where(flat.open, np.inf, np.maximum(flat.radius, least))
    exact = Exact(flat.high, flat.low, np.zeros(flat.high.shape, dtype=np.int64)) if flat.wide else Exact.of(flat.high)
    edge = form.overflow[0] * form.max
    loose, finite = flat.odd | flat.open, ~flat.odd
    up, down = flat.high + flat.radius >= edge, flat.radius - flat.high >= edge
    return Envelope(
        exact=exact,
        bound=bound,
        finite=finite,
        nan=loose,
        positive=loose | up,
        negative=loose | down,
        zero_sign=np.broadcast_to(np.int64(0), flat.high.shape),
        tame=not (loose | up | down).any(),
    )
