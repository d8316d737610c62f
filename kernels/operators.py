"""``torch.library`` operators: what compilers and exporters see of the kernels.

The namespace is ``rope_kernels``, because operators are global to a process and ``kernels`` is anybody's word. An
operator may not return its arguments, so the pass-through tables are made outside. Each is without mutation, has a
fake implementation for symbolic sizes, and one for any device: the kernels where they can be launched, PyTorch
elsewhere. Outputs have the strides that eager PyTorch gives on a GPU, whatever the device.

Plain eager calls do not come here: dispatching an operator costs as much as planning and launching the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kernels import reference
from kernels.forms import Turn, allocate, forms_of
from kernels.launch import can_launch
from kernels.outputs import plan_outputs
from kernels.placed import Call, checked, has_places, launch_placed, pass_through, placed_outputs
from kernels.placed_backward import pull_back_placed
from kernels.rope import launch, make_plan
from kernels.rope_backward import pull_back

# Strides of outputs follow from those of inputs, so a compiler may not lay inputs out anew.
EXACT = torch.Tag.needs_exact_strides

Tensor = torch.Tensor


@torch.library.custom_op(
    "rope_kernels::rope",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved=False, int? rotary_dim=None, "
    "Tensor? positions=None) -> (Tensor, Tensor)",
    tags=(EXACT,),
)
def rotated(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, rotary_dim: int | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q and k as :func:`kernels.rope.rope` rotates them, in fresh memory; raises what it raises."""
    if has_places(cos, positions):
        call = checked(q, k, cos, sin, interleaved, rotary_dim, positions)
        if can_launch(q.device):
            return launch_placed(call, q, k, cos, sin)
        out_q, out_k = placed_outputs(q, k, cos, sin)
    else:
        forms = forms_of(q, k, cos, sin)
        plan = make_plan(*forms, _turn(forms[0].shape[3], interleaved, rotary_dim), q.device)
        if can_launch(q.device):
            return launch(plan, q, k, cos, sin)
        out_q, out_k = allocate((plan.out_q, plan.out_k), q.device)
    own_q, own_k, *_ = _twin(q, k, cos, sin, interleaved, rotary_dim, positions)
    return out_q.copy_(own_q), out_k.copy_(own_k)


