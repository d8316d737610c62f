"""A correct tiled ``rope_qk``, and other correct ways of doing the same: what the qk specimens depart from.

A program rotates tiles of q and of k while it loads them, 16 columns of each half at a time, and multiplies them
at once. FLAW names the one place where a specimen is wrong; it is empty in everything that is right.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def rotated_halves(
    x_ptr, cos_ptr, sin_ptr, row, position, d, rows, half, x_s, x_d, cos_s, cos_d, sin_s, sin_d, WORK: tl.constexpr
):
    """Both halves of rows of x, (rows, columns) of WORK, zero outside; by the tables' rows ``position``."""
    mask = (row < rows) & (d < half)
    x1 = tl.load(x_ptr + row * x_s + d * x_d, mask=mask, other=0.0).to(WORK)
    x2 = tl.load(x_ptr + row * x_s + (d + half) * x_d, mask=mask, other=0.0).to(WORK)
    cos = tl.load(cos_ptr + position * cos_s + d * cos_d, mask=mask, other=0.0).to(WORK)
    sin = tl.load(sin_ptr + position * sin_s + d * sin_d, mask=mask, other=0.0).to(WORK)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit
def qk_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out_ptr, heads, group, rows, keys, half, offset, scale: "fp64",  # type: ignore[name-defined] # noqa: F821 - Triton's word: else a float is 32 bits
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, cos_s, cos_d, sin_s, sin_d,
    DOT: tl.constexpr, WORK: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, FOLD: tl.constexpr,
    FLAW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK_M x BLOCK_N scores of one head."""
    head = tl.program_id(1).to(tl.int64)
    b, h = head // heads, head % heads
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + (h // group) * k_h
    across = tl.cdiv(keys, BLOCK_N)
    i = (tl.program_id(0) // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    j = (tl.program_id(0) % across).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    at = i if FLAW == "q_offset ignored" else i + offset
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=WORK)
    for start in range(0, half, BLOCK_D):
        d = (start + tl.arange(0, BLOCK_D)[None, :]).to(tl.int64)
        q1, q2 = rotated_halves(
            q_ptr, cos_ptr, sin_ptr, i, at, d, rows, half, q_s, q_d, cos_s, cos_d, sin_s, sin_d, WORK
        )
        k1, k2 = rotated_halves(
            k_ptr, cos_ptr, sin_ptr, j, j, d, keys, half, k_s, k_d, cos_s, cos_d, sin_s, sin_d, WORK
        )
        if FOLD:
            q1, q2 = q1 * tl.cast(scale, WORK), q2 * tl.cast(scale, WORK)
        k1, k2 = tl.trans(k1.to(DOT)), tl.trans(k2.to(DOT))
        total = tl.dot(q2.to(DOT), k2, total, input_precision=PRECISION, out_dtype=WORK)
        total = tl.dot(q1.to(DOT), k1, total, input_precision=PRECISION, out_dtype=WORK)
        if FLAW == "low accumulator":
            total = total.to(DOT).to(WORK)
    if FLAW == "scaled after rounding":
        total = total.to(DOT).to(WORK)
    if not FOLD:
        total = total * tl.cast(scale, WORK)
    j = tl.trans(j)
    if CAUSAL:
        total = tl.where(j <= at, total, -float("inf"))
    mask = (i < rows) & (j < keys)
    tl.store(out_ptr + (head * rows + i) * keys + j, total.to(out_ptr.dtype.element_ty), mask=mask)


def checked(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, q_offset: int
) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """The tables as views with a row for each position and D/2 columns, and the type of the product.

    Raises:
        ValueError: the arguments do not belong together.
    """
    tensors = (q, k, cos, sin)
    if not all(t.is_floating_point() and t.is_cuda for t in tensors):
        raise ValueError("inputs must be floating-point CUDA tensors")
    if [t.dim() for t in tensors] != [4, 4, 2, 2] or q_offset < 0:
        raise ValueError("q and k have four dimensions, tables two, and positions start at 0")
    (batch, heads, rows, width), (batch_k, heads_k, keys, width_k) = q.shape, k.shape
    if width % 2 or not width or width != width_k or batch != batch_k:
        raise ValueError("q and k differ, or head_dim is not a positive even number")
    if heads % heads_k if heads_k else heads:
        raise ValueError("heads of q are no multiple of k's")
    needed, half = max(q_offset + rows, keys), width // 2
    if any((t.shape[0] < needed and t.shape[0] != 1) or t.shape[1] not in (half, 1) for t in (cos, sin)):
        raise ValueError("tables are too short or too wide")
    dtype = q.dtype
    for t in (k, cos, sin):
        dtype = torch.promote_types(dtype, t.dtype)
    # What spreads is read with a stride of 0; what is longer is longer.
    wide = [t.expand(needed if t.shape[0] == 1 else t.shape[0], half) for t in (cos, sin)]
    return wide[0], wide[1], dtype


def may_fold(scale: float | None, width: int, dot: torch.dtype) -> bool:
    """Whether scale can be multiplied into q of this type: 16 bits hold the product only of a power of two."""
    return dot.itemsize > 2 or math.frexp(1 / math.sqrt(width) if scale is None else scale)[0] in (0.5, -0.5)


def precision_of() -> str:
    """What float32 factors may be cut to, by torch's setting."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


