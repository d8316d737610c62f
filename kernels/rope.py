"""RoPE as one launch for query and key: the kernel, the public function, and the plan between them.

The plain twin is :func:`kernels.reference.rope`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import mul
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.forms import Meta, Turn, allocate, forms_of, is_plain
from kernels.fused import block_of
from kernels.launch import INT32_MAX, TL_DTYPES, broadcast_strides, can_launch, ceil_div, choose_tile
from kernels.layout import Ints, View
from kernels.outputs import cut, plan_outputs, promoted
from kernels.placed import has_places, rope_placed
from kernels.rotation import rotate
from kernels.tiling import SHIPPED, Pins, Tiles, pick

__all__ = ["rope"]

CPU = torch.device("cpu")
VECTOR_BYTES = 16  # the widest load of one thread
VECTOR_ELEMENTS = 8  # so many elements of any dtype are whole loads of that width


@triton.jit
def row_starts(pointers, offsets, VECTOR: tl.constexpr):
    """Pointers plus offsets: where rows start. With VECTOR it is known that they are multiples of 16 bytes."""
    starts = pointers + offsets
    if VECTOR:
        starts = tl.multiple_of(starts, (16, 16))
    return starts


@triton.jit
def rotate_rows(
    x_ptr, cos_ptr, sin_ptr, out_ptr,
    pid, rows, heads, seq, columns,
    stride_xb, stride_xh, stride_xs, stride_xd, x_half,
    stride_cs, stride_cd, stride_ss, stride_sd,
    stride_ob, stride_oh, stride_os, stride_od, out_half,
    COS_DTYPE: tl.constexpr, SIN_DTYPE: tl.constexpr, OUT_DTYPE: tl.constexpr,
    VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Rotate BLOCK_R rows of x, counted over (batch, head, position) with position fastest; BACK the other way.

    ``x_half`` and ``out_half`` are the offsets of the second half of a row from the first.
    """
    if VECTOR:
        stride_xd = 1
        stride_cd = 1
        stride_sd = 1
        stride_od = 1
    row = pid * BLOCK_R + tl.arange(0, BLOCK_R)
    if WIDE:
        row = pid.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    s = row % seq
    bh = row // seq
    h = bh % heads
    b = bh // heads
    x1_row = row_starts(x_ptr, (b * stride_xb + h * stride_xh + s * stride_xs)[:, None], VECTOR)
    x2_row = row_starts(x1_row, x_half, VECTOR)
    cos_row = row_starts(cos_ptr, (s * stride_cs)[:, None], VECTOR)
    sin_row = row_starts(sin_ptr, (s * stride_ss)[:, None], VECTOR)
    out1_row = row_starts(out_ptr, (b * stride_ob + h * stride_oh + s * stride_os)[:, None], VECTOR)
    out2_row = row_starts(out1_row, out_half, VECTOR)
    for start in range(0, columns, BLOCK_C):
        d = (start + tl.arange(0, BLOCK_C))[None, :]
        if WIDE:
            d = d.to(tl.int64)
        mask = (row < rows)[:, None] & (d < columns)
        if VECTOR:
            mask = tl.max_constancy(mask, (1, 8))
        x1 = tl.load(x1_row + d * stride_xd, mask=mask, other=0.0)
        x2 = tl.load(x2_row + d * stride_xd, mask=mask, other=0.0)
        cos = tl.load(cos_row + d * stride_cd, mask=mask, other=0.0)
        sin = tl.load(sin_row + d * stride_sd, mask=mask, other=0.0)
        if BACK:
            sin = -sin
        first, second = rotate(x1, x2, cos, sin, COS_DTYPE, SIN_DTYPE, OUT_DTYPE)
        if BACK:  # eager adds the gradients of the halves to zeros, which leaves no -0
            first += 0.0
            second += 0.0
        tl.store(out1_row + d * stride_od, first, mask=mask)
        tl.store(out2_row + d * stride_od, second, mask=mask)


