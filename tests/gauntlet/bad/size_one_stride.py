"""Rows are placed by the stride of the sequence; with S = 1 that stride means nothing (Liger-Kernel 0.8.5)."""

import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def fused_rope_qk_kernel(
    q_ptr, q2_ptr, k_ptr, k2_ptr, cos_ptr, sin_ptr, oq_ptr, ok_ptr,
    rows_q, rows_k, HQ, HK, S, HALF,
    qb, qh, qs, qd, step, kb, kh, ks, kd, cs, cd, ss, sd,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    pos = row % S
    hq, bq = (row // S) % HQ, row // (S * HQ)
    hk, bk = (row // S) % HK, row // (S * HK)
    for d0 in range(0, HALF, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        in_q = (row < rows_q) & (d < HALF)
        in_k = (row < rows_k) & (d < HALF)
        c = tl.load(cos_ptr + pos * cs + d * cd, mask=d < HALF, other=0.0)
        s = tl.load(sin_ptr + pos * ss + d * sd, mask=d < HALF, other=0.0)

        q_at = bq * qb + hq * qh + pos * qs + d * qd
        if step > 0:
            q_at = row * step + d * qd
        a1 = tl.load(q_ptr + q_at, mask=in_q, other=0.0).to(oq_ptr.dtype.element_ty)
        a2 = tl.load(q2_ptr + q_at, mask=in_q, other=0.0).to(oq_ptr.dtype.element_ty)
        cq, sq = c.to(oq_ptr.dtype.element_ty), s.to(oq_ptr.dtype.element_ty)
        tl.store(oq_ptr + row * 2 * HALF + d, a1 * cq - a2 * sq, mask=in_q)
        tl.store(oq_ptr + row * 2 * HALF + HALF + d, a2 * cq + a1 * sq, mask=in_q)

        k_at = bk * kb + hk * kh + pos * ks + d * kd
        b1 = tl.load(k_ptr + k_at, mask=in_k, other=0.0).to(ok_ptr.dtype.element_ty)
        b2 = tl.load(k2_ptr + k_at, mask=in_k, other=0.0).to(ok_ptr.dtype.element_ty)
        ck, sk = c.to(ok_ptr.dtype.element_ty), s.to(ok_ptr.dtype.element_ty)
        tl.store(ok_ptr + row * 2 * HALF + d, b1 * ck - b2 * sk, mask=in_k)
        tl.store(ok_ptr + row * 2 * HALF + HALF + d, b2 * ck + b1 * sk, mask=in_k)


def fused_rope_qk(q, k, cos, sin):
    half = q.shape[-1] // 2
    S, HALF = torch.broadcast_shapes(q.shape[2:3] + (half,), k.shape[2:3] + (half,), cos.shape, sin.shape)
    q1, q2 = (t.expand(-1, -1, S, HALF) for t in (q[..., :half], q[..., half:]))
    step = q.stride(2) if q.is_contiguous() and HALF == half and S == q.shape[2] else 0
    k1, k2 = (t.expand(-1, -1, S, HALF) for t in (k[..., :half], k[..., half:]))
    c, s = cos.expand(S, HALF), sin.expand(S, HALF)
    tables = torch.promote_types(cos.dtype, sin.dtype)
    out_q = torch.empty(*q1.shape[:3], 2 * HALF, dtype=torch.promote_types(q.dtype, tables), device=q.device)
    out_k = torch.empty(*k1.shape[:3], 2 * HALF, dtype=torch.promote_types(k.dtype, tables), device=k.device)
    rows_q, rows_k = (t.shape[0] * t.shape[1] * S for t in (q, k))
    if max(out_q.numel(), out_k.numel()) > 0:
        fused_rope_qk_kernel[(max(rows_q, rows_k),)](
            q1, q2, k1, k2, c, s, out_q, out_k,
            rows_q, rows_k, max(q.shape[1], 1), max(k.shape[1], 1), S, HALF,
            *q1.stride(), step, *k1.stride(), *c.stride(), *s.stride(),
            BLOCK=32,
        )
    return out_q, out_k


class ModelNew(nn.Module):
    def forward(self, q, k, cos, sin):
        cos, sin = cos[: q.size(2)], sin[: q.size(2)]
        if q.size(3) != k.size(3) or q.size(3) % 2:
            raise ValueError("q and k must share an even head_dim")
        if q.size(2) == k.size(2):
            out_q, out_k = fused_rope_qk(q, k, cos, sin)
        else:  # one of them spreads along the sequence, the other does not
            out_q, out_k = fused_rope_qk(q, q, cos, sin)[0], fused_rope_qk(k, k, cos, sin)[0]
        return out_q, out_k, cos, sin
