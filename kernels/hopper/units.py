"""Units of work that programs take one after the other; of attention, the rows of a head and the keys they see."""

from collections.abc import Sequence

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.launch import ceil_div
from kernels.special import Wish

ROWS = gl.constexpr(64)  # of a group of warps, two of which have a unit
START, COUNTED = 2.5, 128  # tiles of so many keys that take as long as what a unit takes beside its own
MANY = 16  # units for each multiprocessor, of which pairs share out well


@gluon.jit
def turns_of(units, pid, programs, SPAN: gl.constexpr):
    """How many units of work the pid-th of some programs takes, SPAN after each other; none is without any."""
    spans = (units - 1) // SPAN + 1
    mine = ((spans - 1 - pid) // programs + 1) * SPAN  # cdiv would go beyond 32 bits before it comes back
    return mine - gl.where((spans - 1) % programs == pid, units % SPAN, 0)


@gluon.jit
def unit_of(turn, rows, keys, offset, KEYS: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr):
    """(head of q in all batches, first of its rows, tiles of keys they see) of a program's unit.

    Where rows see unlike numbers of keys, the last of a head come first, or go with the first as a pair.
    """
    tiles = gl.cdiv(rows, 2 * ROWS)
    unit = (turn // SPAN * gl.num_programs(0) + gl.program_id(0)) * SPAN + turn % SPAN
    tile = unit % tiles
    count = gl.cdiv(keys, KEYS)
    if CAUSAL:
        early = tile % 2 == 0 if SPAN == 2 else tile >= 0
        tile = gl.where(early, tiles - 1 - tile // SPAN, tile // SPAN)
        count = gl.minimum(count, gl.cdiv((tile + 1) * (2 * ROWS) + offset, KEYS).to(gl.int32))
    return unit // tiles, tile * (2 * ROWS), count


def tiles_seen(wish: Wish, blocks: int, tile: int) -> list[float]:
    """Tiles of so many keys that each block of rows sees, as :func:`unit_of` has them, counted as START is."""
    most, size = ceil_div(wish.forms["k"].shape[2], tile), tile / COUNTED
    if not wish.causal:
        return [most * size] * blocks
    seen = (ceil_div((block + 1) * 2 * ROWS.value + wish.q_offset, tile) for block in range(blocks))
    return [min(most, count) * size for count in seen]


def pairs_are_quicker(units: int, counts: Sequence[float], places: int) -> bool:
    """Whether programs that take causal units in pairs end earlier than if each took one after the other.

    Args:
        units: of all heads.
        counts: tiles of keys that each unit of a head sees, the fewest first.
        places: multiprocessors.
    """
    if units > MANY * places:
        return True
    blocks = len(counts)
    alone = [counts[blocks - 1 - unit % blocks] for unit in range(units)]
    paired = [
        counts[blocks - 1 - unit % blocks // 2 if unit % blocks % 2 == 0 else unit % blocks // 2]
        for unit in range(units)
    ]
    ends = []
    for span, costs in ((1, alone), (2, paired)):
        programs = min(ceil_div(units, span), places)
        loads = [0.0] * programs
        for unit, count in enumerate(costs):
            loads[unit // span % programs] += count + START
        ends.append(max(loads))
    return ends[1] < ends[0]
