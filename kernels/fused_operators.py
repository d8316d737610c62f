"""``torch.library`` operators of the fused kernels, as :mod:`kernels.operators` has them of ``rope``.

Attention's always returns lse, which its gradients need. Operators of gradients take the options of the forward
ones, and return those gradients that are needed and that a gradient given leads to, contiguous, in the order of the
inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kernels import reference
from kernels.attention_launch import launch_attention, plan_attention
from kernels.fused import check_options, check_sizes, check_tensors, dot_precision, promoted, work_dtype
from kernels.fused_reference import attention_pull_back, qk_pull_back
from kernels.launch import can_launch
from kernels.operators import EXACT, Tensor
from kernels.rope_attention_backward import attention_gradients
from kernels.rope_qk import launch_qk, plan_scores
from kernels.rope_qk_backward import qk_gradients

QK_OPTIONS = "float? scale=None, bool causal=False, SymInt q_offset=0"
OPTIONS = f"{QK_OPTIONS}, SymInt? window=None, float? softcap=None"


def _check(name: str, tensors: dict[str, Tensor], scale: float | None, causal: bool, q_offset: int, *more: Any) -> None:
    """Raise what the operations raise; ``more`` are window and softcap."""
    check_tensors(name, tensors)
    check_options(name, scale, causal, q_offset, *more)
    check_sizes(name, tensors, q_offset)


def _some(found: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in found if x is not None]


def _blank(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """What gradients of the wanted inputs look like."""
    return [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x, want in zip(inputs, wanted, strict=True) if want
    ]


def _placed(some: Sequence[Tensor], wanted: Sequence[bool], arguments: int) -> tuple[Tensor | None, ...]:
    """The gradients at their inputs' places, None elsewhere."""
    rest = iter(some)
    return tuple(next(rest) if i < len(wanted) and wanted[i] else None for i in range(arguments))


