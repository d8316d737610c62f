"""RoPE in Gluon: where rows are dense and aligned, one warp brings tiles by bulk copies and four rotate them.

Other inputs are made dense first; what bulk copies cannot describe takes the other kernel.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tests.gluon import staged

DEPTH = gl.constexpr(2)


@gluon.jit
def bring(source, full, empty, ring, half, tiles, ROWS: gl.constexpr):
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        turn = tile // gl.num_programs(0)
        place = turn % DEPTH
        mbarrier.wait(empty.index(place), ((turn // DEPTH) & 1) ^ 1)
        mbarrier.expect(full.index(place), 2 * source.block_type.nbytes)
        tma.async_copy_global_to_shared(source, [tile * ROWS, 0], full.index(place), ring.index(2 * place))
        tma.async_copy_global_to_shared(source, [tile * ROWS, half], full.index(place), ring.index(2 * place + 1))


@gluon.jit
def rotate(
    cos_ptr,
    sin_ptr,
    out_ptr,
    full,
    empty,
    ring,
    count,
    seq,
    half,
    cos_s,
    cos_d,
    sin_s,
    sin_d,
    tiles,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
):
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
    cols = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))[None, :]
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        turn = tile // gl.num_programs(0)
        rows = (tile * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout)))[:, None].to(gl.int64)
        mask = (rows < count) & (cols < half)
        cos = gl.load(cos_ptr + rows % seq * cos_s + cols * cos_d, mask=mask, other=0.0).to(gl.float32)
        sin = gl.load(sin_ptr + rows % seq * sin_s + cols * sin_d, mask=mask, other=0.0).to(gl.float32)
        place = turn % DEPTH
        mbarrier.wait(full.index(place), (turn // DEPTH) & 1)
        x1 = ring.index(2 * place).load(layout).to(gl.float32)
        x2 = ring.index(2 * place + 1).load(layout).to(gl.float32)
        mbarrier.arrive(empty.index(place), count=1)
        at = rows * 2 * half + cols
        gl.store(out_ptr + at, (x1 * cos - x2 * sin).to(out_ptr.dtype.element_ty), mask=mask)
        gl.store(out_ptr + at + half, (x2 * cos + x1 * sin).to(out_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def bulk_kernel(
    source,
    cos_ptr,
    sin_ptr,
    out_ptr,
    count,
    seq,
    half,
    cos_s,
    cos_d,
    sin_s,
    sin_d,
    tiles,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
):
    ring = gl.allocate_shared_memory(source.dtype, [2 * DEPTH, ROWS, COLUMNS], source.layout)
    full = gl.allocate_shared_memory(gl.int64, [DEPTH, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [DEPTH, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(DEPTH):
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(empty.index(place), count=1)
    gl.warp_specialize(
        [
            (
                rotate,
                (
                    cos_ptr,
                    sin_ptr,
                    out_ptr,
                    full,
                    empty,
                    ring,
                    count,
                    seq,
                    half,
                    cos_s,
                    cos_d,
                    sin_s,
                    sin_d,
                    tiles,
                    ROWS,
                    COLUMNS,
                ),
            ),
            (bring, (source, full, empty, ring, half, tiles, ROWS)),
        ],
        [1],
        [24],
    )


def rotated(x, cos, sin):
    B, H, S, D = x.shape
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype)
    fits = D % 2 == 0 and cos.shape[0] == sin.shape[0] == S and x.numel()
    if not fits or dtype == torch.float64 or D * x.element_size() % 16 or D // 2 > 128:
        return staged.rotated(x, cos, sin)
    half, x = D // 2, x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()
    cos, sin = cos.expand(S, half), sin.expand(S, half)
    out = torch.empty(B, H, S, D, dtype=dtype, device=x.device)
    count, block = B * H * S, [32, max(triton.next_power_of_2(half), 16)]
    layout = gl.NVMMASharedLayout.get_default_for(block, {2: gl.float16, 4: gl.float32}[x.element_size()])
    source = TensorDescriptor(x, [count, D], [D, 1], block, layout)
    tiles = triton.cdiv(count, block[0])
    bulk_kernel[(min(tiles, 3),)](
        source, cos, sin, out, count, S, half, *cos.stride(), *sin.stride(), tiles, ROWS=block[0], COLUMNS=block[1]
    )
    return out


class ModelNew(torch.nn.Module):
    def forward(self, q, k, cos, sin):
        cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
        return rotated(q, cos, sin), rotated(k, cos, sin), cos, sin
