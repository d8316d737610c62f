"""What ``rope_qk`` and ``rope_attention`` share of their contracts: arguments, positions, masks, rotation.

Row i of q has position ``q_offset + i``, row j of k position j. Tables cos and sin (R, D/2) have a row for each
position, or one row that serves all; and D/2 columns, or one that serves all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np
import torch

from fuzzrope.case import FLOATS, Case
from fuzzrope.operations.base import Options, Tensors

PRECISIONS = ("highest", "high", "medium")
MAX_OFFSET = 2**40
MAX_SCALE = 2.0**60


def rejects(case: Case) -> str | None:
    """Why the part of the contract that both share demands a ValueError or TypeError, or None."""
    for name, spec in case.tensors:
        if spec.dtype not in FLOATS:
            return f"{name} is {spec.dtype}"
        rank = 2 if name in ("cos", "sin") else 4
        if len(spec.shape) != rank:
            return f"{name} has {len(spec.shape)} dimensions"
    if len({spec.device for _, spec in case.tensors}) > 1:
        return "the tensors are on different devices"
    (batch, heads, rows, width), k = case["q"].shape, case["k"].shape
    if width % 2 or not width:
        return f"head_dim {width} is not a positive even number"
    if k[3] != width:
        return "q and k differ in head_dim"
    if k[0] != batch:
        return "q and k differ in batch"
    if heads % k[1] if k[1] else heads:
        return f"heads of q, {heads}, are no multiple of k's {k[1]}"
    return _rejects_options(dict(case.options)) or _rejects_tables(case, rows, k[2], width // 2)


def _rejects_options(options: dict[str, Any]) -> str | None:
    offset, scale = options.get("q_offset", 0), options.get("scale")
    if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset <= MAX_OFFSET:
        return f"q_offset {offset!r} is no position"
    if scale is not None and not (isinstance(scale, (int, float)) and abs(scale) <= MAX_SCALE):
        return f"scale {scale!r} is no number of reasonable size"
    if not isinstance(options.get("causal", False), bool):
        return "causal is no bool"
    if options.get("precision", "highest") not in PRECISIONS:
        return "precision is none of torch's"
    return None


def _rejects_tables(case: Case, rows: int, keys: int, half: int) -> str | None:
    needed = max(dict(case.options).get("q_offset", 0) + rows, keys)
    for name in ("cos", "sin"):
        have, columns = case[name].shape
        if have < needed and have != 1:
            return f"{name} has {have} rows for {needed} positions"
        if columns not in (half, 1):
            return f"{name} has {columns} columns for halves of {half}"
    return None


def scale_of(options: Options, width: int) -> float:
    """What scores are multiplied by: 1/sqrt(D) unless given."""
    scale = options.get("scale")
    return 1 / math.sqrt(width) if scale is None else float(scale)


def rows_of(table: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """The rows of ``count`` positions from ``first``; one row serves all."""
    return table if table.shape[0] == 1 else table[first : first + count]


def dot_dtype(tensors: Tensors) -> torch.dtype:
    """The promoted type of rotated q and rotated k, in which they are multiplied."""
    return promoted(tensors[name].dtype for name in ("q", "k", "cos", "sin"))


def promoted(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The promoted type of them all, in this order."""
    return reduce(torch.promote_types, dtypes)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of this type are summed in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def visible(options: Options, rows: int, keys: int) -> np.ndarray:
    """Which keys j each row i may see, as bool (rows, keys).

    ``causal`` keeps j <= q_offset + i; ``window``, which needs it, keeps of those the last ``window``, that is
    q_offset + i - window < j <= q_offset + i.
    """
    at = options.get("q_offset", 0) + np.arange(rows, dtype=np.int64)[:, None]
    j = np.arange(keys, dtype=np.int64)[None, :]
    seen = np.ones((rows, keys), dtype=bool)
    if options.get("causal", False):
        seen &= j <= at
    if options.get("window") is not None:
        seen &= j > at - int(options["window"])
    return seen


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[3] // 2
    x1, x2 = x[..., :half], x[..., half:]
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def reference_scores(tensors: Tensors, options: Options) -> torch.Tensor:
    """Scaled scores (B, Hq, Sq, Sk), not masked: both factors rounded to their type, summed in float32 or float64."""
    q, k, cos, sin = (tensors[name] for name in ("q", "k", "cos", "sin"))
    first, rows, keys = options.get("q_offset", 0), q.shape[2], k.shape[2]
    needed = max(first + rows, keys)
    if any(table.shape[0] != 1 and table.shape[0] < needed for table in (cos, sin)):
        raise ValueError(f"the tables have fewer rows than {needed} positions need")
    dtype = dot_dtype(tensors)
    work = work_dtype(dtype)
    turned_q = _rotated(q, rows_of(cos, first, rows), rows_of(sin, first, rows)).to(work)
    turned_k = _rotated(k, rows_of(cos, 0, keys), rows_of(sin, 0, keys)).to(work)
    if k.shape[1]:
        turned_k = turned_k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return torch.matmul(turned_q, turned_k.transpose(2, 3)) * scale_of(options, q.shape[3])
