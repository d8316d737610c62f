"""RoPE as one launch for query and key: the public function, and what is planned for it.

The kernel is in :mod:`kernels.rope_launch`, the plain twin is :func:`kernels.reference.rope`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from kernels import reference
from kernels.early import can_be_early
from kernels.forms import Meta, Turn, allocate, check_forms, forms_of, is_plain
from kernels.fused import block_of
from kernels.launch import TL_DTYPES, can_launch, choose_tile
from kernels.outputs import cut, plan_outputs, promoted
from kernels.placed import has_places, rope_placed
from kernels.rope_launch import Launch, plan_launch
from kernels.tiling import SHIPPED, Pins, Tiles, pick

__all__ = ["rope"]

CPU, STRIDED = torch.device("cpu"), torch.strided


class Plan(NamedTuple):
    """The outputs to allocate, and the launch that fills them.

    ``turn`` is None without options; with them, columns from ``turn.columns`` on are copied.
    """

    out_q: Meta
    out_k: Meta
    launch: Launch
    turn: Turn | None
    tiles: Tiles


def rule(columns: int) -> Tiles:
    """The rule for a tile of rows with so many pairs of columns."""
    return Tiles(*choose_tile(columns), 4, 3)


def tiles_of(outs: Sequence[Meta], device: torch.device, pins: Pins = SHIPPED) -> Tiles:
    """The tile of the launch that fills outputs of these forms."""
    columns = max(out.shape[3] for out in outs) // 2
    length = max(out.shape[0] * out.shape[1] * out.shape[2] for out in outs)
    return pick("rope", device, outs[0].dtype.itemsize, block_of(2 * columns), length, rule(columns), pins)


@lru_cache(maxsize=1024)
def make_plan(
    q: Meta,
    k: Meta,
    cos: Meta,
    sin: Meta,
    turn: Turn | None = None,
    device: torch.device = CPU,
    pins: Pins = SHIPPED,
) -> Plan:
    """Plan the launch for inputs of this form on a device; raises what :func:`rope` documents."""
    outs = plan_outputs(q, k, cos, sin, turn)
    tiles = tiles_of(outs, device, pins)
    rest = 0 if turn is None else q.shape[3] - turn.columns
    inputs, results = ([x.narrowed(rest) for x in pair] for pair in ((q, k), outs))
    interleaved = turn is not None and turn.interleaved
    launch = plan_launch(inputs, results, cut(cos, q), cut(sin, q), tiles, can_be_early(device), interleaved)
    types = promoted(q.dtype, k.dtype, cos.dtype, sin.dtype)
    launch.constants.update({name: TL_DTYPES[dtype] for name, dtype in types.items()})
    return Plan(*outs, launch, turn, tiles)


@lru_cache(maxsize=1024)
def plan_by_facts(*facts: Any) -> Plan:
    """:func:`make_plan` without options, by shape, strides, dtype and device of each tensor."""
    forms, devices = [Meta(*facts[i : i + 3]) for i in (0, 4, 8, 12)], facts[3::4]
    check_forms(forms, devices)
    return make_plan(*forms, None, devices[0])


def plan_of(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, rotary_dim: int | None
) -> Plan:
    """The plan of a call; raises what :func:`rope` documents."""
    if interleaved is False and rotary_dim is None and q.layout is k.layout is cos.layout is sin.layout is STRIDED:
        return plan_by_facts(  # nothing is checked twice: a third of the host's time is at stake
            q.shape, q.stride(), q.dtype, q.device, k.shape, k.stride(), k.dtype, k.device,
            cos.shape, cos.stride(), cos.dtype, cos.device, sin.shape, sin.stride(), sin.dtype, sin.device,
        )  # fmt: skip
    forms = forms_of(q, k, cos, sin)
    return make_plan(*forms, Turn.of(forms[0].shape[3], interleaved, rotary_dim), q.device)


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate query and key by position: ``x1*cos - x2*sin`` and ``x2*cos + x1*sin`` on the pairs of a head.

    Args:
        q: (B, Hq, S, D), float16, bfloat16, float32 or float64, D even, any strides and storage offset.
        k: (Bk, Hk, S, D), likewise; its batch, heads and dtype are its own.
        cos: (R, D/2), a table of any values. Tables are cut to q's S rows, then broadcast against each half
            as PyTorch does, both ways.
        sin: (R, D/2), likewise; its shape and dtype are its own.
        interleaved: pair column 2*i with 2*i + 1 (GPT-J) instead of i with D/2 + i (GPT-NeoX, LLaMA).
        rotary_dim: rotate only the first so many columns, an even number; tables then have rotary_dim/2 columns, and
            the other columns are copied. None rotates all.
        positions: (S,) or (B, S), int32 or int64: row i of the sequence is turned by row positions[i], or
            positions[b, i], of the tables. A position that a table lacks is not read: that row comes out NaN. Without
            positions, tables may be those of each batch, (B, R, D/2) or (1, R, D/2). In both cases q and k have S rows
            each, outputs are laid out as under options, B is 1 or the batch of both q and k, and the tables come back
            as views, whole with positions, otherwise as cos[:, :S] and sin[:, :S].

    Returns:
        q and k rotated, in fresh memory with the shape, promoted dtype and strides of
        :func:`kernels.reference.rope` (:func:`kernels.reference.rope_with_options`, where one is given) and bit for
        bit its values; then cos[:S] and sin[:S], as views.

    Raises:
        TypeError: an argument is no strided tensor of the four dtypes, or an option of another type.
        ValueError: wrong rank, odd or different head_dim, mixed devices, shapes that do not broadcast, a rotary_dim
            that is odd or not from 2 to D, positions of another shape or with tables of three dimensions.

    On a GPU, or under Triton's interpreter, this is one kernel launch (columns that
    are not rotated are copied by PyTorch); on other devices it is the eager twin.
    Gradients are :mod:`kernels.rope_backward`'s. What traces instead of running (``torch.compile``,
    ``torch.export``, fake tensors, ``torch.func``) meets one operator, :mod:`kernels.operators`.
    """
    if has_places(cos, positions):
        return rope_placed(q, k, cos, sin, interleaved, rotary_dim, positions)
    if torch.compiler.is_compiling() or not is_plain(q, k, cos, sin):
        from kernels.operators import traced

        return traced(q, k, cos, sin, interleaved, rotary_dim)
    plan = plan_of(q, k, cos, sin, interleaved, rotary_dim)
    if can_launch(q.device):
        return carry_out(plan, q, k, cos, sin)
    if plan.turn is not None:
        return reference.rope_with_options(q, k, cos, sin, interleaved, plan.turn.columns)
    return reference.rope(q, k, cos, sin)


def carry_out(
    plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What :func:`rope` returns, with gradients where they are asked for."""
    rows = q.shape[2]
    asked = q.requires_grad or k.requires_grad or cos.requires_grad or sin.requires_grad
    if asked and torch.is_grad_enabled():
        from kernels.rope_backward import differentiable  # it launches the kernel above

        return *differentiable(plan, q, k, cos, sin), cos[:rows], sin[:rows]
    return *launch(plan, q, k, cos, sin), cos[:rows], sin[:rows]


def launch(
    plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k rotated in fresh memory, by one launch or none."""
    out_q, out_k = allocate((plan.out_q, plan.out_k), q.device)
    plan.launch.run(q, k, cos, sin, out_q, out_k)
    rest = 0 if plan.turn is None else q.shape[3] - plan.turn.columns
    if rest:
        for x, out in ((q, out_q), (k, out_k)):
            out[..., -rest:].copy_(x[..., -rest:])
    return out_q, out_k
