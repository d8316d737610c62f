"""Scores of a tile of keys, and their weights, with the softmax carried along."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from kernels.hopper.units import ROWS

PARTS = gl.constexpr(8)  # sums of a row
NOTHING = gl.constexpr(-3.4028234663852886e38)  # what a row that has seen no key has as its largest score
LIMIT = gl.constexpr(2.0**24)  # below, in units of log 2, the largest score is rounded by a half at most


@gluon.jit
def multiply_keys(q1, q2, k_ring, place, HALF: gl.constexpr, S: gl.constexpr):
    """Scores (ROWS, KEYS) of a tile, under way."""
    KEYS: gl.constexpr = k_ring.shape[3]
    k1 = k_ring.index(2 * place).reshape((KEYS, HALF))
    k2 = k_ring.index(2 * place + 1).reshape((KEYS, HALF))
    s = gl.zeros([ROWS, KEYS], gl.float32, S)
    s = warpgroup_mma(q2, k2.permute((1, 0)), s, use_acc=False, is_async=True)
    return warpgroup_mma(q1, k1.permute((1, 0)), s, is_async=True)


@gluon.jit
def wait_for_scores(s, second, PENDING: gl.constexpr, IN_REGISTERS: gl.constexpr):
    """Scores whose product is done, and its left factor, which must stay until then where it is in registers."""
    if IN_REGISTERS:
        s, second = warpgroup_mma_wait(PENDING, deps=[s, second])
    else:
        s = warpgroup_mma_wait(PENDING, deps=[s])
    return s, second


@gluon.jit
def in_parts(x, PARTS: gl.constexpr = PARTS):
    """Rows (ROWS, KEYS) as (ROWS, KEYS / PARTS, PARTS): what a thread has of a row lies in the middle, and in pairs."""
    return x.reshape((x.shape[0], x.shape[1] // PARTS, PARTS))


@gluon.jit
def step_of(best, units):
    """What a row's scores are multiplied by: the units, or for a largest score beyond LIMIT so much less.

    Found from the bits of float32, as of logarithms, which takes three operations and is off by an eighth at most.
    """
    size = best.to(gl.int32, bitcast=True) & 0x7FFFFFFF
    edge = (LIMIT / units).to(gl.int32, bitcast=True)
    return (units.to(gl.int32, bitcast=True) - gl.maximum(size - edge, 0)).to(gl.float32, bitcast=True)


@gluon.jit
def weigh(s, top, total, units):
    """(weights, factor of what was summed before, largest score, sums of weights) with the scores of a tile.

    Sums are those of PARTS columns (ROWS, PARTS), so that no thread needs another's. One operation scales a score and
    takes the largest from it, of which the product is rounded: a factor of all weights of a row, and no more than 2
    below LIMIT. Larger scores are scaled by less: what that changes are weights of scores that nobody knows apart
    (docs/bounds.md, the error of a score), and those that are certain to have none still have none.
    """
    best = gl.maximum(top, gl.convert_layout(gl.max(gl.max(in_parts(s), 1), 1), top.type.layout))
    step = step_of(best, units)
    p = gl.exp2(s * step[:, None] - (best * step)[:, None])
    alpha = gl.exp2(top * step - best * step)
    of_parts = gl.convert_layout(alpha, gl.SliceLayout(1, total.type.layout))[:, None]
    return p, alpha, best, total * of_parts + gl.sum(in_parts(p), 1)


@gluon.jit
def log_of_sum(top, whole, units):
    """(lse in units of log 2, sum of weights); -inf and 1 if a row saw no key, NaN if its scores overflow."""
    scaled = top * units
    beyond = (whole != 0) & ~(gl.abs(scaled) < float("inf"))
    lse = gl.where(whole == 0, -float("inf"), scaled + gl.log2(whole))
    nan = float("nan")
    return gl.where(beyond, nan, lse), gl.where(beyond, nan, gl.where(whole == 0, 1.0, whole))
