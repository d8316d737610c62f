"""Tiles of rows and keys against every row and key counted one by one: which are met, and which are seen whole."""

import itertools

import torch
import triton
import triton.language as tl

from kernels.fused import MOST_HEADS
from kernels.tiles import key_tiles, packed_rows, row_tiles, sees_all, whole_tiles

GROUPS = (1, 2, 3, 5)
LENGTHS = ((1, 1), (7, 40), (20, 7), (33, 33), (40, 64))
SHIFTS = (None, 1, 9)  # the last keys that a row sees, of those not after it; None for all
OFFSETS = (0, 3, 30)
M, N = 16, 16


@triton.jit
def tiles_kernel(
    out_ptr, rows, group, keys, first_shift, last_shift, row_tile_count, key_tile_count,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What the tiles of one program say: five numbers for each tile of rows, then three for each tile of keys.

    After them one for each pair of tiles: whether all is seen.
    """
    for m in range(0, row_tile_count):
        start = m * BLOCK_M
        low, high = key_tiles(start, rows, group, keys, first_shift, last_shift, BLOCK_M, BLOCK_N)
        whole_from, whole_to = whole_tiles(
            start, rows, group, keys, first_shift, last_shift, low, high, BLOCK_M, BLOCK_N
        )
        tl.store(out_ptr, low)
        tl.store(out_ptr + 1, high)
        tl.store(out_ptr + 2, whole_from)
        tl.store(out_ptr + 3, whole_to)
        out_ptr += 4
    for n in range(0, key_tile_count):
        low, high = row_tiles(n * BLOCK_N, rows, group, keys, first_shift, last_shift, BLOCK_M, BLOCK_N)
        tl.store(out_ptr, low)
        tl.store(out_ptr + 1, high)
        out_ptr += 2
        for m in range(0, row_tile_count):
            whole = sees_all(m * BLOCK_M, rows, group, n * BLOCK_N, first_shift, last_shift, BLOCK_M, BLOCK_N)
            tl.store(out_ptr, whole.to(tl.int32))
            out_ptr += 1


@triton.jit
def rows_kernel(out_ptr, start, rows, group, BLOCK_M: tl.constexpr, WIDE: tl.constexpr):
    """Row, head and whether it is there, of each packed row of a tile."""
    first, local, g, there = packed_rows(start, rows, group, BLOCK_M, WIDE)
    at = out_ptr + 3 * tl.arange(0, BLOCK_M)
    tl.store(at, (first + local).to(tl.int32))
    tl.store(at + 1, g.to(tl.int32))
    tl.store(at + 2, there.to(tl.int32))


def seen(i: int, j: int, keys: int, first_shift: int, last_shift: int) -> bool:
    return j < keys and i + first_shift < j <= i + last_shift


def test_tiles_leave_nothing_out_and_whole_ones_hold_nothing_that_is_not_seen(engine):
    wholes = 0
    for (rows, keys), group, window, offset, causal in itertools.product(
        LENGTHS, GROUPS, SHIFTS, OFFSETS, (True, False)
    ):
        if window is not None and not causal:
            continue
        last_shift = min(offset, keys) if causal else keys
        first_shift = -rows - 1 if window is None else min(max(offset - window, -rows - 1), keys)
        down, across = -(-rows * group // M), -(-keys // N)
        out = torch.full((4 * down + across * (2 + down),), -1, dtype=torch.int32)
        shifts = first_shift, last_shift
        tiles_kernel[(1,)](out, rows, group, keys, *shifts, down, across, BLOCK_M=M, BLOCK_N=N)
        found = iter(out.tolist())
        sees = torch.zeros(down * M, across * N, dtype=torch.bool)
        for r, j in itertools.product(range(rows * group), range(keys)):
            sees[r, j] = seen(r // group, j, keys, *shifts)
        blocks = sees.unflatten(0, (down, M)).unflatten(2, (across, N)).transpose(1, 2)
        some, every = blocks.flatten(2).any(2), blocks.flatten(2).all(2)
        there = (torch.arange(down * M) < rows * group).unflatten(0, (down, M))
        for m in range(down):
            low, high, whole_from, whole_to = (next(found) for _ in range(4))
            assert all(low <= n < high for n in range(across) if some[m, n])
            if high >= low:
                assert low <= whole_from <= whole_to <= high
            else:
                assert whole_from >= whole_to
            for n in range(whole_from, whole_to):  # rows that are not there are nobody's
                assert blocks[m, n][there[m]].all()
                wholes += 1
            assert all(whole_from <= n < whole_to for n in range(across) if every[m, n])
        for n in range(across):
            low, high = next(found), next(found)
            assert all(low <= m < high for m in range(down) if some[m, n])
            keys_there = torch.arange(n * N, n * N + N) < keys
            for m in range(down):
                assert bool(next(found)) == bool(there[m].all() and blocks[m, n][:, keys_there].all() and (
                    keys_there.all() or n * N + N - 1 <= m * M // group + last_shift
                ))  # fmt: skip
    assert wholes > 100


def test_packed_rows_are_rows_by_the_head_whether_they_are_divided_or_not(engine):
    for group, start, wide in itertools.product((1, 2, 3, 7, 64, 511, MOST_HEADS), (0, 16, 1008, 2**20), (False, True)):
        rows = (start + 10) // group + 1
        out = torch.full((M, 3), -1, dtype=torch.int32)
        rows_kernel[(1,)](out, start, rows, group, BLOCK_M=M, WIDE=wide)
        for lane, (row, head, there) in enumerate(out.tolist()):
            assert (row, head) == divmod(start + lane, group)
            assert bool(there) == (start + lane < rows * group)


def test_the_product_that_replaces_a_division_is_exact_in_32_bits_for_every_group_and_lane():
    for group in range(1, MOST_HEADS + 1):
        factor = (1048575 + group) // group
        for lane in range(group + 256):
            assert lane * factor < 2**31
            assert lane * factor >> 20 == lane // group
