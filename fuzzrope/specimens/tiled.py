"""A correct tiled RoPE: what the specimens depart from.

Both halves, both tables and both output halves come as views expanded to one shape (B, H, S, W), so every
broadcast is a stride of 0. It computes in float32 (float64 if the result is) and rounds once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

BLOCK_R, BLOCK_W = 16, 16


@triton.jit
def rotate_tile(
    x1_ptr, x2_ptr, cos_ptr, sin_ptr, out1_ptr, out2_ptr, rows, heads, seq, width,
    x1_b, x1_h, x1_s, x1_d, x2_b, x2_h, x2_s, x2_d, cos_s, cos_d, sin_s, sin_d,
    out1_b, out1_h, out1_s, out1_d, out2_b, out2_h, out2_s, out2_d,
    DOUBLE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program rotates BLOCK_R rows, BLOCK_W columns at a time."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    s, h, b = row % seq, (row // seq) % heads, row // (seq * heads)
    for start in range(0, width, BLOCK_W):
        d = start + tl.arange(0, BLOCK_W)[None, :]
        mask = (row < rows) & (d < width)
        x1 = tl.load(x1_ptr + b * x1_b + h * x1_h + s * x1_s + d * x1_d, mask=mask, other=0.0)
        x2 = tl.load(x2_ptr + b * x2_b + h * x2_h + s * x2_s + d * x2_d, mask=mask, other=0.0)
        cos = tl.load(cos_ptr + s * cos_s + d * cos_d, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + s * sin_s + d * sin_d, mask=mask, other=0.0)
        if DOUBLE:
            x1, x2, cos, sin = x1.to(tl.float64), x2.to(tl.float64), cos.to(tl.float64), sin.to(tl.float64)
        else:
            x1, x2, cos, sin = x1.to(tl.float32), x2.to(tl.float32), cos.to(tl.float32), sin.to(tl.float32)
        out1, out2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
        tl.store(out1_ptr + b * out1_b + h * out1_h + s * out1_s + d * out1_d, out1, mask=mask)
        tl.store(out2_ptr + b * out2_b + h * out2_h + s * out2_s + d * out2_d, out2, mask=mask)


def new_output(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Fresh contiguous memory of the shape and dtype of rotated x (B, H, S, D)."""
    half = (*x.shape[:3], x.shape[3] // 2)
    shape = torch.broadcast_shapes(half, cos.shape, sin.shape)
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype)
    return torch.empty((*shape[:3], 2 * shape[3]), dtype=dtype, device=x.device)


def launch(
    kernel: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, **changes: int
) -> None:
    """Launch ``kernel`` on the halves of x (B, H, S, D), tables (R, W) and the halves of out.

    ``changes`` overrides arguments by name.
    """
    shape = (*out.shape[:3], out.shape[3] // 2)
    half = x.shape[3] // 2
    x1, x2 = x[..., :half].expand(shape), x[..., half:].expand(shape)
    c, s = cos.expand(shape[2:]), sin.expand(shape[2:])
    out1, out2 = out[..., : shape[3]], out[..., shape[3] :]
    rows = shape[0] * shape[1] * shape[2]
    arguments: dict[str, Any] = {"rows": rows, "heads": shape[1], "seq": shape[2], "width": shape[3]}
    for name, view in (("x1", x1), ("x2", x2), ("out1", out1), ("out2", out2)):
        arguments[f"{name}_ptr"] = view
        arguments |= {f"{name}_{dim}": view.stride(i) for i, dim in enumerate("bhsd")}
    for name, view in (("cos", c), ("sin", s)):
        arguments[f"{name}_ptr"] = view
        arguments |= {f"{name}_{dim}": view.stride(i) for i, dim in enumerate("sd")}
    arguments["DOUBLE"] = out.dtype == torch.float64
    if rows and shape[3]:
        grid = (triton.cdiv(rows, BLOCK_R),)
        kernel[grid](**{**arguments, **changes}, BLOCK_R=BLOCK_R, BLOCK_W=BLOCK_W)


class TiledRope(nn.Module):
    """The correct module; specimens override what they get wrong."""

    kernel: Any = rotate_tile

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x (B, H, S, D) in fresh memory."""
        out = new_output(x, cos, sin)
        launch(self.kernel, x, cos, sin, out)
        return out

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The contract of ``rope``."""
        cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin), cos, sin


ModelNew = TiledRope
