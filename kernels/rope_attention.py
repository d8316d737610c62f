"""Attention with rotation inside, in the manner of FlashAttention: neither rotated factor nor scores are ever stored.

A program keeps a rotated tile of q, rotates tiles of k as they come, and carries the largest score, the sum of
weights and the weighted sum along. Where few rows meet many keys, several programs share the keys of a tile and
a second kernel joins what they found. The plain twin is :func:`kernels.reference.attention_reference`.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.fused import (
    Problem,
    block_of,
    check_attention,
    check_programs,
    dot_precision,
    is_even,
    is_traced,
    is_wide,
    make_problem,
    strides_of,
    work_dtype,
)
from kernels.launch import TL_DTYPES, can_launch, ceil_div
from kernels.rotation import cells, factor, rows_at
from kernels.softmax import COMBINED_ROWS, LN_2, LOG2_E, capped, choose_splits, combine_kernel, finite_or_zero
from kernels.tiles import (
    columns,
    key_tiles,
    lanes_of,
    load_keys,
    load_queries,
    load_rows,
    packed_rows,
    program,
    seen_from,
)
from kernels.tiling import SHIPPED, Pins, Tiles

__all__ = ["rope_attention"]

NAME = "rope_attention"


# Nothing is specialized: one flag, VECTOR, says all that makes loads wide, and a variant is dear.
@triton.jit(do_not_specialize=range(8, 37), do_not_specialize_on_alignment=range(8))
def attention_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, total_ptr,
    heads, group, rows, keys, half,
    offset: tl.int64,  # else a number has 32 bits where it fits
    first_shift, last_shift,
    scale: tl.float64, cap: tl.float64,  # else a float has 32 bits
    width_v, splits, batch,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, cos_s, cos_d, sin_s, sin_d,
    WORK: tl.constexpr, DOT: tl.constexpr, VALUE: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
    CAP: tl.constexpr, SPLIT: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One tile of packed rows against the keys they see, or a share of them.

    With SPLIT, o, lse and total (splits, ...) take the weighted sum, the largest score in units of log 2 and the
    sum of weights of each share.
    """
    if VECTOR:
        q_d = 1
        k_d = 1
        v_d = 1
        cos_d = 1
        sin_d = 1
    tiles = tl.cdiv(rows * group, BLOCK_M)
    pid = program(WIDE)
    start = pid % tiles * BLOCK_M
    split = pid // tiles % splits
    head = (pid // tiles // splits).to(tl.int64)
    b = head // heads
    h = head % heads
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    n = lanes_of(BLOCK_N, WIDE)
    first, local, g, there = packed_rows(start, rows, group, BLOCK_M, WIDE)
    q1, q2 = load_queries(
        q_ptr + b * q_b + h * group * q_h, cos_ptr, sin_ptr, first, local, g, there, offset, half,
        q_h, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK, DOT, VECTOR, WIDE, BLOCK_D,
    )  # fmt: skip
    low, high = seen_from(first + local, there, keys, first_shift, last_shift)
    first_tile, last_tile = key_tiles(start, rows, group, keys, first_shift, last_shift, BLOCK_M, BLOCK_N)
    if SPLIT:
        share = tl.cdiv(tl.maximum(last_tile - first_tile, 0), splits)
        first_tile += split * share
        last_tile = tl.minimum(first_tile + share, last_tile)
    units = (scale * LOG2_E).to(WORK)  # scores are held in units of log 2, for exp2
    top = tl.full([BLOCK_M], -float("inf"), WORK)
    total = tl.zeros([BLOCK_M], WORK)
    o = tl.zeros([BLOCK_M, BLOCK_V], SUM)
    for tile in range(first_tile, last_tile):
        start_n = tile * BLOCK_N
        k1, k2 = load_keys(
            k_ptr, cos_ptr, sin_ptr, start_n, n, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
            WORK, DOT, VECTOR, WIDE, BLOCK_D,
        )  # fmt: skip
        s = tl.dot(q2, tl.trans(k2), input_precision=PRECISION, out_dtype=WORK)
        s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION, out_dtype=WORK)
        if CAP:
            t, _ = capped(s * scale.to(WORK), cap.to(WORK))
            s = t * (cap * LOG2_E).to(WORK)
        else:
            s = s * units
        j = (start_n + n)[None, :]
        s = tl.where((j >= low[:, None]) & (j < high[:, None]), s, -float("inf"))
        best = tl.maximum(top, tl.max(s, 1))
        known = finite_or_zero(best)
        p = tl.exp2(s - known[:, None])
        alpha = tl.exp2(top - known)
        total = total * alpha + tl.sum(p, 1)
        v = load_rows(v_ptr, start_n, n * v_s, start_n + n < keys, width_v, v_s, v_d, VECTOR, WIDE, BLOCK_V)
        o = o * alpha[:, None].to(SUM)
        o = tl.dot(p.to(VALUE), factor(v, VALUE), o, input_precision=PRECISION, out_dtype=SUM)
        top = best
    if SPLIT:
        head += split.to(tl.int64) * batch * heads
        tl.store(total_ptr + head * group * rows + first + (g * rows + local), total, mask=there)
        lse = top
    else:
        whole = tl.where(total == 0, 1.0, total)  # a row without keys: o = 0, lse = -inf
        o = o / whole[:, None].to(SUM)
        lse = (top + tl.log2(whole)) * LN_2
    tl.store(lse_ptr + head * group * rows + first + (g * rows + local), lse, mask=there)
    dv = columns(BLOCK_V, WIDE)
    o_rows = rows_at(o_ptr + head * group * rows * width_v, first, width_v, (g * rows + local) * width_v, VECTOR)
    mask = cells(there[:, None], dv < width_v, VECTOR)
    tl.store(o_rows + dv, o.to(o_ptr.dtype.element_ty), mask=mask)


