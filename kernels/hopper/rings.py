"""Buffers in shared memory that are taken in turn, and groups of warps that take turns."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def place_of(step, STAGES: gl.constexpr):
    """(buffer, parity of its barrier's phase) of a step around a ring."""
    return step % STAGES, (step // STAGES) & 1


@gluon.jit
def take_turn(order, step, WHICH: gl.constexpr, CAUSAL: gl.constexpr):
    """Wait until the other group has begun its products of the step before, so that one weighs while one multiplies.

    Where rows are causal it costs more than it gains, and is left out (reports/baseline/speed.md).
    """
    if not CAUSAL:
        mbarrier.wait(order.index(WHICH), (step & 1) ^ (1 - WHICH))


@gluon.jit
def pass_turn(order, WHICH: gl.constexpr, CAUSAL: gl.constexpr):
    """The other group may begin its products."""
    if not CAUSAL:
        mbarrier.arrive(order.index(1 - WHICH), count=1)
