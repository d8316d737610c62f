"""Softmax in pieces: what a tile of scores adds, and how pieces that several programs found are joined.

Scores are held in units of log 2, for exp2. Pieces are joined by their largest scores and their sums of weights.
"""

import triton
import triton.language as tl

ENOUGH_PROGRAMS = 264  # two for each multiprocessor of an H200: below that, keys are shared out
LEAST_SHARE = 4  # tiles of keys that are worth a program of their own
MOST_SPLITS = 128
COMBINED_ROWS = 4  # rows that a program of the second kernel joins
LOG2_E = tl.constexpr(1.4426950408889634)  # a variable of a kernel would have 32 bits
LN_2 = tl.constexpr(0.6931471805599453)
LEAST = tl.constexpr(2.0**-149)  # the smallest number of float32


@triton.jit
def capped(s, cap):
    """tanh(s / cap) and its slope by s, made of exp: hardware's own tanh is too rough."""
    x = s / cap
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t), 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def finite_or_zero(top):
    """The largest score, or 0 of a row that has seen none: something to subtract."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def level(top, units):
    """What to subtract from scores of which the largest is top: 0 where none was seen, NaN if scaled it overflows."""
    scaled = top * units
    beyond = (scaled == float("inf")) | ((scaled == -float("inf")) & (top != -float("inf")))
    return tl.where(beyond, float("nan"), finite_or_zero(top))


@triton.jit(do_not_specialize=range(5, 8), do_not_specialize_on_alignment=range(5))
def combine_kernel(
    part_ptr, top_ptr, total_ptr, o_ptr, lse_ptr, count, width_v, splits,
    BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows of o and lse from their shares (splits, count, ...), joined in one order."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = row < count
    dv = tl.arange(0, BLOCK_V)[None, :]
    mask = there[:, None] & (dv < width_v)
    best = tl.full([BLOCK_R], -float("inf"), top_ptr.dtype.element_ty)
    for split in range(0, splits):
        at = tl.cast(split, tl.int64) * count + row
        best = tl.maximum(best, tl.load(top_ptr + at, mask=there, other=-float("inf")))
    known = finite_or_zero(best)
    whole = tl.zeros([BLOCK_R], top_ptr.dtype.element_ty)
    o = tl.zeros([BLOCK_R, BLOCK_V], part_ptr.dtype.element_ty)
    for split in range(0, splits):
        at = tl.cast(split, tl.int64) * count + row
        weight = tl.exp2(tl.load(top_ptr + at, mask=there, other=-float("inf")) - known)
        whole += weight * tl.load(total_ptr + at, mask=there, other=0.0)
        part = tl.load(part_ptr + (at * width_v)[:, None] + dv, mask=mask, other=0.0)
        o += weight[:, None].to(part_ptr.dtype.element_ty) * part
    whole = tl.where(whole == 0, 1.0, whole)
    o = o / whole[:, None].to(part_ptr.dtype.element_ty)
    tl.store(lse_ptr + row, (best + tl.log2(whole)) * LN_2, mask=there)
    tl.store(o_ptr + (row * width_v)[:, None] + dv, o.to(o_ptr.dtype.element_ty), mask=mask)


def choose_splits(programs: int, key_tiles: int) -> int:
    """How many programs share the keys of a tile: 1 unless there are few programs and many keys."""
    return max(min(ENOUGH_PROGRAMS // max(programs, 1), key_tiles // LEAST_SHARE, MOST_SPLITS), 1)
