"""Gluon kernels on the engine: layouts that change nothing, shared memory, and copies that have to be waited for.

What each kernel has to answer is said by NumPy.
"""

import numpy as np
import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from fuzzrope.interpreter.engine import Unsupported

ROWS, COLUMNS = 16, 32
WIDE = gl.constexpr(gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0]))
TALL = gl.constexpr(gl.BlockedLayout([4, 1], [4, 8], [1, 4], [0, 1]))
SHARED = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))


@gluon.jit
def places(ROWS: gl.constexpr, COLUMNS: gl.constexpr, layout: gl.constexpr):
    """Offsets of a dense tile."""
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
    return rows[:, None] * COLUMNS + columns[None, :]


def numbers(*shape):
    return torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32).reshape(shape)


@gluon.jit
def layouts_kernel(x_ptr, y_ptr, sums_ptr):
    tile = gl.program_id(0) * 512
    x = gl.load(x_ptr + tile + places(16, 32, WIDE))
    y = gl.convert_layout(x, TALL) * 2
    gl.store(y_ptr + tile + places(16, 32, TALL), y)
    rows = gl.arange(0, 16, layout=gl.SliceLayout(1, TALL))
    gl.store(sums_ptr + gl.program_id(0) * 16 + rows, gl.sum(y, 1))


def test_a_layout_says_who_holds_an_element_and_not_what_it_is(engine):
    x = numbers(3, ROWS, COLUMNS)
    y, sums = torch.zeros_like(x), torch.zeros(3, ROWS)
    layouts_kernel[(3,)](x, y, sums)
    assert torch.equal(y, 2 * x)
    assert torch.equal(sums, (2 * x).sum(-1))
    assert not engine.accesses


@gluon.jit
def pieces_kernel(x_ptr, y_ptr):
    pid = gl.program_id(0)
    at = places(16, 32, WIDE)
    buffer = gl.allocate_shared_memory(gl.float32, [2, 16, 32], SHARED)
    buffer.index(0).store(gl.load(x_ptr + at) + pid * 1000)
    buffer.index(1).store(gl.load(x_ptr + 512 + at))
    y_ptr += pid * 2048
    gl.store(y_ptr + at, buffer.index(pid % 2).load(WIDE))
    turned = buffer.index(0).permute((1, 0))
    gl.store(y_ptr + 512 + places(32, 16, TALL), turned.load(TALL))
    gl.store(y_ptr + 1024 + places(8, 64, WIDE), buffer.index(1).reshape((8, 64)).load(WIDE))
    gl.store(y_ptr + 1536 + places(16, 16, WIDE), buffer.index(0).slice(16, 16, 1).load(WIDE))
    buffer.index(0).slice(0, 16, 1).store(buffer.index(1).slice(16, 16, 1).load(WIDE))
    whole = gl.allocate_shared_memory(gl.float32, [16, 32], SHARED, value=buffer.index(0).load(WIDE))
    gl.store(y_ptr + 1792 + places(16, 16, WIDE), whole.slice(0, 16, 1).load(WIDE))


def test_pieces_of_shared_memory_are_views_of_one_buffer_each_program_its_own(engine):
    x = numbers(2, ROWS, COLUMNS)
    y = torch.zeros(5, 2048)
    pieces_kernel[(5,)](x, y)
    for pid in range(5):
        first, second = x[0] + 1000 * pid, x[1]
        parts = [(first, second)[pid % 2], first.T, second, first[:, 16:], second[:, 16:]]
        assert torch.equal(y[pid], torch.cat([part.reshape(-1) for part in parts]))
    assert not engine.accesses


@gluon.jit
def branches_kernel(x_ptr, y_ptr, n):
    pid = gl.program_id(0)
    at = places(16, 32, WIDE)
    buffer = gl.allocate_shared_memory(gl.float32, [2, 16, 32], SHARED)
    buffer.index(0).store(gl.load(x_ptr + at))
    buffer.index(1).store(gl.load(x_ptr + at))
    if pid % 3 == 1:
        buffer.index((pid + n) % 2).store(gl.load(x_ptr + at) * pid)
    for turn in range(pid):
        buffer.index(turn % 2).store(buffer.index(turn % 2).load(WIDE) + 1)
    gl.store(y_ptr + pid * 1024 + at, buffer.index(0).load(WIDE))
    gl.store(y_ptr + pid * 1024 + 512 + at, buffer.index(1).load(WIDE))


