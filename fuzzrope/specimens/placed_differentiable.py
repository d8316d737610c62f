"""A correct RoPE with positions, or tables of each batch, and gradients: what flawed ones depart from.

Rows are gathered for each batch, and each batch is rotated by itself as :mod:`.differentiable` does. What rows of a
table get is added up in float32 (float64 if the result is), the last use first.
"""

from __future__ import annotations

from typing import Any

import torch

from fuzzrope.specimens.differentiable import DifferentiableRope, wide_type

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor | None, ...]
EACH = DifferentiableRope()


class PlacedRotations(torch.autograd.Function):
    """q and k rotated, with the gradients that ``steps`` works out."""

    @staticmethod
    def forward(
        ctx: Any, steps: PlacedRope, positions: Tensor | None, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
    ) -> Pair:
        """Fresh memory."""
        ctx.steps = steps
        ctx.save_for_backward(q, k, cos, sin, positions)
        ctx.set_materialize_grads(False)
        c, s = (steps.laid_out(table, positions, q.shape[2]) for table in (cos, sin))
        return steps.turned(q, c, s), steps.turned(k, c, s)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Gradients:
        """Gradients of q, k, cos and sin, those that are asked for."""
        return None, None, *ctx.steps.back(gradients, ctx.saved_tensors, ctx.needs_input_grad[2:])


class PlacedRope:
    """Called as ``rope`` is, with positions (S,) or (B, S) after the tables, or with tables of three dimensions."""

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Four:
        """The rotated q and k, and the tables."""
        if cos.dim() != sin.dim() or cos.dim() != (3 if positions is None else 2) or q.shape[2] != k.shape[2]:
            raise ValueError("shapes that do not belong together")
        passed = (cos[:], sin[:]) if positions is not None else (cos[:, : q.shape[2]], sin[:, : q.shape[2]])
        return *PlacedRotations.apply(self, positions, q, k, cos, sin), *passed

    def laid_out(self, table: Tensor, positions: Tensor | None, rows: int) -> Tensor:
        """The rows of a table that q and k use, (1 or B, S or 1, W): NaN for those that it lacks."""
        if positions is None:
            return table[:, :rows]
        at = positions if positions.dim() == 2 else positions[None]
        inside = (at >= 0) & (at < len(table))
        found = torch.full((*at.shape, table.shape[1]), torch.nan, dtype=table.dtype, device=table.device)
        found[inside] = table[at[inside].long()]
        return found

    def turned(self, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        """x (B, H, S, D) rotated batch by batch."""
        dtype = torch.promote_types(torch.promote_types(x.dtype, c.dtype), s.dtype)
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        for at, own_c, own_s in batches(x, c, s):
            out[at] = EACH.rotate(x[at], own_c, own_s)
        return out

    def back(self, gradients: Gradients, saved: tuple[Any, ...], needs: tuple[bool, ...]) -> Gradients:
        """Gradients of q, k, cos and sin, from those of the rotated q and k."""
        *inputs, cos, sin, positions = saved
        rows = inputs[0].shape[2]
        c, s = (self.laid_out(table, positions, rows) for table in (cos, sin))
        found: list[Tensor | None] = [None] * 4
        sums: list[Tensor | None] = [None, None]
        for i, (g, x) in enumerate(zip(gradients, inputs, strict=True)):
            if g is None:
                continue
            if needs[i]:
                dx = found[i] = torch.empty_like(x, memory_format=torch.contiguous_format)
                for at, own_c, own_s in batches(x, c, s):
                    dx[at] = EACH.back_x(g[at], x[at], own_c, own_s)
            own = [torch.zeros(t.shape, dtype=wide_type(g), device=g.device) for t in (c, s)]
            for number, (at, own_c, own_s) in enumerate(batches(x, c, s)):
                for total, part in zip(own, EACH.back_tables(g[at], x[at], own_c, own_s), strict=True):
                    total[number if len(total) > 1 else 0] += part
            sums = [part if total is None else total + part for total, part in zip(sums, own, strict=True)]
        for i, (table, whole) in enumerate(zip((cos, sin), sums, strict=True)):
            if needs[2 + i] and whole is not None:
                found[2 + i] = self.in_table(whole, table, positions)
        return tuple(found)

    def in_table(self, total: Tensor, table: Tensor, positions: Tensor | None) -> Tensor:
        """The gradient of a table from that of the rows that were laid out (1 or B, S or 1, W)."""
        whole = torch.zeros(table.shape, dtype=total.dtype, device=table.device)
        if positions is None:
            whole[:, : total.shape[1]] = total
            return whole.to(table.dtype)
        at = positions.reshape(-1).long()
        inside = (at >= 0) & (at < len(table))
        self.add_rows(whole, at[inside].flip(0), total.reshape(len(at), table.shape[1])[inside].flip(0))
        return whole.to(table.dtype)

    def add_rows(self, whole: Tensor, at: Tensor, rows: Tensor) -> None:
        """Add rows (n, W) to those of whole that ``at`` (n,) names, some of them several times."""
        whole.index_add_(0, at, rows)


def batches(x: Tensor, c: Tensor, s: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """Which batches of x are rotated together, and by which rows (S or 1, W)."""
    if not (len(c) and len(s)):
        return []
    if len(c) == len(s) == 1:
        return [(slice(None), c[0], s[0])]
    return [(slice(b, b + 1), c[b if len(c) > 1 else 0], s[b if len(s) > 1 else 0]) for b in range(max(len(c), len(s)))]


ModelNew = PlacedRope