@rotated.register_fake
def _(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, rotary_dim: int | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if has_places(cos, positions):
        checked(q, k, cos, sin, interleaved, rotary_dim, positions)
        return placed_outputs(q, k, cos, sin)
    forms = forms_of(q, k, cos, sin)
    return allocate(plan_outputs(*forms, _turn(forms[0].shape[3], interleaved, rotary_dim)), q.device)


def _turn(width: int, interleaved: bool, rotary_dim: int | None) -> Turn | None:
    """None without options, as plans have it."""
    return Turn.of(width, interleaved, rotary_dim) if interleaved or rotary_dim is not None else None


def _twin(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, rotary_dim: int | None, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if has_places(cos, positions):
        columns = q.shape[3] if rotary_dim is None else rotary_dim
        return reference.rope_placed(q, k, cos, sin, interleaved, columns, positions)
    turn = _turn(q.shape[3], interleaved, rotary_dim)
    if turn is None:
        return reference.rope(q, k, cos, sin)
    return reference.rope_with_options(q, k, cos, sin, interleaved, turn.columns)


@torch.library.custom_op(
    "rope_kernels::rope_backward",
    mutates_args=(),
    schema="(Tensor? grad_q, Tensor? grad_k, Tensor? q, Tensor? k, Tensor cos, Tensor sin, SymInt[] size_q, "
    "SymInt[] size_k, ScalarType dtype_q, ScalarType dtype_k, bool[] needs, bool interleaved=False, "
    "int? rotary_dim=None, Tensor? positions=None) -> Tensor[]",
    tags=(EXACT,),
)
def pulled_back(
    grad_q: Tensor | None, grad_k: Tensor | None, q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor,
    size_q: Sequence[int], size_k: Sequence[int], dtype_q: torch.dtype, dtype_k: torch.dtype, needs: Sequence[bool],
    interleaved: bool = False, rotary_dim: int | None = None, positions: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """Those gradients of q, k, cos and sin that are needed and that a gradient given leads to, in this order.

    ``grad_q`` and ``grad_k`` are the gradients of the outputs, None for one that is not used; q and k, of
    ``size_q``, ``dtype_q`` and so on, may be None where no table needs a gradient; the tables are uncut.
    """
    forms = ((tuple(size_q), dtype_q), (tuple(size_k), dtype_k), *((tuple(t.shape), t.dtype) for t in (cos, sin)))
    given = (grad_q, grad_k), (q, k), (cos, sin), forms, needs
    turn = Turn.of(size_q[3], interleaved, rotary_dim)
    if not can_launch(cos.device):
        found = reference.pull_back(*given, turn, positions)
    elif has_places(cos, positions):
        found = pull_back_placed(*given, Call(turn, positions))
    else:
        found = pull_back(*given, turn)
    return [gradient for gradient in found if gradient is not None]


@pulled_back.register_fake
def _(
    grad_q: Tensor | None, grad_k: Tensor | None, q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor,
    size_q: Sequence[int], size_k: Sequence[int], dtype_q: torch.dtype, dtype_k: torch.dtype, needs: Sequence[bool],
    interleaved: bool = False, rotary_dim: int | None = None, positions: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    forms = [(size_q, dtype_q), (size_k, dtype_k), (cos.shape, cos.dtype), (sin.shape, sin.dtype)]
    found = _found((grad_q, grad_k), needs)
    return [torch.empty(forms[i][0], dtype=forms[i][1], device=cos.device) for i in range(4) if found[i]]


def _found(gradients: Sequence[Tensor | None], needs: Sequence[bool]) -> list[bool]:
    """Which gradients come of these gradients of outputs."""
    given = [g is not None for g in gradients]
    return [need and there for need, there in zip(needs, (*given, any(given), any(given)), strict=True)]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, cos, sin, *ctx.options, positions = inputs
    needs = ctx.needs_input_grad
    tables = needs[2] or needs[3]
    ctx.save_for_backward(*(x if tables else None for x in (q, k)), cos, sin, positions)
    ctx.forms = q.shape, k.shape, q.dtype, k.dtype
    ctx.set_materialize_grads(False)


def _pull_back(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    places = [i for i, there in enumerate(_found((grad_q, grad_k), needs)) if there]
    gradients: list[Tensor | None] = [None] * 4
    if places:
        *saved, positions = ctx.saved_tensors
        some = pulled_back(grad_q, grad_k, *saved, *ctx.forms, needs, *ctx.options, positions)
        for i, gradient in zip(places, some, strict=True):
            gradients[i] = gradient
    return *gradients, None, None, None


rotated.register_autograd(_pull_back, setup_context=_remember)


def traced(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, rotary_dim: int | None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """:func:`kernels.rope.rope` for tensors that stand for others: one operator where a kernel would be launched.

    Under a transform of ``torch.func`` it is the eager twin, which can be batched and differentiated any way:
    PyTorch's operators have no gradients there.
    """
    placed = has_places(cos, positions)
    if placed:
        checked(q, k, cos, sin, interleaved, rotary_dim, positions)
    else:
        forms_of(q, k, cos, sin)
    if torch._C._are_functorch_transforms_active() or not can_launch(q.device):
        return _twin(q, k, cos, sin, interleaved, rotary_dim, positions)
    if placed:
        return *rotated(q, k, cos, sin, interleaved, rotary_dim, positions), *pass_through(cos, sin, q, positions)
    rows = q.shape[2]
    return *rotated(q, k, cos, sin, interleaved, rotary_dim), cos[:rows], sin[:rows]
