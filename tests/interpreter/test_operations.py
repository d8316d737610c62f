"""Operations in forms that an engine in lockstep may get wrong: values held once, and ways that part."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.tools.tensor_descriptor import TensorDescriptor

from fuzzrope.interpreter.engine import Unsupported


def whole(shape, seed, low=-50, high=50):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


@triton.jit
def save(out_ptr, place, value, SIZE: tl.constexpr):
    tl.store(out_ptr + place + tl.arange(0, SIZE), tl.reshape(value, (SIZE,)))


@triton.jit
def held_once_kernel(out_ptr):
    """What does not vary along an axis, moved and combined along it."""
    pid = tl.program_id(0)
    out_ptr += pid * 256
    rows = tl.broadcast_to(tl.arange(0, 4)[:, None], (4, 8))
    alike = tl.zeros((4, 8), tl.int32) + pid
    save(out_ptr, 0, tl.permute(rows, (1, 0)), 32)
    save(out_ptr, 32, tl.permute(tl.reshape(rows, (2, 16)), (1, 0)), 32)
    save(out_ptr, 64, tl.join(tl.full((8,), 3, tl.int32), tl.arange(0, 8) + pid), 16)
    left, right = tl.split(tl.broadcast_to(tl.arange(0, 8)[:, None], (8, 2)))
    save(out_ptr, 80, left + 10 * right, 8)
    left, right = tl.split(tl.broadcast_to(tl.arange(0, 2)[None, :], (8, 2)) + pid)
    save(out_ptr, 88, left + 10 * right, 8)
    save(out_ptr, 96, tl.sum(rows, 1), 4)
    save(out_ptr, 100, tl.sum(rows, 0), 8)
    save(out_ptr, 108, tl.cumsum(alike, 1, reverse=True), 32)
    save(out_ptr, 140, tl.argmax(alike, 1), 4)
    best, place = tl.max(rows, 0, return_indices=True)
    save(out_ptr, 144, best * 10 + place, 8)
    save(out_ptr, 152, tl.sort(tl.broadcast_to(tl.arange(0, 8)[None, :], (4, 8)), descending=True), 32)
    save(out_ptr, 184, tl.gather(rows, tl.full((4, 8), 1, tl.int32), 0), 32)
    save(out_ptr, 216, tl.histogram(tl.full((8,), 3, tl.int32) - pid, 4), 4)
    save(out_ptr, 220, tl.flip(rows, 0), 32)
    tl.store(out_ptr + 252, tl.sum(alike))
    tl.store(out_ptr + 253, tl.max(tl.full((1,), 3, tl.int32) + pid, 0))


def test_values_that_are_held_once(engine):
    out = torch.full((3, 256), -9, dtype=torch.int32)
    held_once_kernel[(3,)](out)
    rows, eight = np.repeat(np.arange(4)[:, None], 8, 1), np.arange(8)
    for pid in range(3):
        parts = [rows.T, rows.reshape(2, 16).T, np.stack([np.full(8, 3), eight + pid], -1), eight * 11]
        parts += [np.full(8, pid + 10 * (1 + pid)), rows.sum(1), rows.sum(0), np.tile(pid * eight[::-1] + pid, 4)]
        parts += [np.zeros(4), np.full(8, 33), np.tile(eight[::-1], 4), np.ones(32), np.eye(4)[3 - pid] * 8]
        parts += [rows[::-1], [32 * pid, 3 + pid]]
        expected = np.concatenate([np.asarray(part).reshape(-1) for part in parts])
        np.testing.assert_array_equal(out[pid, : len(expected)].numpy(), expected)


@triton.jit
def pointers_kernel(x_ptr, y_ptr, out_ptr, n):
    pid = tl.program_id(0)
    i = tl.arange(0, 8)
    out_ptr += pid * 64
    one = x_ptr if n > 3 else y_ptr
    save(out_ptr, 0, tl.load(one + i), 8)
    if pid % 2 == 0:  # noqa: SIM108  # a branch is meant
        other = x_ptr + pid
    else:
        other = y_ptr
    save(out_ptr, 8, tl.load(other + i), 8)
    save(out_ptr, 16, tl.load(tl.where(i < 3, x_ptr + i, y_ptr + i)), 8)
    save(out_ptr, 24, tl.load(tl.where(pid > 2, x_ptr, y_ptr) + i + pid), 8)
    save(out_ptr, 32, tl.load(x_ptr.to(tl.pointer_type(tl.int8)) + pid * 4 + i).to(tl.int32), 8)
    save(out_ptr, 40, (tl.load(x_ptr.to(tl.pointer_type(tl.int64)) + i) >> 32).to(tl.int32), 8)
    save(out_ptr, 48, tl.load((x_ptr + i).to(tl.pointer_type(tl.int16)) + 1).to(tl.int32), 8)


@pytest.mark.parametrize("n", [2, 5])
def test_pointers_chosen_and_cast(engine, n):
    x, y = whole(64, 1, -(2**31), 2**31 - 1), whole(64, 2, -(2**31), 2**31 - 1)
    out = torch.zeros(5, 64, dtype=torch.int32)
    pointers_kernel[(5,)](torch.from_numpy(x), torch.from_numpy(y), out, n)
    for pid in range(5):
        parts = [(x if n > 3 else y)[:8], x[pid : pid + 8] if pid % 2 == 0 else y[:8], [*x[:3], *y[3:8]]]
        parts += [(x if pid > 2 else y)[pid : pid + 8], x.view(np.int8)[pid * 4 : pid * 4 + 8], x[1:16:2]]
        parts += [x.view(np.int16)[1:16:2], np.zeros(8)]
        np.testing.assert_array_equal(out[pid].numpy(), np.concatenate(parts))
    assert engine.accesses == {}


@triton.jit
def sorted_out(x, y):
    if x > y:
        return x - y, 1
    elif x == y:  # noqa: RET505  # returns of both kinds
        left = x & 7
        turns = 0
        while left > 0:
            left = left // 2
            turns += 1
        return turns, 2
    else:
        return y * 2, 3


@triton.jit
def larger(a, b):
    if a > b:
        return a
    return b


@triton.jit
def branching_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    made, kind = tl.map_elementwise(sorted_out, x, y)
    tl.store(out_ptr + i, made)
    tl.store(out_ptr + N + i, kind)
    tl.store(out_ptr + 2 * N + i, tl.associative_scan(x, 0, larger))
    tl.store(out_ptr + 3 * N, tl.reduce(x, 0, larger))


def test_functions_of_elements_may_branch_and_loop(engine):
    x, y = whole(64, 3, 0, 12), whole(64, 4, 0, 12)
    out = torch.zeros(193, dtype=torch.int32)
    branching_kernel[(1,)](torch.from_numpy(x), torch.from_numpy(y), out, N=64)
    made = [
        int(a - b) if a > b else (int(a) & 7).bit_length() if a == b else int(2 * b) for a, b in zip(x, y, strict=True)
    ]
    assert out[:64].tolist() == made
    np.testing.assert_array_equal(out[64:128].numpy(), np.where(x > y, 1, np.where(x == y, 2, 3)))
    np.testing.assert_array_equal(out[128:192].numpy(), np.maximum.accumulate(x))
    assert out[192] == x.max()


@triton.jit
def parted_kernel(x_ptr, count_ptr, out_ptr, desc, N: tl.constexpr):
    """Memory in branches that some programs take: atomics, descriptors, masks, loops, gathers."""
    pid = tl.program_id(0)
    i = tl.arange(0, N)
    x = tl.load(x_ptr + pid)
    if x > 10:
        tl.atomic_add(count_ptr, x)
        if x % 2 == 0:
            tl.atomic_add(count_ptr + 1 + i % 4, x + i, mask=i < 5)
            tl.atomic_max(count_ptr + 8, x)
        else:
            tl.store(out_ptr + pid * N + i, x + i, mask=i < pid)
            desc.store([pid, 0], tl.zeros((1, 8), tl.int32) + x)
        k = 0
        while k < x % 5:
            tl.store(out_ptr + pid * N + k, k * 100 + pid)
            k += 1
    else:
        tl.store(out_ptr + pid * N + i, tl.reshape(desc.load([pid, 0]), (8,)) * 2)
        for j in range(0, x):
            tl.atomic_add(count_ptr + 9, 1)
            if j == pid:
                tl.store(count_ptr + 10 + pid, j)
            tl.store(out_ptr + pid * N + i, tl.gather(i, (i + j) % N, 0), mask=i == j)


def test_memory_in_branches_that_part(engine):
    x, count, out, table = (
        whole(11, 5, 0, 21),
        np.zeros(32, np.int32),
        np.full((11, 8), -1, np.int32),
        whole((11, 8), 6),
    )
    given = [torch.from_numpy(array.copy()) for array in (count, out, table)]
    parted_kernel[(11,)](torch.from_numpy(x), *given[:2], TensorDescriptor.from_tensor(given[2], [1, 8]), N=8)
    for pid, number in enumerate(x.tolist()):
        if number > 10:
            count[0] += number
            if number % 2 == 0:
                for i in range(5):
                    count[1 + i % 4] += number + i
                count[8] = max(count[8], number)
            else:
                out[pid, :pid] = number + np.arange(min(pid, 8))
                table[pid] = number
            for k in range(number % 5):
                out[pid, k] = k * 100 + pid
        else:
            out[pid] = table[pid] * 2
            count[9] += number
            if number > pid:
                count[10 + pid] = pid
            for j in range(min(number, 8)):
                out[pid, j] = 2 * j % 8
    for tensor, array in zip(given, (count, out, table), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


@triton.jit
def long_kernel(out_ptr, first, last, step):
    total = tl.full((), 0, tl.int64)
    for i in range(first, last):
        total += i - first
    for i in range(first + tl.program_id(0), last, 2):
        total += (i - first) * 100
    for _ in range(last, first, step):
        total += 1000000
    tl.store(out_ptr + tl.program_id(0), total)


def test_loops_over_64_bit_numbers_and_with_a_step_known_only_when_launched(engine):
    out = torch.zeros(3, dtype=torch.int64)
    first = 2**40
    long_kernel[(3,)](out, first, first + 5, -1)  # compares as <, as the hardware does
    assert out.tolist() == [10 + 100 * sum(range(pid, 5, 2)) for pid in range(3)]
    with pytest.raises(Unsupported, match="does not end"):
        long_kernel[(3,)](out, first + 5, first, -1)


@triton.jit
def extern_kernel(x_ptr, n_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, n = tl.load(x_ptr + i), tl.load(n_ptr + i)
    tl.store(out_ptr + i, libdevice.float2int_rd(x))
    tl.store(out_ptr + N + i, libdevice.float2int_rn(x))
    tl.store(out_ptr + 2 * N + i, libdevice.float2ll_ru(x))
    tl.store(out_ptr + 3 * N + i, libdevice.hadd(n, n + 1))
    tl.store(out_ptr + 4 * N + i, libdevice.ffs(n))
    tl.store(out_ptr + 5 * N + i, libdevice.float_as_int(libdevice.fma(x, x, -x)))
    tl.store(out_ptr + 6 * N + i, libdevice.ldexp(x, n & 3).to(tl.int64))


def test_functions_of_libdevice_on_integers_and_their_conversions(engine):
    x = np.array([-2.5, -0.5, 0.5, 1.5, 2.5, 3e9, -3e9, 7.25], np.float32)
    n = np.array([0, 1, -1, 8, 12, -8, 2**30, -(2**31)], np.int32)
    out = torch.zeros(7, 8, dtype=torch.int64)
    extern_kernel[(1,)](torch.from_numpy(x), torch.from_numpy(n), out, N=8)
    wide = x.astype(np.float64)
    expected = [np.floor(wide).clip(-(2**31), 2**31 - 1), np.rint(wide).clip(-(2**31), 2**31 - 1), np.ceil(wide)]
    following = (n.astype(np.int64) + 1 + 2**31) % 2**32 - 2**31
    expected += [(n.astype(np.int64) + following) >> 1, [0, 1, 1, 4, 3, 4, 31, 32]]
    expected += [(wide * wide - wide).astype(np.float32).view(np.int32), np.trunc(wide * 2.0 ** (n & 3))]
    for row, right in zip(out.numpy(), expected, strict=True):
        np.testing.assert_array_equal(row, np.asarray(right).astype(np.int64))


@triton.jit
def assuming_kernel(x_ptr, n):
    pid = tl.program_id(0)
    tl.assume(n % 8 == 0)
    if pid == 2:
        tl.assume(pid > n)
    tl.store(x_ptr + pid, pid)


def test_an_assumption_that_does_not_hold_is_told_by_the_program_that_makes_it(engine):
    x = torch.zeros(3, dtype=torch.int32)
    assuming_kernel[(2,)](x, 16)
    assert not engine.accesses
    assuming_kernel[(3,)](x, 16)
    ((what, message),) = [(entry["what"], entry["message"]) for entry in engine.accesses.values()]
    assert (what, message) == ("assumption", "what it assumes does not hold in program (2, 0, 0)")
    engine.reset()
    assuming_kernel[(2,)](x, 12)
    assert [entry["what"] for entry in engine.accesses.values()] == ["assumption"]
