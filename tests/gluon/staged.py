"""RoPE in Gluon: rows are read in one layout, pass through shared memory, and are rotated and written in another."""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def staged_kernel(
    x1_ptr,
    x2_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    H,
    S,
    HALF,
    x_b,
    x_h,
    x_s,
    x_d,
    cos_s,
    cos_d,
    sin_s,
    sin_d,
    o_b,
    o_h,
    o_s,
    o_d,
    ACC: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
):
    tall: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [4, 1], [1, 0])
    wide: gl.constexpr = gl.BlockedLayout([1, 1], [4, 8], [1, 4], [1, 0])
    shared: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    tiles = gl.cdiv(S, ROWS)
    flat = gl.program_id(0)
    head = (flat // tiles).to(gl.int64)
    b = head // H
    h = head % H
    start = (flat % tiles).to(gl.int64) * ROWS
    rows = (start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, tall)))[:, None]
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, tall))[None, :]
    mask = (rows < S) & (cols < HALF)
    at = b * x_b + h * x_h + rows * x_s + cols * x_d
    stage = gl.allocate_shared_memory(ACC, [2, ROWS, COLUMNS], shared)
    stage.index(0).store(gl.load(x1_ptr + at, mask=mask, other=0.0).to(ACC))
    stage.index(1).store(gl.load(x2_ptr + at, mask=mask, other=0.0).to(ACC))
    rows = (start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, wide)))[:, None]
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, wide))[None, :]
    mask = (rows < S) & (cols < HALF)
    cos = gl.load(cos_ptr + rows * cos_s + cols * cos_d, mask=mask, other=0.0).to(ACC)
    sin = gl.load(sin_ptr + rows * sin_s + cols * sin_d, mask=mask, other=0.0).to(ACC)
    x1 = stage.index(0).load(wide)
    x2 = stage.index(1).load(wide)
    at = b * o_b + h * o_h + rows * o_s + cols * o_d
    gl.store(out_ptr + at, (x1 * cos - x2 * sin).to(out_ptr.dtype.element_ty), mask=mask)
    gl.store(out_ptr + at + HALF * o_d, (x2 * cos + x1 * sin).to(out_ptr.dtype.element_ty), mask=mask)


def rotated(x, cos, sin):
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    shape = torch.broadcast_shapes(first.shape, second.shape, cos.shape, sin.shape)
    first, second = first.expand(shape), second.expand(shape)
    cos, sin = cos.expand(shape[-2:]), sin.expand(shape[-2:])
    B, H, S, HALF = shape
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype)
    out = torch.empty(B, H, S, 2 * HALF, dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out
    acc = gl.float64 if dtype == torch.float64 else gl.float32
    staged_kernel[(B * H * triton.cdiv(S, 32),)](
        first,
        second,
        cos,
        sin,
        out,
        H,
        S,
        HALF,
        *first.stride(),
        *cos.stride(),
        *sin.stride(),
        *out.stride(),
        ACC=acc,
        ROWS=32,
        COLUMNS=max(triton.next_power_of_2(HALF), 4),
    )
    return out


class ModelNew(torch.nn.Module):
    def forward(self, q, k, cos, sin):
        cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
        return rotated(q, cos, sin), rotated(k, cos, sin), cos, sin
