"""A correct ``rope_qk`` in Gluon for compute capability 9.0: a draft of a faster kernel, judged before it is measured.

The sum over columns may take them in any order, so they are ordered such that what a thread loads of a row, sixteen
bytes at a time, is what the left factor of a product of warp groups wants of that thread: q and its tables go from
global memory to registers, are rotated there and multiplied, and never pass through shared memory. Rotated keys do,
once, as the right factor; scores leave by bulk copies while the next tile is made.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fuzzrope.specimens.qk_tiled import TiledQK

ROWS, KEYS = 64, 128  # of a tile
ENOUGH_PROGRAMS, MOST_STEPS = 528, 16
TYPES = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


@gluon.jit
def in_order(x, COUNT: gl.constexpr, HALF: gl.constexpr):
    """Rows (COUNT, HALF) with their columns in the order of the left factor's registers.

    Of the bits of a column's number, those of eight neighbours (2, 1 and 0) become 4, 3 and 0, and those of the four
    threads of a row (4 and 3) become 2 and 1.
    """
    bits = x.reshape((COUNT, HALF // 32, 2, 2, 2, 2, 2)).permute((0, 1, 4, 5, 2, 3, 6))
    return bits.reshape((COUNT, HALF))


@gluon.jit
def load_rows(
    x_ptr, cos_ptr, sin_ptr, row, position, there, x_s, cos_s, sin_s,
    COLUMNS: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Both halves (rows, HALF) of rows of x and their rows of the tables; zeros beyond COLUMNS, and without rows."""
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    mask = gl.max_constancy(there[:, None] & (d < COLUMNS), (1, 8))
    x_rows = gl.multiple_of(x_ptr + (row * x_s)[:, None], (16, 16))
    cos_rows = gl.multiple_of(cos_ptr + (position * cos_s)[:, None], (16, 16))
    sin_rows = gl.multiple_of(sin_ptr + (position * sin_s)[:, None], (16, 16))
    x1 = gl.load(x_rows + d, mask=mask, other=0.0)
    x2 = gl.load(x_rows + COLUMNS + d, mask=mask, other=0.0)
    cos = gl.load(cos_rows + d, mask=mask, other=0.0)
    sin = gl.load(sin_rows + d, mask=mask, other=0.0)
    return x1, x2, cos, sin


@gluon.jit
def rotate(x1, x2, cos, sin, DOT: gl.constexpr, COUNT: gl.constexpr, HALF: gl.constexpr):
    """Both rotated halves, computed in float32, rounded once, columns in order."""
    x1 = x1.to(gl.float32)
    x2 = x2.to(gl.float32)
    cos = cos.to(gl.float32)
    sin = sin.to(gl.float32)
    first = (x1 * cos - x2 * sin).to(DOT)
    second = (x2 * cos + x1 * sin).to(DOT)
    return in_order(first, COUNT, HALF), in_order(second, COUNT, HALF)


