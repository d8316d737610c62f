"""The kernel of :func:`kernels.rope.rope`, and its launch on layouts that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels.early import BEGINS_EARLY, wait_for_launch
from kernels.forms import Meta
from kernels.launch import INT32_MAX, VECTOR_ELEMENTS, Prepared, broadcast_strides, ceil_div, resolved, start_even
from kernels.layout import Ints, View
from kernels.rotation import rotate
from kernels.tiling import Tiles

#: Neighbouring positions before the next head, where one of input and output has positions nearer, and the other heads.
POSITIONS_TOGETHER = 4


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
    pid, rows, run, heads, runs, columns,
    stride_xb, stride_xh, stride_xs, stride_xd, x_half,
    stride_cs, stride_cd, stride_ss, stride_sd,
    stride_ob, stride_oh, stride_os, stride_od, out_half,
    COS_DTYPE: tl.constexpr, SIN_DTYPE: tl.constexpr, OUT_DTYPE: tl.constexpr,
    VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Rotate BLOCK_R rows of x; BACK the other way.

    Rows are counted over (batch, run of positions, head, position of the run), the last fastest: there are ``runs`` of
    ``run`` positions each. ``x_half`` and ``out_half`` are the offsets of the second half of a row from the first.
    """
    if VECTOR:
        stride_xd = 1
        stride_cd = 1
        stride_sd = 1
        stride_od = 1
    row = pid * BLOCK_R + tl.arange(0, BLOCK_R)
    if WIDE:
        row = pid.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    run_of_head = row // run
    h = run_of_head % heads
    run_of_all = run_of_head // heads
    s = run_of_all % runs * run + row % run
    b = run_of_all // runs
    x1_row = row_starts(x_ptr, (b * stride_xb + h * stride_xh + s * stride_xs)[:, None], VECTOR)
    x2_row = row_starts(x1_row, x_half, VECTOR)
    cos_row = row_starts(cos_ptr, (s * stride_cs)[:, None], VECTOR)
    sin_row = row_starts(sin_ptr, (s * stride_ss)[:, None], VECTOR)
    out1_row = row_starts(out_ptr, (b * stride_ob + h * stride_oh + s * stride_os)[:, None], VECTOR)
    out2_row = row_starts(out1_row, out_half, VECTOR)
    wait_for_launch(EARLY)
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
@triton.jit(do_not_specialize=range(6, 41), do_not_specialize_on_alignment=range(6))
def rope_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_q_ptr, out_k_ptr,
    programs_q,
    rows_q, run_q, heads_q, runs_q, columns_q,
    rows_k, run_k, heads_k, runs_k, columns_k,
    stride_qb, stride_qh, stride_qs, stride_qd, q_half,
    stride_kb, stride_kh, stride_ks, stride_kd, k_half,
    stride_cs, stride_cd, stride_ss, stride_sd,
    stride_oqb, stride_oqh, stride_oqs, stride_oqd, out_q_half,
    stride_okb, stride_okh, stride_oks, stride_okd, out_k_half,
    Q_COS_DTYPE: tl.constexpr, Q_SIN_DTYPE: tl.constexpr, Q_OUT_DTYPE: tl.constexpr,
    K_COS_DTYPE: tl.constexpr, K_SIN_DTYPE: tl.constexpr, K_OUT_DTYPE: tl.constexpr,
    VECTOR: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """The first ``programs_q`` programs rotate q, the others k.

    VECTOR promises that in each tensor elements lie side by side in groups of eight that start at multiples
    of 16 bytes, so that a group is one load: the strides of columns are then 1.
    """
    pid = tl.program_id(0)
    if pid < programs_q:
        rotate_rows(
            q_ptr, cos_ptr, sin_ptr, out_q_ptr,
            pid, rows_q, run_q, heads_q, runs_q, columns_q,
            stride_qb, stride_qh, stride_qs, stride_qd, q_half,
            stride_cs, stride_cd, stride_ss, stride_sd,
            stride_oqb, stride_oqh, stride_oqs, stride_oqd, out_q_half,
            Q_COS_DTYPE, Q_SIN_DTYPE, Q_OUT_DTYPE, VECTOR, WIDE, BLOCK_R, BLOCK_C, BACK, EARLY,
        )  # fmt: skip
    else:
        rotate_rows(
            k_ptr, cos_ptr, sin_ptr, out_k_ptr,
            pid - programs_q, rows_k, run_k, heads_k, runs_k, columns_k,
            stride_kb, stride_kh, stride_ks, stride_kd, k_half,
            stride_cs, stride_cd, stride_ss, stride_sd,
            stride_okb, stride_okh, stride_oks, stride_okd, out_k_half,
            K_COS_DTYPE, K_SIN_DTYPE, K_OUT_DTYPE, VECTOR, WIDE, BLOCK_R, BLOCK_C, BACK, EARLY,
        )  # fmt: skip


