"""Making the table of tiles: every legal tile of a kernel is a peer, gated and timed like any other.

Tiles are tried in small groups first; the quickest then meet in longer turns, those of ``qk`` with every number of
steps. Rows of one kernel, device, dtype and head count together where their lengths agree: the tile with the lowest
geometric mean of its times over the best is the length's entry. What is not tuned keeps the entries that it has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fuzzrope.bench.inputs import Inputs
from fuzzrope.bench.peers import Call, Peer
from fuzzrope.bench.rows import Row
from fuzzrope.bench.session import Bench, Ceilings, Machine, measure
from kernels.fused import block_of
from kernels.pinned import CALLS
from kernels.tiling import SHIPPED, Pins, Tiles

Key = tuple[str, int, int, int]
Numbers = tuple[int, int, int, int, int]
Table = Mapping[Key, tuple[tuple[int, Numbers], ...]]

SIZES, WARPS, STAGES, STEPS = (16, 32, 64, 128, 256), (4, 8), (1, 2, 3, 4), (1, 2, 4, 8, 16, 32)
ROPE_ROWS, ROPE_COLUMNS, ROPE_WARPS = (4, 8, 16, 32, 64, 128), (16, 32, 64, 128), (1, 2, 4, 8)
MOST_REGISTERS = 224  # numbers of the sums that a thread of 255 registers can hold
SHARED_BYTES = 227 * 1024  # of a program, compute capability 9.0
GROUP = 8  # tiles tried together
FIRST_ROUNDS, KEPT = 3, 6  # turns of every tile, and tiles that meet in longer turns

HEAD = '''"""Tiles by kernel, device and problem, as ``fuzzrope bench --tune`` measured them. Made by it: do not edit.

(kernel, 10 * compute capability, bytes of an element, columns of a head):
    (length, (rows, keys, warps, stages, steps)), ... in the order of lengths.

What has no entry follows the rule of its kernel.
"""

# fmt: off
TABLE: dict[tuple[str, int, int, int], tuple[tuple[int, tuple[int, int, int, int, int]], ...]] = {
'''


def kernels_of(row: Row) -> tuple[str, ...]:
    """The kernels that a row tunes: none if its lengths are ragged, its tables' own, or another row has it."""
    length = max(row.rows, row.keys)
    if length & (length - 1) or row.launch or row.strided:
        return ()
    if row.operation == "rope":
        return () if row.group == "backward" else ("rope",)
    name = "qk" if row.operation == "scores" else "attention"
    return (f"{name}_dq", f"{name}_dk") if row.group == "backward" else (name,)


def length_of(kernel: str, row: Row) -> int:
    """What :func:`kernels.tiling.pick` calls the length of this kernel's launch."""
    if kernel == "rope":
        return row.batch * row.heads * row.rows
    return row.keys if kernel.endswith("_dk") else row.rows * row.group_size


def key_of(kernel: str, row: Row, architecture: int) -> Key:
    """Where the table has the tiles of this kernel for a row."""
    return kernel, architecture, getattr(torch, row.dtype).itemsize, block_of(row.width)


def sums(kernel: str, tiles: Tiles, width: int) -> int:
    """Numbers of float32 that a program holds at once: its sums, and scores."""
    rows, keys = tiles.rows, tiles.keys
    return {
        "qk": rows * keys,
        "qk_dq": rows * width,
        "qk_dk": keys * width,
        "attention": rows * (width + keys),
        "attention_dq": rows * (width + 2 * keys),
        "attention_dk": keys * (2 * width + 2 * rows),
    }[kernel]


