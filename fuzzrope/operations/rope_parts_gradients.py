"""Gradients of :mod:`.rope_placed` and :mod:`.rope_batched`: those of ``rope``, part by part, tables row by row.

The gradient of a row of a table is the sum of the products of all rows of q and k that it turned, in any part; the
bound of a sum is :mod:`.rope_gradients`'. Where ``added``, eager PyTorch adds what uses of a row come to one after
another in the table's own dtype: a row that is used n times is rounded n - 1 times more. Derived in
``docs/bounds-gradients.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fuzzrope.numbers import Format, format_of
from fuzzrope.operations.base import Envelope, Tensors
from fuzzrope.operations.pieces import picked, stacked
from fuzzrope.operations.rope_gradients import Terms, sum_of, terms_of
from fuzzrope.operations.rope_parts import TABLES, Part

Array = np.ndarray


def gradients(
    tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], parts: Sequence[Part], added: bool
) -> dict[str, Envelope]:
    """Envelopes of the gradients of these inputs, those left out that no output in use depends on.

    Args:
        tensors: q, k, cos and sin.
        cotangents: of outputs in use; that of a table is of its first rows, batch by batch.
        requires: inputs whose gradients are asked for.
        parts: the batches of q and k in order, with the rows of tables that turn them.
        added: whether uses of a row of a table are added one after another in its dtype.
    """
    names = ("q", "k", *TABLES)
    terms = _terms(tensors, cotangents, parts)
    found = {}
    for name in requires:
        alike = [other for other in names if tensors[other] is tensors[name] and terms[other]]
        if not alike:
            continue
        own = [one for other in alike for one in terms[other]]
        # Where one tensor is several inputs, eager adds their gradients.
        adds = max(sum(t.uses for t in terms[other]) for other in alike) - 1 + len(alike) - 1
        form = format_of(tensors[name].dtype)
        if name in TABLES:
            rows = np.concatenate([part.rows[name] for part in parts])
            found[name] = _by_row(own, rows, tuple(tensors[name].shape), adds, added, form)
        else:
            found[name] = sum_of(own, adds, form, tensors[name].numel())
    return found


def _terms(tensors: Tensors, cotangents: Tensors, parts: Sequence[Part]) -> dict[str, list[Terms]]:
    """The products of each gradient: of tables those of each row as it was laid out, and of a table's own cotangent."""
    by_part: dict[str, list[list[Terms]]] = {name: [[] for _ in parts] for name in ("q", "k", *TABLES)}
    for number, part in enumerate(parts):
        own = {"q": tensors["q"][part.at], "k": tensors["k"][part.at], **part.tables}
        numbers = {name: t.detach().to(torch.float64).numpy() for name, t in own.items()}
        for output in ("q", "k"):
            if output in cotangents:
                g = cotangents[output][part.at].to(torch.float64).numpy()
                for name, some in terms_of(output, own, numbers, g, g.shape[2]).items():
                    by_part[name][number] += some
    found = {name: [_joined(some) for some in zip(*each, strict=True)] for name, each in by_part.items()}
    for name in TABLES:
        if name in cotangents:
            found[name].append(_passed(tensors[name], cotangents[name]))
    return found


def _joined(some: Sequence[Terms]) -> Terms:
    """Terms of other elements, side by side."""
    if len(some) == 1:
        return some[0]
    left, right = (np.concatenate([getattr(t, side) for t in some], axis=1) for side in ("left", "right"))
    return replace(some[0], left=left, right=right)


def _passed(table: torch.Tensor, cotangent: torch.Tensor) -> Terms:
    """What a table's own cotangent, of the first rows of each batch, adds to each of its elements."""
    whole = np.zeros(table.shape)
    whole[..., : cotangent.shape[-2], :] = cotangent.to(torch.float64).numpy()
    form, flat = format_of(table.dtype), whole.reshape(1, -1)
    return Terms(flat, np.ones_like(flat), form, form, 1, multiplied=False)


def _by_row(terms: list[Terms], rows: Array, shape: tuple[int, ...], adds: int, added: bool, form: Format) -> Envelope:
    """The gradient of a table of this shape, rows that were used equally often together."""
    columns, total = shape[-1], int(np.prod(shape[:-1]))
    if not total * columns:
        nothing = np.zeros((1, 0))
        return sum_of([replace(t, left=nothing, right=nothing) for t in terms], adds, form, 0)
    order = np.argsort(rows, kind="stable")
    order = order[rows[order] >= 0]
    starts = np.searchsorted(rows[order], np.arange(total))
    counts = np.bincount(rows[order], minlength=total)
    envelopes, places = [], []
    for count in np.unique(counts):
        own = np.flatnonzero(counts == count)  # the rows of the table, and where each of their uses is laid out
        uses = order[starts[own][:, None] + np.arange(count)] if count else np.empty((len(own), 0), np.int64)
        some = [_picked(t, uses if t.multiplied else own[:, None], columns) for t in terms]
        more = max(int(count) - 1, 0) if added else 0
        envelopes.append(sum_of(some, adds + more, form, len(own) * columns))
        places.append((own[:, None] * columns + np.arange(columns)).reshape(-1))
    return picked(stacked(envelopes), np.argsort(np.concatenate(places)))


def _picked(terms: Terms, uses: Array, columns: int) -> Terms:
    """What goes into some rows: ``uses`` (rows, uses of each) are rows as they were laid out."""

    def taken(numbers: Array) -> Array:
        count, size = numbers.shape
        laid = numbers.reshape(count, size // columns, columns)[:, uses]  # (terms, rows, uses of each, columns)
        return laid.transpose(0, 2, 1, 3).reshape(count * uses.shape[1], len(uses) * columns)

    left = taken(terms.left)
    return replace(terms, left=left, right=taken(terms.right), reduced=terms.multiplied and len(left) > terms.uses)
