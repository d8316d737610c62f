"""``rope`` with positions, or with tables of each batch: gradients with one flaw each."""

from __future__ import annotations

import torch

from fuzzrope.specimens.placed_differentiable import PlacedRope

Tensor = torch.Tensor


class Overwrites(PlacedRope):
    """Of the uses of a row of a table one alone counts: the others are overwritten."""

    def add_rows(self, whole: Tensor, at: Tensor, rows: Tensor) -> None:
        """See the class."""
        whole[at] = rows


class InOrder(PlacedRope):
    """The gradient of a table lands in the rows of the sequence, not at positions."""

    def in_table(self, total: Tensor, table: Tensor, positions: Tensor | None) -> Tensor:
        """See the class."""
        assert positions is not None
        own = torch.arange(positions.shape[-1], device=positions.device).expand(positions.shape)
        return super().in_table(total, table, own)


class Nearest(PlacedRope):
    """A position that a table lacks adds to the gradient of its first or last row."""

    def in_table(self, total: Tensor, table: Tensor, positions: Tensor | None) -> Tensor:
        """See the class."""
        assert positions is not None
        return super().in_table(total, table, positions.clamp(0, max(len(table) - 1, 0)))


class Summed(PlacedRope):
    """The tables of each batch get the gradient of all batches."""

    def in_table(self, total: Tensor, table: Tensor, positions: Tensor | None) -> Tensor:
        """See the class."""
        return super().in_table(total.sum(0, keepdim=True).expand(total.shape), table, positions)
