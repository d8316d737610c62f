"""Scores of a tile of keys, and their weights, with the softmax carried along."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma

from kernels.hopper.units import ROWS

PARTS = gl.constexpr(8)  # sums of a row


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
def in_parts(x, PARTS: gl.constexpr = PARTS):
    """Rows (ROWS, KEYS) as (ROWS, KEYS / PARTS, PARTS): what a thread has of a row lies in the middle, and in pairs."""
    return x.reshape((x.shape[0], x.shape[1] // PARTS, PARTS))


@gluon.jit
def weigh(s, top, total, units):
    """(weights, factor of what was summed before, largest score, sums of weights) with the scores of a tile.

    Sums are those of PARTS columns (ROWS, PARTS), so that no thread needs another's. Scores are taken from the largest
    before they are scaled: of huge ones, ``s * units - known * units`` in one step is what the product was rounded by.
    """
    best = gl.maximum(top, gl.convert_layout(gl.max(gl.max(in_parts(s), 1), 1), top.type.layout))
    scaled = best * units
    beyond = (scaled == float("inf")) | ((scaled == -float("inf")) & (best != -float("inf")))
    known = gl.where(best == -float("inf"), 0.0, best)
    known = gl.where(beyond, float("nan"), known)
    p = gl.exp2((s - known[:, None]) * units)
    alpha = gl.exp2((top - known) * units)
    of_parts = gl.convert_layout(alpha, gl.SliceLayout(1, total.type.layout))[:, None]
    return p, alpha, best, total * of_parts + gl.sum(in_parts(p), 1)
