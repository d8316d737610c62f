"""Bounds, memory that nothing wrote, programs that meet."""

import pytest
import torch
import triton
import triton.language as tl

from fuzzrope.interpreter.program import Program
from tests.interpreter.checks import Cases, blank, f32

case = Cases()


@triton.jit
def far_masked(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    v = tl.load(x + i * 1000000, mask=i < n, other=0.0)
    w = tl.load(x - i * 1000000000, mask=i < n, other=0.0)
    tl.store(o + i, v + w, mask=i < n)
    tl.store(o - 1 - i, v, mask=i < 0)


@case()
def masked_far():
    far_masked[(2,)](f32(1), blank(1), 1, B=16)


@triton.jit
def advance(x, o, n, B: tl.constexpr):
    p = x + tl.arange(0, B)
    acc = tl.zeros((B,), tl.float32)
    for k in range(0, n, B):
        acc += tl.load(p, mask=k + tl.arange(0, B) < n, other=0.0)
        p += B
    p += 100000
    p - 100000000
    tl.store(o + tl.arange(0, B), acc)


@case()
def advanced_past_end():
    advance[(1,)](f32(37), blank(16), 37, B=16)


@triton.jit
def advance_bad(x, o, n, B: tl.constexpr):
    p = x + tl.arange(0, B)
    acc = tl.zeros((B,), tl.float32)
    for _k in range(0, n, B):
        acc += tl.load(p)
        p += B
    tl.store(o + tl.arange(0, B), acc)


@case("out_of_bounds")
def loop_carried_bad():
    advance_bad[(1,)](f32(37), blank(16), 37, B=16)


@triton.jit
def blockp(x, o, M, N, sm, BM: tl.constexpr, BN: tl.constexpr, CHECK: tl.constexpr):
    pid = tl.program_id(0)
    p = tl.make_block_ptr(x, (M, N), (sm, 1), (pid * BM, 0), (BM, BN), (1, 0))
    q = tl.make_block_ptr(o, (M, N), (N, 1), (pid * BM, 0), (BM, BN), (1, 0))
    for _j in range(0, N, BN):
        v = tl.load(p, boundary_check=(0, 1), padding_option="zero") if CHECK else tl.load(p, boundary_check=(0,))
        tl.store(q, v, boundary_check=(0, 1))
        p = tl.advance(p, (0, BN))
        q = tl.advance(q, (0, BN))


@case()
def block_ptr_ok():
    blockp[(3,)](f32(5, 16)[:, :7], blank(5, 7), 5, 7, 16, BM=2, BN=4, CHECK=True)


@case("out_of_bounds")
def block_ptr_gap():
    blockp[(3,)](f32(5, 16)[:, :7], blank(5, 7), 5, 7, 16, BM=2, BN=4, CHECK=False)


@triton.jit
def copy2(x, o, M, N, xm, xn, om, on, BM: tl.constexpr, BN: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    n = tl.arange(0, BN)[None, :]
    k = (m < M) & (n < N)
    tl.store(o + m * om + n * on, tl.load(x + m * xm + n * xn, mask=k), mask=k)


@case()
def expanded_in():
    x = f32(1, 1).expand(5, 6)
    o = blank(5, 6)
    copy2[(3,)](x, o, 5, 6, *x.stride(), *o.stride(), BM=2, BN=8)
    assert (o == 1).all()


@case()
def overlapping_gapped():
    x = torch.as_strided(f32(40), (5, 6), (4, 2))
    o = blank(5, 6)
    copy2[(3,)](x, o, 5, 6, *x.stride(), *o.stride(), BM=2, BN=8)


@case()
def gapped_out():
    x = f32(5, 6)
    o = blank(5, 16)[:, 3:15:2]
    copy2[(3,)](x, o, 5, 6, *x.stride(), *o.stride(), BM=2, BN=8)


@case("out_of_bounds")
def gapped_out_bad():
    x = f32(5, 6)
    o = blank(5, 16)[:, 3:15:2]
    copy2[(3,)](x, o, 5, 6, *x.stride(), 16, 1, BM=2, BN=8)


@case("race")
def expanded_out_differ():
    x = f32(6, 6)
    o = blank(1, 6).expand(6, 6)
    copy2[(3,)](x, o, 6, 6, *x.stride(), *o.stride(), BM=2, BN=8)


@case()
def expanded_out_same():
    x = f32(6).expand(6, 6)
    o = blank(1, 6).expand(6, 6)
    copy2[(3,)](x, o, 6, 6, *x.stride(), *o.stride(), BM=2, BN=8)


@case()
def in_place():
    x = f32(6, 6)
    copy2[(3,)](x, x, 6, 6, *x.stride(), *x.stride(), BM=2, BN=8)


@case()
def empty():
    x = blank(0, 6)
    o = blank(0, 6)
    copy2[(1,)](x, o, 0, 6, *x.stride(), *o.stride(), BM=2, BN=8)


@case("out_of_bounds")
def empty_of_storage_bad():
    x = f32(4, 6)[2:2]
    o = blank(2, 6)
    copy2[(1,)](x, o, 2, 6, *x.stride(), *o.stride(), BM=2, BN=8)


@triton.jit
def scal_bad(x, o):
    tl.store(o, tl.load(x + 1) * 2)


@case("out_of_bounds")
def zero_dim_bad():
    scal_bad[(3,)](torch.tensor(3.0, device="cuda"), blank(()))


@triton.jit
def pidstore(o, B: tl.constexpr):
    tl.store(o + tl.arange(0, B), tl.program_id(0) * 0.0)


@case()
def identical_computed():
    pidstore[(4,)](blank(8), B=8)


@triton.jit
def two_kernels_a(x, s, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(s + i, tl.load(x + i) + 1)


@triton.jit
def two_kernels_b(s, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.load(s + (n - 1 - i)))


@case()
def twice():
    s = blank(32)
    o = blank(32)
    two_kernels_a[(4,)](f32(32), s, B=8)
    two_kernels_b[(4,)](s, o, 32, B=8)


@case("uninitialized")
def twice_part():
    s = blank(32)
    o = blank(32)
    two_kernels_a[(3,)](f32(32), s, B=8)
    two_kernels_b[(4,)](s, o, 32, B=8)


WRITERS = {
    "zero_": lambda s: s.zero_(),
    "copy_": lambda s: s.copy_(f32(32)),
    "fill_": lambda s: s.fill_(3),
    "all of it": lambda s: s.__setitem__(..., 1.0),
    "a slice": lambda s: s.__setitem__(slice(None), f32(32)),
    "out": lambda s: torch.add(f32(32), 1, out=s),
    "normal_": lambda s: s.normal_(),
    "uniform_": lambda s: torch.nn.init.uniform_(s),
    "index_copy_": lambda s: s.index_copy_(0, torch.arange(32, device="cuda"), f32(32)),
    "NaN": lambda s: s.fill_(torch.nan),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_what_pytorch_wrote_is_written(writer, kinds_of):
    def body():
        scratch = blank(32)
        writer(scratch)
        two_kernels_b[(4,)](scratch, blank(32), 32, B=8)

    assert kinds_of(body) == set()


@case("uninitialized")
def unwritten_load():
    s = blank(32)
    o = blank(32)
    two_kernels_b[(4,)](s, o, 32, B=8)


@case("uninitialized")
def unwritten_half():
    s = blank(32, dtype=torch.float16)
    o = blank(32)
    two_kernels_b[(4,)](s, o, 32, B=8)


@case("uninitialized")
def unwritten_reinterpreted():
    s = blank(32).view(torch.int32)
    o = blank(32)
    two_kernels_b[(4,)](s, o, 32, B=8)


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("body", "kinds"), case)
def test_what_is_wrong_is_found_and_nothing_else(body, kinds, kinds_of):
    assert kinds_of(body) == kinds


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("body", "kinds"), case)
def test_it_does_not_depend_on_how_many_programs_run_at_once(body, kinds, kinds_of, monkeypatch):
    monkeypatch.setattr(Program, "chunk", lambda program, programs, memory: 1)
    assert kinds_of(body) == kinds
