"""Random numbers: Philox in 32 and 64 bits is exact integer arithmetic, its uniform floats are too."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import FP32
from tests.zoo.values import generator

N = 128
#: Multipliers and key increments of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11).
PHILOX = {
    32: (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85),
    64: (0xD2E7470EE14C6C93, 0xCA5A826395121157, 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B),
}


def philox(width, counter, key, rounds=10):
    """Four words of Python integers, by the paper."""
    first, second, step_a, step_b = PHILOX[width]
    low = 2**width - 1
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        a, b = first * c0, second * c2
        c0, c1, c2, c3 = (b >> width) ^ c1 ^ k0, b & low, (a >> width) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + step_a) & low, (k1 + step_b) & low
    return c0, c1, c2, c3


@triton.jit
def random_kernel(randint_ptr, four_ptr, few_ptr, uniform_ptr, seed, N: tl.constexpr):
    i = tl.arange(0, N)
    at = tl.program_id(0) * N + i
    tl.store(randint_ptr + at, tl.randint(seed, at))
    a, b, c, d = tl.randint4x(seed, at)
    tl.store(four_ptr + at * 4, a)
    tl.store(four_ptr + at * 4 + 1, b)
    tl.store(four_ptr + at * 4 + 2, c)
    tl.store(four_ptr + at * 4 + 3, d)
    tl.store(few_ptr + at, tl.randint(seed + 1, at, n_rounds=7))
    tl.store(uniform_ptr + at, tl.rand(seed, at))


def launch_random(device, seed):
    words = {"randint": (2 * N,), "four": (2 * N, 4), "few": (2 * N,)}
    out = {name: torch.empty(shape, dtype=torch.uint32, device=device.device) for name, shape in words.items()}
    out["uniform"] = torch.empty(2 * N, device=device.device)
    random_kernel[(2,)](*out.values(), seed, N=N)
    return out


def uniform(words):
    """A uint32 is taken as signed, the negative ones folded, and scaled so that 1 is out of reach."""
    signed = words.astype(np.uint32).view(np.int32).astype(np.int64)
    folded = np.where(signed < 0, -signed - 1, signed)
    return folded.astype(np.float32) * np.float32(4.6566127342e-10)


def truth_random(device, seed):
    key = (seed & 0xFFFFFFFF, seed >> 32)
    later = ((seed + 1) & 0xFFFFFFFF, (seed + 1) >> 32)
    words = np.array([philox(32, (i, 0, 0, 0), key) for i in range(2 * N)], np.uint32)
    few = np.array([philox(32, (i, 0, 0, 0), later, 7)[0] for i in range(2 * N)], np.uint32)
    return {"randint": words[:, 0].copy(), "four": words, "few": few, "uniform": uniform(words[:, 0])}


@triton.jit
def long_kernel(out_ptr, long_ptr, seed, base, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, tl.randint(seed, base + at))  # 64 bits of offset fill two words of the counter
    c = (at + base).to(tl.uint64)
    a, b, _, _ = tl.philox(seed, c, c * 0, c * 0, c * 0)
    tl.store(long_ptr + at, a ^ b)


def launch_long(device, seed, base):
    out = {"out": torch.empty(N, dtype=torch.uint32, device=device.device)}
    out["long"] = torch.empty(N, dtype=torch.uint64, device=device.device)
    long_kernel[(1,)](*out.values(), seed, base, N=N)
    return out


def truth_long(device, seed, base):
    key, offsets = (seed & 0xFFFFFFFF, seed >> 32), range(base, base + N)
    short = [philox(32, (i & 0xFFFFFFFF, i >> 32, 0, 0), key)[0] for i in offsets]
    words = [philox(64, (i, 0, 0, 0), (seed, 0)) for i in offsets]
    long = [a ^ b for a, b, _, _ in words]
    return {"out": np.array(short, np.uint32), "long": np.array(long, np.uint64)}


@triton.jit
def normal_kernel(out_ptr, seed, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, tl.randn(seed, at))


def launch_normal(device, seed):
    out = torch.empty(N, device=device.device)
    normal_kernel[(1,)](out, seed, N=N)
    return {"out": out}


def _box_muller(seed):
    words = np.array([philox(32, (i, 0, 0, 0), (seed, 0)) for i in range(N)], np.uint32)
    u1 = np.maximum(np.float32(1e-7), uniform(words[:, 0])).astype(np.float64)
    angle = np.float32(6.283185307179586) * uniform(words[:, 1])  # rounded in float32, as Triton does
    return np.sqrt(-2 * np.log(u1)), angle.astype(np.float64)


def truth_normal(device, seed):
    radius, angle = _box_muller(seed)
    return {"out": radius * np.cos(angle)}


def bound_normal(device, seed):
    """Log 1 ulp, its double exact, sqrt 1 ulp, cos 2 ulp (CUDA's guide), their product rounded: in all 6 u of |r|.

    Near 1, -2 log(u) is small but its relative error is not worse. Half of the logarithm's passes the root.
    """
    return {"out": 1.01 * (1 + 2 + 4 + 1) * FP32.unit * _box_muller(seed)[0]}


def somewhere():
    """A tensor that says on which device to allocate."""
    return torch.zeros(1)


SEED = int(generator(210).integers(2**40, 2**62))
ENTRIES = (
    Entry("philox", "exact", lambda: {"device": somewhere(), "seed": SEED}, launch_random, truth_random),
    Entry(
        "philox_long",
        "exact",
        lambda: {"device": somewhere(), "seed": SEED, "base": 2**40 - 7},
        launch_long,
        truth_long,
    ),
    Entry(
        "randn", "approximate", lambda: {"device": somewhere(), "seed": 1234}, launch_normal, truth_normal, bound_normal
    ),
)
