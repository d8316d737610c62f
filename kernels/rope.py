"""RoPE as one launch for query and key: the kernel, the public function, and the plan between them.

The plain twin is :func:`kernels.reference.rope`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.launch import INT32_MAX, TL_DTYPES, Tile, broadcast_strides, can_launch, choose_tile
from kernels.layout import Ints, View, concatenated, elementwise
from kernels.rotation import rotate

__all__ = ["rope"]


@triton.jit
def rotate_rows(
    x_ptr, cos_ptr, sin_ptr, out_ptr,
    pid, rows, heads, seq, columns,
    stride_xb, stride_xh, stride_xs, stride_xd, x_half,
    stride_cs, stride_cd, stride_ss, stride_sd,
    stride_ob, stride_oh, stride_os, stride_od, out_half,
    COS_DTYPE: tl.constexpr, SIN_DTYPE: tl.constexpr, OUT_DTYPE: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Rotate BLOCK_R rows of x, counted over (batch, head, position) with position fastest; BACK the other way.

    ``x_half`` and ``out_half`` are the offsets of the second half of a row from the first.
    """
    row = pid * BLOCK_R + tl.arange(0, BLOCK_R)
    if WIDE:
        row = pid.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    s = row % seq
    bh = row // seq
    h = bh % heads
    b = bh // heads
    x_row = x_ptr + (b * stride_xb + h * stride_xh + s * stride_xs)[:, None]
    cos_row = cos_ptr + (s * stride_cs)[:, None]
    sin_row = sin_ptr + (s * stride_ss)[:, None]
    out_row = out_ptr + (b * stride_ob + h * stride_oh + s * stride_os)[:, None]
    for start in range(0, columns, BLOCK_C):
        d = (start + tl.arange(0, BLOCK_C))[None, :]
        if WIDE:
            d = d.to(tl.int64)
        mask = (row < rows)[:, None] & (d < columns)
        x1 = tl.load(x_row + d * stride_xd, mask=mask, other=0.0)
        x2 = tl.load(x_row + x_half + d * stride_xd, mask=mask, other=0.0)
        cos = tl.load(cos_row + d * stride_cd, mask=mask, other=0.0)
        sin = tl.load(sin_row + d * stride_sd, mask=mask, other=0.0)
        if BACK:
            sin = -sin
        first, second = rotate(x1, x2, cos, sin, COS_DTYPE, SIN_DTYPE, OUT_DTYPE)
        if BACK:  # eager adds the gradients of the halves to zeros, which leaves no -0
            first += 0.0
            second += 0.0
        tl.store(out_row + d * stride_od, first, mask=mask)
        tl.store(out_row + out_half + d * stride_od, second, mask=mask)


# Sizes differ from call to call and gain nothing from a variant of their own; strides and columns decide
# how wide a load may be.
@triton.jit(do_not_specialize=["programs_q", "rows_q", "heads_q", "seq_q", "rows_k", "heads_k", "seq_k"])
def rope_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_q_ptr, out_k_ptr,
    programs_q,
    rows_q, heads_q, seq_q, columns_q,
    rows_k, heads_k, seq_k, columns_k,
    stride_qb, stride_qh, stride_qs, stride_qd, q_half,
    stride_kb, stride_kh, stride_ks, stride_kd, k_half,
    stride_cs, stride_cd, stride_ss, stride_sd,
    stride_oqb, stride_oqh, stride_oqs, stride_oqd, out_q_half,
    stride_okb, stride_okh, stride_oks, stride_okd, out_k_half,
    Q_COS_DTYPE: tl.constexpr, Q_SIN_DTYPE: tl.constexpr, Q_OUT_DTYPE: tl.constexpr,
    K_COS_DTYPE: tl.constexpr, K_SIN_DTYPE: tl.constexpr, K_OUT_DTYPE: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The first ``programs_q`` programs rotate q, the others k."""
    pid = tl.program_id(0)
    if pid < programs_q:
        rotate_rows(
            q_ptr, cos_ptr, sin_ptr, out_q_ptr,
            pid, rows_q, heads_q, seq_q, columns_q,
            stride_qb, stride_qh, stride_qs, stride_qd, q_half,
            stride_cs, stride_cd, stride_ss, stride_sd,
            stride_oqb, stride_oqh, stride_oqs, stride_oqd, out_q_half,
            Q_COS_DTYPE, Q_SIN_DTYPE, Q_OUT_DTYPE, WIDE, BLOCK_R, BLOCK_C, BACK,
        )  # fmt: skip
    else:
        rotate_rows(
            k_ptr, cos_ptr, sin_ptr, out_k_ptr,
            pid - programs_q, rows_k, heads_k, seq_k, columns_k,
            stride_kb, stride_kh, stride_ks, stride_kd, k_half,
            stride_cs, stride_cd, stride_ss, stride_sd,
            stride_okb, stride_okh, stride_oks, stride_okd, out_k_half,
            K_COS_DTYPE, K_SIN_DTYPE, K_OUT_DTYPE, WIDE, BLOCK_R, BLOCK_C, BACK,
        )  # fmt: skip


class Meta(NamedTuple):
    """What decides a launch about a tensor: everything but its memory."""

    shape: Ints
    strides: Ints
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Meta:
        """The form of a tensor, strides in elements."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)


