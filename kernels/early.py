"""Launches that begin before the one in front of them has ended (CUDA's programmatic dependent launch).

Programs of such a launch take their places and work out what they are to do while those in front still write; then they
wait. What it is worth, ``reports/baseline/speed.md`` says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.launch import INTERPRETED
from kernels.tiling import HOPPER, architecture

BEGINS_EARLY = {"launch_pdl": True}  # an option of Triton's launches


@triton.jit
def wait_for_launch(EARLY: tl.constexpr):
    """What comes before it in a kernel must not touch memory; the launch behind this one may begin."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


def can_be_early(device: torch.device) -> bool:
    """Whether launches on a device can begin early; Triton's interpreter knows no such thing."""
    return not INTERPRETED and torch.version.hip is None and architecture(device) >= HOPPER
