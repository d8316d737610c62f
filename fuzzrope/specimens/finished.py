"""The correct tiled RoPE once more, the arithmetic of a tile left to a device function that specimens replace.

No flaw: :func:`wide` is what :mod:`.tiled` does. ``FINISH(x1, x2, cos, sin, DTYPE)`` gets operands as
loaded and the dtype of the result, and gives both halves, in any float dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fuzzrope.specimens.tiled import TiledRope, launch, new_output


@triton.jit
def wide(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """Everything in float32, or float64 if the result is; rounded once on storing."""
    if DTYPE == tl.float64:
        x1, x2, cos, sin = x1.to(tl.float64), x2.to(tl.float64), cos.to(tl.float64), sin.to(tl.float64)
    else:
        x1, x2, cos, sin = x1.to(tl.float32), x2.to(tl.float32), cos.to(tl.float32), sin.to(tl.float32)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit
def contracted(x1, x2, cos, sin, DTYPE: tl.constexpr):
    """Products rounded to the result's dtype where that is narrow, else one product kept exact."""
    x1, x2, cos, sin = x1.to(DTYPE), x2.to(DTYPE), cos.to(DTYPE), sin.to(DTYPE)
    if (DTYPE == tl.float64) | (DTYPE == tl.float32):
        y1, y2 = tl.fma(x1, cos, x2 * sin * -1.0), tl.fma(x2, cos, x1 * sin)
    else:
        y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    return y1, y2


@triton.jit
def rotate_tile(
    x1_ptr, x2_ptr, cos_ptr, sin_ptr, out1_ptr, out2_ptr, rows, heads, seq, width,
    x1_b, x1_h, x1_s, x1_d, x2_b, x2_h, x2_s, x2_d, cos_s, cos_d, sin_s, sin_d,
    out1_b, out1_h, out1_s, out1_d, out2_b, out2_h, out2_s, out2_d,
    DOUBLE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, FINISH: tl.constexpr,
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
        out1, out2 = FINISH(x1, x2, cos, sin, out1_ptr.dtype.element_ty)
        tl.store(out1_ptr + b * out1_b + h * out1_h + s * out1_s + d * out1_d, out1, mask=mask)
        tl.store(out2_ptr + b * out2_b + h * out2_h + s * out2_s + d * out2_d, out2, mask=mask)


class FinishedRope(TiledRope):
    """The correct module; specimens override ``finish``."""

    finish: Any = wide

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotated x (B, H, S, D) in fresh memory."""
        out = new_output(x, cos, sin)
        launch(rotate_tile, x, cos, sin, out, FINISH=self.chosen(x))
        return out

    def chosen(self, x: torch.Tensor) -> Any:
        """The device function for rotating x."""
        return self.finish