Form = View | Meta


class Launch(NamedTuple):
    """One launch, and whether its layouts are ``even``: as the kernel's VECTOR promises, if the addresses are too."""

    prepared: Prepared
    even: bool

    @property
    def constants(self) -> dict[str, Any]:
        """The constants of the kernel, to which those are added that name dtypes."""
        return self.prepared.constants

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        out_q: torch.Tensor,
        out_k: torch.Tensor,
        back: bool = False,
    ) -> None:
        """Launch on these tensors, of the forms that were planned for."""
        tensors = *resolved(q, k, cos, sin), out_q, out_k
        self.prepared.run(tensors, VECTOR=self.even and start_even(tensors), BACK=back)


def _last_lane(out: Ints, tile: Ints) -> Ints:
    """The largest indices (batch, head, position, column) of a launch over this output, masked lanes included.

    Their addresses are computed, if never used. However long a run of positions is, it is the batch alone that goes
    too far.
    """
    batch, heads, seq, width = out
    rows, columns = batch * heads * seq, width // 2
    if not rows or not columns:
        return (0, 0, 0, 0)
    last_row, last_column = (ceil_div(n, size) * size - 1 for n, size in zip((rows, columns), tile, strict=False))
    return last_row // (heads * seq), heads - 1, seq - 1, last_column


def positions_together(shape: Ints, steps: Sequence[Ints], most: int) -> int:
    """How many positions of a head are counted before the next head: programs in a row are to work on near memory.

    They run at the same time. Of a tensor whose next position is nearer than its next head all positions of a head come
    first, of one whose next head is nearer all heads of a position. Where one is read and the other written, some
    positions of all heads come first: they lie side by side in the one, and in runs that are as long in the other. A
    tensor that repeats its rows counts for neither: caches hold it.

    Args:
        shape: (batch, heads, positions, columns) of the output.
        steps: strides of the input and the output, 0 in a dimension that is repeated.
        most: positions where the two differ; at least 1.

    Returns:
        A divisor of the positions: all of them where there is no choice.
    """
    _, heads, seq, _ = shape
    if heads < 2 or seq < 2:
        return max(seq, 1)
    inner = {head < position for _, head, position, _ in steps if head and position}
    if inner == {True, False}:
        together = seq & -seq  # the largest power of two that divides them
        return min(together, 1 << most.bit_length() - 1)
    return 1 if True in inner else seq


def _is_even(steps: Ints) -> bool:
    """Whether elements lie side by side along the last step, and whole groups of them along all others."""
    return steps[-1] == 1 and all(step % VECTOR_ELEMENTS == 0 for step in steps[:-1])


def plan_launch(
    inputs: Sequence[Form],
    outs: Sequence[Form],
    c: View,
    s: View,
    tiles: Tiles,
    early: bool,
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
        steps, out_steps = x.strides, out.strides
        if interleaved:  # every other column is the first of a pair, and the next one its second
            steps, out_steps = ((*form.strides[:3], 2 * form.strides[3]) for form in (x, out))
        gap, out_gap = (1, 1) if interleaved else (half, columns)
        own = broadcast_strides((*x.shape[:3], half), steps), gap * x.strides[3]
        halves += [own, (out_steps, out_gap * out.strides[3])]
        run = positions_together(out.shape, (own[0], out_steps), POSITIONS_TOGETHER)
        sizes += [rows, run, heads, seq // run, columns]
        last = _last_lane(out.shape, tiles)
        for strides, offset in (*halves[-2:], *(((0, 0, *table), 0) for table in tables)):
            farthest = max(farthest, offset + sum(map(mul, last, strides)))
            even = even and _is_even((columns, offset, *strides))
    in_q, out_q, in_k, out_k = ((*strides, offset) for strides, offset in halves)
    arguments = (programs[0], *sizes, *in_q, *in_k, *tables[0], *tables[1], *out_q, *out_k)
    constants: dict[str, Any] = {"WIDE": farthest > INT32_MAX, "BLOCK_R": tiles.rows, "BLOCK_C": tiles.keys}
    constants |= {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": False, "EARLY": early}
    if early:
        constants |= BEGINS_EARLY
    return Launch(Prepared(rope_kernel, sum(programs), arguments, constants, {}), even)
