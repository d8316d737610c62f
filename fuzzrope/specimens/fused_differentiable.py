"""Correct ``rope_qk`` and ``rope_attention`` with gradients: the plain forward pass, and a backward pass of its own."""

from __future__ import annotations

from typing import Any

import torch

from fuzzrope.specimens import attention_tiled, qk_tiled
from fuzzrope.specimens.fused_backward import Backward, Manner, Tensor

NAMES = ("q", "k", "v", "cos", "sin")


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: DifferentiableQK, options: dict[str, Any], *inputs: Tensor) -> Tensor:
        ctx.steps, ctx.options = steps, options
        ctx.save_for_backward(*inputs)
        return qk_tiled.Twin()(*inputs, **options)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        tensors = dict(zip(("q", "k", "cos", "sin"), ctx.saved_tensors, strict=True))
        found = Backward(tensors, ctx.options, ctx.steps.manner, ctx.steps.flaw).qk(given[0])
        return None, None, *(found[name] for name in tensors)


class DifferentiableQK:
    """The correct one; specimens override what they get wrong."""

    manner = Manner()
    flaw = ""

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Tensor:
        """The contract of ``rope_qk``."""
        return _Scores.apply(self, options, q, k, cos, sin)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, steps: DifferentiableAttention, options: dict[str, Any], *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.steps, ctx.options = steps, options
        ctx.set_materialize_grads(False)
        found = attention_tiled.Twin()(*inputs, **{**options, "return_lse": True})
        assert isinstance(found, tuple)
        ctx.save_for_backward(*inputs, *found)
        return found

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        *inputs, o, lse = ctx.saved_tensors
        tensors = dict(zip(NAMES, inputs, strict=True))
        if given[0] is None and given[1] is None:
            return (None,) * 7
        backward = Backward(tensors, ctx.options, ctx.steps.manner, ctx.steps.flaw)
        found = backward.attention(given[0], given[1], o, lse)
        return None, None, *(found.get(name) for name in NAMES)


class DifferentiableAttention:
    """The correct one; specimens override what they get wrong."""

    manner = Manner()
    flaw = ""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *, return_lse: bool = False, **options: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The contract of ``rope_attention``."""
        o, lse = _Attention.apply(self, options, q, k, v, cos, sin)
        return (o, lse) if return_lse else o


class OtherQK(DifferentiableQK):
    """float32 factors, gradients rounded for each head and before they are rotated back, sums backwards."""

    manner = Manner(narrow=False, by_head=True, early=True, reversed=True)


class OtherAttention(DifferentiableAttention):
    """As :class:`OtherQK`; weights from a softmax of their own, and δ from them."""

    manner = Manner(narrow=False, fresh=True, summed=True, by_head=True, early=True, reversed=True)
