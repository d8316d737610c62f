"""RoPE with positions, or with tables of each batch: the kernel, its launch, and what they accept.

The plain twin is :func:`kernels.reference.rope_placed`. A kernel of its own, so that the one without positions
stays as it is. All indices are of 64 bits. Gradients are :mod:`kernels.placed_backward`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.forms import Turn, forms_of, is_plain
from kernels.launch import TL_DTYPES, broadcast_strides, can_launch, ceil_div, choose_tile, enqueue, resolved
from kernels.outputs import promoted
from kernels.rotation import rotate

INTEGERS = (torch.int32, torch.int64)


@triton.jit
def rotate_placed(
    x_ptr, cos_ptr, sin_ptr, out_ptr, positions_ptr,
    pid, rows, heads, seq, columns, cos_rows, sin_rows,
    x_b, x_h, x_s, x_d, x_half, out_b, out_h, out_s, out_d, out_half,
    c_b, c_s, c_d, s_b, s_s, s_d, p_b, p_s,
    COS_DTYPE: tl.constexpr, SIN_DTYPE: tl.constexpr, OUT_DTYPE: tl.constexpr,
    PLACED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Rotate BLOCK_R rows of x, counted over (batch, head, position) with position fastest; BACK the other way.

    With PLACED, positions say which row of a table: one that the table lacks is never read, and is NaN.
    """
    row = (pid.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    s, h, b = row % seq, (row // seq) % heads, row // seq // heads
    place = s
    in_cos, in_sin = row < rows, row < rows
    if PLACED:
        place = tl.load(positions_ptr + (b * p_b + s * p_s), mask=row < rows, other=0).to(tl.int64)
        in_cos = in_cos & (place >= 0) & (place < cos_rows)
        in_sin = in_sin & (place >= 0) & (place < sin_rows)
    for start in range(0, columns, BLOCK_C):
        d = (start + tl.arange(0, BLOCK_C))[None, :].to(tl.int64)
        mask = (row < rows) & (d < columns)
        x_at = b * x_b + h * x_h + s * x_s + d * x_d
        x1 = tl.load(x_ptr + x_at, mask=mask, other=0.0)
        x2 = tl.load(x_ptr + (x_at + x_half), mask=mask, other=0.0)
        cos = tl.load(cos_ptr + (b * c_b + place * c_s + d * c_d), mask=mask & in_cos, other=float("nan"))
        sin = tl.load(sin_ptr + (b * s_b + place * s_s + d * s_d), mask=mask & in_sin, other=float("nan"))
        if BACK:
            sin = -sin
        first, second = rotate(x1, x2, cos, sin, COS_DTYPE, SIN_DTYPE, OUT_DTYPE)
        if BACK:  # eager adds the gradients of the halves to zeros, which leaves no -0
            first += 0.0
            second += 0.0
        out_at = b * out_b + h * out_h + s * out_s + d * out_d
        tl.store(out_ptr + out_at, first, mask=mask)
        tl.store(out_ptr + (out_at + out_half), second, mask=mask)


@triton.jit(do_not_specialize=range(7, 44), do_not_specialize_on_alignment=range(7))
def placed_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_q_ptr, out_k_ptr, positions_ptr,
    programs_q, seq, columns, cos_rows, sin_rows, rows_q, heads_q, rows_k, heads_k,
    q_b, q_h, q_s, q_d, q_half, out_q_b, out_q_h, out_q_s, out_q_d, out_q_half,
    k_b, k_h, k_s, k_d, k_half, out_k_b, out_k_h, out_k_s, out_k_d, out_k_half,
    c_b, c_s, c_d, s_b, s_s, s_d, p_b, p_s,
    Q_COS_DTYPE: tl.constexpr, Q_SIN_DTYPE: tl.constexpr, Q_OUT_DTYPE: tl.constexpr,
    K_COS_DTYPE: tl.constexpr, K_SIN_DTYPE: tl.constexpr, K_OUT_DTYPE: tl.constexpr,
    PLACED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The first ``programs_q`` programs rotate q, the others k."""
    pid = tl.program_id(0)
    if pid < programs_q:
        rotate_placed(
            q_ptr, cos_ptr, sin_ptr, out_q_ptr, positions_ptr,
            pid, rows_q, heads_q, seq, columns, cos_rows, sin_rows,
            q_b, q_h, q_s, q_d, q_half, out_q_b, out_q_h, out_q_s, out_q_d, out_q_half,
            c_b, c_s, c_d, s_b, s_s, s_d, p_b, p_s,
            Q_COS_DTYPE, Q_SIN_DTYPE, Q_OUT_DTYPE, PLACED, BLOCK_R, BLOCK_C, BACK,
        )  # fmt: skip
    else:
        rotate_placed(
            k_ptr, cos_ptr, sin_ptr, out_k_ptr, positions_ptr,
            pid - programs_q, rows_k, heads_k, seq, columns, cos_rows, sin_rows,
            k_b, k_h, k_s, k_d, k_half, out_k_b, out_k_h, out_k_s, out_k_d, out_k_half,
            c_b, c_s, c_d, s_b, s_s, s_d, p_b, p_s,
            K_COS_DTYPE, K_SIN_DTYPE, K_OUT_DTYPE, PLACED, BLOCK_R, BLOCK_C, BACK,
        )  # fmt: skip


class Call(NamedTuple):
    """What is checked of a call: how columns turn, and where tables are read, None by their own rows."""

    turn: Turn
    positions: torch.Tensor | None


def _check(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, call: Call) -> None:
    """Raise what :func:`kernels.rope.rope` documents of positions and of tables of three dimensions."""
    rows, columns, positions = q.shape[2], call.turn.columns, call.positions
    if k.shape[2] != rows:
        raise ValueError(f"rope: with positions or tables of each batch, k must have q's {rows} rows, not {k.shape[2]}")
    if positions is not None:
        if positions.dim() not in (1, 2) or positions.shape[-1] != rows:
            raise ValueError(f"rope: positions must be ({rows},) or (B, {rows}), not {tuple(positions.shape)}")
        batches = [("positions", positions.shape[0])] if positions.dim() == 2 else []
    else:
        batches = [("cos", cos.shape[0]), ("sin", sin.shape[0])]
        for name, table in (("cos", cos), ("sin", sin)):
            if table.shape[1] < rows and table.shape[1] != 1:
                raise ValueError(f"rope: {name} {tuple(table.shape)} has too few rows for q's {rows}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape[-1] not in (1, columns // 2):
            raise ValueError(f"rope: {name} must have {columns // 2} columns or 1, not {table.shape[-1]}")
    for name, batch in batches:
        if batch != 1 and not batch == q.shape[0] == k.shape[0]:
            raise ValueError(f"rope: {name} of {batch} batches for q of {q.shape[0]} and k of {k.shape[0]}")


def _accepted(positions: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, q: torch.Tensor) -> None:
    """Raise what :func:`kernels.rope.rope` documents of types, devices and ranks."""
    if positions is None:
        if not isinstance(sin, torch.Tensor):
            raise TypeError(f"rope: sin must be a torch.Tensor, not {type(sin).__name__}")
        if cos.dim() != 3 or sin.dim() != 3:
            raise ValueError(f"rope: cos and sin must have 2 dimensions, or both 3, not {cos.dim()} and {sin.dim()}")
        return
    if not isinstance(positions, torch.Tensor) or positions.layout is not torch.strided:
        raise TypeError(f"rope: positions must be a strided torch.Tensor or None, not {type(positions).__name__}")
    if positions.dtype not in INTEGERS:
        raise TypeError(f"rope: positions must be int32 or int64, not {positions.dtype}")
    if isinstance(cos, torch.Tensor) and cos.dim() == 3:
        raise ValueError("rope: positions choose rows of tables of 2 dimensions, not of 3")
    if isinstance(q, torch.Tensor) and positions.device != q.device:
        raise ValueError(f"rope: all tensors must be on one device: q on {q.device}, positions on {positions.device}")


def has_places(cos: torch.Tensor, positions: torch.Tensor | None) -> bool:
    """Whether a call is this module's: it has positions, or tables of three dimensions."""
    return positions is not None or (isinstance(cos, torch.Tensor) and cos.dim() == 3)


def checked(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
    rotary_dim: int | None,
    positions: torch.Tensor | None,
) -> Call:
    """What is asked for; raises what :func:`kernels.rope.rope` documents."""
    _accepted(positions, cos, sin, q)
    width = forms_of(q, k, cos, sin, 3 if positions is None else 2)[0].shape[3]
    call = Call(Turn.of(width, interleaved, rotary_dim), positions)
    _check(q, k, cos, sin, call)
    return call


def rope_placed(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
    rotary_dim: int | None,
    positions: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`kernels.rope.rope` with positions, or with tables of three dimensions."""
    if torch.compiler.is_compiling() or not is_plain(q, k, cos, sin):
        from kernels.operators import traced

        return traced(q, k, cos, sin, interleaved, rotary_dim, positions)
    call = checked(q, k, cos, sin, interleaved, rotary_dim, positions)
    if not can_launch(q.device):
        return reference.rope_placed(q, k, cos, sin, interleaved, call.turn.columns, positions)
    passed = pass_through(cos, sin, q, positions)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, cos, sin)):
        from kernels.placed_backward import differentiable_placed  # it launches the kernel above

        return *differentiable_placed(call, q, k, cos, sin), *passed
    return *launch_placed(call, q, k, cos, sin), *passed


def pass_through(
    cos: torch.Tensor, sin: torch.Tensor, q: torch.Tensor, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tables as they come back: views, whole with positions, otherwise cut to q's rows."""
    if positions is not None:
        return cos[:], sin[:]
    rows = q.shape[2]
    return cos[:, :rows], sin[:, :rows]


def placed_outputs(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh memory for both outputs: transposed views of contiguous (B, S, H, D)."""
    types = promoted(q.dtype, k.dtype, cos.dtype, sin.dtype)

    def empty(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        batch, heads, seq, width = x.shape
        return torch.empty((batch, seq, heads, width), dtype=dtype, device=x.device).transpose(1, 2)

    return empty(q, types["Q_OUT_DTYPE"]), empty(k, types["K_OUT_DTYPE"])


def launch_placed(
    call: Call, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k rotated in fresh memory, by one launch or none; PyTorch copies the other columns."""
    outs = placed_outputs(q, k, cos, sin)
    turn_all((q, k), (cos, sin), outs, call, False)
    columns = call.turn.columns
    if columns < q.shape[3]:
        for x, out in zip((q, k), outs, strict=True):
            out[..., columns:].copy_(x[..., columns:])
    return outs


def turn_all(
    given: Sequence[torch.Tensor], tables: Sequence[torch.Tensor], outs: Sequence[torch.Tensor], call: Call, back: bool
) -> None:
    """Rotate the turned columns of both given into outs of the same shapes, in one launch, or none.

    ``back`` turns gradients of the outputs back into those of the inputs.
    """
    turn, positions = call.turn, call.positions
    half, seq = turn.columns // 2, given[0].shape[2]
    tile = choose_tile(half)
    sizes: list[int] = []
    steps: list[int] = []
    programs: list[int] = []
    for x, out in zip(given, outs, strict=True):
        rows = x.shape[0] * x.shape[1] * seq if half else 0
        sizes += [rows, x.shape[1]]
        programs.append(ceil_div(rows, tile.rows))
        for t in (x, out):
            b, h, s, d = t.stride()
            steps += [b, h, s, 2 * d, d] if turn.interleaved else [b, h, s, d, half * d]
    if not sum(programs):
        return
    for table in tables:
        cut = table[None] if positions is not None else table[:, :seq]
        own = list(broadcast_strides(cut.shape, cut.stride()))
        own[1] = table.stride(0) if positions is not None else own[1]  # a position is a row, of one row too
        steps += own
    places = positions
    if places is not None:
        places = places[None] if places.dim() == 1 else places
        steps += broadcast_strides(places.shape, places.stride())
    else:
        steps += [0, 0]
    types: dict[str, Any] = {}
    for name, x, out in zip("QK", given, outs, strict=True):
        base = out.dtype if back else x.dtype
        by = [torch.promote_types(base, table.dtype) for table in tables]
        for role, dtype in zip(("COS", "SIN", "OUT"), (*by, out.dtype), strict=True):
            types[f"{name}_{role}_DTYPE"] = TL_DTYPES[dtype]
    types |= {"PLACED": positions is not None, "BLOCK_R": tile.rows, "BLOCK_C": tile.columns, "BACK": back}
    enqueue(
        placed_kernel,
        sum(programs),
        [*resolved(*given, *tables), *outs, places],
        [programs[0], seq, half, *(len(t) for t in tables), *sizes, *steps],
        types | {"enable_fp_fusion": False},
    )
