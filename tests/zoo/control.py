"""Control flow: loops, branches and returns that differ from program to program, and calls."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.values import generator


@triton.jit
def bounds_kernel(begin_ptr, end_ptr, out_ptr, N: tl.constexpr):
    """Bounds from memory; some loops never run; the step is known, or not, or negative."""
    pid = tl.program_id(0)
    begin = tl.load(begin_ptr + pid)
    end = tl.load(end_ptr + pid)
    total = tl.zeros((N,), tl.int32)
    scalar = 0
    for i in range(begin, end):
        total += i * tl.arange(0, N)
        for j in range(0, i, 2):
            scalar += j - pid
    for i in range(end, begin, -3):
        total ^= i
    for i in range(begin, end, pid + 1):
        scalar = scalar * 3 + i
    tl.store(out_ptr + pid * N + tl.arange(0, N), total + scalar)


def launch_bounds(begin, end):
    out = torch.empty((begin.numel(), 8), dtype=torch.int32, device=begin.device)
    bounds_kernel[(begin.numel(),)](begin, end, out, N=8)
    return {"out": out}


def truth_bounds(begin, end):
    rows = []
    for pid, (first, last) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        total, scalar = [0] * 8, 0
        for i in range(first, last):
            total = [t + i * n for n, t in enumerate(total)]
            scalar += sum(j - pid for j in range(0, i, 2))
        for i in range(last, first, -3):
            total = [t ^ i for t in total]
        for i in range(first, last, pid + 1):
            scalar = scalar * 3 + i
        rows.append([(t + scalar + 2**31) % 2**32 - 2**31 for t in total])
    return {"out": np.array(rows, np.int32)}


@triton.jit
def ranges_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Every hint that tl.range takes leaves the meaning alone."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.range(0, n, num_stages=3):
        total += tl.load(x_ptr + k * BLOCK + i)
    for k in tl.range(0, n, 2, loop_unroll_factor=2):
        total += tl.load(x_ptr + k * BLOCK + i) * 2
    for a in tl.range(0, n, flatten=True):
        for b in tl.range(0, 2):
            total += tl.load(x_ptr + a * BLOCK + i) * b
    for k in tl.range(0, n, warp_specialize=False, disallow_acc_multi_buffer=True):
        total -= tl.load(x_ptr + k * BLOCK + i)
    for k in tl.static_range(4):
        total += k
        if k % 2 == 0:
            total *= 2
    tl.store(out_ptr + i, total)


def launch_ranges(x):
    out = torch.empty(x.shape[1], device=x.device)
    ranges_kernel[(1,)](x, out, x.shape[0], BLOCK=x.shape[1], enable_fp_fusion=False)
    return {"out": out}


def truth_ranges(x):
    x = x.numpy()
    total = x.sum(0) + 2 * x[::2].sum(0)
    for k in range(4):
        total = (total + k) * (2 if k % 2 == 0 else 1)
    return {"out": total.astype(np.float32)}


@triton.jit
def while_kernel(x_ptr, steps_ptr, gcd_ptr, first_ptr, N: tl.constexpr):
    """Collatz, Euclid, and a loop that runs until all lanes are done."""
    pid = tl.program_id(0)
    x = tl.load(x_ptr + pid)
    steps = 0
    value = x
    while value != 1:
        if value % 2 == 0:  # noqa: SIM108  # a branch is meant
            value = value // 2
        else:
            value = 3 * value + 1
        steps += 1
    tl.store(steps_ptr + pid, steps)
    a = x
    b = 360360
    while b != 0:
        a, b = b, a % b
    tl.store(gcd_ptr + pid, a)
    lanes = tl.arange(0, N) + x
    turns = tl.zeros((N,), tl.int32)
    while tl.max((lanes > 1).to(tl.int32), 0) > 0:
        turns += (lanes > 1).to(tl.int32)
        lanes = lanes // 2
    tl.store(first_ptr + pid * N + tl.arange(0, N), turns)


def launch_while(x):
    out = {name: torch.empty_like(x) for name in ("steps", "gcd")}
    out["turns"] = torch.empty((x.numel(), 16), dtype=torch.int32, device=x.device)
    while_kernel[(x.numel(),)](x, *out.values(), N=16)
    return out


def truth_while(x):
    steps = []
    for value in x.tolist():
        steps.append(0)
        while value != 1:
            value = value // 2 if value % 2 == 0 else 3 * value + 1
            steps[-1] += 1
    turns = [[(value + lane).bit_length() - 1 for lane in range(16)] for value in x.tolist()]
    gcd = np.gcd(x.numpy(), np.int32(360360)).astype(np.int32)
    return {"steps": np.array(steps, np.int32), "gcd": gcd, "turns": np.array(turns, np.int32)}


@triton.jit
def branch_kernel(x_ptr, out_ptr, n, N: tl.constexpr):
    pid = tl.program_id(0)
    if pid >= n:
        return
    x = tl.load(x_ptr + pid * N + tl.arange(0, N))
    if pid % 2 == 0:
        if pid % 4 == 0 and tl.sum(x, 0) > 0:
            y = x + 1000
        elif pid == 2 or not (pid < 5):
            y = x * 2
        else:
            y = -x
    else:
        y = x * x
        if pid == 3:
            y += 1
            scale = 5
        else:
            scale = 7 if pid > 4 else 6
        y = y * scale
    if N > 4:  # known to the compiler: the other side need not even make sense
        y += 1
    else:
        y = undefined  # noqa: F821
    tl.store(out_ptr + pid * N + tl.arange(0, N), y)


def launch_branch(x):
    out = torch.full_like(x, -1)
    branch_kernel[(x.shape[0],)](x, out, x.shape[0] - 2, N=x.shape[1])
    return {"out": out}


def truth_branch(x):
    rows = []
    for pid, row in enumerate(x.numpy()):
        if pid >= len(x) - 2:
            rows.append(row * 0 - 1)
        elif pid % 4 == 0 and row.sum() > 0:
            rows.append(row + 1001)
        elif pid % 2 == 0:
            rows.append(row * 2 + 1 if pid == 2 or pid >= 5 else 1 - row)
        else:
            rows.append((row * row + (pid == 3)) * (5 if pid == 3 else 7 if pid > 4 else 6) + 1)
    return {"out": np.array(rows, np.int32)}


@triton.jit
def polynomial(x, degree: tl.constexpr):
    total = x * 0
    for _ in tl.static_range(degree):
        total = total * x + 3
    return total


@triton.jit
def sign_of(x):
    if x > 0:
        return 1
    if x < 0:
        return -1
    return 0


@triton.jit(noinline=True)
def divided(a, b):
    return a // b, a % b


@triton.jit
def twice(function: tl.constexpr, x):
    return function(function(x, 2), 3)


@triton.jit
def calls_kernel(x_ptr, a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * N + tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(a_ptr + i, twice(polynomial, x))
    first = tl.load(x_ptr + pid * N)
    quotient, rest = divided(first, first % 5 + 9)  # what is not inlined takes and gives scalars
    tl.store(b_ptr + i, tl.full((N,), 1, tl.int32) * quotient * 100 + rest)
    tl.store(c_ptr + i, x + sign_of(first) * 10)


def launch_calls(x):
    out = {name: torch.empty_like(x) for name in "abc"}
    calls_kernel[(x.numel() // 16,)](x, *out.values(), N=16)
    return out


def truth_calls(x):
    x = x.numpy().astype(np.int64)

    def remainder(a, b):
        return np.sign(a) * (np.abs(a) % b)

    def quotient(a, b):
        return (a - remainder(a, b)) // b

    def polynomial_of(x, degree):
        total = x * 0
        for _ in range(degree):
            total = total * x + 3
        return total

    first = np.repeat(x[::16], 16)
    divisor = remainder(first, 5) + 9
    out = {
        "a": polynomial_of(polynomial_of(x, 2), 3),
        "b": quotient(first, divisor) * 100 + remainder(first, divisor),
        "c": np.sign(first) * 10 + x,
    }
    return {name: values.astype(np.int32) for name, values in out.items()}


@triton.jit
def carried_kernel(x_ptr, out_ptr, n, N: tl.constexpr):
    """A loop carries a pointer, a scalar of each kind and two tensors that swap places; a branch inside skips."""
    i = tl.arange(0, N)
    a = tl.load(x_ptr + i)
    b = a * 0
    at = x_ptr
    seen = 0
    peak = float("-inf")
    for k in range(n):
        row = tl.load(at + i)
        a, b = b + row, a
        if k % 3 != tl.program_id(0):
            seen += 1
            peak = tl.maximum(peak, tl.max(row, 0))
        at += N
    tl.store(out_ptr + tl.program_id(0) * N + i, a - b + seen + peak)


def launch_carried(x):
    out = torch.empty((3, x.shape[1]), device=x.device)
    carried_kernel[(3,)](x, out, x.shape[0], N=x.shape[1], enable_fp_fusion=False)
    return {"out": out}


def truth_carried(x):
    x, rows = x.numpy(), []
    for pid in range(3):
        a, b, seen, peak = x[0], x[0] * 0, 0, -np.inf
        for k, row in enumerate(x):
            a, b = b + row, a
            if k % 3 != pid:
                seen, peak = seen + 1, max(peak, row.max())
        rows.append(a - b + seen + peak)
    return {"out": np.array(rows, np.float32)}


@triton.jit
def digits(x, y):
    """For one element alone: loops and branches that a block cannot have."""
    count = 0
    while x > 0:
        x = x // 10
        count += 1
    if count > 2:
        count = count * 100
    return count, y - count


@triton.jit
def map_kernel(x_ptr, y_ptr, count_ptr, rest_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    count, rest = tl.map_elementwise(digits, tl.load(x_ptr + i), tl.load(y_ptr + i))
    tl.store(count_ptr + i, count)
    tl.store(rest_ptr + i, rest)


def launch_map(x, y):
    out = {"count": torch.empty_like(x), "rest": torch.empty_like(x)}
    map_kernel[(1,)](x, y, *out.values(), N=x.numel())
    return out


def truth_map(x, y):
    count = np.array([len(str(v)) if v > 0 else 0 for v in x.tolist()], np.int32)
    count = np.where(count > 2, count * 100, count)
    return {"count": count, "rest": y.numpy() - count}


def whole(shape, low, high, seed, dtype=np.int32):
    return torch.from_numpy(generator(seed).integers(low, high, shape).astype(dtype))


ENTRIES = (
    Entry(
        "loop_bounds",
        "exact",
        lambda: {"begin": whole(8, 0, 6, 140), "end": whole(8, 0, 14, 141)},
        launch_bounds,
        truth_bounds,
    ),
    Entry("loop_hints", "exact", lambda: {"x": whole((6, 64), -9, 9, 142, np.float32)}, launch_ranges, truth_ranges),
    Entry("while_loops", "exact", lambda: {"x": whole(12, 1, 99, 143)}, launch_while, truth_while),
    Entry("branches", "exact", lambda: {"x": whole((10, 16), -40, 50, 144)}, launch_branch, truth_branch),
    Entry("calls", "exact", lambda: {"x": whole(96, -12, 12, 145)}, launch_calls, truth_calls),
    Entry("carried", "exact", lambda: {"x": whole((7, 32), -20, 20, 146, np.float32)}, launch_carried, truth_carried),
    Entry(
        "map_elementwise",
        "exact",
        lambda: {"x": whole(64, -9, 30000, 147), "y": whole(64, -99, 99, 148)},
        launch_map,
        truth_map,
        None,
        False,
    ),
)
