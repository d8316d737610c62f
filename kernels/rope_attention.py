"""Attention with rotation inside, in the manner of FlashAttention: neither rotated factor nor scores are ever stored.

The kernel is in :mod:`kernels.attention_launch`, the plain twin is :func:`kernels.reference.attention_reference`.
"""

from typing import Any

import torch

from kernels import reference
from kernels.attention_launch import NAME, launch_attention, plan_attention
from kernels.fused import check_options, check_sizes, check_tensors, is_traced
from kernels.launch import can_launch
from kernels.tiling import SHIPPED, Pins

__all__ = ["rope_attention"]


def rope_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    q_offset: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention over the scores of :func:`kernels.rope_qk.rope_qk`, rotation inside.

    Args:
        q: (B, Hq, Sq, D), float16, bfloat16, float32 or float64, D even and at most 256, any strides; row i has
            position ``q_offset + i``.
        k: (B, Hk, Sk, D), Hq a multiple of Hk: head h of q meets head h // (Hq / Hk); row j has position j.
        v: (B, Hk, Sk, Dv), Dv at most 256.
        cos: (R, D/2) or (R, 1), a table with a row for each position, or one row that serves all.
        sin: likewise; its shape and dtype are its own.
        scale: what scores are multiplied by, 1/sqrt(D) unless given.
        causal: row i sees the keys j <= q_offset + i alone.
        q_offset: the position of q's first row, from 0 to 2^40.
        window: of those, the last ``window`` alone; needs ``causal``.
        softcap: c makes a score s into c * tanh(s / c).
        return_lse: whether the logarithm of the sum of exponentials comes back too.

    Returns:
        o (B, Hq, Sq, Dv), contiguous, in the promoted dtype of all five inputs; with ``return_lse`` also lse
        (B, Hq, Sq), the natural logarithm, float32 (float64 where scores are). A row that sees no key has o = 0 and
        lse = -inf. Weights are rounded to v's type; factors of float32 are cut to tf32 as
        ``torch.get_float32_matmul_precision()`` says.

    Raises:
        TypeError: an argument is no strided tensor of the four dtypes, or an option of another type.
        ValueError: ranks, devices, sizes or options that do not belong together.

    On a GPU this is one kernel launch, or two where few rows meet many keys; on other devices it is the eager twin.
    The same bits come back each time. Autocast has no say. Gradients are :mod:`kernels.rope_attention_backward`'s.
    What traces instead of running meets one operator, :mod:`kernels.fused_operators`.
    """
    options: dict[str, Any] = {"scale": scale, "causal": causal, "q_offset": q_offset, "window": window}
    return call_attention(q, k, v, cos, sin, **options, softcap=softcap, return_lse=return_lse)


def call_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    q_offset: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    pins: Pins = SHIPPED,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """:func:`rope_attention` with tiles of one's choice, unless it is traced."""
    tensors = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin}
    check_tensors(NAME, tensors)
    check_options(NAME, scale, causal, q_offset, window, softcap)
    if not isinstance(return_lse, bool):
        raise TypeError(f"{NAME}: return_lse must be a bool, not {type(return_lse).__name__}")
    if is_traced(tensors):
        from kernels.fused_operators import traced_attention

        check_sizes(NAME, tensors, q_offset)
        o, lse = traced_attention(q, k, v, cos, sin, scale, causal, q_offset, window, softcap)
        return (o, lse) if return_lse else o
    if not can_launch(q.device):
        check_sizes(NAME, tensors, q_offset)
        options: dict[str, Any] = {"scale": scale, "causal": causal, "q_offset": q_offset, "window": window}
        return reference.attention_reference(q, k, v, cos, sin, **options, softcap=softcap, return_lse=return_lse)
    plan = plan_attention(tensors, scale, causal, q_offset, window, softcap, pins)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors.values()):
        from kernels.rope_attention_backward import differentiable  # it launches the kernels above

        o, lse = differentiable(plan, q, k, v, cos, sin)
    else:
        o, lse = launch_attention(plan, q, k, v, cos, sin)
    return (o, lse) if return_lse else o
