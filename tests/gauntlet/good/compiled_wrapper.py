"""torch.compile around wrappers that launch a kernel, as a decorator and of a module."""

import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def rotate_kernel(x1_ptr, x2_ptr, c_ptr, s_ptr, y1_ptr, y2_ptr, n, BLOCK: tl.constexpr):
    idx = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = idx < n
    acc = y1_ptr.dtype.element_ty
    x1 = tl.load(x1_ptr + idx, mask=mask).to(acc)
    x2 = tl.load(x2_ptr + idx, mask=mask).to(acc)
    c = tl.load(c_ptr + idx, mask=mask).to(acc)
    s = tl.load(s_ptr + idx, mask=mask).to(acc)
    tl.store(y1_ptr + idx, x1 * c - x2 * s, mask=mask)
    tl.store(y2_ptr + idx, x2 * c + x1 * s, mask=mask)


@torch.compile(dynamic=True)
def rope_one(x, cos, sin):
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    x1, x2, c, s = [t.contiguous() for t in torch.broadcast_tensors(x1, x2, cos, sin)]
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype)
    y1 = torch.empty(x1.shape, dtype=dtype, device=x.device)
    y2 = torch.empty_like(y1)
    n = y1.numel()
    if n:
        rotate_kernel[(triton.cdiv(n, 256),)](x1, x2, c, s, y1, y2, n, BLOCK=256)
    return torch.cat([y1, y2], dim=-1)


class Rope(nn.Module):
    def forward(self, q, k, cos, sin):
        return rope_one(q, cos, sin), rope_one(k, cos, sin)


class ModelNew(nn.Module):
    def __init__(self):
        super(ModelNew, self).__init__()
        self.rope = torch.compile(Rope(), mode="max-autotune-no-cudagraphs")

    def forward(self, q, k, cos, sin):
        cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
        return (*self.rope(q, k, cos, sin), cos, sin)
