"""Gradients of ``rope``: exact values and the bound of each; derived in ``docs/bounds-gradients.md``.

With halves (g1, g2) of an output's cotangent and (x1, x2) of its input, the gradients are sums of products,

    dx1 = Σ g1*c + g2*s,   dx2 = Σ g2*c - g1*s,   dcos = Σ g1*x1 + g2*x2,   dsin = Σ g2*x1 - g1*x2,

over everything that was broadcast: a table over batches and heads of q and of k and over both halves, what
has one row or one column over rows or columns. Shares no code with the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from fuzzrope.numbers import ZERO_EXPONENT, Exact, Format, clipped, format_of, product, two_sum
from fuzzrope.operations.base import Envelope, Tensors
from fuzzrope.operations.sums import sum_envelope

Array = np.ndarray
Shape = tuple[int, ...]
MAX_NARROW = 24  # digits of formats whose products float64 holds exactly


@dataclass(frozen=True, slots=True)
class Terms:
    """Products left*right, both float64 (terms, elements), of one gradient, and how eager rounds on its way to them.

    Attributes:
        passes: the format that the left factor is converted to and the product is rounded to.
        comes: the format that the left factor, a cotangent, comes in.
        uses: how many sums eager makes of them, which it then adds in the input's dtype.
        early: eager sums cotangents before it multiplies, for another operand spread further than this product.
        reduced: more than one product goes into one of those sums.
        multiplied: not so for the cotangent of a table that is passed through, which stands for itself.
    """

    left: Array
    right: Array
    passes: Format
    comes: Format
    uses: int
    early: bool = False
    reduced: bool = False
    multiplied: bool = True


def gradients(tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...]) -> dict[str, Envelope]:
    """Envelopes of the gradients of these inputs, those left out that no output in use depends on."""
    numbers = {name: t.detach().to(torch.float64).numpy() for name, t in tensors.items()}
    rows = numbers["q"].shape[2]
    terms: dict[str, list[Terms]] = {name: [] for name in tensors}
    for output, cotangent in cotangents.items():
        g = cotangent.to(torch.float64).numpy()
        if output in ("cos", "sin"):
            form = format_of(tensors[output].dtype)
            column = _columns(g, g.shape)
            terms[output].append(Terms(column, np.ones_like(column), form, form, 1, multiplied=False))
        else:
            for name, found in terms_of(output, tensors, numbers, g, rows).items():
                terms[name] += found
    envelopes = {}
    for name in requires:
        alike = [other for other in tensors if tensors[other] is tensors[name] and terms[other]]
        if alike:
            # Where one tensor is several inputs, eager adds their gradients.
            adds = max(sum(t.uses for t in terms[other]) for other in alike) - 1 + len(alike) - 1
            found = [t for other in alike for t in terms[other]]
            envelopes[name] = sum_of(found, adds, format_of(tensors[name].dtype), tensors[name].numel())
    return envelopes


def terms_of(
    output: str, tensors: Tensors, numbers: Mapping[str, Array], g: Array, rows: int
) -> dict[str, list[Terms]]:
    """The products that the cotangent g of one output adds to each gradient, by input."""
    x, cos, sin = numbers[output], numbers["cos"][:rows, None, :], numbers["sin"][:rows, None, :]
    halves = x.reshape(*x.shape[:3], 2, x.shape[3] // 2)  # (batch, head, position, half, column)
    straight = g.reshape(*g.shape[:3], 2, g.shape[3] // 2)
    crossed = np.stack([straight[..., 1, :], -straight[..., 0, :]], axis=3)
    dtypes = [torch.promote_types(tensors[output].dtype, tensors[name].dtype) for name in ("cos", "sin")]
    comes = format_of(torch.promote_types(*dtypes))
    found: dict[str, list[Terms]] = {output: []}
    for name, table, factor, dtype in zip(("cos", "sin"), (cos, sin), (straight, crossed), dtypes, strict=True):
        full, form = factor.shape, format_of(dtype)
        early = np.broadcast_shapes(halves.shape, table.shape) != full
        for wanted, other, uses in ((output, table, 1), (name, halves, 2)):
            shape = halves.shape if wanted == output else (1, 1, table.shape[0], 1, table.shape[2])
            left, right = _columns(factor, shape), _columns(np.broadcast_to(other, full), shape)
            own = Terms(left, right, form, comes, uses, early, len(left) > uses)
            found.setdefault(wanted, []).append(own)
    return found


def _columns(numbers: Array, shape: Shape) -> Array:
    """numbers as (terms, elements): column i holds what is summed into element i of a tensor of this shape."""
    spread = tuple(d for d, n in enumerate(numbers.shape) if shape[d] == 1 != n)
    kept = tuple(d for d in range(numbers.ndim) if d not in spread)
    count = int(np.prod([numbers.shape[d] for d in spread], dtype=np.int64))
    return np.transpose(numbers, (*spread, *kept)).reshape(count, int(np.prod(shape, dtype=np.int64)))


def relative_error(terms: list[Terms], adds: int, form: Format) -> float:
    """How far a gradient may be off, in units of the sum of its terms' magnitudes, underflow aside.

    (1 + u_o)^e (1 + u_p)^n (1 + u_x)^a (1 + gamma_m) - 1: see ``docs/bounds-gradients.md``.
    """
    products = [t for t in terms if t.multiplied]
    if not products:
        return 0.0
    coarse = max((t.passes for t in products), key=lambda f: f.roundoff)
    casts = int(any(t.comes != t.passes for t in products))
    sums = int(any(t.reduced for t in products))
    ends = adds + int(any(t.passes != form for t in products))
    count = sum(len(t.left) for t in terms) - 1 if sums else 0
    unit = 2.0**-53 if coarse.digits == 53 else 2.0**-24
    gamma = count * unit / (1 - count * unit)
    early = max((t.comes.roundoff for t in products if t.early), default=0.0)
    logs = np.log1p([early, gamma]).sum() + (1 + casts + sums) * np.log1p(coarse.roundoff)
    return float(np.expm1(logs + ends * np.log1p(form.roundoff)))


def sum_of(terms: list[Terms], adds: int, form: Format, numel: int) -> Envelope:
    """What may come out as a gradient in this format; rows of a table beyond those in use are zero."""
    left, right = (np.concatenate([getattr(t, side) for t in terms]) for side in ("left", "right"))
    inside = left.shape[1]
    if inside < numel:
        left, right = (np.pad(side, ((0, 0), (0, numel - inside))) for side in (left, right))
    formats = [t.passes for t in terms]
    narrow = max(f.digits for f in (form, *formats, *(t.comes for t in terms))) <= MAX_NARROW
    with np.errstate(all="ignore"):
        ieee = left * right
        finite = np.isfinite(left) & np.isfinite(right)
        exact, rises, falls = (_narrow if narrow else _wide)(left, right, finite, form)
        unit = exact.exponent

        def step(f: Format) -> Array:
            return np.ldexp(0.5, clipped(f.smallest_exponent - unit, -2000, 900))

        relative = relative_error(terms, adds, form)
        own = (len(left) + 8) * (2.0**-52 if narrow else 2.0**-99)  # the oracle's error, and the bound's own
        lost = (adds + 1) * step(form) + _converted(terms, exact, step)
        lost += sum(len(t.left) * step(t.passes) for t in terms if t.multiplied)
        bound = (rises + falls) * (relative + own) + (1 + relative) * lost
        bound[inside:] = step(form)[inside:]
        infinite = np.where(finite, 0.0, ieee)
        envelope = sum_envelope(
            exact, bound, rises, falls, min([form, *formats], key=lambda f: f.max), form,
            *(np.any(f, axis=0) for f in (np.isnan(infinite), infinite == np.inf, infinite == -np.inf)),
        )  # fmt: skip
        free, astray = _free(terms, numel)
    if not (free.any() or astray.any()):
        return envelope
    anything = free | astray
    return replace(
        envelope,
        finite=envelope.finite & ~astray,
        nan=envelope.nan | anything,
        positive=envelope.positive | anything,
        negative=envelope.negative | anything,
        tame=False,
    )


def _converted(terms: list[Terms], exact: Exact, step: Callable[[Format], Array]) -> Array:
    """What is lost where cotangents underflow on conversion to the format of the product."""
    lost = np.zeros(exact.high.shape)
    for t in terms:
        if t.comes != t.passes:
            size = np.where(np.isfinite(t.right), np.abs(t.right), 0.0).sum(axis=0)
            lost[: len(size)] += size * step(t.passes)[: len(size)]
    return lost


def _free(terms: list[Terms], numel: int) -> tuple[Array, Array]:
    """Where eager's own detour decides: (may be infinite or NaN as well as finite, cannot be finite).

    A cotangent beyond the range it is converted to, or whose early sum is beyond its own, becomes infinite in
    eager and need not in a kernel that goes straight. An infinite factor of an early sum multiplies the sum in
    eager, each term in a kernel, and one of a cotangent that conversion may turn into zero multiplies a zero
    in eager: one may give NaN where the other gives an infinity.
    """
    free, astray = np.zeros(numel, bool), np.zeros(numel, bool)
    for t in terms:
        inside = t.left.shape[1]
        size = np.where(np.isfinite(t.left), np.abs(t.left), 0.0)
        reach = size.sum(axis=0) if t.early else size.max(axis=0, initial=0.0)
        if t.early or t.passes.max < t.comes.max:
            free[:inside] |= reach >= min(t.passes.max, t.comes.max) * (1 - 2.0**-6)
        if t.early or t.passes != t.comes:
            lost = size <= (np.inf if t.early else 2 * t.passes.half_step)
            astray[:inside] |= (lost & ~np.isfinite(t.right)).any(axis=0)
    return free, astray


def _narrow(left: Array, right: Array, finite: Array, form: Format) -> tuple[Exact, Array, Array]:
    """(sum, sum of positive terms, of negative ones) where float64 holds each product; added in float64."""
    terms = np.where(finite, left * right, 0.0)
    rises, falls = np.maximum(terms, 0.0).sum(axis=0), -np.minimum(terms, 0.0).sum(axis=0)
    return Exact.of(rises - falls), rises, falls


def _wide(left: Array, right: Array, finite: Array, form: Format) -> tuple[Exact, Array, Array]:
    """:func:`_narrow` on pairs of float64, exact to about 2^-100 of the terms' magnitudes."""
    terms = product(np.where(finite, left, 0.0), np.where(finite, right, 0.0))
    least = form.smallest_exponent - 8  # units in which half a step of the format is no less than 2^-9
    unit = np.maximum(terms.exponent.max(axis=0, initial=ZERO_EXPONENT), least)
    high, low = terms.at(np.broadcast_to(unit, terms.high.shape))
    rises, falls = np.maximum(high, 0.0).sum(axis=0), -np.minimum(high, 0.0).sum(axis=0)
    while len(high) > 1:
        half = len(high) // 2
        s, e = two_sum(high[:half], high[half : 2 * half])
        pairs = two_sum(s, e + (low[:half] + low[half : 2 * half]))
        high, low = (np.concatenate([pair, rest[2 * half :]]) for pair, rest in zip(pairs, (high, low), strict=True))
    if not len(high):
        high, low = np.zeros((1, left.shape[1])), np.zeros((1, left.shape[1]))
    return Exact(high[0], low[0], unit), rises, falls
