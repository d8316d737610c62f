"""Kernels with awkward control flow, all called as kernel(x, y, out, n, N): 32 numbers of ``out`` a program."""

# the branches are what is tested

import triton
import triton.language as tl


@triton.jit
def nested_kernel(x_ptr, y_ptr, out_ptr, n, N: tl.constexpr):
    """Bounds of their own in every program, a while in a for in an if, loops that never run."""
    pid = tl.program_id(0)
    total = 0
    lanes = tl.arange(0, N)
    rows = tl.zeros((N,), tl.int32)
    if pid % 3 != 1:
        for i in range(tl.load(x_ptr + pid) & 3, tl.load(y_ptr + pid) & 7):
            left = i + (pid & 1)
            while left > 0:
                if (left + pid) % 2 == 0:
                    rows += lanes * left
                else:
                    total += left
                left -= 1
            for j in range(i, 0, -1):
                total += j * i
            for k in range(3, 1):
                total += k * 1000
    else:
        for i in tl.range(0, n, 2):
            rows = tl.where(lanes < i, rows + pid, rows - 1)
    tl.store(out_ptr + pid * 32 + lanes, rows)
    tl.store(out_ptr + pid * 32 + 8, total)


@triton.jit
def steps_kernel(x_ptr, y_ptr, out_ptr, n, N: tl.constexpr):
    """Steps that are known, or differ between programs, with uniform bounds and with others."""
    pid = tl.program_id(0)
    total = 0
    for i in range(0, 7, pid % 3 + 1):
        total += i * 2 + 1
    for i in range(n, 9 + pid, n + 1):
        total = total * 3 + i & 1023
    for i in range(9, pid, -2):
        total += i
    for i in tl.static_range(3):
        total += i * pid
    for i in tl.range(pid, 11, 3, num_stages=2, loop_unroll_factor=2):
        total ^= i
    tl.store(out_ptr + pid * 32, total)


@triton.jit
def early_kernel(x_ptr, y_ptr, out_ptr, n, N: tl.constexpr):
    """Returns at several places, one of them inside a branch that goes on otherwise."""
    pid = tl.program_id(0)
    x = tl.load(x_ptr + pid)
    tl.store(out_ptr + pid * 32, x)
    if n == 1:
        return
    if x > 20:
        tl.store(out_ptr + pid * 32 + 1, x * 2)
        if x % 2 == 0:
            return
        x = x - 1
    elif x < 0:
        return
    else:
        x = x + 100
    tl.store(out_ptr + pid * 32 + 2, x)
    if x + tl.sum(tl.load(y_ptr + tl.arange(0, N)), 0) > pid * 40:
        return
    tl.store(out_ptr + pid * 32 + tl.arange(0, N), x)


@triton.jit
def graded(x, rows, limit):
    """Returns from both arms of a branch, and after it."""
    if x > limit:
        if x > 2 * limit:
            return x - limit, rows + 1
        rows = rows * 2
    elif x < 0:
        return 0, rows - x
    return x * 2, rows


@triton.jit(noinline=True)
def distance(a, b):
    if a > b:
        return a - b
    return b - a


@triton.jit
def calls_kernel(x_ptr, y_ptr, out_ptr, n, N: tl.constexpr):
    """Early returns of functions that are called in loops: the ways differ from turn to turn."""
    pid = tl.program_id(0)
    rows = tl.zeros((N,), tl.int32)
    total = 0
    for i in range(0, 4):
        x = tl.load(x_ptr + pid + i * 7)
        made, rows = graded(x, rows, 12)
        total += made
        if i % 2 == 0:
            total += distance(x, pid)
    k = tl.load(y_ptr + pid) & 3
    while k > 0:
        made, rows = graded(tl.load(y_ptr + pid + k * 5), rows + tl.arange(0, N), n)
        total = distance(total, made)
        k -= 1
    tl.store(out_ptr + pid * 32, total)
    tl.store(out_ptr + pid * 32 + 8 + tl.arange(0, N), rows)


@triton.jit
def carried_kernel(x_ptr, y_ptr, out_ptr, n, N: tl.constexpr):
    """What a loop carries starts alike everywhere, and differs later; pointers change their argument."""
    pid = tl.program_id(0)
    lanes = tl.arange(0, N)
    flat = tl.full((N,), 3, tl.int32)
    square = tl.zeros((2, N), tl.int32)
    a = 0
    b = 1
    one = x_ptr
    many = y_ptr + tl.zeros((N,), tl.int32)
    odd = n > 3
    for i in range(0, (pid & 3) + 1):
        a, b = b, a + b
        if odd:
            one = y_ptr + pid
        else:
            one += 1
        many += lanes
        odd = (a % 2 == 1) | (b > 5)
        square += flat[None, :] * (tl.arange(0, 2) + 1)[:, None]
        flat = tl.where(lanes > i, flat + a, flat)
        if tl.load(one) > 10:
            many = x_ptr + lanes * 2
    tl.store(out_ptr + pid * 32, a * 100 + b + tl.load(one))
    tl.store(out_ptr + pid * 32 + 8 + lanes, flat + tl.load(many))
    tl.store(out_ptr + pid * 32 + 16 + tl.arange(0, 2)[:, None] * N + lanes[None, :], square)


@triton.jit
def while_kernel(x_ptr, y_ptr, out_ptr, n, N: tl.constexpr):
    """Whiles over numbers, tensors and several conditions; uniform ones, and some that never run."""
    pid = tl.program_id(0)
    x = tl.load(x_ptr + pid) & 31
    turns = 0
    while (x > 1) and (turns < 9):
        x = x // 2 if x % 2 == 0 else x * 3 + 1
        turns += 1
    rows = tl.arange(0, N) + pid
    while tl.max(rows, 0) > 3:
        rows = rows // 2
    k = n
    while k > 0:
        k -= 2
        turns += tl.cast(k > pid, tl.int32)
    while turns < 0:
        turns += 1000
    tl.store(out_ptr + pid * 32, turns * 64 + x)
    tl.store(out_ptr + pid * 32 + 8 + tl.arange(0, N), rows * 10 + k)


@triton.jit
def logic_kernel(x_ptr, y_ptr, out_ptr, n, N: tl.constexpr):
    """Scalars only: truth values made, combined, carried and tested."""
    pid = tl.program_id(0)
    x = tl.load(x_ptr + pid)
    y = tl.load(y_ptr + pid)
    up = x > y
    seen = n > 2
    number = 0
    for i in range(0, y & 3):
        seen = seen | (x == i) if up else seen & (y != i)
        if not seen:
            number += i
    if (up and seen) or n == 0:
        number += 100
    number = number + 7 if (x > 0) != up else number - 7
    picked = tl.where(seen, x, y) + tl.where(n > 1, tl.where(up, 1, 2), 3)
    tl.store(out_ptr + pid * 32, number)
    tl.store(out_ptr + pid * 32 + 1, picked)
    tl.store(out_ptr + pid * 32 + 2, tl.cast(up, tl.int32) + tl.cast(seen, tl.int32) * 2)