class Plan(NamedTuple):
    """One launch: the outputs to allocate, the programs (0 when there is nothing to do), the arguments."""

    out_q: Meta
    out_k: Meta
    programs: int
    arguments: Ints
    constants: dict[str, Any]


def _unsqueezed(table: View) -> View:
    """A table (R, W) as (1, R, 1, W), with the strides ``unsqueeze`` gives the new dimensions."""
    (rows, columns), (row, column) = table.shape, table.strides
    return View((1, rows, 1, columns), (rows * row, row, columns * column, column))


def _result(x: Meta, cos: View, sin: View, dtypes: tuple[torch.dtype, torch.dtype]) -> Meta:
    """What the eager twin returns for x: it computes on (B, S, H, D) and transposes back."""
    (batch, heads, seq, width), (sb, sh, ss, sd) = x.shape, x.strides
    half = width // 2
    first = View((batch, seq, heads, half), (sb, ss, sh, sd))
    second = View((batch, seq, heads, width - half), (sb, ss, sh, sd))
    c, s = (_unsqueezed(table) for table in (cos, sin))
    parts = [
        elementwise(elementwise(first, c), elementwise(second, s)),
        elementwise(elementwise(second, c), elementwise(first, s)),
    ]
    joined = concatenated(parts)
    order = (0, 2, 1, 3)
    shape, strides = (tuple(numbers[i] for i in order) for numbers in joined)
    return Meta(shape, strides, torch.promote_types(*dtypes))


def _halves(x: Meta) -> tuple[Ints, int]:
    """Broadcast strides of one half of x, and the offset of the second half from the first."""
    half = x.shape[3] // 2
    return broadcast_strides((*x.shape[:3], half), x.strides), half * x.strides[3]


def _farthest(shape: Ints, strides: Ints, offset: int, tile: Tile) -> int:
    """Largest element offset that a launch over an output of this shape computes, masked lanes included."""
    batch, heads, seq, width = shape
    rows, columns = batch * heads * seq, width // 2
    if not rows or not columns:
        return 0
    last_batch = (triton.cdiv(rows, tile.rows) * tile.rows - 1) // (heads * seq)
    last_column = triton.cdiv(columns, tile.columns) * tile.columns - 1
    last = (last_batch, heads - 1, seq - 1, last_column)
    return offset + sum(index * stride for index, stride in zip(last, strides, strict=True))


@lru_cache(maxsize=1024)
def make_plan(q: Meta, k: Meta, cos: Meta, sin: Meta) -> Plan:
    """Plan the launch for inputs of this form; raises what :func:`rope` documents."""
    c, s = (View((min(t.shape[0], q.shape[2]), t.shape[1]), t.strides) for t in (cos, sin))
    constants: dict[str, Any] = {}
    outs: list[Meta] = []
    for name, x in (("Q", q), ("K", k)):
        dtypes = torch.promote_types(x.dtype, cos.dtype), torch.promote_types(x.dtype, sin.dtype)
        try:
            outs.append(_result(x, c, s, dtypes))
        except RuntimeError:
            raise ValueError(
                f"rope: {name.lower()} {x.shape} does not broadcast with cos {c.shape} and sin {s.shape}"
                f" (tables cut to q's {q.shape[2]} rows)"
            ) from None
        for role, dtype in zip(("COS", "SIN", "OUT"), (*dtypes, outs[-1].dtype), strict=True):
            constants[f"{name}_{role}_DTYPE"] = TL_DTYPES[dtype]
    programs, arguments, launch = plan_launch((q, k), outs, c, s)
    return Plan(outs[0], outs[1], programs, arguments, constants | launch)


