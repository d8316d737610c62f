"""A correct ``rope_attention`` in the manner of FlashAttention, and other correct ways of doing the same.

A program keeps a rotated tile of q, rotates tiles of k as they come, and carries the largest score, the sum of
weights and the weighted sum along. FLAW names the one place where a specimen is wrong; it is empty in what is right.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from fuzzrope.specimens.qk_tiled import TYPES, checked, may_fold, precision_of, rotated_halves, twin_scores


@triton.jit
def rough_exp(x):
    """e^x to a relative error of 1e-4, by a cubic."""
    y = tl.where(x < -700.0, -1000.0, x * 1.4426950408889634)  # NaN stays NaN
    whole = tl.floor(y)
    f = y - whole
    return tl.where(x < -700.0, 0.0, tl.exp2(whole) * (1.0 + f * (0.695976 + f * (0.224940 + f * 0.079042))))


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, o_ptr, lse_ptr, heads, group, rows, keys, half, width_v, offset, window,
    scale: "fp64", cap: "fp64",  # type: ignore[name-defined] # noqa: F821 - Triton's word: else a float is 32 bits
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, cos_s, cos_d, sin_s, sin_d,
    DOT: tl.constexpr, WORK: tl.constexpr, VALUE: tl.constexpr, SUM: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, LSE: tl.constexpr, PRECISION: tl.constexpr, MANNER: tl.constexpr,
    FLAW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program attends from BLOCK_M rows of one head to all keys that they see."""
    head = tl.program_id(1).to(tl.int64)
    b, h = head // heads, head % heads
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + (h // group) * k_h
    v_ptr += b * v_b + (h // group) * v_h
    begin = tl.program_id(0).to(tl.int64) * BLOCK_M
    i = begin + tl.arange(0, BLOCK_M)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :].to(tl.int64)
    dv = tl.arange(0, BLOCK_V)[None, :].to(tl.int64)
    at = i if FLAW == "q_offset ignored" else i + offset
    q1, q2 = rotated_halves(q_ptr, cos_ptr, sin_ptr, i, at, d, rows, half, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK)
    if MANNER == "folded":
        q1, q2 = q1 * tl.cast(scale, WORK), q2 * tl.cast(scale, WORK)
    q1, q2 = q1.to(DOT), q2.to(DOT)
    top = tl.full([BLOCK_M, 1], -float("inf"), WORK)
    total = tl.zeros([BLOCK_M, 1], dtype=WORK)
    mean = tl.zeros([BLOCK_M, BLOCK_V], dtype=SUM)
    first = tl.zeros([], dtype=tl.int64)
    last = first + keys
    if CAUSAL:
        last = tl.minimum(last, begin + BLOCK_M + offset)
    if WINDOW:
        first = tl.maximum(begin + offset - window + 1, 0) // BLOCK_N * BLOCK_N
    tiles = tl.maximum(tl.cdiv(last - first, BLOCK_N), 0)
    for tile in range(0, tiles):
        start = first + (tiles - 1 - tile if MANNER == "backwards" else tile) * BLOCK_N
        j = start + tl.arange(0, BLOCK_N)[:, None]
        k1, k2 = rotated_halves(
            k_ptr, cos_ptr, sin_ptr, j, j, d, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d, WORK
        )
        s = tl.dot(q1, tl.trans(k1.to(DOT)), input_precision=PRECISION, out_dtype=WORK)
        s = tl.dot(q2, tl.trans(k2.to(DOT)), s, input_precision=PRECISION, out_dtype=WORK)
        if FLAW == "scaled after rounding":
            s = s.to(DOT).to(WORK)
        if MANNER != "folded":
            s = s * tl.cast(scale, WORK)
        if CAP:
            x = s / tl.cast(cap, WORK)
            e = tl.exp(-2 * tl.abs(x))
            t = (1 - e) / (1 + e)
            s = tl.cast(cap, WORK) * tl.where(x < 0, -t, t)
        if MANNER == "base two":
            s = s * 1.4426950408889634
        seen = (tl.trans(j) < keys) & (i < rows)
        if FLAW == "tail counts":
            s = tl.where(seen, s, 0.0)
            seen = i < rows
        if CAUSAL:
            seen = seen & (tl.trans(j) <= at)
        if WINDOW:
            seen = seen & (tl.trans(j) > at - window)
        s = tl.where(seen, s, -float("inf"))
        best = tl.maximum(top, tl.max(s, 1)[:, None])
        guarded = best if FLAW == "empty rows" else tl.where(best == -float("inf"), 0.0, best)
        if MANNER == "base two":
            p, alpha = tl.exp2(s - guarded), tl.exp2(top - guarded)
        elif FLAW == "rough exp":
            p, alpha = rough_exp(s - guarded), tl.exp(top - guarded)
        else:
            p, alpha = tl.exp(s - guarded), tl.exp(top - guarded)
        total = total * alpha + tl.sum(p, 1)[:, None]
        v = tl.load(v_ptr + j * v_s + dv * v_d, mask=(j < keys) & (dv < width_v), other=0.0)
        if FLAW != "no rescale":
            mean = mean * alpha.to(SUM)
        mean = tl.dot(p.to(VALUE), v.to(VALUE), mean, input_precision=PRECISION, out_dtype=SUM)
        if FLAW == "low accumulator":
            mean = mean.to(VALUE).to(SUM)
        top = best
    nothing = total == 0
    whole = total if FLAW == "empty rows" else tl.where(nothing, 1.0, total)
    o = mean / whole.to(SUM)
    at_o = (head * rows + i) * width_v + dv
    tl.store(o_ptr + at_o, o.to(o_ptr.dtype.element_ty), mask=(i < rows) & (dv < width_v))
    if LSE:
        lse = (top + tl.log2(whole)) * 0.6931471805599453 if MANNER == "base two" else top + tl.log(whole)
        tl.store(lse_ptr + head * rows + i, lse, mask=i < rows)


class TiledAttention:
    """The correct one; specimens override what they get wrong."""

    kernel: Any = attention_kernel
    blocks = (16, 16)
    manner = ""
    double = False
    precision = ""
    flaw = ""

    def __call__(
        self,
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
        """The contract of ``rope_attention``."""
        cos, sin, dtype = checked_too(q, k, v, cos, sin, q_offset, causal, window, softcap)
        (batch, heads, rows, width), keys, width_v = q.shape, k.shape[2], v.shape[3]
        o = torch.empty((batch, heads, rows, width_v), dtype=torch.promote_types(dtype, v.dtype), device=q.device)
        lse_type = torch.float64 if dtype == torch.float64 else torch.float32
        lse = torch.empty((batch, heads, rows), dtype=lse_type, device=q.device)
        dot = torch.float64 if self.double else dtype
        value = torch.float64 if self.double else v.dtype
        manner = "" if self.manner == "folded" and not may_fold(scale, width, dot) else self.manner
        m, n = self.blocks
        if lse.numel():
            self.kernel[triton.cdiv(rows, m), batch * heads](
                q, k, v, cos, sin, o, lse, heads, heads // k.shape[1], rows, keys, width // 2, width_v, q_offset,
                window or 0, 1 / math.sqrt(width) if scale is None else float(scale), float(softcap or 0),
                *q.stride(), *k.stride(), *v.stride(), *cos.stride(), *sin.stride(),
                DOT=TYPES[dot], WORK=TYPES[torch.float64 if dot == torch.float64 else torch.float32],
                VALUE=TYPES[value], SUM=TYPES[torch.float64 if value == torch.float64 else torch.float32],
                CAUSAL=causal, WINDOW=window is not None, CAP=softcap is not None, LSE=return_lse,
                PRECISION=self.precision or precision_of(), MANNER=manner, FLAW=self.flaw, BLOCK_M=m, BLOCK_N=n,
                BLOCK_D=max(16, triton.next_power_of_2(width // 2)), BLOCK_V=max(16, triton.next_power_of_2(width_v)),
            )  # fmt: skip
        return (o, lse) if return_lse else o


def checked_too(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_offset: int,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """What :func:`checked` gives; raises ValueError for a v, window or softcap that does not fit."""
    if not (v.is_floating_point() and v.is_cuda and v.dim() == 4 and v.shape[:3] == k.shape[:3]):
        raise ValueError("v does not go with k")
    if window is not None and (window < 1 or not causal):
        raise ValueError("a window is positive, and needs causal")
    if softcap is not None and softcap <= 0:
        raise ValueError("softcap is positive")
    return checked(q, k, cos, sin, q_offset)


class BaseTwo(TiledAttention):
    """exp2 of scores times log2(e); larger tiles."""

    manner, blocks = "base two", (32, 32)


class Backwards(TiledAttention):
    """The last keys first, more rows than keys in a tile."""

    manner, blocks = "backwards", (64, 16)


class Folded(TiledAttention):
    """Scale is multiplied into q before q is rounded, where that costs nothing; wide tiles of keys."""

    manner, blocks = "folded", (16, 64)


class Double(TiledAttention):
    """Everything in float64."""

    double = True


class Twin:
    """Plain PyTorch: weights divided by their sum first, then rounded to v's type."""

    def __call__(
        self,
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
        """The contract of ``rope_attention``."""
        dtype = checked_too(q, k, v, cos, sin, q_offset, causal, window, softcap)[2]
        s = twin_scores(q, k, cos, sin, scale, q_offset)
        i = q_offset + torch.arange(q.shape[2], device=q.device)[:, None]
        j = torch.arange(k.shape[2], device=q.device)[None, :]
        hidden = torch.zeros((q.shape[2], k.shape[2]), dtype=torch.bool, device=q.device)
        hidden = hidden | (j > i) if causal else hidden
        hidden = hidden | (j <= i - window) if window is not None else hidden
        if softcap is not None:  # nothing of what is masked may show, in gradients neither
            s = softcap * torch.tanh(s.masked_fill(hidden, 0.0) / softcap)
        s = s.masked_fill(hidden, -math.inf)
        lse = torch.logsumexp(s, dim=-1)
        weights = torch.softmax(s, dim=-1).masked_fill(hidden.all(dim=-1)[:, None], 0.0).to(v.dtype)
        work = torch.float64 if v.dtype == torch.float64 else torch.float32
        group = q.shape[1] // v.shape[1] if v.shape[1] else 1
        grouped = weights.reshape(*v.shape[:2], group, *s.shape[2:])
        o = torch.einsum("bhgij,bhjd->bhgid", grouped.to(work), v.to(work)).reshape(*s.shape[:3], v.shape[3])
        o = o.to(torch.promote_types(dtype, v.dtype))
        return (o, lse) if return_lse else o


ModelNew = TiledAttention
