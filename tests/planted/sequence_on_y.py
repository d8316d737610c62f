"""One program a position, along the grid's y axis: 65,535 is the most that a GPU launches there."""

import triton
import triton.language as tl
from base import Rope


@triton.jit
def rotate_rows(
    x_ptr, cos_ptr, sin_ptr, out_ptr, rows, heads, seq, half, x_b, x_h, x_s, x_d, cos_s, cos_d, sin_s, sin_d,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    h, b = tl.program_id(0).to(tl.int64) % heads, tl.program_id(0).to(tl.int64) // heads
    s = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    d = tl.arange(0, BLOCK)[None, :].to(tl.int64)
    mask = (s < seq) & (d < half)
    x = x_ptr + b * x_b + h * x_h + s * x_s + d * x_d
    out = out_ptr + (tl.program_id(0).to(tl.int64) * seq + s) * 2 * half + d
    x1 = tl.load(x, mask=mask, other=0.0)
    x2 = tl.load(x + half * x_d, mask=mask, other=0.0)
    cos = tl.load(cos_ptr + s * cos_s + d * cos_d, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + s * sin_s + d * sin_d, mask=mask, other=0.0)
    x1, x2, cos, sin = x1.to(tl.float64), x2.to(tl.float64), cos.to(tl.float64), sin.to(tl.float64)
    tl.store(out, x1 * cos - x2 * sin, mask=mask)
    tl.store(out + half, x2 * cos + x1 * sin, mask=mask)


class ModelNew(Rope):
    def launch(self, *arguments):
        rows, _, seq = arguments[4:7]
        # correct: rotate_rows[(rows // seq, triton.cdiv(seq, 64))](*arguments, 64)
        rotate_rows[(rows // seq, seq)](*arguments, 1)  # planted
