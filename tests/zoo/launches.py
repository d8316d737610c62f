"""How kernels are launched: what arguments they take, grids, tuning, heuristics, hooks, and what they print."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.values import generator, integers, normals

SCALE: tl.constexpr = tl.constexpr(3)
GREETING = tl.constexpr("many")


@triton.jit
def arguments_kernel(
    x_ptr, out_ptr, bias_ptr, n, one, big, scale, flag, mode: tl.constexpr, pair, shift=5, BLOCK: tl.constexpr = 64
):  # fmt: skip
    """Scalars of every kind, a pointer that is None, tuples, defaults, and constants of the module."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + i, mask=i < n, other=0)
    if mode == GREETING:
        x = x * SCALE + one
    if flag:
        x += shift
    x += pair[0] * (big >> 33).to(tl.int32)
    x += tl.load(pair[1] + 1)
    x += (scale * 4).to(tl.int32)
    tl.store(out_ptr + i, x, mask=i < n)


def launch_arguments(x, bias, big, scale):
    out = {name: torch.zeros_like(x) for name in ("with", "without", "defaults")}
    n, grid = x.numel(), (triton.cdiv(x.numel(), 64),)
    arguments_kernel[grid](x, out["with"], bias, n, 1, big, scale, True, "many", (2, bias), shift=-8, BLOCK=64)
    arguments_kernel[grid](x, out["without"], None, n, 1, big, scale, False, "few", (3, bias))
    arguments_kernel[(8,)](x, out["defaults"], None, n=n, one=7, big=-big, scale=-scale, flag=1, mode="many",
                           pair=(0, x), BLOCK=16, num_warps=1, num_stages=2)  # fmt: skip
    return out


def truth_arguments(x, bias, big, scale):
    x, bias = x.numpy(), bias.numpy()
    high, quarter = np.int32(big >> 33), np.int32(scale * 4)
    return {
        "with": (x + bias) * np.int32(3) + 1 - 8 + 2 * high + bias[1] + quarter,
        "without": x + 3 * high + bias[1] + quarter,
        "defaults": x * np.int32(3) + 7 + 5 + x[1] - quarter,
    }


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["x_ptr"])
def unaligned_kernel(x_ptr, out_ptr, n, wide: tl.int64, narrow: tl.int8, ratio: tl.float64, BLOCK: tl.constexpr):
    """Annotations say the types of scalars: whatever is given wraps or widens to them."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, (x * 2 + narrow).to(tl.float64) * ratio + (wide * wide).to(tl.float64), mask=i < n)


def launch_unaligned(x):
    out = torch.zeros(x.numel() - 1, dtype=torch.float64, device=x.device)
    unaligned_kernel[(4,)](x[1:], out, x.numel() - 1, 3, 100, 0.5, BLOCK=32, enable_fp_fusion=False)
    return {"out": out}


def truth_unaligned(x):
    return {"out": (x.numpy()[1:] * np.int32(2) + np.int32(100)).astype(np.float64) * 0.5 + 9}


@triton.jit
def grid_kernel(out_ptr):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    nx, ny, nz = tl.num_programs(0), tl.num_programs(1), tl.num_programs(2)
    tl.store(out_ptr + (z * ny + y) * nx + x, x + 100 * y + 10000 * z + 1000000 * (nx + ny + nz))


def launch_grid(like):
    out = {"cube": torch.zeros((4, 3, 5), dtype=torch.int32, device=like.device)}
    out |= {"plane": torch.zeros((3, 7), dtype=torch.int32, device=like.device), "line": torch.zeros_like(like)}
    grid_kernel[(5, 3, 4)](out["cube"])
    grid_kernel[7, 3](out["plane"])
    grid_kernel[lambda meta: (like.numel(),)](out["line"])
    return out


def truth_grid(like):
    def cells(nz, ny, nx):
        z, y, x = np.mgrid[:nz, :ny, :nx].astype(np.int32)
        return x + 100 * y + 10000 * z + np.int32(1000000) * np.int32(nx + ny + nz)

    return {"cube": cells(4, 3, 5), "plane": cells(1, 3, 7)[0], "line": cells(1, 1, like.numel())[0, 0]}


@triton.autotune(
    configs=[triton.Config({"BLOCK": 32}, num_warps=1), triton.Config({"BLOCK": 128}, num_warps=4, num_stages=2)],
    key=["n"],
    reset_to_zero=["count_ptr"],
)
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def tuned_kernel(x_ptr, out_ptr, count_ptr, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """The same result whichever configuration wins, and however often it was tried out."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        x = tl.load(x_ptr + i)
        tl.store(out_ptr + i, x * 2 + 1)
    else:
        x = tl.load(x_ptr + i, mask=i < n, other=0)
        tl.store(out_ptr + i, x * 2 + 1, mask=i < n)
    tl.atomic_add(count_ptr, tl.sum((i < n).to(tl.int32), 0))


