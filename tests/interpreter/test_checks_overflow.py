"""Index arithmetic that leaves 32 bits: on purpose, unused, or by mistake.

Long because every case is a kernel of its own, right and wrong ones beside each other.
"""

import pytest
import torch
import triton
import triton.language as tl

from fuzzrope.interpreter.program import Program
from tests.interpreter.checks import Cases, S, big, blank, f32

case = Cases()


@triton.jit
def wrap_all(x, o, rows, stride, n, B: tl.constexpr, WIDE: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    r = pid.to(tl.int64) if WIDE else pid
    m = (i < n) & (pid < rows)
    tl.store(o + pid * n + i, tl.load(x + r * stride + i, mask=m, other=0.0), mask=m)


@case()
def wrap_masked():
    wrap_all[(4,)](big(2, S), blank(8), 2, S, 4, B=4, WIDE=False)


@case("overflow", "out_of_bounds")
def wrap_active():
    wrap_all[(4,)](big(4, S), blank(16), 4, S, 4, B=4, WIDE=False)


@case()
def wrap_wide():
    wrap_all[(4,)](big(4, S), blank(16), 4, S, 4, B=4, WIDE=True)


@triton.jit
def wrap_if(x, o, rows, stride, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    off = pid * stride
    if pid < rows:
        tl.store(o + pid * n + i, tl.load(x + off + i))


@case()
def wrap_branch_not_taken():
    wrap_if[(4,)](big(2, S), blank(8), 2, S, 4, B=4)


@case("overflow", "out_of_bounds")
def wrap_branch_taken():
    wrap_if[(4,)](big(3, S), blank(12), 3, S, 4, B=4)


@triton.jit
def wrap_ret(x, o, rows, stride, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    off = pid * stride
    if pid >= rows:
        return
    tl.store(o + pid * n + i, tl.load(x + off + i))


@case()
def wrap_early_return():
    wrap_ret[(4,)](big(2, S), blank(8), 2, S, 4, B=4)


@case("overflow", "out_of_bounds")
def wrap_early_return_taken():
    wrap_ret[(4,)](big(3, S), blank(12), 3, S, 4, B=4)


@triton.jit
def wrap_loop(x, o, rows, stride, n, B: tl.constexpr):
    i = tl.arange(0, B)
    off = tl.full((), 0, tl.int32)
    for r in range(0, rows):
        tl.store(o + r * n + i, tl.load(x + off + i))
        off += stride


@case("overflow", "out_of_bounds")
def wrap_loop_used():
    wrap_loop[(1,)](big(4, S), blank(16), 4, S, 4, B=4)


@triton.jit
def ptr_loop(x, o, rows, stride, n, B: tl.constexpr):
    p = x + tl.arange(0, B)
    for r in range(0, rows):
        tl.store(o + r * n + tl.arange(0, B), tl.load(p))
        p += stride


@case()
def pointer_bump():
    ptr_loop[(1,)](big(4, S), blank(16), 4, S, 4, B=4)


@triton.jit
def hash_addr1(x, o, n, M: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    j = (i * -1640531535 + 12345) & (M - 1)
    tl.store(o + i, tl.load(x + j, mask=i < n, other=0.0), mask=i < n)


@case()
def hash_masked_plain():
    hash_addr1[(4,)](f32(64), blank(30), 30, M=64, B=8)


@triton.jit
def lcg_mod(x, o, n, M, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    j = (i * 1103515245 + 12345) % M
    j = tl.where(j < 0, j + M, j)
    tl.store(o + i, tl.load(x + j, mask=i < n, other=0.0), mask=i < n)


@case()
def lcg_signed_modulo():
    lcg_mod[(4,)](f32(60), blank(30), 30, 60, B=8)


@triton.jit
def lcg_abs(x, o, n, M, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    j = tl.abs(i * 1103515245 + 12345) % M
    tl.store(o + i, tl.load(x + j, mask=i < n, other=0.0), mask=i < n)


@case()
def lcg_abs_modulo():
    lcg_abs[(4,)](f32(60), blank(30), 30, 60, B=8)


@triton.jit
def lcg_shift(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    j = ((i * 1103515245 + 12345) >> 16) & 63
    tl.store(o + i, tl.load(x + j, mask=i < n, other=0.0), mask=i < n)


@case()
def lcg_shifted():
    lcg_shift[(4,)](f32(64), blank(30), 30, B=8)


@triton.jit
def hash_val(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, i * -1640531535 * 97 + tl.load(x + i, mask=i < n, other=0), mask=i < n)


@case()
def hash_values():
    hash_val[(4,)](torch.arange(30, dtype=torch.int32, device="cuda"), blank(30, dtype=torch.int32), 30, B=8)


@triton.jit
def rnd(x, o, n, seed, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    r = tl.rand(seed, i)
    j = (tl.randint(seed, i) % 60).to(tl.int32)
    tl.store(o + i, tl.load(x + tl.abs(j), mask=i < n, other=0.0) * (r > 0.5), mask=i < n)


@case()
def philox():
    rnd[(4,)](f32(60), blank(30), 30, 123, B=8)


@triton.jit
def uadd(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B).to(tl.uint32)
    j = i - 3
    tl.store(o + i, tl.load(x + j, mask=i >= 3, other=0.0))


@case()
def unsigned_below_zero_masked():
    uadd[(1,)](f32(16), blank(16), 16, B=16)


@triton.jit
def rev(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(x + (n - 1) - i, mask=i < n), mask=i < n)
    tl.store(o + (i - B) + B, tl.load(x + n - 1 - i, mask=i < n), mask=i < n)


@case()
def negative_steps():
    rev[(1,)](f32(13), blank(13), 13, B=16)


@triton.jit
def uns32(x, o, rows, stride, n, B: tl.constexpr):
    pid = tl.program_id(0).to(tl.uint32)
    i = tl.arange(0, B)
    off = pid * stride.to(tl.uint32)
    tl.store(o + pid * n + i, tl.load(x + off + i.to(tl.uint32)))


@case()
def unsigned_up_to_2_32():
    uns32[(4,)](big(4, S), blank(16), 4, S, 4, B=4)


@triton.jit
def div_mod(x, o, rows, seq, sh, ss, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    h = pid // seq
    s = pid % seq
    tl.store(
        o + pid * n + i, tl.load(x + h * sh + s * ss + i, mask=(i < n) & (pid < rows)), mask=(i < n) & (pid < rows)
    )


@case()
def just_below():
    x = torch.as_strided(big(2, 2**31 - 64, 16)[0:1], (2, 2, 4), (2**31 - 64, 8, 1))
    div_mod[(4,)](x, blank(16), 4, 2, 2**31 - 64, 8, 4, B=4)


@case()
def just_below_masked():
    x = torch.as_strided(big(2, 2**31 - 64, 16)[0:1], (2, 2, 4), (2**31 - 64, 8, 1))
    div_mod[(8,)](x, blank(16), 4, 2, 2**31 - 64, 8, 4, B=4)


@triton.jit
def func(off, stride):
    return off * stride


@triton.jit(noinline=True)
def func2(off, stride):
    return off * stride


@triton.jit
def call_k(x, o, rows, stride, n, B: tl.constexpr, NI: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    off = func2(pid, stride) if NI else func(pid, stride)
    m = (i < n) & (pid < rows)
    tl.store(o + pid * n + i, tl.load(x + off + i, mask=m, other=0.0), mask=m)


@case("overflow", "out_of_bounds")
def wrap_in_function_ni():
    call_k[(4,)](big(4, S), blank(16), 4, S, 4, B=4, NI=True)


@triton.jit
def idx_load(x, t, o, stride, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    r = tl.load(t + pid)
    tl.store(o + pid * n + i, tl.load(x + r * stride + i))


@case("overflow", "out_of_bounds")
def wrap_from_loaded_index():
    idx_load[(2,)](big(4, S), torch.tensor([0, 3], dtype=torch.int32, device="cuda"), blank(8), S, 4, B=4)


@case()
def loaded_index_64():
    idx_load[(2,)](big(4, S), torch.tensor([0, 3], device="cuda"), blank(8), S, 4, B=4)


@triton.jit
def ptr32(x, o, rows, stride, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    p = x + pid * stride
    q = p if pid < rows else x
    tl.store(o + pid * n + i, tl.load(q + i), mask=pid < rows)


@case()
def wrapped_then_select():
    ptr32[(4,)](big(2, S), blank(8), 2, S, 4, B=4)


@triton.jit
def wrap_loop2(x, o, rows, stride, n, B: tl.constexpr):
    i = tl.arange(0, B)
    for r in range(0, rows):
        tl.store(o + r * n + i, tl.load(x + r * stride + i))


@case("overflow", "out_of_bounds")
def wrap_loop_counter():
    wrap_loop2[(1,)](big(4, S), blank(16), 4, S, 4, B=4)


@case()
def wrap_loop_counter_fits():
    wrap_loop2[(1,)](big(2, S), blank(8), 2, S, 4, B=4)


@triton.jit
def wrap_uni(x, o, rows, stride, n, B: tl.constexpr):
    for r in range(0, rows):
        tl.store(o + r, tl.load(x + r * stride))


@case("overflow", "out_of_bounds")
def wrap_uniform():
    wrap_uni[(1,)](big(4, S), blank(16), 4, S, 4, B=4)


@triton.jit
def wrap_at(x, rows, stride):
    for r in range(0, rows):
        tl.atomic_add(x + r * stride, 1.0)


@case("overflow", "out_of_bounds")
def wrap_uniform_atomic():
    wrap_at[(1,)](big(4, S), 4, S)


@triton.jit
def wrap_branch(x, o, rows, stride, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    off = pid * stride if pid % 2 == 0 else pid
    tl.store(o + pid * n + i, tl.load(x + off + i, mask=pid != 1))


@case("overflow", "out_of_bounds")
def wrap_in_divergent_branch():
    wrap_branch[(4,)](big(4, S), blank(16), 4, S, 4, B=4)


@triton.jit
def wrap_div_loop(x, o, stride, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    off = 0
    p = x
    for _r in range(0, pid):
        off += stride
        p += stride
    tl.store(o + pid * n + i, tl.load(x + off + i) + tl.load(p + i))


@case("overflow", "out_of_bounds")
def wrap_divergent_loop():
    wrap_div_loop[(4,)](big(4, S), blank(16), S, 4, B=4)


@triton.jit
def wrap_while(x, o, k, stride, n, B: tl.constexpr):
    i = tl.arange(0, B)
    off = 0
    r = 0
    while r < k:
        off += stride
        r += 1
    tl.store(o + i, tl.load(x + off + i))


@case("overflow", "out_of_bounds")
def wrap_while_uniform():
    wrap_while[(1,)](big(4, S), blank(4), 3, S, 4, B=4)


@triton.jit
def wrap_2d(x, o, M, N, sm, sn, BM: tl.constexpr, BN: tl.constexpr):
    m = tl.arange(0, BM)[:, None]
    n = tl.arange(0, BN)[None, :]
    k = (m < M) & (n < N)
    tl.store(o + m * N + n, tl.load(x + m * sm + n * sn, mask=k), mask=k)


@case("overflow", "out_of_bounds")
def wrap_2d_lanes():
    wrap_2d[(1,)](big(3, S), blank(12), 3, 4, S, 1, BM=4, BN=4)


@triton.jit
def wrap_neg(x, o, M, sm, BM: tl.constexpr):
    m = tl.arange(0, BM)
    tl.store(o + m, tl.load(x + (M - 1) * sm.to(tl.int64) - m * sm, mask=m < M), mask=m < M)


@case("overflow", "out_of_bounds")
def wrap_neg_lanes():
    wrap_neg[(1,)](big(4, S), blank(4), 4, S, BM=4)


@triton.jit
def wrap_sel(x, o, rows, stride, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    off = tl.where(pid < rows, pid * stride, 0)
    tl.store(o + pid * n + i, tl.load(x + off + i))


@case()
def wrap_unselected():
    wrap_sel[(4,)](big(2, S), blank(16), 2, S, 4, B=4)


@case("overflow", "out_of_bounds")
def wrap_selected():
    wrap_sel[(4,)](big(4, S), blank(16), 4, S, 4, B=4)


@triton.jit
def wrap_blockptr(x, o, M, N, sm, BM: tl.constexpr, BN: tl.constexpr):
    p = tl.make_block_ptr(x, (M, N), (sm, 1), (0, 0), (BM, BN), (1, 0))
    q = tl.make_block_ptr(o, (M, N), (N, 1), (0, 0), (BM, BN), (1, 0))
    tl.store(q, tl.load(p, boundary_check=(0, 1)), boundary_check=(0, 1))


@case()
def block_ptr_far():
    wrap_blockptr[(1,)](big(4, S), blank(4, 4), 4, 4, S, BM=4, BN=4)


@triton.jit
def multi_ret_off(pid, stride, k):
    if pid < k:
        return pid * stride
    return pid


@triton.jit
def wrap_fr(x, o, rows, stride, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    off = multi_ret_off(pid, stride, rows)
    tl.store(o + pid * n + i, tl.load(x + off + i, mask=pid < rows), mask=pid < rows)


@case("overflow", "out_of_bounds")
def wrap_function_early_return():
    wrap_fr[(4,)](big(4, S), blank(16), 4, S, 4, B=4)


@triton.jit
def clamp(x, o, rows, stride, n, last, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    off = tl.minimum(pid * stride, last)
    tl.store(o + pid * n + i, tl.load(x + off + i))


@case("overflow", "out_of_bounds")
def wrap_clamped():
    clamp[(3,)](big(2, S), blank(12), 4, S, 4, S, B=4)


@triton.jit
def hash_uni(x, o, n, seed):
    h = seed
    for r in range(0, n):
        h = h * 1103515245 + 12345
        tl.store(o + r, tl.load(x + (h & 63)))


@case()
def hash_uniform_loop():
    hash_uni[(1,)](f32(64), blank(30), 30, 77)


@triton.jit
def hash_uni2(x, o, n, seed):
    h = seed
    for r in range(0, n):
        h = h * 1103515245 + 12345
        j = (h % 64 + 64) % 64
        tl.store(o + r, tl.load(x + j))


@case()
def hash_uniform_loop_mod():
    hash_uni2[(1,)](f32(64), blank(30), 30, 77)


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("body", "kinds"), case)
def test_what_is_wrong_is_found_and_nothing_else(body, kinds, kinds_of):
    assert kinds_of(body) == kinds


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("body", "kinds"), case)
def test_it_does_not_depend_on_how_many_programs_run_at_once(body, kinds, kinds_of, monkeypatch):
    monkeypatch.setattr(Program, "chunk", lambda program, programs, memory: 1)
    assert kinds_of(body) == kinds
