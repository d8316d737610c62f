"""What the kernels for compute capability 9.0 ask of inputs, and how bulk copies are told of them."""

from __future__ import annotations

from typing import Any

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.launch import VECTOR_ELEMENTS
from kernels.special import Wish

TYPES = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
ALL_TYPES = TYPES | {torch.float32: gl.float32}


def are_even(wish: Wish) -> bool:
    """Whether inputs and result have one dtype of 16 bits, and rows of inputs start at multiples of 16 bytes."""
    forms = wish.forms.values()
    return (
        wish.dtype in TYPES
        and all(x.dtype == wish.dtype and x.strides[-1] == 1 for x in forms)
        and not any(stride % VECTOR_ELEMENTS for x in forms for stride in x.strides[:-1])
    )


def described(x: torch.Tensor, block: list[int]) -> TensorDescriptor:
    """What a bulk copy of blocks has to know; its rows start at multiples of 16 bytes.

    The stride of a single element says nothing, and may be more than hardware takes.
    """
    strides = [stride if size > 1 else VECTOR_ELEMENTS for size, stride in zip(x.shape[:-1], x.stride(), strict=False)]
    layout = gl.NVMMASharedLayout.get_default_for(block, ALL_TYPES[x.dtype])
    return TensorDescriptor(x, list(x.shape), [*strides, x.stride(-1)], block, layout)


class Blocks:
    """Descriptors of tensors of one form, all of which start at multiples of 16 bytes.

    Triton checks each that is made anew, which takes longer than a launch; what holds of the first holds of all.
    """

    def __init__(self, *block: int) -> None:
        self._block = list(block)
        self._known: dict[str, Any] = {}

    def of(self, x: torch.Tensor) -> TensorDescriptor:
        """That of a tensor."""
        if not self._known:
            self._known = vars(described(x, self._block)) | {"base": None}  # kept longer than a tensor should be
        made = object.__new__(TensorDescriptor)
        made.__dict__.update(self._known, base=x)
        return made