def legal(kernel: str, row: Row) -> list[Tiles]:
    """Every tile that may do for a row: powers of two, whose sums fit registers and whose factors fit shared memory.

    What the compiler still refuses fails when it is tried.
    """
    if kernel == "rope":
        half = block_of(row.width // 2)
        sizes = itertools.product(ROPE_ROWS, [n for n in ROPE_COLUMNS if n <= half], ROPE_WARPS)
        return [Tiles(r, c, w, 3) for r, c, w in sizes if 128 <= r * c <= 8192 and r * c >= 8 * w]
    width, size = block_of(row.width), getattr(torch, row.dtype).itemsize
    packed = row.rows * row.group_size
    most = max(16, 1 << (packed - 1).bit_length())
    found = []
    for rows, keys, warps, stages in itertools.product(SIZES, SIZES, WARPS, STAGES):
        tiles = Tiles(rows, keys, warps, stages)
        fits = sums(kernel, tiles, width) <= MOST_REGISTERS * 32 * warps
        fits = fits and (rows + keys) * width * size <= SHARED_BYTES
        if fits and rows <= most and rows * keys >= min(1024, 16 * most):
            found.append(tiles)
    return found


def peer_of(kernel: str, tiles: Tiles) -> Peer:
    """A tile as something to measure."""
    operation = {"qk": "scores", "attention": "attention"}.get(kernel.partition("_")[0], "rope")
    pins = SHIPPED._replace(named=((kernel, tiles),))
    return Peer(text_of(tiles), operation, lambda row: pinned_call(row, pins), decodes=True, backward=True)


def pinned_call(row: Row, pins: Pins) -> Call:
    """The row's call of our kernel with certain tiles."""
    if row.operation == "rope":
        rope = CALLS["rope"]
        return lambda x: rope(x.q, x.k, x.cos, x.sin, pins=pins)[:2]
    where = {"causal": row.causal, "q_offset": row.offset, "pins": pins}
    if row.operation == "scores":
        scores = CALLS["rope_qk"]
        return lambda x: (scores(x.q, x.k, x.cos, x.sin, scale=1.0, **where),)
    attention = CALLS["rope_attention"]

    def call(x: Inputs) -> tuple[torch.Tensor, ...]:
        return (attention(x.q, x.k, x.v, x.cos, x.sin, **where),)

    return call


def text_of(tiles: Tiles) -> str:
    """Tiles as :func:`kernels.pinned.parse` reads them, after the kernel."""
    return "x".join(map(str, tiles))


@dataclass(frozen=True)
class Tried:
    """What a kernel's tiles took at a row, in seconds: those of the last turns."""

    kernel: str
    row: Row
    times: dict[Tiles, float]
    count: int


def try_row(kernel: str, row: Row, tiles: Sequence[Tiles], machine: Machine, ceiling: Ceilings, rounds: int) -> Tried:
    """Time these tiles of a kernel at a row, and the quickest of them once more."""
    bench = Bench(row, machine)

    def times_of(tiles: Sequence[Tiles], rounds: int) -> dict[Tiles, float]:
        """Medians of those that compile, fit and are right."""
        found: dict[Tiles, float] = {}
        for start in range(0, len(tiles), GROUP):
            group = {text_of(one): one for one in tiles[start : start + GROUP]}
            peers = [peer_of(kernel, one) for one in group.values()]
            cells = measure(row, machine, ceiling, peers, rounds, bench).cells
            found |= {group[cell.peer.name]: cell.times.median for cell in cells if cell.times is not None}
        return found

    times = times_of(tiles, FIRST_ROUNDS)
    best = sorted(times, key=lambda one: times[one])[:KEPT]
    if kernel == "qk":
        best += [one._replace(steps=steps) for one in best for steps in STEPS]
    return Tried(kernel, row, times_of(best, rounds), len(tiles))


def choose(tried: Iterable[Tried]) -> Tiles | None:
    """The tile with the lowest mean of log(time / best time) over rows, or None if none was right anywhere.

    One that a row's last turns lack counts as twice the slowest there.
    """
    costs: dict[Tiles, float] = {}
    every = [one for one in tried if one.times]
    for tiles in {tiles for one in every for tiles in one.times}:
        costs[tiles] = sum(
            math.log(one.times.get(tiles, 2 * max(one.times.values())) / min(one.times.values())) for one in every
        )
    return min(costs, key=lambda tiles: (costs[tiles], tiles), default=None)


def updated(table: Table, tried: Sequence[Tried], architecture: int) -> Table:
    """The table with the entries that were tried replaced."""
    found = {key: dict(entries) for key, entries in table.items()}
    places = dict.fromkeys((key_of(t.kernel, t.row, architecture), length_of(t.kernel, t.row)) for t in tried)
    for key, length in places:
        here = [
            t for t in tried if (key_of(t.kernel, t.row, architecture), length_of(t.kernel, t.row)) == (key, length)
        ]
        tiles = choose(here)
        if tiles is not None:
            found.setdefault(key, {})[length] = (*tiles,)
    return {key: tuple(sorted(entries.items())) for key, entries in sorted(found.items())}


def written(table: Table) -> str:
    """The text of ``kernels/tile_table.py`` for a table."""
    lines = [HEAD]
    for (kernel, *numbers), entries in table.items():
        lines.append(f'    ("{kernel}", {", ".join(map(str, numbers))}): (\n')
        lines += [f"        ({length}, {tuple(tiles)}),\n" for length, tiles in entries]
        lines.append("    ),\n")
    return "".join([*lines, "}\n"])


def tune(
    jobs: Sequence[tuple[str, Row]],
    machine: Machine,
    ceiling: Ceilings,
    architecture: int,
    table: Table,
    say: Callable[[str], None],
    save: Callable[[str], None],
    rounds: int,
    tiles_of: Callable[[str, Row], Sequence[Tiles]] = legal,
) -> Table:
    """Try kernels at rows; ``say`` a line for each, and ``save`` the text of the table after it."""
    tried: list[Tried] = []
    for number, (kernel, row) in enumerate(jobs, 1):
        tried.append(try_row(kernel, row, tiles_of(kernel, row), machine, ceiling, rounds))
        ranked = sorted(tried[-1].times.items(), key=lambda item: item[1])
        shown = ", ".join(f"{text_of(tiles)} {seconds * 1e6:.1f}" for tiles, seconds in ranked[:3]) or "none is right"
        say(f"[{number}/{len(jobs)}] {kernel} at {row.group} {row.name}: of {tried[-1].count}, in µs: {shown}")
        save(written(updated(table, tried, architecture)))
    return updated(table, tried, architecture)
