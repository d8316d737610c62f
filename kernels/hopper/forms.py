"""What the kernels for compute capability 9.0 ask of inputs, and how bulk copies are told of them."""

from __future__ import annotations

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.launch import VECTOR_ELEMENTS
from kernels.special import Wish

TYPES = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


def are_even(wish: Wish) -> bool:
    """Whether inputs and result have one dtype of 16 bits, and rows of inputs start at multiples of 16 bytes."""
    forms = wish.forms.values()
    return (
        wish.dtype in TYPES
        and all(x.dtype == wish.dtype and x.strides[-1] == 1 for x in forms)
        and not any(stride % VECTOR_ELEMENTS for x in forms for stride in x.strides[:-1])
    )


def described(x: torch.Tensor, block: list[int]) -> TensorDescriptor:
    """What a bulk copy of blocks has to know; its rows start at multiples of 16 bytes."""
    layout = gl.NVMMASharedLayout.get_default_for(block, TYPES[x.dtype])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout)