class Call(NamedTuple):
    """One checked call: the problem, and what attention alone has. ``cap`` is 0 where there is none."""

    problem: Problem
    width_v: int
    cap: float
    value: torch.dtype
    out: torch.dtype

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the kernels take after the tensors."""
        return (*self.problem.sizes, self.problem.scale, self.cap, self.width_v)

    @property
    def constants(self) -> dict[str, Any]:
        """The constants that the call decides."""
        dot = self.problem.dot
        return {
            "WORK": TL_DTYPES[work_dtype(dot)],
            "DOT": TL_DTYPES[dot],
            "CAP": self.cap > 0,
            "BLOCK_D": block_of(self.problem.half),
            "BLOCK_V": block_of(self.width_v),
        }


def choose_tiles(half: int, width_v: int, dtype: torch.dtype, packed: int) -> Tiles:
    """The rule for a tile: what shared memory and registers of compute capability 9.0 hold."""
    size, narrow = dtype.itemsize, half <= 64 and width_v <= 128
    if packed <= 16:
        return Tiles(16, 64 if size == 2 and narrow else 32 if size < 8 else 16, 4, 2 if size < 8 else 1)
    if size == 2:
        if not narrow:
            return Tiles(64, 32, 8, 2)
        return Tiles(128, 64, 4, 2) if half <= 32 else Tiles(128, 64, 8, 3)
    if size == 4:
        return Tiles(64, 32, 8, 2) if narrow else Tiles(32, 32, 8, 1)
    return Tiles(32, 16, 4, 1) if narrow else Tiles(16, 16, 4, 1)


def make_call(
    tensors: dict[str, torch.Tensor],
    scale: float | None,
    causal: bool,
    q_offset: int,
    window: int | None,
    softcap: float | None,
    pins: Pins = SHIPPED,
) -> Call:
    """The call that these arguments are, which have been checked."""
    problem, v = make_problem(tensors, scale, causal, q_offset, window, pins), tensors["v"]
    out = torch.promote_types(problem.dot, v.dtype)
    return Call(problem, v.shape[3], 0.0 if softcap is None else float(softcap), v.dtype, out)


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
    check_attention(NAME, tensors, scale, causal, q_offset, window, softcap)
    if not isinstance(return_lse, bool):
        raise TypeError(f"{NAME}: return_lse must be a bool, not {type(return_lse).__name__}")
    if is_traced(tensors):
        from kernels.fused_operators import traced_attention

        o, lse = traced_attention(q, k, v, cos, sin, scale, causal, q_offset, window, softcap)
        return (o, lse) if return_lse else o
    if not can_launch(q.device):
        options: dict[str, Any] = {"scale": scale, "causal": causal, "q_offset": q_offset, "window": window}
        return reference.attention_reference(q, k, v, cos, sin, **options, softcap=softcap, return_lse=return_lse)
    call = make_call(tensors, scale, causal, q_offset, window, softcap, pins)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors.values()):
        from kernels.rope_attention_backward import differentiable  # it launches the kernels above

        o, lse = differentiable(call, q, k, v, cos, sin)
    else:
        o, lse = launch_attention(call, q, k, v, cos, sin)
    return (o, lse) if return_lse else o


def launch_attention(
    call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """o and lse in fresh memory."""
    problem = call.problem
    batch, heads, group, rows, keys = problem[:5]
    shape, device, sums = (batch, heads * group, rows), q.device, work_dtype(call.value)
    o = torch.empty((*shape, call.width_v), dtype=call.out, device=device)
    lse = torch.empty(shape, dtype=work_dtype(problem.dot), device=device)
    if not lse.numel():
        return o, lse
    rule, width = choose_tiles(problem.half, call.width_v, call.out, rows * group), max(2 * problem.half, call.width_v)
    tiles = problem.tiles("attention", device, call.out, width, rule)
    programs = ceil_div(rows * group, tiles.rows) * batch * heads
    splits = choose_splits(programs, ceil_div(keys, tiles.keys))
    found: tuple[torch.Tensor, ...] = (o, lse, lse)
    if splits > 1:
        found = (
            torch.empty((splits, *o.shape), dtype=sums, device=device),
            *(torch.empty((splits, *shape), dtype=lse.dtype, device=device) for _ in range(2)),
        )
    operands = [x.resolve_neg() for x in (q, k, v, cos, sin)]
    steps = [strides_of(x) for x in (q, k, v)]
    packed = (0, rows * call.width_v, call.width_v, 1)
    wide = is_wide(problem, tiles, (steps[0], packed), steps[1:], width)
    tables = (problem.tables[:2], problem.tables[2:])
    attention_kernel[(check_programs(NAME, programs * splits),)](
        *operands, *found, *call.numbers, splits, batch, *steps[0], *steps[1], *steps[2], *problem.tables,
        **call.constants, VALUE=TL_DTYPES[call.value], SUM=TL_DTYPES[sums],
        PRECISION=dot_precision(problem.dot, call.value), SPLIT=splits > 1, WIDE=wide,
        VECTOR=is_even((*operands, *found), (*steps, *tables), (problem.half, call.width_v)), **tiles.options,
    )  # fmt: skip
    if splits > 1:
        combine_kernel[(ceil_div(lse.numel(), COMBINED_ROWS),)](
            *found, o, lse, lse.numel(), call.width_v, splits,
            BLOCK_R=COMBINED_ROWS, BLOCK_V=block_of(call.width_v),
        )  # fmt: skip
    return o, lse
