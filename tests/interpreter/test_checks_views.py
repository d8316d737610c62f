"""Other widths, descriptors, several views of one storage."""

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fuzzrope.interpreter.program import Program
from tests.interpreter.checks import Cases, blank, f32

case = Cases()


@triton.jit
def as64(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    p = x.to(tl.pointer_type(tl.int64))
    tl.store(o.to(tl.pointer_type(tl.int64)) + i, tl.load(p + i, mask=i < n), mask=i < n)


@case()
def wider_even():
    as64[(1,)](f32(16), blank(16), 8, B=16)


@case("out_of_bounds")
def wider_odd():
    as64[(1,)](f32(15), blank(16), 8, B=16)


@case("out_of_bounds")
def wider_gapped():
    as64[(1,)](f32(32)[::2], blank(16), 8, B=16)


@case()
def wider_rows():
    as64[(1,)](f32(2, 8)[:, :4], blank(16), 2, B=16)


@case("out_of_bounds")
def wider_rows_bad():
    as64[(1,)](f32(2, 8)[:, :4], blank(16), 3, B=16)


@triton.jit
def as8(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o.to(tl.pointer_type(tl.int8)) + i, tl.load(x.to(tl.pointer_type(tl.int8)) + i, mask=i < n), mask=i < n)


@case("out_of_bounds")
def bytes_bad():
    as8[(1,)](f32(15), blank(16), 61, B=64)


@triton.jit
def back(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    p = x.to(tl.pointer_type(tl.int8)) + i * 4
    tl.store(o + i, tl.load(p.to(tl.pointer_type(tl.float32)), mask=i < n), mask=i < n)


@case("out_of_bounds")
def there_and_back_bad():
    back[(1,)](f32(15), blank(16), 16, B=16)


@triton.jit
def desc(x, o, M, N, sm, BM: tl.constexpr, BN: tl.constexpr):
    d = tl.make_tensor_descriptor(x, [M, N], [sm, 1], [BM, BN])
    e = tl.make_tensor_descriptor(o, [M, N], [N, 1], [BM, BN])
    pid = tl.program_id(0)
    for j in range(0, N, BN):
        e.store([pid * BM, j], d.load([pid * BM, j]))


@case()
def descriptors():
    desc[(3,)](f32(5, 16)[:, :12], blank(5, 12), 5, 12, 16, BM=2, BN=8)


@case("out_of_bounds")
def descriptors_bad_shape():
    desc[(3,)](f32(5, 16)[:, :8], blank(5, 12), 5, 12, 16, BM=2, BN=8)


@case("launch")
def descriptors_misaligned():
    desc[(3,)](f32(5, 17)[:, :12], blank(5, 12), 5, 12, 17, BM=2, BN=8)


@triton.jit
def hdesc(d, e, N, BM: tl.constexpr, BN: tl.constexpr):
    pid = tl.program_id(0)
    for j in range(0, N, BN):
        e.store([pid * BM, j], d.load([pid * BM, j]))


@case("uninitialized")
def host_descriptors_uninit():
    hdesc[(3,)](
        TensorDescriptor.from_tensor(blank(5, 16)[:, :12], [2, 8]),
        TensorDescriptor.from_tensor(blank(5, 12), [2, 8]),
        12,
        BM=2,
        BN=8,
    )


@triton.jit
def stride_race(x, o, n, ss, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    tl.store(o + pid * ss + i, tl.load(x + pid * n + i, mask=i < n), mask=i < n)


@case("race")
def overlapping_tiles():
    stride_race[(3,)](f32(3, 8), blank(24), 8, 7, B=8)


@triton.jit
def shift(x, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    v = tl.load(x + i + 1, mask=i + 1 < n)
    tl.store(x + i, v, mask=i + 1 < n)


@case("race")
def in_place_shift():
    shift[(3,)](f32(24), 24, B=8)


@triton.jit
def two_views(a, b, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    tl.store(a + i, tl.load(b + i, mask=i < n), mask=i < n)


@case("race")
def two_views_race():
    s = f32(40)
    two_views[(3,)](s[:24], s[8:32], 24, B=8)


@case()
def two_views_apart():
    s = f32(48)
    two_views[(3,)](s[:24], s[24:], 24, B=8)


@case()
def two_views_interleaved():
    s = f32(48).view(24, 2)
    two_v2[(3,)](s[:, 0], s[:, 1], 24, 2, B=8)


@triton.jit
def two_v2(a, b, n, st, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    tl.store(a + i * st, tl.load(b + i * st, mask=i < n), mask=i < n)


@case("out_of_bounds", "race")
def two_views_interleaved_bad():
    s = f32(48).view(24, 2)
    two_v3[(3,)](s[:, 0], s[:, 1], 24, 2, B=8)


@triton.jit
def two_v3(a, b, n, st, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    tl.store(a + i * st, tl.load(b + i * st - 1, mask=(i < n) & (i > 0)), mask=i < n)
    tl.store(a + (i - 8) * st, 1.0, mask=i >= 8)


@triton.jit
def grid3(o, X, Y):
    x = tl.program_id(0)
    y = tl.program_id(1)
    z = tl.program_id(2)
    tl.store(o + (z * Y + y) * X + x, x + 10 * y + 100 * z)


@case("race")
def grid_3d_bad():
    grid3[(3, 4, 5)](blank(60, dtype=torch.int32), 2, 4)


@triton.jit
def loopstore(o, n, B: tl.constexpr):
    pid = tl.program_id(0)
    for k in range(n):
        tl.store(o + pid * B + tl.arange(0, B), k.to(tl.float32))


@case()
def own_rewrites():
    loopstore[(3,)](blank(24), 4, B=8)


@triton.jit
def acc_in_mem(x, o, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    tl.store(o + i, 0.0)
    for _k in range(n):
        tl.store(o + i, tl.load(o + i) + tl.load(x + i))


@case()
def own_accumulation():
    acc_in_mem[(3,)](f32(24), blank(24), 4, B=8)


@triton.jit
def acc_no_init(x, o, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    for _k in range(n):
        tl.store(o + i, tl.load(o + i) + tl.load(x + i))


@case("uninitialized")
def own_accumulation_uninit():
    acc_no_init[(3,)](f32(24), blank(24), 4, B=8)


@triton.jit
def dup_lane(o, B: tl.constexpr):
    tl.store(o + tl.arange(0, B) // 2, tl.arange(0, B) // 2)


@case()
def same_program_lanes():
    dup_lane[(1,)](blank(8, dtype=torch.int32), B=16)


@triton.jit
def gath(x, o, idx, n, B: tl.constexpr):
    i = tl.arange(0, B)
    j = tl.load(idx + i, mask=i < n, other=0)
    tl.store(o + i, tl.load(x + j, mask=i < n), mask=i < n)


@case("out_of_bounds")
def gather_neg():
    gath[(1,)](f32(9), blank(9), torch.full((9,), -1, device="cuda"), 9, B=16)


@case("race")
def scatter_dups():
    scat[(3,)](f32(24), blank(24), torch.randperm(24, device="cuda") // 2, B=8)


@triton.jit
def scat(x, o, idx, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    j = tl.load(idx + i)
    tl.store(o + j, tl.load(x + i))


@triton.jit
def undef(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    j = tl.load(x + i, mask=i < n).to(tl.int32)
    tl.store(o + i, tl.load(x + j, mask=i < n), mask=i < n)


@case()
def masked_value_as_masked_address():
    undef[(1,)](f32(9) - 1, blank(9), 9, B=16)


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("body", "kinds"), case)
def test_what_is_wrong_is_found_and_nothing_else(body, kinds, kinds_of):
    assert kinds_of(body) == kinds


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("body", "kinds"), case)
def test_it_does_not_depend_on_how_many_programs_run_at_once(body, kinds, kinds_of, monkeypatch):
    monkeypatch.setattr(Program, "chunk", lambda program, programs, memory: 1)
    assert kinds_of(body) == kinds