class TiledQK:
    """The correct one; specimens override what they get wrong."""

    kernel: Any = qk_kernel
    blocks = (16, 16, 16)
    fold = False
    double = False
    precision = ""
    flaw = ""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        scale: float | None = None,
        causal: bool = False,
        q_offset: int = 0,
        out_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """The contract of ``rope_qk``."""
        cos, sin, dtype = checked(q, k, cos, sin, q_offset)
        (batch, heads, rows, width), keys = q.shape, k.shape[2]
        out = torch.empty((batch, heads, rows, keys), dtype=out_dtype or dtype, device=q.device)
        dot = torch.float64 if self.double else dtype
        work = tl.float64 if dot == torch.float64 else tl.float32
        m, n, d = self.blocks
        grid = (triton.cdiv(rows, m) * triton.cdiv(keys, n), batch * heads)
        if out.numel():
            self.kernel[grid](
                q, k, cos, sin, out, heads, heads // k.shape[1], rows, keys, width // 2, q_offset,
                1 / math.sqrt(width) if scale is None else float(scale),
                *q.stride(), *k.stride(), *cos.stride(), *sin.stride(),
                DOT=TYPES[dot], WORK=work, CAUSAL=causal, PRECISION=self.precision or precision_of(),
                FOLD=self.fold and may_fold(scale, width, dot), FLAW=self.flaw, BLOCK_M=m, BLOCK_N=n, BLOCK_D=d,
            )  # fmt: skip
        return out


class Folded(TiledQK):
    """Scale is multiplied into q before q is rounded, where that costs nothing; other tiles."""

    fold, blocks = True, (32, 64, 32)


class Double(TiledQK):
    """Everything in float64."""

    double, blocks = True, (64, 16, 16)


class Twin:
    """Plain PyTorch."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        scale: float | None = None,
        causal: bool = False,
        q_offset: int = 0,
        out_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """The contract of ``rope_qk``."""
        scores = twin_scores(q, k, cos, sin, scale, q_offset)
        dtype = checked(q, k, cos, sin, q_offset)[2]
        if causal:
            i = q_offset + torch.arange(q.shape[2], device=q.device)[:, None]
            scores = scores.masked_fill(torch.arange(k.shape[2], device=q.device)[None, :] > i, -math.inf)
        return scores.to(out_dtype or dtype)


def twin_scores(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float | None, q_offset: int
) -> torch.Tensor:
    """Scores (B, Hq, Sq, Sk), not masked, in float32 or float64; grouped heads are multiplied as one batch."""
    cos, sin, dtype = checked(q, k, cos, sin, q_offset)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    turned = []
    for x, first in ((q, q_offset), (k, 0)):
        c, s = cos[first : first + x.shape[2]], sin[first : first + x.shape[2]]
        x1, x2 = x.chunk(2, dim=-1)
        turned.append(torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], dim=-1).to(work))
    batch, heads_k, keys, width = k.shape
    group = q.shape[1] // heads_k if heads_k else 1
    grouped = turned[0].reshape(batch, heads_k, group, q.shape[2], width)
    found = torch.einsum("bhgid,bhjd->bhgij", grouped, turned[1])
    return found.reshape(batch, q.shape[1], q.shape[2], keys) * (1 / math.sqrt(width) if scale is None else scale)


ModelNew = TiledQK