def test_programs_that_take_different_ways_keep_their_shared_memory_apart(engine):
    x = numbers(ROWS, COLUMNS)
    y = torch.zeros(7, 2, ROWS, COLUMNS)
    branches_kernel[(7,)](x, y, 3)
    for pid in range(7):
        both = [x, x]
        if pid % 3 == 1:
            both[(pid + 3) % 2] = x * pid
        assert torch.equal(y[pid, 0], both[0] + (pid + 1) // 2)
        assert torch.equal(y[pid, 1], both[1] + pid // 2)


@gluon.jit
def out_of_shared_kernel(x_ptr, y_ptr, n):
    buffer = gl.allocate_shared_memory(gl.float32, [2, 16, 32], SHARED)
    at = places(16, 32, WIDE)
    buffer.index(0).store(gl.load(x_ptr + at))
    if gl.program_id(0) == 1:
        gl.store(y_ptr + at, buffer.index(n + gl.program_id(0)).load(WIDE))


def test_a_part_that_a_buffer_has_not_is_out_of_bounds(engine):
    x = numbers(ROWS, COLUMNS)
    out_of_shared_kernel[(2,)](x, torch.zeros_like(x), 0)
    assert not engine.accesses
    out_of_shared_kernel[(2,)](x, torch.zeros_like(x), 1)
    ((what, message),) = [(entry["what"], entry["message"]) for entry in engine.accesses.values()]
    assert what == "load"
    assert message == "load of part 2 of 2 in shared memory, by program (1, 0, 0)"


@gluon.jit
def by_index_kernel(x_ptr, index_ptr, y_ptr):
    at = places(16, 32, WIDE)
    index = gl.load(index_ptr + at)
    buffer = gl.allocate_shared_memory(gl.float32, [16, 32], SHARED, value=gl.load(x_ptr + at))
    gl.store(y_ptr + at, buffer.gather(index, 1))
    buffer.scatter(gl.load(x_ptr + at) * 2, index, 1)
    gl.store(y_ptr + 512 + at, buffer.load(WIDE))


@pytest.mark.skipif(not hasattr(gl.shared_memory_descriptor, "gather"), reason="Triton has it since 3.7")
def test_elements_are_gathered_and_scattered_by_index_and_inside_their_buffer(engine):
    x, y = numbers(ROWS, COLUMNS), torch.zeros(2, ROWS, COLUMNS)
    index = torch.stack([torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(row)) for row in range(ROWS)])
    by_index_kernel[(1,)](x, index.int(), y)
    assert torch.equal(y[0], x.gather(1, index))
    assert torch.equal(y[1], x.scatter(1, index, 2 * x))
    assert not engine.accesses
    index[3, 5] = COLUMNS
    by_index_kernel[(1,)](x, index.int(), y)
    assert {entry["what"] for entry in engine.accesses.values()} == {"load", "store"}


@gluon.jit
def unwritten_kernel(y_ptr):
    buffer = gl.allocate_shared_memory(gl.float32, [16, 32], SHARED)
    gl.store(y_ptr + places(16, 32, WIDE), buffer.load(WIDE))


def test_what_nothing_wrote_to_shared_memory_is_no_number(engine):
    y = torch.zeros(ROWS, COLUMNS)
    unwritten_kernel[(1,)](y)
    assert y.isnan().all()


@gluon.jit
def pipelined_kernel(x_ptr, y_ptr, n, tiles, AHEAD: gl.constexpr, PENDING: gl.constexpr):
    """Tiles pass through a ring of buffers, AHEAD copies begun before the first is waited for."""
    x_ptr += gl.program_id(0) * n
    y_ptr += gl.program_id(0) * n
    at = places(16, 32, WIDE)
    ring = gl.allocate_shared_memory(gl.float32, [AHEAD + 1, 16, 32], SHARED)
    for tile in gl.static_range(AHEAD):
        async_copy.async_copy_global_to_shared(ring.index(tile), x_ptr + tile * 512 + at, mask=tile * 512 + at < n)
        async_copy.commit_group()
    for tile in range(tiles):
        ahead = tile + AHEAD
        there = x_ptr + ahead * 512 + at
        async_copy.async_copy_global_to_shared(ring.index(ahead % (AHEAD + 1)), there, mask=ahead * 512 + at < n)
        async_copy.commit_group()
        async_copy.wait_group(PENDING)
        here = tile * 512 + at
        gl.store(y_ptr + here, ring.index(tile % (AHEAD + 1)).load(WIDE) * 3, mask=here < n)


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_copies_arrive_in_groups_that_are_waited_for_in_order(engine, ahead):
    x = numbers(3, 2000)
    y = torch.zeros_like(x)
    pipelined_kernel[(3,)](x, y, 2000, 4, ahead, ahead)
    assert torch.equal(y, 3 * x)
    assert not engine.accesses


def test_a_kernel_that_waits_for_one_group_too_few_reads_what_was_there_before(engine):
    x = numbers(1, 2000)
    y = torch.zeros_like(x)
    pipelined_kernel[(1,)](x, y, 2000, 4, 2, 3)
    assert not torch.equal(y, 3 * x)


@gluon.jit
def masked_copy_kernel(x_ptr, y_ptr, n):
    at = places(16, 32, WIDE)
    buffer = gl.allocate_shared_memory(gl.float32, [16, 32], SHARED)
    async_copy.async_copy_global_to_shared(buffer, x_ptr + at, mask=at < n)
    async_copy.commit_group()
    async_copy.wait_group(0)
    gl.store(y_ptr + at, buffer.load(WIDE))


def test_lanes_that_a_copy_masks_off_arrive_as_zeros_and_the_others_are_held_against_their_view(engine):
    x, y = numbers(ROWS, COLUMNS), torch.ones(ROWS, COLUMNS)
    masked_copy_kernel[(1,)](x, y, 100)
    assert torch.equal(y.reshape(-1), torch.where(torch.arange(512) < 100, x.reshape(-1), 0))
    assert not engine.accesses
    masked_copy_kernel[(1,)](x[:2], y, 100)
    assert {entry["what"] for entry in engine.accesses.values()} == {"load"}


@gluon.jit
def far_copy_kernel(x_ptr, y_ptr, tiles):
    """Each program copies as many tiles as its number says, and waits in a branch of its own."""
    pid = gl.program_id(0)
    at = places(16, 32, WIDE)
    buffer = gl.allocate_shared_memory(gl.float32, [16, 32], SHARED, value=gl.load(x_ptr + at) * 0)
    for tile in range(pid):
        async_copy.async_copy_global_to_shared(buffer, x_ptr + tile * 512 + at)
        async_copy.commit_group()
    if pid % 2 == 0:
        async_copy.wait_group(0)
    else:
        async_copy.wait_group(1)
    gl.store(y_ptr + pid * 512 + at, buffer.load(WIDE))


def test_programs_wait_each_for_their_own_copies(engine):
    x = numbers(6, ROWS, COLUMNS)
    y = torch.zeros_like(x)
    far_copy_kernel[(6,)](x, y, 6)
    landed = [None, None, 1, 1, 3, 3]  # the last tile that each program has waited for
    for pid, tile in enumerate(landed):
        assert torch.equal(y[pid], torch.zeros_like(y[pid]) if tile is None else x[tile])


@gluon.jit
def assembly_kernel(x_ptr):
    at = gl.arange(0, 128, layout=gl.BlockedLayout([1], [32], [4], [0]))
    x = gl.load(x_ptr + at)
    y = gl.inline_asm_elementwise("add.f32 $0, $1, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
    gl.store(x_ptr + at, y)


def test_what_the_engine_does_not_know_of_gluon_it_names(engine):
    with pytest.raises(Unsupported, match=r"does not know tt\.elementwise_inline_asm .* used at .*test_gluon"):
        assembly_kernel[(1,)](torch.zeros(128))