@gluon.jit(do_not_specialize=range(5, 20), do_not_specialize_on_alignment=range(4))
def hopper_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, out,
    heads, group, rows, keys, offset, scale, steps,
    q_b, q_h, q_s, k_b, k_h, k_s, cos_s, sin_s,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, COLUMNS: gl.constexpr, HALF: gl.constexpr, CAUSAL: gl.constexpr,
    QUERIES: gl.constexpr,
):  # fmt: skip
    """``steps`` tiles of queries, head by head of a group, against one tile of keys."""
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SCORES, 2)
    RIGHT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, HALF], DOT)
    ROWS_OF_K: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    tiles = gl.cdiv(rows, BLOCK_M)
    chunks = gl.cdiv(tiles * group, steps)
    across = gl.cdiv(keys, BLOCK_N)
    pid = gl.program_id(0)
    chunk = pid % chunks
    start_n = pid // chunks % across * BLOCK_N
    head = pid // chunks // across
    offset = offset.to(gl.int64)
    b = (head // heads).to(gl.int64)
    h = (head % heads).to(gl.int64)
    q_ptr += b * q_b + h * group * q_h

    n = start_n + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, ROWS_OF_K))
    at = n.to(gl.int64)
    k_ptr += b * k_b + h * k_h
    x1, x2, cos, sin = load_rows(k_ptr, cos_ptr, sin_ptr, at, at, n < keys, k_s, cos_s, sin_s, COLUMNS, HALF, ROWS_OF_K)
    first_half, second_half = rotate(x1, x2, cos, sin, DOT, BLOCK_N, HALF)
    k1 = gl.allocate_shared_memory(DOT, [BLOCK_N, HALF], RIGHT, value=first_half)
    k2 = gl.allocate_shared_memory(DOT, [BLOCK_N, HALF], RIGHT, value=second_half)
    fence_async_shared()

    buffers = gl.allocate_shared_memory(out.dtype, [2, 1, BLOCK_M, BLOCK_N], out.layout)
    i = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, QUERIES))
    r = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, SCORES))
    j = start_n + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, SCORES))
    first = chunk * steps
    last = gl.minimum(first + steps, tiles * group)
    row = (first % tiles * BLOCK_M + i).to(gl.int64)
    next1, next2, next_cos, next_sin = load_rows(
        q_ptr + (first // tiles).to(gl.int64) * q_h, cos_ptr, sin_ptr, row, row + offset, row < rows, q_s, cos_s, sin_s,
        COLUMNS, HALF, QUERIES,
    )  # fmt: skip
    for turn in range(first, last):
        q1, q2 = rotate(next1, next2, next_cos, next_sin, DOT, BLOCK_M, HALF)
        ahead = turn + 1
        row = (ahead % tiles * BLOCK_M + i).to(gl.int64)
        next1, next2, next_cos, next_sin = load_rows(
            q_ptr + (ahead // tiles).to(gl.int64) * q_h, cos_ptr, sin_ptr, row, row + offset,
            (row < rows) & (ahead < last), q_s, cos_s, sin_s, COLUMNS, HALF, QUERIES,
        )  # fmt: skip
        s = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, SCORES)
        s = warpgroup_mma(gl.convert_layout(q2, LEFT), k2.permute((1, 0)), s, use_acc=False, is_async=True)
        s = warpgroup_mma(gl.convert_layout(q1, LEFT), k1.permute((1, 0)), s, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s]) * scale
        start = turn % tiles * BLOCK_M
        if CAUSAL:  # noqa: SIM102 - known when the kernel is compiled, the rest is not
            if start + offset < start_n + BLOCK_N - 1:
                s = gl.where(j[None, :] <= (start + offset + r)[:, None], s, -float("inf"))
        tma.store_wait(1)
        buffer = buffers.index(turn % 2)
        buffer.store(s.to(out.dtype).reshape((1, BLOCK_M, BLOCK_N)))
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [head * group + turn // tiles, start, start_n], buffer)
    tma.store_wait(0)


def rows_of_q(half: int) -> gl.DistributedLinearLayout:
    """The layout in which queries are loaded: of a row, eight columns a thread, 32 a quarter of a warp."""
    registers = [[0, 1], [0, 2], [0, 4], *([[0, 32]] if half == 64 else []), [8, 0]]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [ROWS, half])


def serves(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out_dtype: torch.dtype) -> bool:
    """Whether the kernel takes inputs: 16 bits, up to 128 columns, halves of rows at multiples of 16 bytes."""
    tensors = (q, k, cos, sin)
    return (
        q.dtype in TYPES
        and all(x.dtype == out_dtype and x.data_ptr() % 16 == 0 and x.stride(-1) == 1 for x in tensors)
        and not any(stride % 8 for x in tensors for stride in x.stride()[:-1])
        and q.shape[3] <= 128
        and q.shape[3] % 16 == 0
        and cos.shape[1] == sin.shape[1] == q.shape[3] // 2
        and k.shape[2] % 8 == 0
    )


def scores(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float, causal: bool, q_offset: int
) -> torch.Tensor:
    """The scores (B, Hq, Sq, Sk) of inputs that :func:`serves` accepts; tables have a row for each position."""
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    out = torch.empty((batch, heads, rows, keys), dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    group = heads // heads_k
    turns, across = triton.cdiv(rows, ROWS) * group, triton.cdiv(keys, KEYS)
    steps = min(max(turns * across * batch * heads_k // ENOUGH_PROGRAMS, 1), MOST_STEPS)
    block, half = [1, ROWS, KEYS], 32 if width <= 64 else 64
    layout = gl.NVMMASharedLayout.get_default_for(block, TYPES[q.dtype])
    described = TensorDescriptor(out, [batch * heads, rows, keys], [rows * keys, keys, 1], block, layout)
    hopper_kernel[(triton.cdiv(turns, steps) * across * batch * heads_k,)](
        q, k, cos, sin, described, heads_k, group, rows, keys, q_offset, scale, steps,
        *q.stride()[:3], *k.stride()[:3], cos.stride(0), sin.stride(0),
        BLOCK_M=ROWS, BLOCK_N=KEYS, COLUMNS=width // 2, HALF=half, CAUSAL=causal,
        QUERIES=rows_of_q(half), num_warps=4,
    )  # fmt: skip
    return out


class HopperQK(TiledQK):
    """What the kernel does not serve, the tiled one does."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        scale: float | None = None,
        causal: bool = False,
        q_offset: int = 0,
        out_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """The contract of ``rope_qk``."""
        made = super().__call__
        if q.dim() == k.dim() == 4 and cos.dim() == sin.dim() == 2 and serves(q, k, cos, sin, out_dtype or q.dtype):
            needed = max(q_offset + q.shape[2], k.shape[2])
            if q.is_cuda and min(cos.shape[0], sin.shape[0]) >= needed and q.shape[1] % k.shape[1] == 0:
                return scores(q, k, cos, sin, q.shape[3] ** -0.5 if scale is None else float(scale), causal, q_offset)
        return made(q, k, cos, sin, scale=scale, causal=causal, q_offset=q_offset, out_dtype=out_dtype)
