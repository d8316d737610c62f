"""A correct RoPE with gradients: what the specimens with a flawed backward depart from.

q and k are rotated back by the same kernel with the sign of sin turned; for the tables one program sums, for
one row and a block of columns, over batches and heads in order. Sums are held in float32 (float64 if the
result is); what one row or column was spread over is summed up after that.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fuzzrope.specimens.tiled import BLOCK_W, TiledRope, launch, rotate_tile

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
Gradients = tuple[Tensor | None, ...]


@triton.jit
def sum_rows(
    g1_ptr, g2_ptr, x1_ptr, x2_ptr, cos_ptr, sin_ptr, batches, heads, width,
    g_b, g_h, g_s, g_d, x_b, x_h, x_s, x_d, out_s,
    DTYPE: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program sums g1*x1 + g2*x2 and g2*x1 - g1*x2 over batches and heads."""
    s = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W).to(tl.int64)
    mask = d < width
    cos, sin = tl.zeros((BLOCK_W,), DTYPE), tl.zeros((BLOCK_W,), DTYPE)
    for bh in range(0, batches * heads):
        b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
        g_at = b * g_b + h * g_h + s * g_s + d * g_d
        x_at = b * x_b + h * x_h + s * x_s + d * x_d
        g1 = tl.load(g1_ptr + g_at, mask=mask, other=0.0).to(DTYPE)
        g2 = tl.load(g2_ptr + g_at, mask=mask, other=0.0).to(DTYPE)
        x1 = tl.load(x1_ptr + x_at, mask=mask, other=0.0).to(DTYPE)
        x2 = tl.load(x2_ptr + x_at, mask=mask, other=0.0).to(DTYPE)
        cos += g1 * x1 + g2 * x2
        sin += g2 * x1 - g1 * x2
    tl.store(cos_ptr + s * out_s + d, cos, mask=mask)
    tl.store(sin_ptr + s * out_s + d, sin, mask=mask)


class Rotations(torch.autograd.Function):
    """q and k rotated by tables that are cut already, with the gradients that ``steps`` works out."""

    @staticmethod
    def forward(ctx: Any, steps: DifferentiableRope, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
        """Fresh memory."""
        ctx.steps = steps
        ctx.save_for_backward(q, k, cos, sin)
        ctx.set_materialize_grads(False)
        return steps.rotate(q, cos, sin), steps.rotate(k, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, cos and sin, those that are asked for."""
        return (None, *ctx.steps.back(gradients, ctx.saved_tensors, ctx.needs_input_grad[1:]))


class DifferentiableRope(TiledRope):
    """The correct module; specimens override what they get wrong."""

    def back(self, gradients: Gradients, saved: tuple[Tensor, ...], needs: tuple[bool, ...]) -> Gradients:
        """Gradients of q, k, cos and sin, from those of the rotated q and k."""
        *inputs, cos, sin = saved
        used = [(g, x) for g, x in zip(gradients, inputs, strict=True) if g is not None]
        found = [
            self.back_x(g, x, cos, sin) if g is not None and need else None
            for g, x, need in zip(gradients, inputs, needs[:2], strict=True)
        ]
        if not used or not any(needs[2:]):
            return *found, None, None
        sums = [self.back_tables(g, x, cos, sin) for g, x in used]
        dcos, dsin = (sum(parts) for parts in zip(*sums, strict=True))
        return *found, dcos.to(cos.dtype), dsin.to(sin.dtype)

    def back_x(self, g: Tensor, x: Tensor, cos: Tensor, sin: Tensor, **changes: int) -> Tensor:
        """The gradient of x: g rotated back, summed over what x was spread over; ``changes`` go to the launch."""
        wide = torch.empty(g.shape, dtype=wide_type(g), device=g.device)
        launch(rotate_tile, g, cos, -sin, wide, **changes)
        halves, width = (*x.shape[:3], x.shape[3] // 2), g.shape[3] // 2
        parts = (wide[..., :width], wide[..., width:])
        return torch.cat([part.sum_to_size(halves) for part in parts], dim=3).to(x.dtype)

    def back_tables(self, g: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> Pair:
        """What one output adds to the gradients of cos and sin, not rounded yet."""
        batches, heads, rows, width = *g.shape[:3], g.shape[3] // 2
        half = x.shape[3] // 2
        x1, x2 = (part.expand(batches, heads, rows, width) for part in (x[..., :half], x[..., half:]))
        sums = torch.empty((2, rows, width), dtype=wide_type(g), device=g.device)
        if sums.numel():
            sum_rows[(rows, triton.cdiv(width, BLOCK_W))](
                g[..., :width], g[..., width:], x1, x2, sums[0], sums[1], batches, heads, width,
                *g.stride(), *x1.stride(), sums.stride(1),
                DTYPE=tl.float64 if sums.dtype == torch.float64 else tl.float32, BLOCK_W=BLOCK_W,
            )  # fmt: skip
        return sums[0].sum_to_size(cos.shape), sums[1].sum_to_size(sin.shape)

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The contract of ``rope``, gradients included."""
        cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
        return *Rotations.apply(self, q, k, cos, sin), cos, sin


def wide_type(x: Tensor) -> torch.dtype:
    """What sums are held in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


ModelNew = DifferentiableRope
