"""Pointers of many origins; atomic operations and what they order.

Long because every case is a kernel of its own, right and wrong ones beside each other.
"""

import pytest
import torch
import triton
import triton.language as tl

from fuzzrope.interpreter.program import Program
from tests.interpreter.checks import Cases, blank, f32, zeros

case = Cases()


@triton.jit
def far_q(q, k, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(q + n + i, mask=i < n), mask=i < n)
    tl.store(o + i, tl.load(k + i, mask=i < n), mask=i < n)


@case("out_of_bounds")
def k_through_q():
    s = f32(32)
    far_q[(1,)](s[:16], s[16:], blank(16), 16, B=16)


@triton.jit
def select_ptr(q, k, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    pid = tl.program_id(0)
    p = q if pid == 0 else k
    tl.store(o + pid * B + i, tl.load(p + i, mask=i < n), mask=i < n)


@case()
def select_pointer():
    select_ptr[(2,)](f32(16), f32(16) + 5, blank(32), 16, B=16)


@triton.jit
def if_ptr(q, k, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    pid = tl.program_id(0)
    p = q if pid == 0 else k
    tl.store(o + pid * B + i, tl.load(p + i, mask=i < n), mask=i < n)


@case("out_of_bounds")
def if_pointer_bad_one_storage():
    s = f32(64)
    if_ptr[(2,)](s[:8], s[40:48], blank(32), 16, B=16)


@triton.jit
def where_ptr(q, k, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    p = tl.where(i % 2 == 0, q + i, k + i)
    tl.store(o + i, tl.load(p, mask=i < n), mask=i < n)


@case()
def where_pointer():
    where_ptr[(1,)](f32(16), f32(16) + 5, blank(16), 16, B=16)


@case("out_of_bounds")
def where_pointer_bad():
    where_ptr[(1,)](f32(16), f32(15) + 5, blank(16), 16, B=16)


@triton.jit
def cast_ptr(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    a = x.to(tl.int64) + i.to(tl.int64) * 4
    p = a.to(tl.pointer_type(tl.float32))
    tl.store(o + i, tl.load(p, mask=i < n), mask=i < n)


@case()
def int64_address():
    cast_ptr[(1,)](f32(13), blank(13), 13, B=16)


@case("out_of_bounds")
def int64_address_bad():
    cast_ptr[(1,)](f32(12), blank(13), 13, B=16)


@triton.jit
def table(t, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    pid = tl.program_id(0)
    p = tl.load(t + pid).to(tl.pointer_type(tl.float32))
    tl.store(o + pid * n + i, tl.load(p + i, mask=i < n), mask=i < n)


@case()
def pointer_table():
    xs = [f32(5), f32(5) + 1, f32(5) + 2]
    t = torch.tensor([x.data_ptr() for x in xs], device="cuda")
    table[(3,)](t, blank(15), 5, B=8)


@case("out_of_bounds")
def pointer_table_bad():
    xs = [f32(5), f32(4) + 1, f32(5) + 2]
    t = torch.tensor([x.data_ptr() for x in xs], device="cuda")
    table[(3,)](t, blank(15), 5, B=8)


@case("uninitialized")
def pointer_table_uninit():
    xs = [f32(5), blank(5), f32(5) + 2]
    t = torch.tensor([x.data_ptr() for x in xs], device="cuda")
    table[(3,)](t, blank(15), 5, B=8)


@triton.jit
def tup(ps, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    acc = tl.zeros((B,), tl.float32)
    for j in tl.static_range(len(ps)):
        acc += tl.load(ps[j] + i, mask=i < n, other=0.0)
    tl.store(o + i, acc, mask=i < n)


@case()
def tuple_ptrs():
    tup[(1,)]((f32(5), f32(5), f32(5)), blank(5), 5, B=8)


@case("out_of_bounds")
def tuple_ptrs_bad():
    tup[(1,)]((f32(5), f32(4), f32(5)), blank(5), 5, B=8)


# atomics
@triton.jit
def hist(x, h, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    b = tl.load(x + i, mask=i < n, other=0).to(tl.int32) % 4
    tl.atomic_add(h + b, 1, mask=i < n)


@case()
def atomics_hist():
    hist[(5,)](f32(37), zeros(4, dtype=torch.int32), 37, B=8)


@case("uninitialized")
def atomics_on_empty():
    hist[(5,)](f32(37), blank(4, dtype=torch.int32), 37, B=8)


@triton.jit
def last_block(x, part, cnt, o, n, NP: tl.constexpr, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    s = tl.sum(tl.load(x + i, mask=i < n, other=0.0))
    tl.store(part + pid, s)
    c = tl.atomic_add(cnt, 1)
    if c == tl.num_programs(0) - 1:
        j = tl.arange(0, NP)
        tl.store(o, tl.sum(tl.load(part + j, mask=j < tl.num_programs(0), other=0.0)))


@case()
def last_block_reduces():
    last_block[(5,)](f32(37), blank(5), zeros(1, dtype=torch.int32), blank(1), 37, NP=8, B=8)


@triton.jit
def last_block_no(x, part, cnt, o, n, NP: tl.constexpr, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    s = tl.sum(tl.load(x + i, mask=i < n, other=0.0))
    tl.store(part + pid, s)
    if pid == tl.num_programs(0) - 1:
        j = tl.arange(0, NP)
        tl.store(o, tl.sum(tl.load(part + j, mask=j < tl.num_programs(0), other=0.0)))


@case("race")
def last_block_no_counter():
    last_block_no[(5,)](f32(37), blank(5), zeros(1, dtype=torch.int32), blank(1), 37, NP=8, B=8)


@triton.jit
def last_block_late(x, part, cnt, o, n, NP: tl.constexpr, B: tl.constexpr):
    pid = tl.program_id(0)
    i = pid * B + tl.arange(0, B)
    s = tl.sum(tl.load(x + i, mask=i < n, other=0.0))
    c = tl.atomic_add(cnt, 1)
    tl.store(part + pid, s)
    if c == tl.num_programs(0) - 1:
        j = tl.arange(0, NP)
        tl.store(o, tl.sum(tl.load(part + j, mask=j < tl.num_programs(0), other=0.0)))


@case("race")
def last_block_store_after_counter():
    last_block_late[(5,)](f32(37), blank(5), zeros(1, dtype=torch.int32), blank(1), 37, NP=8, B=8)


@triton.jit
def lock(x, lock_ptr, acc, n, LOCK: tl.constexpr, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    v = tl.load(x + pid * n + i, mask=i < n, other=0.0)
    if LOCK:
        while tl.atomic_cas(lock_ptr, 0, 1) == 1:
            pass
    a = tl.load(acc + i, mask=i < n, other=0.0)
    tl.store(acc + i, a + v, mask=i < n)
    tl.debug_barrier()
    if LOCK:
        tl.atomic_xchg(lock_ptr, 0)


@case()
def spin_lock():
    lock[(6,)](f32(6, 5), zeros(1, dtype=torch.int32), zeros(5), 5, LOCK=True, B=8)


@case("race")
def no_lock():
    lock[(6,)](f32(6, 5), zeros(1, dtype=torch.int32), zeros(5), 5, LOCK=False, B=8)


@triton.jit
def locks2(x, lock_ptr, acc, n, WRONG: tl.constexpr, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    g = pid % 2
    v = tl.load(x + pid * n + i, mask=i < n, other=0.0)
    lk = lock_ptr + (pid if WRONG else g)
    while tl.atomic_cas(lk, 0, 1) == 1:
        pass
    a = tl.load(acc + g * n + i, mask=i < n, other=0.0)
    tl.store(acc + g * n + i, a + v, mask=i < n)
    tl.atomic_xchg(lk, 0)


@case()
def group_locks():
    locks2[(6,)](f32(6, 5), zeros(6, dtype=torch.int32), zeros(10), 5, WRONG=False, B=8)


@case("race")
def wrong_locks():
    locks2[(6,)](f32(6, 5), zeros(6, dtype=torch.int32), zeros(10), 5, WRONG=True, B=8)


@triton.jit
def early_unlock(x, lock_ptr, acc, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    v = tl.load(x + pid * n + i, mask=i < n, other=0.0)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    a = tl.load(acc + i, mask=i < n, other=0.0)
    tl.atomic_xchg(lock_ptr, 0)
    tl.store(acc + i, a + v, mask=i < n)


@case("race")
def unlock_before_store():
    early_unlock[(6,)](f32(6, 5), zeros(1, dtype=torch.int32), zeros(5), 5, B=8)


@triton.jit
def add_and_load(x, acc, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    tl.atomic_add(acc + i, tl.load(x + i))
    if pid == 0:
        tl.store(acc + i, 1.0)


@case("race")
def atomic_and_plain_store():
    add_and_load[(3,)](f32(8), zeros(8), B=8)


@triton.jit
def add_and_read(x, acc, o, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    tl.atomic_add(acc + i, tl.load(x + i))
    tl.store(o + pid * B + i, tl.load(acc + i))


@case("race")
def atomic_and_plain_load():
    add_and_read[(3,)](f32(8), zeros(8), zeros(24), B=8)


@triton.jit
def split_k(x, o, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    if pid == 0:
        tl.store(o + i, 0.0)
    tl.atomic_add(o + i, tl.load(x + pid * n + i))


@case("race")
def zero_then_atomic():
    split_k[(3,)](f32(24), blank(8), 8, B=8)


@triton.jit
def lookback(x, part, flag, o, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    s = tl.sum(tl.load(x + pid * B + i))
    if pid > 0:
        while tl.atomic_add(flag + pid - 1, 0) == 0:
            pass
        s += tl.load(part + pid - 1)
    tl.store(part + pid, s)
    tl.atomic_xchg(flag + pid, 1)
    tl.store(o + pid, s)


@case()
def chained_scan():
    lookback[(5,)](f32(40), blank(5), zeros(5, dtype=torch.int32), blank(5), B=8)


@triton.jit
def ticket(x, cnt, o, B: tl.constexpr):
    t = tl.atomic_add(cnt, 1)
    i = tl.arange(0, B)
    tl.store(o + t * B + i, tl.load(x + t * B + i))


@case()
def work_queue():
    ticket[(5,)](f32(40), zeros(1, dtype=torch.int32), blank(40), B=8)


@triton.jit
def vol(x, acc, o, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    tl.atomic_add(acc + i, tl.load(x + i))
    tl.store(o + pid * B + i, tl.load(acc + i, volatile=True))


@case()
def atomic_and_volatile_load():
    vol[(3,)](f32(8), zeros(8), zeros(24), B=8)


@triton.jit
def one_prog(x, acc, o, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B) + pid * B
    tl.store(acc + i, 0.0)
    tl.atomic_add(acc + i, tl.load(x + i))
    tl.store(o + i, tl.load(acc + i))


@case()
def own_atomics_and_plain():
    one_prog[(3,)](f32(24), blank(24), zeros(24), B=8)


@triton.jit
def one_of_two(acc, o):
    pid = tl.program_id(0)
    tl.atomic_add(acc, 1.0)
    if pid == 1:
        tl.store(o, tl.load(acc))


@case("race")
def last_program_reads():
    one_of_two[(2,)](zeros(1), zeros(1))


@triton.jit
def one_of_two0(acc, o):
    pid = tl.program_id(0)
    tl.atomic_add(acc, 1.0)
    if pid == 0:
        tl.store(o, tl.load(acc))


@case("race")
def first_program_reads():
    one_of_two0[(2,)](zeros(1), zeros(1))


@triton.jit
def count_then_read_own(acc, o, cnt):
    c = tl.atomic_add(acc, 1.0)
    if c == tl.num_programs(0) - 1:
        tl.store(o, tl.load(acc))
        tl.store(acc, 0.0)


@case()
def last_resets_counter():
    count_then_read_own[(4,)](zeros(1), zeros(1), zeros(1))


@triton.jit
def first_reads(acc, o):
    c = tl.atomic_add(acc, 1.0)
    if c == 0:
        tl.store(o, tl.load(acc))


@case("race")
def first_reads_counter():
    first_reads[(4,)](zeros(1), zeros(1))


@triton.jit
def tut(x, lock_ptr, acc, n, B: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B)
    v = tl.load(x + pid * n + i, mask=i < n, other=0.0)
    g = pid % 2
    lk = lock_ptr + g
    ck = lk + 2
    while tl.atomic_cas(lk, 0, 1) == 1:
        pass
    c = tl.load(ck)
    if c == 0:
        tl.atomic_xchg(ck, 1)
    else:
        v += tl.load(acc + g * n + i, mask=i < n, other=0.0)
    tl.store(acc + g * n + i, v, mask=i < n)
    tl.debug_barrier()
    tl.atomic_xchg(lk, 0)


@case()
def tutorial_locks():
    tut[(6,)](f32(6, 5), zeros(4, dtype=torch.int32), blank(10), 5, B=8)


@triton.jit
def unlock_plain(x, lock_ptr, acc, n, B: tl.constexpr):
    tl.program_id(0)
    i = tl.arange(0, B)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    tl.store(acc + i, tl.load(acc + i) + 1)
    tl.store(lock_ptr, 0)


@case("race")
def unlock_by_plain_store():
    unlock_plain[(6,)](f32(6, 5), zeros(4, dtype=torch.int32), zeros(8), 5, B=8)


@case()
def xchg_on_empty():
    xch[(2,)](blank(8, dtype=torch.int32), B=8)


@triton.jit
def xch(o, B: tl.constexpr):
    tl.atomic_xchg(o + tl.arange(0, B), 5)


@case("uninitialized")
def max_on_empty():
    mx[(2,)](blank(8), B=8)


@triton.jit
def mx(o, B: tl.constexpr):
    tl.atomic_max(o + tl.arange(0, B), 5.0)


@triton.jit
def read_elsewhere(x, acc, B: tl.constexpr):
    tl.program_id(0)
    i = tl.arange(0, B)
    tl.atomic_add(acc + 8 + i % 4, tl.load(acc + i))


@case()
def atomics_next_to_reads():
    read_elsewhere[(3,)](f32(8), zeros(16), B=8)


@triton.jit
def add_through_table(table_ptr, out_ptr, B: tl.constexpr):
    ptr = tl.load(table_ptr).to(tl.pointer_type(tl.float32))
    tl.atomic_add(ptr + tl.arange(0, B), 1.0)
    if tl.program_id(0) == 0:
        tl.store(out_ptr, tl.load(ptr))


@case("race")
def atomic_through_table():
    x = f32(8)
    add_through_table[(3,)](torch.tensor([x.data_ptr()], device="cuda"), f32(2), B=8)


@triton.jit
def half_load(x_ptr, out_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    if tl.program_id(0) == 0:
        tl.atomic_add(out_ptr + i, 1)
    else:
        tl.store(x_ptr + i, tl.load(out_ptr.to(tl.pointer_type(tl.int16)) + 2 * i + 1).to(tl.float32))


@case("race")
def atomic_and_half_load():
    half_load[(2,)](f32(8), zeros(8, dtype=torch.int32), B=8)


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("body", "kinds"), case)
def test_what_is_wrong_is_found_and_nothing_else(body, kinds, kinds_of):
    assert kinds_of(body) == kinds


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("body", "kinds"), case)
def test_it_does_not_depend_on_how_many_programs_run_at_once(body, kinds, kinds_of, monkeypatch):
    monkeypatch.setattr(Program, "chunk", lambda program, programs, memory: 1)
    assert kinds_of(body) == kinds