def plan_launch(inputs: Sequence[Meta], outs: Sequence[Meta], c: View, s: View) -> tuple[int, Ints, dict[str, Any]]:
    """Programs, arguments and constants of a launch that rotates two inputs into two outputs."""
    tile = choose_tile(max(out.shape[3] for out in outs) // 2)
    sizes: list[int] = []
    strides: list[int] = []
    programs: list[int] = []
    for x, out in zip(inputs, outs, strict=True):
        batch, heads, seq, width = out.shape
        rows, columns = batch * heads * seq, width // 2
        own, offset = _halves(x)
        programs.append(triton.cdiv(rows, tile.rows) if columns else 0)
        sizes += [rows, heads, seq, columns]
        strides += [*own, offset]
    for table in (c, s):
        strides += broadcast_strides(table.shape, table.strides)
    for out in outs:
        strides += [*out.strides, out.shape[3] // 2 * out.strides[3]]
    # Masked lanes count too: their addresses are computed, if never used.
    lanes = [(out.shape, *_halves(x)) for x, out in zip(inputs, outs, strict=True)]
    lanes += [(out.shape, out.strides, out.shape[3] // 2 * out.strides[3]) for out in outs]
    spread = [broadcast_strides(table.shape, table.strides) for table in (c, s)]
    lanes += [(out.shape, (0, 0, *steps), 0) for out in outs for steps in spread]
    wide = any(_farthest(shape, steps, offset, tile) > INT32_MAX for shape, steps, offset in lanes)
    constants = {"WIDE": wide, "BLOCK_R": tile.rows, "BLOCK_C": tile.columns, "BACK": False}
    return sum(programs), (programs[0], *sizes, *strides), constants


def _check(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Raise TypeError or ValueError for what the kernel's contract leaves out."""
    for name, x, rank in (("q", q, 4), ("k", k, 4), ("cos", cos, 2), ("sin", sin, 2)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"rope: {name} must be a torch.Tensor, not {type(x).__name__}")
        if x.layout is not torch.strided:
            raise TypeError(f"rope: {name} must be a strided tensor, not {x.layout}")
        if x.dtype not in TL_DTYPES:
            raise TypeError(f"rope: {name} must be float16, bfloat16, float32 or float64, not {x.dtype}")
        if x.dim() != rank:
            raise ValueError(f"rope: {name} must have {rank} dimensions, not shape {tuple(x.shape)}")
        if x.device != q.device:
            raise ValueError(f"rope: all tensors must be on one device: q on {q.device}, {name} on {x.device}")
    if q.shape[3] % 2:
        raise ValueError(f"rope: head_dim must be even, not {q.shape[3]}")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"rope: q and k must have one head_dim, not {q.shape[3]} and {k.shape[3]}")


def rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate query and key by position: ``x1*cos - x2*sin`` and ``x2*cos + x1*sin`` on the halves of a head.

    Args:
        q: (B, Hq, S, D), float16, bfloat16, float32 or float64, D even, any strides and storage offset.
        k: (Bk, Hk, S, D), likewise; its batch, heads and dtype are its own.
        cos: (R, D/2), a table of any values. Tables are cut to q's S rows, then broadcast against each half
            as PyTorch does, both ways.
        sin: (R, D/2), likewise; its shape and dtype are its own.

    Returns:
        q and k rotated, in fresh memory with the shape, promoted dtype and strides of
        :func:`kernels.reference.rope` and bit for bit its values; then cos[:S] and sin[:S], as views.

    Raises:
        TypeError: an argument is no strided tensor of the four dtypes.
        ValueError: wrong rank, odd or different head_dim, mixed devices, shapes that do not broadcast.

    On a GPU, or under Triton's interpreter, this is one kernel launch; on other devices it is the eager twin.
    Gradients are :mod:`kernels.rope_backward`'s.
    """
    _check(q, k, cos, sin)
    plan = make_plan(Meta.of(q), Meta.of(k), Meta.of(cos), Meta.of(sin))
    if not can_launch(q.device):
        return reference.rope(q, k, cos, sin)
    rows = q.shape[2]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, cos, sin)):
        from kernels.rope_backward import differentiable  # it launches the kernel above

        return *differentiable(plan, q, k, cos, sin), cos[:rows], sin[:rows]
    return *launch(plan, q, k, cos, sin), cos[:rows], sin[:rows]


def launch(
    plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k rotated in fresh memory, by one launch or none."""
    out_q, out_k = (
        torch.empty_strided(out.shape, out.strides, dtype=out.dtype, device=q.device)
        for out in (plan.out_q, plan.out_k)
    )
    if plan.programs:
        # A lazily negated view keeps its sign outside its memory, where a kernel cannot see it.
        inputs = [x.resolve_neg() for x in (q, k, cos, sin)]
        rope_kernel[(plan.programs,)](*inputs, out_q, out_k, *plan.arguments, **plan.constants, enable_fp_fusion=False)
    return out_q, out_k
