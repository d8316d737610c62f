"""Fused attention forward, as in Triton's tutorial 06 (FlashAttention-2), causal and not."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.dots import EPS
from tests.zoo.formats import FP16, FP32, values_of
from tests.zoo.values import normals

BLOCK_M, BLOCK_N = 32, 16
LOG2E = 1.44269504


@triton.jit
def inner(acc, l_i, m_i, q, k_ptr, v_ptr, at, scale, low, high, i, j, STRIDE: tl.constexpr, CAUSAL: tl.constexpr,
          BLOCK_N: tl.constexpr):  # fmt: skip
    """Blocks of keys from low to high; the mask is needed on the diagonal alone."""
    for start in range(low, high, BLOCK_N):
        start = tl.multiple_of(start, BLOCK_N)
        k = tl.load(k_ptr + start * STRIDE + at)
        qk = tl.dot(q, tl.trans(k)) * scale
        if CAUSAL:
            qk = tl.where(i[:, None] >= (start + j[None, :]), qk, -1.0e6)
        m_new = tl.maximum(m_i, tl.max(qk, 1))
        p = tl.math.exp2(qk - m_new[:, None])
        alpha = tl.math.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        v = tl.load(v_ptr + start * STRIDE + at)
        acc = tl.dot(p.to(tl.float16), v, acc * alpha[:, None])
        m_i = m_new
    return acc, l_i, m_i


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, scale, seq,
    HEAD: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1) * seq * HEAD
    i = begin + tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_N)
    d = tl.arange(0, HEAD)
    q = tl.load(q_ptr + head + i[:, None] * HEAD + d[None, :])
    acc = tl.zeros([BLOCK_M, HEAD], dtype=tl.float32)
    m_i = tl.zeros([BLOCK_M], dtype=tl.float32) - float("inf")
    l_i = tl.zeros([BLOCK_M], dtype=tl.float32)
    at = j[:, None] * HEAD + d[None, :]
    scale *= 1.44269504  # 1 / log(2)
    k_ptr += head
    v_ptr += head
    if CAUSAL:
        acc, l_i, m_i = inner(acc, l_i, m_i, q, k_ptr, v_ptr, at, scale, 0, begin, i, j, HEAD, False, BLOCK_N)
        acc, l_i, m_i = inner(
            acc, l_i, m_i, q, k_ptr, v_ptr, at, scale, begin, begin + BLOCK_M, i, j, HEAD, True, BLOCK_N
        )
    else:
        acc, l_i, m_i = inner(acc, l_i, m_i, q, k_ptr, v_ptr, at, scale, 0, seq, i, j, HEAD, False, BLOCK_N)
    tl.store(lse_ptr + tl.program_id(1) * seq + i, m_i + tl.math.log2(l_i))
    tl.store(out_ptr + head + i[:, None] * HEAD + d[None, :], (acc / l_i[:, None]).to(tl.float16))


def launch(causal, q, k, v):
    heads, seq, head = q.shape
    out = {"out": torch.empty_like(q), "lse": torch.empty((heads, seq), device=q.device)}
    attention_kernel[(seq // BLOCK_M, heads)](
        q, k, v, *out.values(), head**-0.5, seq, HEAD=head, CAUSAL=causal, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N
    )
    return out


def weights(causal, q, k):
    """Scores in units of log(2), and what the softmax makes of them."""
    s = values_of(q) @ values_of(k).transpose(0, 2, 1) * (q.shape[2] ** -0.5 * LOG2E)
    if causal:
        s = np.where(np.tri(q.shape[1], dtype=bool), s, -np.inf)
    top = s.max(2, keepdims=True)
    p = np.exp2(s - top)
    return s, p / p.sum(2, keepdims=True), (top + np.log2(p.sum(2, keepdims=True)))[..., 0]


def truth(causal, q, k, v):
    _, p, lse = weights(causal, q, k)
    return {"out": p @ values_of(v), "lse": lse}


def bound(causal, q, k, v):
    """Each step to first order; numbers are those of a row, the worst of its scores standing for all.

    A score errs by its product (``dots``) and by scaling and subtracting, 4 u of the largest twice. exp2 turns
    that into a relative error, and adds 2 ulp of its own. Each of the blocks rescales sum and accumulator once
    more by such an exp2. The sum adds in any order. Weights are rounded to float16, absolutely where they are
    subnormal; the second product is like the first; the division has 2 ulp, and the output is rounded to float16.
    """
    u, eps, (_, seq, head) = FP32.unit, EPS[torch.float32], q.shape
    s, p, lse = weights(causal, q, k)
    sizes = np.abs(values_of(q)) @ np.abs(values_of(k)).transpose(0, 2, 1) * (head**-0.5 * LOG2E)
    top = np.where(np.isfinite(s), np.abs(s), 0).max(2, keepdims=True)
    score = 2 * head * eps * sizes.max(2, keepdims=True) + 8 * u * top
    exp = np.log(2) * 2 * score + 4 * u
    relative = 2 * exp + 2 * (seq // BLOCK_N) * (4 * u + u) + (seq + 8) * u
    size = p @ np.abs(values_of(v))
    out = (relative + 2 * seq * eps + FP16.unit) * size + FP16.smallest / 2 * np.abs(values_of(v)).sum(1)[:, None, :]
    out = out + FP16.unit * (np.abs(p @ values_of(v)) + out) + FP16.smallest / 2
    return {
        "out": 1.1 * out,
        "lse": 1.1 * (2 * score[..., 0] + relative[..., 0] / np.log(2) + 6 * u * (np.abs(lse) + 8)),
    }


def inputs():
    return {name: normals(torch.float16, (2, 64, 32), 270 + i) for i, name in enumerate("qkv")}


ENTRIES = tuple(
    Entry(f"attention-{name}", "dot", inputs, partial(launch, causal), partial(truth, causal), partial(bound, causal))
    for name, causal in (("full", False), ("causal", True))
)
