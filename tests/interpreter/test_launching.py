"""Ways to launch: what Triton's own launcher accepts, a kernel on the CPU engine accepts."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from fuzzrope.interpreter.engine import LaunchRefusedError, Unsupported


@triton.jit
def grid_kernel(out_ptr):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    nx, ny = tl.num_programs(0), tl.num_programs(1)
    tl.store(out_ptr + (z * ny + y) * nx + x, x + 100 * y + 10000 * z)


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 5), (9001,), (1, 1, 7)])
def test_grids_of_one_to_three_dimensions(engine, grid):
    x, y, z = (*grid, 1, 1)[:3]
    out = torch.full((z, y, x), -1, dtype=torch.int32)
    grid_kernel[grid](out)
    expected = np.add.outer(10000 * np.arange(z), np.add.outer(100 * np.arange(y), np.arange(x)))
    np.testing.assert_array_equal(out.numpy(), expected)
    grid_kernel[lambda meta: grid](out.fill_(-1))
    np.testing.assert_array_equal(out.numpy(), expected)
    assert engine.accesses == {}


def test_an_empty_grid_runs_nothing_and_one_too_large_is_refused(engine):
    out = torch.full((4,), -1, dtype=torch.int32)
    grid_kernel[(0,)](out)
    assert (out == -1).all()
    with pytest.raises(LaunchRefusedError):
        grid_kernel[(1, 65536)](out)


@triton.jit
def numbers_kernel(out_ptr, a, b, c, d=7, E: tl.constexpr = 3, F: tl.constexpr = None):
    tl.store(out_ptr, a)
    tl.store(out_ptr + 1, b)
    tl.store(out_ptr + 2, tl.cast(c, tl.int64))
    tl.store(out_ptr + 3, d)
    tl.store(out_ptr + 4, E)
    if F is not None:
        tl.store(out_ptr + 5, F)


@pytest.mark.parametrize(
    ("number", "stored"),
    [(2**31 - 1, 2**31 - 1), (2**31, 2**31), (-(2**63), -(2**63)), (2**63 + 5, 5 - 2**63), (1, 1), (0, 0), (True, 1)],
)
def test_integers_of_every_size(engine, number, stored):
    out = torch.zeros(6, dtype=torch.int64)
    numbers_kernel[(1,)](out, number, 1 - 2**40, c=number % 16)
    assert out.tolist() == [stored, 1 - 2**40, number % 16, 7, 3, 0]


def test_keywords_defaults_and_numpy_scalars(engine):
    out = torch.zeros(6, dtype=torch.int64)
    numbers_kernel[(1,)](c=torch.tensor(5).item(), b=int(np.int64(4)), a=np.bool_(True).item(), out_ptr=out, d=9, F=11)
    assert out.tolist() == [1, 4, 5, 9, 3, 11]
    numbers_kernel.run(out, 2, 3, 4, grid=(1,), warmup=False, E=8)
    assert out.tolist() == [2, 3, 4, 7, 8, 11]


@triton.jit
def floats_kernel(out_ptr, x, y: tl.float64, z: tl.bfloat16, DTYPE: tl.constexpr):
    tl.store(out_ptr, tl.cast(x, tl.float64))
    tl.store(out_ptr + 1, y)
    tl.store(out_ptr + 2, z.to(tl.float64))
    tl.store(out_ptr + 3, tl.full((), 0.1, DTYPE).to(tl.float64))


def test_floats_are_float32_unless_annotated(engine):
    out = torch.zeros(4, dtype=torch.float64)
    floats_kernel[(1,)](out, 0.1, 0.1, 0.1, DTYPE=tl.float16)
    expected = [np.float32(0.1), 0.1, torch.tensor(0.1, dtype=torch.bfloat16).item(), np.float16(0.1)]
    assert out.tolist() == [float(x) for x in expected]


@triton.jit
def tuple_kernel(pointers, sizes, out_ptr, KINDS: tl.constexpr):
    total = 0
    for i in tl.static_range(len(pointers)):
        total += tl.sum(tl.load(pointers[i] + tl.arange(0, 8), mask=tl.arange(0, 8) < sizes[i], other=0), 0) * KINDS[i]
    tl.store(out_ptr, total)


def test_tuples_of_pointers_and_of_constants(engine):
    parts = tuple(torch.arange(n, dtype=torch.int32) + n for n in (3, 8, 5))
    out = torch.zeros(1, dtype=torch.int32)
    tuple_kernel[(1,)](parts, tuple(len(x) for x in parts), out, KINDS=(1, 10, 100))
    assert out.item() == sum(int(x.sum()) * k for x, k in zip(parts, (1, 10, 100), strict=True))
    assert engine.accesses == {}


hooked = []


@triton.autotune(
    [
        triton.Config({"BLOCK": 16}, num_warps=4, pre_hook=lambda args: hooked.append(args["n"])),
        triton.Config({"BLOCK": 32}, num_warps=8),
    ],
    key=["n"],
    reset_to_zero=["count_ptr"],
    restore_value=["x_ptr"],
)
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def tuned_kernel(x_ptr, count_ptr, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = None if EVEN else i < n
    tl.store(x_ptr + i, tl.load(x_ptr + i, mask=mask) * 2, mask=mask)
    tl.atomic_add(count_ptr, 1)


@pytest.mark.parametrize("n", [32, 50])
def test_autotune_on_heuristics_with_its_hooks(engine, n):
    x, count = torch.arange(n, dtype=torch.float32), torch.full((1,), 99, dtype=torch.int32)
    hooked.clear()
    tuned_kernel.cache.clear()
    tuned_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, count, n)
    block = tuned_kernel.best_config.kwargs["BLOCK"]
    assert x.tolist() == [2.0 * i for i in range(n)]
    assert count.item() in (triton.cdiv(n, block), 99 + triton.cdiv(n, block))
    assert hooked
    assert set(hooked) == {n}
    assert engine.accesses == {}


@triton.jit
def softmax_kernel(x_ptr, out_ptr, rows, N: tl.constexpr, stages: tl.constexpr):
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=stages):
        x = tl.load(x_ptr + row * N + tl.arange(0, N))
        e = tl.exp(x - tl.max(x, axis=0))
        tl.store(out_ptr + row * N + tl.arange(0, N), e / tl.sum(e, axis=0))


def test_warmup_tells_of_resources_and_gives_what_can_be_launched(engine):
    x = torch.randn(11, 16)
    out = torch.empty_like(x)
    compiled = softmax_kernel.warmup(x, out, 11, N=16, stages=2, num_warps=4, grid=(1,))
    assert engine.launches == []
    compiled._init_handles()
    assert compiled.n_regs > 0
    assert compiled.metadata.shared >= 0
    assert "tt.func" in compiled.asm["ttir"]
    compiled[(4, 1, 1)](x, out, 11, 16, 2)
    torch.testing.assert_close(out, torch.softmax(x, -1))


@triton.jit
def addresses_kernel(table_ptr, out_ptr, N: tl.constexpr):
    pointer = tl.load(table_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, N)
    tl.store(out_ptr + tl.program_id(0) * N + i, tl.load(pointer + i))
    tl.store(pointer + i, 0.0)


def test_pointers_from_memory(engine):
    parts = [torch.randn(8) for _ in range(3)]
    before = torch.stack(parts)
    table = torch.tensor([x.data_ptr() for x in parts])
    out = torch.zeros(3, 8)
    addresses_kernel[(3,)](table, out, N=8)
    assert torch.equal(out, before)
    assert not torch.stack(parts).any()
    assert engine.accesses == {}


@triton.jit
def described_kernel(desc, out, R: tl.constexpr, C: tl.constexpr):
    for step in range(0, 2):
        block = desc.load([tl.program_id(0) * R, step * C])
        out.store([tl.program_id(0) * R, step * C], block + 1)


@triton.jit
def cube_kernel(x_ptr, out_ptr, a, b, c):
    desc = tl.make_tensor_descriptor(x_ptr, shape=[a, b, c], strides=[b * c, c, 1], block_shape=[1, 2, 4])
    out = tl.make_tensor_descriptor(out_ptr, shape=[a, b, c], strides=[b * c, c, 1], block_shape=[1, 2, 4])
    for i in range(0, b, 2):
        block = desc.load([tl.program_id(0), i, 0])
        out.store([tl.program_id(0), i, 0], block * 2)


def test_descriptors_from_the_host_and_made_in_the_kernel(engine):
    x = torch.randn(6, 12)
    out = torch.zeros_like(x)
    described_kernel[(2,)](TensorDescriptor.from_tensor(x, [4, 8]), TensorDescriptor.from_tensor(out, [4, 8]), R=4, C=8)
    assert torch.equal(out, x + 1)
    x = torch.randn(3, 5, 4)
    out = torch.zeros_like(x)
    cube_kernel[(3,)](x, out, 3, 5, 4)
    assert torch.equal(out, x * 2)
    assert engine.accesses == {}


@triton.jit
def unknown_name_kernel(x_ptr):
    tl.store(x_ptr, nowhere)  # noqa: F821  # that is the point


@triton.jit
def assembly_kernel(x_ptr):
    x = tl.load(x_ptr + tl.arange(0, 4))
    moved = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(x_ptr + tl.arange(0, 4), moved)


def test_what_cannot_be_compiled_is_the_kernels_error(engine):
    with pytest.raises(triton.CompilationError, match="nowhere"):
        unknown_name_kernel[(1,)](torch.zeros(4))


def test_what_the_engine_does_not_know_is_said_in_one_line(engine):
    with pytest.raises(Unsupported) as caught:
        assembly_kernel[(1,)](torch.zeros(4, dtype=torch.int32))
    line = str(caught.value)
    assert "\n" not in line
    assert all(part in line for part in ("tt.elementwise_inline_asm", "test_launching.py:", triton.__version__))


@triton.jit
def early_kernel(x_ptr, out_ptr, AT: tl.constexpr):
    i = tl.arange(0, 8)
    if AT == 0:
        gdc_wait()
    x = tl.load(x_ptr + i)
    if AT == 1:
        gdc_wait()
    gdc_launch_dependents()
    tl.store(out_ptr + i, x + 1)


@pytest.mark.parametrize(
    ("at", "early", "hurried"),
    [(0, True, []), (0, False, []), (1, True, ["load"]), (2, True, ["load", "store"]), (2, False, [])],
)
def test_a_launch_that_begins_early_has_to_wait_before_it_touches_memory(engine, at, early, hurried):
    x, out = torch.arange(8.0), torch.zeros(8)
    for grid in ((1,), (2,)):
        engine.reset()
        early_kernel[grid](x, out, at, launch_pdl=early)
        assert torch.equal(out, x + 1)
        found = [entry for entry in engine.accesses.values() if "before it waits" in entry["message"]]
        assert [entry["message"].partition(" ")[0] for entry in found] == hurried
        assert {entry["what"] for entry in found} <= {"race"}


@triton.jit(do_not_specialize=["n"])
def masked_early_kernel(x_ptr, out_ptr, n):
    x = tl.load(x_ptr + tl.arange(0, 8), mask=tl.arange(0, 8) < 8 * n, other=3.0)
    tl.atomic_add(out_ptr + tl.arange(0, 8), x, mask=tl.arange(0, 8) < 8 * n - 8)
    gdc_wait()
    tl.store(out_ptr + tl.arange(0, 8), x)


@pytest.mark.parametrize(("n", "hurried"), [(0, []), (1, ["load"]), (2, ["atomic", "load"])])
def test_what_is_masked_touches_nothing_early(engine, n, hurried):
    masked_early_kernel[(1,)](torch.zeros(8), torch.zeros(8), n, launch_pdl=True)
    assert sorted(entry["message"].partition(" ")[0] for entry in engine.accesses.values()) == hurried
