"""Buffers in shared memory that are taken in turn."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def place_of(step, STAGES: gl.constexpr):
    """(buffer, parity of its barrier's phase) of a step around a ring."""
    return step % STAGES, (step // STAGES) & 1
