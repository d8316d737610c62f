"""Nothing is timed that is not right: results held against float64, every element of them.

An error is measured in the 2-norm, relative to the true result: over the whole of each result, and for each of its rows
(the last dimension) relative to the row's norm plus that of an average row, since a row may be zero. A result passes
within 4 unit roundoffs u of its dtype on the whole and 16 in any row, twice that for gradients, in which errors of
several steps meet. A correct 16-bit kernel rounds each factor, each weight and the result once, by u at most and by
u/sqrt(3) in the mean; a swapped sign, a missed tile, a mask off by one or a missing rotation are errors of the order 1
in the rows they touch. Bounds of each element, which judge kernels, are :mod:`fuzzrope.operations`': they are computed
on a CPU and would take longer than everything that is measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fuzzrope.bench.inputs import Inputs, hidden, pieces
from fuzzrope.bench.rows import Row

Tensors = tuple[torch.Tensor, ...]

WHOLE, EACH_ROW = 4, 16  # unit roundoffs
BACKWARD = 2  # times as many
MOST_AT_ONCE = 2**27  # elements of a temporary, 1 GiB


@dataclass(frozen=True)
class Error:
    """How far a result is off, relative to the true one: on the whole, and in its worst row."""

    whole: float
    row: float


def allowed(row: Row) -> Error:
    """What a correct peer stays within."""
    unit = torch.finfo(getattr(torch, row.dtype)).eps / 2 * (BACKWARD if row.group == "backward" else 1)
    return Error(WHOLE * unit, EACH_ROW * unit)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, first: int = 0) -> torch.Tensor:
    """x (..., S, D) in float64, row i turned by row ``first + i`` of the tables (R, D/2)."""
    c, s = (table[first : first + x.shape[-2]].double() for table in (cos, sin))
    x1, x2 = x.double().chunk(2, dim=-1)
    return torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], dim=-1)


def _scores(row: Row, *parts: torch.Tensor) -> torch.Tensor:
    """Unscaled scores (n, G, Sq, Sk) of q (n, G, Sq, D) and k (n, 1, Sk, D), by tables cos and sin; -inf if hidden."""
    q, k, cos, sin = parts
    scores = rotated(q, cos, sin, row.offset) @ rotated(k, cos, sin).mT
    return scores.masked_fill(hidden(row, q.device), -math.inf) if row.causal else scores


def _attention(row: Row, *parts: torch.Tensor) -> torch.Tensor:
    """o (n, G, Sq, D) of q, k and v (n, 1, Sk, D), likewise."""
    q, k, v, *tables = parts
    return (_scores(row, q, k, *tables) / math.sqrt(row.width)).softmax(-1) @ v.double()


def truth(row: Row, inputs: Inputs, rotates: bool = True) -> Tensors:
    """What a row's peers should give for these inputs, or what those that leave rotation out should.

    Results are float64, or float32 where the peers' are of 16 bits.
    """
    tables = inputs.cos, inputs.sin
    if not rotates:
        tables = torch.ones_like(inputs.cos), torch.zeros_like(inputs.sin)
    if row.operation == "rope":
        if row.group == "backward":  # the rotation back is a rotation by negative angles
            return tuple(_kept(rotated(g, tables[0], -tables[1]), row) for g in inputs.given)
        return tuple(_kept(rotated(x, *tables), row) for x in (inputs.q, inputs.k))
    grouped = [x.reshape(row.batch * row.kv_heads, -1, *x.shape[2:]) for x in (inputs.q, inputs.k)]
    if row.operation == "attention":
        grouped.append(inputs.v.reshape(row.batch * row.kv_heads, 1, *inputs.v.shape[2:]))
    found: list[list[torch.Tensor]] = []
    for piece in pieces(row, MOST_AT_ONCE):
        parts, compute = [x[piece] for x in grouped], _scores if row.operation == "scores" else _attention
        if row.group == "backward":
            given = inputs.given[0].reshape(*grouped[0].shape[:3], -1)[piece].double()
            with torch.enable_grad():
                leaves = [x.detach().double().requires_grad_() for x in parts]
                found.append(list(torch.autograd.grad(compute(row, *leaves, *tables), leaves, given)))
        else:
            found.append([compute(row, *parts, *tables)])
        found[-1] = [_kept(x, row) for x in found[-1]]
    joined = [torch.cat(of_one) for of_one in zip(*found, strict=True)]
    return tuple(x.reshape(row.batch, -1, *x.shape[2:]) for x in joined)


def _kept(x: torch.Tensor, row: Row) -> torch.Tensor:
    return x if getattr(torch, row.dtype).itemsize > 2 else x.float()


def error_of(results: Tensors, true: Tensors, dtype: torch.dtype) -> Error:
    """The larger errors of all results; infinite where one has another shape, dtype or number that is not finite."""
    whole = worst = 0.0
    for result, exact in zip(results, true, strict=True):
        if result.shape != exact.shape or result.dtype != dtype:
            return Error(math.inf, math.inf)
        off, size = [], []
        for piece in _pieces_of(result):
            here, there = result[piece].double(), exact[piece].double()
            if not there.isfinite().all():  # hidden scores have to be -inf
                alike = (here == there) & there.isinf()
                here, there = here.masked_fill(alike, 0.0), there.masked_fill(alike, 0.0)
            off.append((here - there).square_().sum(-1).flatten())
            size.append(there.square().sum(-1).flatten())
        wrong, right = torch.cat(off), torch.cat(size)
        typical = right.mean().sqrt()
        relative = wrong.sqrt() / (right.sqrt() + typical)
        own = Error(math.sqrt(float(wrong.sum() / right.sum())), float(relative.max()))
        if not math.isfinite(own.whole + own.row):
            return Error(math.inf, math.inf)
        whole, worst = max(whole, own.whole), max(worst, own.row)
    return Error(whole, worst)


def _pieces_of(x: torch.Tensor) -> list[tuple[slice, slice]]:
    """Slices of the first two dimensions with at most ``MOST_AT_ONCE`` elements each, or one head."""
    step = max(1, MOST_AT_ONCE // max(1, x[0, 0].numel()))
    heads = range(0, x.shape[1], step)
    return [(slice(b, b + 1), slice(h, h + step)) for b in range(x.shape[0]) for h in heads]


def passes(error: Error, row: Row) -> bool:
    """Whether a result is right."""
    limit = allowed(row)
    return error.whole <= limit.whole and error.row <= limit.row