# A variant costs 65-100 ms of compilation on a GPU, and every stride and address could ask for one of its
# own. So none is specialized: one flag, VECTOR, says all that makes loads wide.
@triton.jit(do_not_specialize=range(6, 39), do_not_specialize_on_alignment=range(6))
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
    VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The first ``programs_q`` programs rotate q, the others k.

    VECTOR promises that in each tensor elements lie side by side in groups of eight that start at multiples
    of 16 bytes, so that a group is one load: the strides of columns are then 1.
    """
    pid = tl.program_id(0)
    if pid < programs_q:
        rotate_rows(
            q_ptr, cos_ptr, sin_ptr, out_q_ptr,
            pid, rows_q, heads_q, seq_q, columns_q,
            stride_qb, stride_qh, stride_qs, stride_qd, q_half,
            stride_cs, stride_cd, stride_ss, stride_sd,
            stride_oqb, stride_oqh, stride_oqs, stride_oqd, out_q_half,
            Q_COS_DTYPE, Q_SIN_DTYPE, Q_OUT_DTYPE, VECTOR, WIDE, BLOCK_R, BLOCK_C, BACK,
        )  # fmt: skip
    else:
        rotate_rows(
            k_ptr, cos_ptr, sin_ptr, out_k_ptr,
            pid - programs_q, rows_k, heads_k, seq_k, columns_k,
            stride_kb, stride_kh, stride_ks, stride_kd, k_half,
            stride_cs, stride_cd, stride_ss, stride_sd,
            stride_okb, stride_okh, stride_oks, stride_okd, out_k_half,
            K_COS_DTYPE, K_SIN_DTYPE, K_OUT_DTYPE, VECTOR, WIDE, BLOCK_R, BLOCK_C, BACK,
        )  # fmt: skip


Form = View | Meta


class Launch(NamedTuple):
    """One launch: its programs (0 when there is nothing to do), arguments and constants.

    ``even`` says of the layouts what the kernel's VECTOR promises; the addresses have to be even too.
    """

    programs: int
    arguments: Ints
    even: bool
    constants: dict[str, Any]

    def run(self, tensors: Sequence[torch.Tensor], back: bool = False) -> None:
        """Launch on q, k, cos, sin and the two outputs."""
        if not self.programs:
            return
        # A lazily negated view keeps its sign outside its memory, where a kernel cannot see it.
        tensors = [*(x.resolve_neg() for x in tensors[:4]), *tensors[4:]]
        vector = self.even and all(x.data_ptr() % VECTOR_BYTES == 0 for x in tensors)
        kernel = rope_kernel[(self.programs,)]
        kernel(*tensors, *self.arguments, **self.constants, VECTOR=vector, BACK=back, enable_fp_fusion=False)


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


def _last_lane(out: Ints, tile: Ints) -> Ints:
    """The largest indices (batch, head, position, column) of a launch over this output, masked lanes included.

    Their addresses are computed, if never used.
    """
    batch, heads, seq, width = out
    rows, columns = batch * heads * seq, width // 2
    if not rows or not columns:
        return (0, 0, 0, 0)
    last_row, last_column = (ceil_div(n, size) * size - 1 for n, size in zip((rows, columns), tile, strict=False))
    return last_row // (heads * seq), heads - 1, seq - 1, last_column


def _is_even(steps: Ints) -> bool:
    """Whether elements lie side by side along the last step, and whole groups of them along all others."""
    return steps[-1] == 1 and all(step % VECTOR_ELEMENTS == 0 for step in steps[:-1])


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
    launch = plan_launch(inputs, results, cut(cos, q), cut(sin, q), tiles, turn is not None and turn.interleaved)
    types = promoted(q.dtype, k.dtype, cos.dtype, sin.dtype)
    launch.constants.update({name: TL_DTYPES[dtype] for name, dtype in types.items()})
    return Plan(*outs, launch, turn, tiles)


def plan_launch(
    inputs: Sequence[Form],
    outs: Sequence[Form],
    c: View,
    s: View,
    tiles: Tiles,
    interleaved: bool = False,
) -> Launch:
    """The launch that rotates two inputs into two outputs; the constants that name dtypes are left to add."""
    tables = [broadcast_strides(table.shape, table.strides) for table in (c, s)]
    even, farthest = True, 0
    programs: list[int] = []
    sizes: list[int] = []
    halves: list[tuple[Ints, int]] = []
    for x, out in zip(inputs, outs, strict=True):
        batch, heads, seq, width = out.shape
        rows, columns, half = batch * heads * seq, width // 2, x.shape[3] // 2
        programs.append(ceil_div(rows, tiles.rows) if columns else 0)
        sizes += [rows, heads, seq, columns]
        steps, out_steps = x.strides, out.strides
        if interleaved:  # every other column is the first of a pair, and the next one its second
            steps, out_steps = ((*form.strides[:3], 2 * form.strides[3]) for form in (x, out))
        gap, out_gap = (1, 1) if interleaved else (half, columns)
        own = broadcast_strides((*x.shape[:3], half), steps), gap * x.strides[3]
        halves += [own, (out_steps, out_gap * out.strides[3])]
        last = _last_lane(out.shape, tiles)
        for strides, offset in (*halves[-2:], *(((0, 0, *table), 0) for table in tables)):
            farthest = max(farthest, offset + sum(map(mul, last, strides)))
            even = even and _is_even((columns, offset, *strides))
    in_q, out_q, in_k, out_k = ((*strides, offset) for strides, offset in halves)
    arguments = (programs[0], *sizes, *in_q, *in_k, *tables[0], *tables[1], *out_q, *out_k)
    constants: dict[str, Any] = {"WIDE": farthest > INT32_MAX, "BLOCK_R": tiles.rows, "BLOCK_C": tiles.keys}
    constants |= {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return Launch(sum(programs), arguments, even, constants)


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
    forms = forms_of(q, k, cos, sin)
    turn = Turn.of(forms[0].shape[3], interleaved, rotary_dim) if interleaved or rotary_dim is not None else None
    plan = make_plan(*forms, turn, q.device)
    if can_launch(q.device):
        return carry_out(plan, q, k, cos, sin)
    if turn is not None:
        return reference.rope_with_options(q, k, cos, sin, interleaved, turn.columns)
    return reference.rope(q, k, cos, sin)


def carry_out(
    plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What :func:`rope` returns, with gradients where they are asked for."""
    rows = q.shape[2]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, cos, sin)):
        from kernels.rope_backward import differentiable  # it launches the kernel above

        return *differentiable(plan, q, k, cos, sin), cos[:rows], sin[:rows]
    return *launch(plan, q, k, cos, sin), cos[:rows], sin[:rows]


def launch(
    plan: Plan, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k rotated in fresh memory, by one launch or none."""
    out_q, out_k = allocate((plan.out_q, plan.out_k), q.device)
    plan.launch.run((q, k, cos, sin, out_q, out_k))
    rest = 0 if plan.turn is None else q.shape[3] - plan.turn.columns
    if rest:
        for x, out in ((q, out_q), (k, out_k)):
            out[..., -rest:].copy_(x[..., -rest:])
    return out_q, out_k