@torch.library.custom_op(
    "rope_kernels::rope_qk",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor cos, Tensor sin, {QK_OPTIONS}, ScalarType? out_dtype=None) -> Tensor",
    tags=(EXACT,),
)
def scores_of(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float | None = None, causal: bool = False,
    q_offset: int = 0, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """The scores of :func:`kernels.rope_qk.rope_qk`, in fresh memory; raises what it raises."""
    tensors = {"q": q, "k": k, "cos": cos, "sin": sin}
    _check("rope_qk", tensors, scale, causal, q_offset)
    if not can_launch(q.device):
        twin = reference.qk_reference(
            q, k, cos, sin, scale=scale, causal=causal, q_offset=q_offset, out_dtype=out_dtype
        )
        return twin.contiguous()
    return launch_qk(plan_scores(tensors, scale, causal, q_offset, out_dtype), q, k, cos, sin)


@scores_of.register_fake
def _(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float | None = None, causal: bool = False,
    q_offset: int = 0, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    _check("rope_qk", {"q": q, "k": k, "cos": cos, "sin": sin}, scale, causal, q_offset)
    dtype = out_dtype or promoted(q, k, cos, sin)
    return torch.empty((*q.shape[:3], k.shape[2]), dtype=dtype, device=q.device)


@torch.library.custom_op(
    "rope_kernels::rope_qk_backward",
    mutates_args=(),
    schema="(Tensor ds, Tensor q, Tensor k, Tensor cos, Tensor sin, bool[] needs, str precision, "
    f"{QK_OPTIONS}) -> Tensor[]",
    tags=(EXACT,),
)
def scores_pulled_back(
    ds: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, needs: Sequence[bool], precision: str,
    scale: float | None = None, causal: bool = False, q_offset: int = 0,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, cos and sin from ``ds``, that of the scores; exact products of float32 have ``precision``."""
    inputs = (q, k, cos, sin)
    if not can_launch(q.device):
        with reference.without_autocast(q):
            return _some(qk_pull_back(ds, inputs, needs, scale, causal, q_offset))
    plan = plan_scores(dict(zip(("q", "k", "cos", "sin"), inputs, strict=True)), scale, causal, q_offset)
    return _some(qk_gradients(plan.problem, precision, inputs, ds, tuple(needs)))


@scores_pulled_back.register_fake
def _(
    ds: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, needs: Sequence[bool], precision: str,
    scale: float | None = None, causal: bool = False, q_offset: int = 0,
) -> list[Tensor]:  # fmt: skip
    return _blank((q, k, cos, sin), needs)


def _remember_qk(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, cos, sin, *options, _ = inputs
    ctx.save_for_backward(q, k, cos, sin)
    ctx.options = options
    ctx.precision = dot_precision(promoted(q, k, cos, sin, output))


def _pull_back_qk(ctx: Any, ds: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    return _placed(scores_pulled_back(ds, *ctx.saved_tensors, needs, ctx.precision, *ctx.options), needs, 8)


scores_of.register_autograd(_pull_back_qk, setup_context=_remember_qk)


@torch.library.custom_op(
    "rope_kernels::rope_attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, {OPTIONS}) -> (Tensor, Tensor)",
    tags=(EXACT,),
)
def attended(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float | None = None, causal: bool = False,
    q_offset: int = 0, window: int | None = None, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o and lse of :func:`kernels.rope_attention.rope_attention`, in fresh memory; raises what it raises."""
    tensors = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin}
    _check("rope_attention", tensors, scale, causal, q_offset, window, softcap)
    if not can_launch(q.device):
        o, lse = reference.attention_reference(
            q, k, v, cos, sin, scale=scale, causal=causal, q_offset=q_offset, window=window, softcap=softcap,
            return_lse=True,
        )  # fmt: skip
        return o.contiguous(), lse.contiguous()
    return launch_attention(plan_attention(tensors, scale, causal, q_offset, window, softcap), q, k, v, cos, sin)


@attended.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float | None = None, causal: bool = False,
    q_offset: int = 0, window: int | None = None, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tensors = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin}
    _check("rope_attention", tensors, scale, causal, q_offset, window, softcap)
    o = torch.empty((*q.shape[:3], v.shape[3]), dtype=promoted(q, k, v, cos, sin), device=q.device)
    return o, torch.empty(q.shape[:3], dtype=work_dtype(promoted(q, k, cos, sin)), device=q.device)


@torch.library.custom_op(
    "rope_kernels::rope_attention_backward",
    mutates_args=(),
    schema="(Tensor? do, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor o, Tensor lse, "
    f"bool[] needs, str precision, {OPTIONS}) -> Tensor[]",
    tags=(EXACT,),
)
def attention_pulled_back(
    do: Tensor | None, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, o: Tensor,
    lse: Tensor, needs: Sequence[bool], precision: str, scale: float | None = None, causal: bool = False,
    q_offset: int = 0, window: int | None = None, softcap: float | None = None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, v, cos and sin from ``do`` and ``dlse``, None for what is not used; v needs ``do``."""
    inputs, options = (q, k, v, cos, sin), (scale, causal, q_offset, window, softcap)
    if do is None and dlse is None:
        return []
    if not can_launch(q.device):
        with reference.without_autocast(q):
            return _some(attention_pull_back(do, dlse, inputs, (o, lse), needs, *options))
    plan = plan_attention(dict(zip(("q", "k", "v", "cos", "sin"), inputs, strict=True)), *options)
    return _some(attention_gradients(plan.call, precision, (*inputs, o, lse), do, dlse, tuple(needs)))


@attention_pulled_back.register_fake
def _(
    do: Tensor | None, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, o: Tensor,
    lse: Tensor, needs: Sequence[bool], precision: str, scale: float | None = None, causal: bool = False,
    q_offset: int = 0, window: int | None = None, softcap: float | None = None,
) -> list[Tensor]:  # fmt: skip
    return _blank((q, k, v, cos, sin), _wanted(do, dlse, needs))


def _wanted(do: Tensor | None, dlse: Tensor | None, needs: Sequence[bool]) -> list[bool]:
    """Which gradients are needed and come of those of o and lse; v has a part in o alone."""
    used = do is not None or dlse is not None
    return [need and (used if i != 2 else do is not None) for i, need in enumerate(needs)]


def _remember_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, causal, q_offset, window, softcap = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = scale, causal, q_offset, window, softcap
    q, k, _, cos, sin = tensors
    ctx.precision = dot_precision(promoted(q, k, cos, sin), output[0].dtype)
    ctx.set_materialize_grads(False)
    if not any(ctx.needs_input_grad[i] for i in (0, 1, 3, 4)):  # v alone: scores do not depend on it
        ctx.mark_non_differentiable(output[1])


def _pull_back_attention(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    wanted = _wanted(do, dlse, needs)
    if not any(wanted):
        return (None,) * 10
    some = attention_pulled_back(do, dlse, *ctx.saved_tensors, needs, ctx.precision, *ctx.options)
    return _placed(some, wanted, 10)


attended.register_autograd(_pull_back_attention, setup_context=_remember_attention)


def traced_qk(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float | None, causal: bool, q_offset: int,
    out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """:func:`kernels.rope_qk.rope_qk` for checked tensors that stand for others, as operators.traced does it."""
    if torch._C._are_functorch_transforms_active() or not can_launch(q.device):
        return reference.qk_reference(
            q, k, cos, sin, scale=scale, causal=causal, q_offset=q_offset, out_dtype=out_dtype
        )
    return scores_of(q, k, cos, sin, scale, causal, q_offset, out_dtype)


def traced_attention(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float | None, causal: bool, q_offset: int,
    window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """:func:`kernels.rope_attention.rope_attention` with lse, likewise."""
    if torch._C._are_functorch_transforms_active() or not can_launch(q.device):
        o, lse = reference.attention_reference(
            q, k, v, cos, sin, scale=scale, causal=causal, q_offset=q_offset, window=window, softcap=softcap,
            return_lse=True,
        )  # fmt: skip
        return o, lse
    return attended(q, k, v, cos, sin, scale, causal, q_offset, window, softcap)
