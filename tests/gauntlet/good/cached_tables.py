"""Keeps the last widened tables, and knows when they are stale: the values themselves are compared."""

import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def rope_flat_kernel(x1_ptr, x2_ptr, c_ptr, s_ptr, y1_ptr, y2_ptr, n, BLOCK: tl.constexpr):
    idx = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = idx < n
    acc = y1_ptr.dtype.element_ty
    x1 = tl.load(x1_ptr + idx, mask=mask).to(acc)
    x2 = tl.load(x2_ptr + idx, mask=mask).to(acc)
    c = tl.load(c_ptr + idx, mask=mask).to(acc)
    s = tl.load(s_ptr + idx, mask=mask).to(acc)
    tl.store(y1_ptr + idx, x1 * c - x2 * s, mask=mask)
    tl.store(y2_ptr + idx, x2 * c + x1 * s, mask=mask)


class TableCache:
    """The tables last seen in float64, with a copy of what they were made from."""

    def __init__(self):
        self.seen = self.made = None

    def get(self, cos, sin):
        new = (cos, sin)
        if self.seen is None or not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(self.seen, new)):
            self.seen = tuple(t.clone() for t in new)
            self.made = tuple(t.to(torch.float64) for t in new)
        return self.made


def rope_one(x, cos, sin, wide_cos, wide_sin):
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    x1, x2, c, s = [t.contiguous() for t in torch.broadcast_tensors(x1, x2, wide_cos, wide_sin)]
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype)
    y1 = torch.empty(x1.shape, dtype=dtype, device=x.device)
    y2 = torch.empty_like(y1)
    n = y1.numel()
    if n:
        rope_flat_kernel[(triton.cdiv(n, 256),)](x1, x2, c, s, y1, y2, n, BLOCK=256)
    return torch.cat([y1, y2], dim=-1)


class ModelNew(nn.Module):
    def __init__(self):
        super(ModelNew, self).__init__()
        self.cache = TableCache()

    def forward(self, q, k, cos, sin):
        cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
        wide = self.cache.get(cos, sin)
        return rope_one(q, cos, sin, *wide), rope_one(k, cos, sin, *wide), cos, sin
