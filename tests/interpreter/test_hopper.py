"""Gluon kernels whose warps share memory: right ones are right and silent, and what nothing orders is reported.

The flawed twins leave out one wait or one arrival each, or announce other bytes than come.
"""

import contextlib

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fuzzrope.interpreter.warps import DeadlockError

ROWS = 64
TILE = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))


def numbers(*shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-3, 4, shape, generator=generator).to(torch.float16)


def described(x):
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [ROWS, ROWS], layout)


@gluon.jit
def bring(source, full, empty, ring, tiles, FLAW: gl.constexpr):
    """Bring tile after tile into a ring of two."""
    for tile in range(tiles):
        place = tile % 2
        if FLAW != "empty":
            mbarrier.wait(empty.index(place), ((tile // 2) & 1) ^ 1)
        if FLAW == "bytes":
            mbarrier.expect(full.index(place), source.block_type.nbytes + 16)
        else:
            mbarrier.expect(full.index(place), source.block_type.nbytes)
        tma.async_copy_global_to_shared(source, [tile * 64, 0], full.index(place), ring.index(place))


@gluon.jit
def take(target, full, empty, ring, out, tiles, FLAW: gl.constexpr):
    """Double each tile and store it."""
    for tile in range(tiles):
        place = tile % 2
        if FLAW != "full":
            mbarrier.wait(full.index(place), (tile // 2) & 1)
        if FLAW == "early":
            mbarrier.arrive(empty.index(place), count=1)
        x = ring.index(place).load(TILE)
        if FLAW != "early" and FLAW != "arrival":
            mbarrier.arrive(empty.index(place), count=1)
        if FLAW != "store":
            tma.store_wait(0)
        out.store(x * 2)
        fence_async_shared()
        tma.async_copy_shared_to_global(target, [tile * 64, 0], out)
    tma.store_wait(0)


@gluon.jit
def stream_kernel(source, target, tiles, FLAW: gl.constexpr):
    ring = gl.allocate_shared_memory(gl.float16, [2, 64, 64], source.layout)
    out = gl.allocate_shared_memory(gl.float16, [64, 64], target.layout)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(2):
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(empty.index(place), count=1)
    gl.warp_specialize(
        [(take, (target, full, empty, ring, out, tiles, FLAW)), (bring, (source, full, empty, ring, tiles, FLAW))],
        [1],
        [24],
    )


def test_a_ring_of_tiles_between_two_roles(engine):
    x = numbers(5 * ROWS, ROWS)
    y = torch.zeros_like(x)
    stream_kernel[(1,)](described(x), described(y), 5, "")
    assert torch.equal(y, 2 * x)
    assert not engine.accesses


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ("empty", "gets more in one phase"),
        ("early", "load of shared memory that is read by another role, which nothing has waited for"),
        ("store", "store of shared memory that is being read at"),
    ],
)
def test_an_access_that_nothing_orders_is_a_race(engine, flaw, said):
    x = numbers(5 * ROWS, ROWS)
    y = torch.zeros_like(x)
    with contextlib.suppress(DeadlockError):  # who does not wait may leave the others waiting
        stream_kernel[(1,)](described(x), described(y), 5, flaw)
    races = [entry["message"] for entry in engine.accesses.values() if entry["what"] == "race"]
    assert any(said in message for message in races), races


@pytest.mark.parametrize(("flaw", "where"), [("bytes", "full"), ("arrival", "empty"), ("full", "empty")])
def test_roles_that_wait_for_each_other_for_ever_say_where(engine, flaw, where):
    x = numbers(5 * ROWS, ROWS)
    with pytest.raises(DeadlockError, match=r"program \(0, 0, 0\) waits for ever: .*test_hopper") as error:
        stream_kernel[(1,)](described(x), described(torch.zeros_like(x)), 5, flaw)
    assert f"mbarrier.wait({where}" in str(error.value)


@gluon.jit
def multiply_kernel(a, b, c, steps, PENDING: gl.constexpr):
    """c = a @ b.T in float32, one tile a program; the next factors come while these are multiplied."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    row = gl.program_id(0) * 64
    column = gl.program_id(1) * 64
    rings = gl.allocate_shared_memory(gl.float16, [4, 64, 64], a.layout)
    bars = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(bars.index(0), count=1)
    mbarrier.init(bars.index(1), count=1)
    fence_async_shared()
    total = gl.zeros([64, 64], gl.float32, layout)
    mbarrier.expect(bars.index(0), 2 * a.block_type.nbytes)
    tma.async_copy_global_to_shared(a, [row, 0], bars.index(0), rings.index(0))
    tma.async_copy_global_to_shared(b, [column, 0], bars.index(0), rings.index(2))
    for step in range(steps):
        place = step % 2
        mbarrier.wait(bars.index(place), (step // 2) & 1)
        total = warpgroup_mma(rings.index(place), rings.index(2 + place).permute((1, 0)), total, is_async=True)
        total = warpgroup_mma_wait(PENDING, deps=[total])
        if step + 1 < steps:
            other = bars.index(1 - place)
            mbarrier.expect(other, 2 * a.block_type.nbytes)
            tma.async_copy_global_to_shared(a, [row, (step + 1) * 64], other, rings.index(1 - place))
            tma.async_copy_global_to_shared(b, [column, (step + 1) * 64], other, rings.index(3 - place))
    total = warpgroup_mma_wait(0, deps=[total])
    rows = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, 64, layout=gl.SliceLayout(0, layout))
    gl.store(c + (row + rows)[:, None] * 128 + column + columns[None, :], total)


@pytest.mark.parametrize("pending", [0, 1])
def test_products_out_of_shared_memory(engine, pending):
    a, b = numbers(128, 192), numbers(128, 192)
    c = torch.zeros(128, 128)
    multiply_kernel[(2, 2)](described(a), described(b), c, 3, pending)
    assert torch.equal(c, a.float() @ b.float().T)
    assert not engine.accesses


def test_a_factor_that_is_overwritten_before_its_product_is_over_is_a_race(engine):
    a, b = numbers(128, 192), numbers(128, 192)
    multiply_kernel[(2, 2)](described(a), described(b), torch.zeros(128, 128), 3, 2)
    ((what, message),) = {
        (entry["what"], entry["message"].partition(", which")[0]) for entry in engine.accesses.values()
    }
    assert what == "race"
    assert message.startswith("load of shared memory that is being read at")


@gluon.jit
def early_kernel(a, c, PENDING: gl.constexpr):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    rows = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, 64, layout=gl.SliceLayout(0, layout))
    at = rows[:, None] * 64 + columns[None, :]
    factor = gl.allocate_shared_memory(gl.float16, [64, 64], gl.NVMMASharedLayout.get_default_for([64, 64], gl.float16))
    factor.store(gl.load(a + at))
    fence_async_shared()
    total = gl.zeros([64, 64], gl.float32, layout)
    total = warpgroup_mma(factor, factor, total, is_async=True)
    total = warpgroup_mma(factor, factor, total, is_async=True)
    total = warpgroup_mma_wait(PENDING, deps=[total])
    gl.store(c + at, total + 1)


def test_a_product_that_is_not_over_has_no_result(engine):
    a, c = numbers(64, 64), torch.zeros(64, 64)
    early_kernel[(1,)](a, c, 0)
    assert torch.equal(c, 2 * (a.float() @ a.float()) + 1)
    early_kernel[(1,)](a, c, 1)
    assert c.isnan().all()
