"""What comes out of :func:`kernels.rope.rope`: shapes, dtypes and strides, from the forms of what goes in."""

from __future__ import annotations

from functools import lru_cache

import torch

from kernels.forms import Meta, Turn
from kernels.layout import View, concatenated, contiguous, elementwise


def _unsqueezed(table: View) -> View:
    """A table (R, W) as (1, R, 1, W), with the strides ``unsqueeze`` gives the new dimensions."""
    (rows, columns), (row, column) = table.shape, table.strides
    return View((1, rows, 1, columns), (rows * row, row, columns * column, column))


def _result(x: Meta, cos: View, sin: View) -> View:
    """What the eager twin returns for x: it computes on (B, S, H, D) and transposes back."""
    (batch, heads, seq, width), (sb, sh, ss, sd) = x.shape, x.strides
    half = View((batch, seq, heads, width // 2), (sb, ss, sh, sd))
    # Both halves have this layout, so both sums do: of x1*cos and x2*sin, of x2*cos and x1*sin.
    part = elementwise(elementwise(half, cos), elementwise(half, sin))
    (batch, seq, heads, width), (sb, ss, sh, sd) = concatenated([part, part])
    return View((batch, heads, seq, width), (sb, sh, ss, sd))


@lru_cache
def promoted(q: torch.dtype, k: torch.dtype, cos: torch.dtype, sin: torch.dtype) -> dict[str, torch.dtype]:
    """The types of each product and output, by the names of the kernel's constants."""
    types: dict[str, torch.dtype] = {}
    for name, x in (("Q", q), ("K", k)):
        by_cos, by_sin = torch.promote_types(x, cos), torch.promote_types(x, sin)
        out = torch.promote_types(by_cos, by_sin)
        types |= {f"{name}_COS_DTYPE": by_cos, f"{name}_SIN_DTYPE": by_sin, f"{name}_OUT_DTYPE": out}
    return types


def _plain_result(x: Meta, cos: View, sin: View, turn: Turn) -> View:
    """What the eager twin returns for x under options: a transposed view of contiguous (B, S, H, D) memory."""
    (batch, heads, seq, width), (sb, sh, ss, sd) = x.shape, x.strides
    half = View((batch, seq, heads, turn.columns // 2), (sb, ss, sh, sd))
    _, length, _, columns = elementwise(half, cos, sin).shape
    rest = width - turn.columns
    if rest and length != seq:
        raise RuntimeError("columns that are copied have no more rows than there are")
    shape = batch, length, heads, 2 * columns + rest
    (sb, ss, sh, sd) = contiguous(shape)
    return View((batch, heads, length, shape[3]), (sb, sh, ss, sd))


def plan_outputs(q: Meta, k: Meta, cos: Meta, sin: Meta, turn: Turn | None = None) -> tuple[Meta, Meta]:
    """The outputs for inputs of this form, whose sizes may be symbolic; raises what :func:`rope` documents."""
    c, s = cut(cos, q), cut(sin, q)
    types = promoted(q.dtype, k.dtype, cos.dtype, sin.dtype)
    tables = _unsqueezed(c), _unsqueezed(s)
    outs: list[View] = []
    for name, x in (("q", q), ("k", k)):
        try:
            if outs and x[:2] == q[:2]:
                outs.append(outs[0])
            else:
                outs.append(_result(x, *tables) if turn is None else _plain_result(x, *tables, turn))
        except RuntimeError:
            raise ValueError(
                f"rope: {name} {x.shape} does not broadcast with cos {c.shape} and sin {s.shape}"
                f" (tables cut to q's {q.shape[2]} rows{f', {turn.columns} columns rotated' if turn else ''})"
            ) from None
    return Meta(*outs[0], types["Q_OUT_DTYPE"]), Meta(*outs[1], types["K_OUT_DTYPE"])


def cut(table: Meta, q: Meta) -> View:
    """The rows of a table that q uses."""
    rows, length = table.shape[0], q.shape[2]
    # Not min(): of symbolic sizes it is a new size, which nothing knows to be equal to q's.
    return View((length if length <= rows else rows, table.shape[1]), table.strides)
