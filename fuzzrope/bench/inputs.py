"""Inputs of a row, in enough copies that no cache holds them, and the least work that a row is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from fuzzrope.bench.rows import Row

CACHES = 4  # times the cache that all copies together exceed
MOST_COPIES = 64
MOST_BYTES = 8 * 2**30  # of all copies together
ANGLE_BASE = 10000.0


@dataclass(frozen=True)
class Inputs:
    """One set: q, k, v (empty but for attention), tables (R, width/2) of true angles, and wide ones (1, R, width).

    ``given`` is handed back to a row of ``backward``: one tensor for scores or o, or one each for rotated q and k.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    wide_cos: torch.Tensor
    wide_sin: torch.Tensor
    given: tuple[torch.Tensor, ...] = ()

    def copy(self) -> Inputs:
        """The same numbers and strides in other memory."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        given = tuple(x.clone() for x in own.pop("given"))
        return replace(self, given=given, **{name: x.clone() for name, x in own.items()})


def _normal(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)


def make(row: Row, device: str, seed: int) -> Inputs:
    """One set of inputs, normal numbers, the same for the same row, device and seed."""
    dtype = getattr(torch, row.dtype)
    of_q, of_k = (row.batch, row.heads, row.rows, row.width), (row.batch, row.kv_heads, row.keys, row.width)

    def draw(shape: tuple[int, ...], which: int) -> torch.Tensor:
        if not row.strided:
            return _normal(shape, dtype, device, 8 * seed + which)
        batch, heads, rows, width = shape
        return _normal((batch, rows, heads, width), dtype, device, 8 * seed + which).transpose(1, 2)

    q, k = draw(of_q, 0), draw(of_k, 1)
    v = draw(of_k, 2) if row.operation == "attention" else k[:0]
    positions = torch.arange(max(row.keys, row.offset + row.rows), dtype=torch.float64, device=device)
    falling = ANGLE_BASE ** -(torch.arange(row.width // 2, dtype=torch.float64, device=device) * 2 / row.width)
    angles = positions[:, None] * falling
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    wide_cos, wide_sin = (torch.cat([table, table], -1)[None] for table in (cos, sin))
    given: tuple[torch.Tensor, ...] = ()
    if row.group == "backward":
        shapes = (of_q, of_k) if row.operation == "rope" else (of_q,)
        shapes = ((*of_q[:3], row.keys),) if row.operation == "scores" else shapes
        given = tuple(_normal(shape, dtype, device, 8 * seed + 3 + i) for i, shape in enumerate(shapes))
    return Inputs(q, k, v, cos, sin, wide_cos, wide_sin, given)


def copies(row: Row, cache: int) -> int:
    """How many sets of inputs together exceed a cache of so many bytes ``CACHES`` times, as far as memory allows."""
    size = work_of(row).read
    return max(1, min(math.ceil(CACHES * cache / size) + 1, MOST_COPIES, MOST_BYTES // size))


def make_all(row: Row, device: str, cache: int) -> list[Inputs]:
    """The sets that calls take in turn."""
    return [make(row, device, seed) for seed in range(copies(row, cache))]


@dataclass(frozen=True)
class Work:
    """The least that a row is: bytes read and written once each, and operations of its products."""

    read: int
    written: int
    operations: int

    def floor(self, copied: float, multiplied: float) -> tuple[float, str]:
        """Seconds at so many bytes and operations a second, and which of the two takes them."""
        by_bytes, by_products = (self.read + self.written) / copied, self.operations / multiplied
        return (by_products, "products") if by_products > by_bytes else (by_bytes, "bytes")


def hidden(row: Row, device: torch.device) -> torch.Tensor:
    """Which keys (Sq, Sk) a row of q does not see, where it is causal."""
    i = row.offset + torch.arange(row.rows, device=device)[:, None]
    return torch.arange(row.keys, device=device) > i


def seen(row: Row) -> int:
    """Pairs of a row of q and a key that it sees, in one head."""
    if not row.causal:
        return row.rows * row.keys
    return sum(min(row.offset + i + 1, row.keys) for i in range(row.rows))


def work_of(row: Row) -> Work:
    """The work of a row; a backward pass of attention multiplies five times where the forward pass does twice."""
    size = getattr(torch, row.dtype).itemsize
    of_q = row.batch * row.heads * row.rows * row.width * size
    of_k = row.batch * row.kv_heads * row.keys * row.width * size
    tables = 2 * max(row.keys, row.offset + row.rows) * (row.width // 2) * size
    pairs = row.batch * row.heads * seen(row)
    if row.operation == "rope":
        return Work(of_q + of_k + tables, of_q + of_k, 0)
    if row.operation == "scores":
        scores = row.batch * row.heads * row.rows * row.keys * size
        if row.group == "backward":
            return Work(of_q + of_k + tables + scores, of_q + of_k, 4 * pairs * row.width)
        return Work(of_q + of_k + tables, scores, 2 * pairs * row.width)
    if row.group == "backward":
        sums = row.batch * row.heads * row.rows * 4  # of each row, float32
        return Work(3 * of_q + 2 * of_k + tables + sums, of_q + 2 * of_k, 10 * pairs * row.width)
    return Work(of_q + 2 * of_k + tables, of_q, 4 * pairs * row.width)


def pieces(row: Row, most: int) -> Iterator[slice]:
    """Slices of the batch times k's heads, such that each has at most ``most`` scores, or one head."""
    heads = row.batch * row.kv_heads
    step = max(1, most // (row.group_size * row.rows * row.keys))
    for start in range(0, heads, step):
        yield slice(start, min(start + step, heads))