def launch_tuned(x):
    out = {"even": torch.zeros_like(x), "ragged": torch.zeros_like(x)}
    counts = torch.zeros(2, dtype=torch.int32, device=x.device)
    for k, n in enumerate((x.numel(), x.numel() - 5)):
        name = "ragged" if k else "even"
        tuned_kernel[lambda meta, n=n: (triton.cdiv(n, meta["BLOCK"]),)](x, out[name], counts[k:], n)
    return {**out, "counts": counts}


def truth_tuned(x):
    even = x.numpy() * np.int32(2) + np.int32(1)
    ragged = even.copy()
    ragged[-5:] = 0
    return {"even": even, "ragged": ragged, "counts": np.array([x.numel(), x.numel() - 5], np.int32)}


def metadata(grid, kernel, args):
    return {"name": f"described on {grid}", "flops": 1}


@triton.jit(launch_metadata=metadata)
def described_kernel(x_ptr, out_ptr, N: tl.constexpr):
    tl.static_assert(N > 1, "there is something to do")
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.assume(N > 0)
    tl.store(out_ptr + i, x ^ 0x55)


def launch_described(x):
    out = torch.empty_like(x)
    described_kernel.warmup(x, out, N=x.numel(), grid=(1,))  # compiles, does nothing
    described_kernel[(1,)](x, out, N=x.numel())
    return {"out": out}


@triton.jit(debug=True)
def checked_kernel(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.device_assert(x > -5, "all are above", mask=i < N)
    if tl.program_id(0) == 1:
        tl.device_print("zoo: one program says", tl.program_id(0))
    tl.store(out_ptr + tl.program_id(0) * N + i, x + 1)


def launch_checked(x):
    out = torch.empty((2, x.numel()), dtype=x.dtype, device=x.device)
    checked_kernel[(2,)](x, out, N=x.numel())
    return {"out": out}


@triton.jit
def total_of(items):
    total = items[0]
    for k in tl.static_range(1, len(items)):
        total += items[k]
    return total, len(items)


@triton.jit
def tuple_kernel(inputs, out_ptr, sizes, strides, N: tl.constexpr):
    """Tuples of pointers and of numbers, nested, made and unpacked inside."""
    i = tl.arange(0, N)
    loaded = (tl.load(inputs[0] + i), tl.load(inputs[1] + i * strides[1], mask=i < sizes[1][0], other=0))
    total, count = total_of(loaded)
    total, loaded = total + count, (total, loaded[0], loaded[1])
    tl.store(out_ptr + i, total * 10 + loaded[1] - loaded[2] + len(loaded) + sizes[0])


def launch_tuple(x, y):
    out = torch.empty_like(x)
    tuple_kernel[(1,)]((x, y), out, (x.numel(), (y.numel() // 2, None)), (1, 2), N=x.numel())
    return {"out": out}


def truth_tuple(x, y):
    first, second = x.numpy(), np.zeros_like(x.numpy())
    second[: y.numel() // 2] = y.numpy()[::2]
    return {"out": (first + second + 2) * 10 + first - second + 3 + np.int32(x.numel())}


@triton.jit
def twice_kernel(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i) * 2)


def launch_chain(x):
    """Launches follow each other in one stream: each reads what the one before wrote, the last in place."""
    first, second = torch.empty_like(x), torch.empty_like(x)
    twice_kernel[(4,)](x, first, N=x.numel() // 4)
    twice_kernel[(2,)](first, second, N=x.numel() // 2)
    twice_kernel[(1,)](second, second, N=x.numel(), num_warps=8)
    twice_kernel[(0,)](second, second, N=x.numel())  # no programs
    return {"first": first, "second": second}


def small(count, seed):
    return torch.from_numpy(generator(seed).integers(-4, 100, count).astype(np.int32))


#: Triton's interpreter knows no True as an argument where NumPy is new, and tunes only with a driver.
ENTRIES = (
    Entry("arguments", "exact",
          lambda: {"x": small(100, 230), "bias": small(100, 231), "big": 2**40 + 3, "scale": 2.75},
          launch_arguments, truth_arguments, None, False),
    Entry("annotations", "exact", lambda: {"x": small(101, 232)}, launch_unaligned, truth_unaligned),
    Entry("grids", "exact", lambda: {"like": small(9, 233)}, launch_grid, truth_grid),
    Entry("autotune", "exact", lambda: {"x": integers(torch.int32, 256, 234) >> 2}, launch_tuned, truth_tuned,
          None, False),
    Entry("metadata", "exact", lambda: {"x": small(64, 235)}, launch_described, lambda x: {"out": x.numpy() ^ 0x55}),
    Entry("assert_print", "exact", lambda: {"x": small(32, 236)}, launch_checked,
          lambda x: {"out": np.stack([x.numpy() + 1] * 2)}),
    Entry("tuples", "exact", lambda: {"x": small(32, 237), "y": small(50, 238)}, launch_tuple, truth_tuple),
    Entry("launch_chain", "exact", lambda: {"x": normals(torch.float32, 128, 239)}, launch_chain,
          lambda x: {"first": x.numpy() * 2, "second": x.numpy() * 8}),
)  # fmt: skip
