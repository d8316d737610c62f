"""``rope`` with rows of tables laid out batch by batch: what :mod:`.rope_placed` and :mod:`.rope_batched` share.

Both are led back to ``rope``: its envelopes, of each part of the batch with the rows that turn it, one after another.
Gradients are :mod:`.rope_parts_gradients`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fuzzrope.operations.base import Envelope, Tensors
from fuzzrope.operations.pieces import stacked
from fuzzrope.operations.rope import Rope

TABLES = ("cos", "sin")
ROPE = Rope()


@dataclass(frozen=True)
class Part:
    """Some batches, and what turns them.

    Attributes:
        at: which batches of q and of k.
        tables: cos and sin (S or 1, W or 1), a row for each of q's or one for all.
        rows: of each of these rows its number in the whole table, rows of all its batches counted; -1 for none.
    """

    at: slice
    tables: Mapping[str, torch.Tensor]
    rows: Mapping[str, np.ndarray]


def turned(tensors: Tensors, cos: torch.Tensor, sin: torch.Tensor) -> dict[str, torch.Tensor]:
    """q and k turned by tables (1 or B, S or 1, W or 1) in eager PyTorch: views of contiguous (B, S, H, D) memory."""
    half = tensors["q"].shape[3] // 2
    c, s = cos[:, :, None, :], sin[:, :, None, :]
    found = {}
    for name in ("q", "k"):
        x = tensors[name].transpose(1, 2)
        first, second = x[..., :half], x[..., half:]
        both = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
        found[name] = both.clone(memory_format=torch.contiguous_format).transpose(1, 2)
    return found


def envelopes(tensors: Tensors, parts: Sequence[Part]) -> dict[str, Envelope]:
    """Those of ``rope``, part by part."""
    found = [ROPE.envelopes({"q": tensors["q"][part.at], "k": tensors["k"][part.at], **part.tables}) for part in parts]
    return {name: stacked([one[name] for one in found]) for name in ("q", "k")}
