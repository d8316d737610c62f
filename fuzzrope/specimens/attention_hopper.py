"""A correct ``rope_attention`` in Gluon for compute capability 9.0: a draft of a faster kernel, not measured yet.

Warps of a block have four roles. One warp brings keys and values by bulk copies. Four warps rotate keys where they
lie, a tile ahead of two groups of four that multiply, each 64 rows of q against the same keys: while one weighs its
scores the other has the tensor cores. Rotated q and k are in shared memory alone.
"""

import torch
import triton
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

from fuzzrope.specimens.attention_tiled import TiledAttention, checked_too

ROWS, KEYS = gl.constexpr(64), gl.constexpr(128)  # of a group of warps, and of a tile of keys
SLICE = gl.constexpr(32)  # keys that are rotated at once
K_STAGES, V_STAGES = gl.constexpr(3), gl.constexpr(2)
LOG2_E, LEAST = gl.constexpr(1.4426950408889634), gl.constexpr(2.0**-149)
OF_ROWS = gl.constexpr(gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0]))
TYPES = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


@gluon.jit
def place_of(turn, STAGES: gl.constexpr):
    """(buffer, parity of its barrier's phase) of a turn around a ring."""
    return turn % STAGES, (turn // STAGES) & 1


@gluon.jit
def rotate(x1, x2, cos, sin):
    """Both rotated halves in float32."""
    x1 = x1.to(gl.float32)
    x2 = x2.to(gl.float32)
    cos = cos.to(gl.float32)
    sin = sin.to(gl.float32)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@gluon.jit
def table_rows(ptr, row, there, stride, COUNT: gl.constexpr, HALF: gl.constexpr):
    """Rows (COUNT, HALF) of a table."""
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    rows = gl.multiple_of(ptr + (row * stride)[:, None], (16, 16))
    return gl.load(rows + d, mask=gl.max_constancy(there[:, None] & (d < HALF), (1, 8)), other=0.0)


@gluon.jit
def bring(k_desc, v_desc, b, h, k_ring, v_ring, raw, k_room, v_full, v_room, count, HALF: gl.constexpr):
    """Keys, both halves, and values, as far ahead as there is room."""
    for tile in range(count):
        place, parity = place_of(tile, K_STAGES)
        mbarrier.wait(k_room.index(place), parity ^ 1)
        mbarrier.expect(raw.index(place), 2 * k_desc.block_type.nbytes)
        half_of = k_ring.index(2 * place)
        tma.async_copy_global_to_shared(k_desc, [b, h, tile * KEYS, 0], raw.index(place), half_of)
        half_of = k_ring.index(2 * place + 1)
        tma.async_copy_global_to_shared(k_desc, [b, h, tile * KEYS, HALF], raw.index(place), half_of)
        place, parity = place_of(tile, V_STAGES)
        mbarrier.wait(v_room.index(place), parity ^ 1)
        mbarrier.expect(v_full.index(place), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [b, h, tile * KEYS, 0], v_full.index(place), v_ring.index(place))


@gluon.jit
def turn_keys(cos_ptr, sin_ptr, k_ring, raw, full, keys, count, cos_s, sin_s, HALF: gl.constexpr):
    """Keys rotated where they lie, a slice at a time; the tables' rows come a slice ahead."""
    DOT: gl.constexpr = k_ring.dtype
    lane = gl.arange(0, SLICE, layout=gl.SliceLayout(1, OF_ROWS))
    cos = table_rows(cos_ptr, lane.to(gl.int64), lane < keys, cos_s, SLICE, HALF)
    sin = table_rows(sin_ptr, lane.to(gl.int64), lane < keys, sin_s, SLICE, HALF)
    for tile in range(count):
        place, parity = place_of(tile, K_STAGES)
        first = k_ring.index(2 * place).reshape((KEYS, HALF))
        second = k_ring.index(2 * place + 1).reshape((KEYS, HALF))
        mbarrier.wait(raw.index(place), parity)
        for part in gl.static_range(KEYS // SLICE):
            k1 = first.slice(part * SLICE, SLICE, 0)
            k2 = second.slice(part * SLICE, SLICE, 0)
            y1, y2 = rotate(k1.load(OF_ROWS), k2.load(OF_ROWS), cos, sin)
            row = tile * KEYS + (part + 1) * SLICE + lane
            cos = table_rows(cos_ptr, row.to(gl.int64), row < keys, cos_s, SLICE, HALF)
            sin = table_rows(sin_ptr, row.to(gl.int64), row < keys, sin_s, SLICE, HALF)
            k1.store(y1.to(DOT))
            k2.store(y2.to(DOT))
        fence_async_shared()
        mbarrier.arrive(full.index(place), count=1)


@gluon.jit
def attend(
    q_ptr, cos_ptr, sin_ptr, o_ptr, q1, q2, shared, numbers,
    WHICH: gl.constexpr, HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """One group's rows of q against all tiles of keys, with the softmax carried along."""
    k_ring, v_ring, full, k_room, v_full, v_room = shared
    start, rows, keys, offset, scale, q_s, cos_s, sin_s, count = numbers
    DOT: gl.constexpr = k_ring.dtype
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH_V, 16])
    i = start + WHICH * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OF_ROWS))
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    mask = gl.max_constancy((i < rows)[:, None] & (d < HALF), (1, 8))
    at = gl.multiple_of(q_ptr + (i.to(gl.int64) * q_s)[:, None], (16, 16))
    cos = table_rows(cos_ptr, i + offset, i < rows, cos_s, ROWS, HALF)
    sin = table_rows(sin_ptr, i + offset, i < rows, sin_s, ROWS, HALF)
    y1, y2 = rotate(gl.load(at + d, mask=mask, other=0.0), gl.load(at + HALF + d, mask=mask, other=0.0), cos, sin)
    if scale < 0:
        y1 = -y1
        y2 = -y2
    q1.store(y1.to(DOT))
    q2.store(y2.to(DOT))
    fence_async_shared()
    units = gl.maximum(gl.abs(scale) * LOG2_E, LEAST).to(gl.float32)

    r = start + WHICH * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
    n = gl.arange(0, KEYS, layout=gl.SliceLayout(0, S))
    high = gl.minimum(r + offset + 1, keys) if CAUSAL else r * 0 + keys.to(gl.int64)
    seen = gl.minimum(start + WHICH * ROWS + offset + 1, keys) if CAUSAL else keys.to(gl.int64)  # by every row
    top = gl.full([ROWS], -float("inf"), gl.float32, gl.SliceLayout(1, S))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
    o = gl.zeros([ROWS, WIDTH_V], gl.float32, OUT)
    for tile in range(count):
        place, parity = place_of(tile, K_STAGES)
        k1 = k_ring.index(2 * place).reshape((KEYS, HALF))
        k2 = k_ring.index(2 * place + 1).reshape((KEYS, HALF))
        mbarrier.wait(full.index(place), parity)
        s = gl.zeros([ROWS, KEYS], gl.float32, S)
        s = warpgroup_mma(q2, k2.permute((1, 0)), s, use_acc=False, is_async=True)
        s = warpgroup_mma(q1, k1.permute((1, 0)), s, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_room.index(place), count=1)
        if (tile + 1) * KEYS > seen:
            s = gl.where((tile * KEYS + n)[None, :] < high[:, None], s, -float("inf"))
        best = gl.maximum(top, gl.max(s, 1))
        scaled = best * units
        beyond = (scaled == float("inf")) | ((scaled == -float("inf")) & (best != -float("inf")))
        known = gl.where(best == -float("inf"), 0.0, best)
        known = gl.where(beyond, float("nan"), known)
        p = gl.exp2((s - known[:, None]) * units)
        alpha = gl.exp2((top - known) * units)
        total = total * alpha + gl.sum(p, 1)
        top = best
        o = o * gl.convert_layout(alpha, gl.SliceLayout(1, OUT))[:, None]
        left = gl.convert_layout(p.to(DOT), gl.DotOperandLayout(0, OUT, 2))
        place, parity = place_of(tile, V_STAGES)
        mbarrier.wait(v_full.index(place), parity)
        o = warpgroup_mma(left, v_ring.index(place).reshape((KEYS, WIDTH_V)), o, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        mbarrier.arrive(v_room.index(place), count=1)
    whole = gl.where(total == 0, 1.0, total)  # a row without keys
    o = o / gl.convert_layout(whole, gl.SliceLayout(1, OUT))[:, None]
    o = gl.convert_layout(o.to(DOT), OF_ROWS)
    dv = gl.arange(0, WIDTH_V, layout=gl.SliceLayout(0, OF_ROWS))[None, :]
    mask = gl.max_constancy((i < rows)[:, None] & (dv < WIDTH_V), (1, 8))
    at = gl.multiple_of(o_ptr + (i.to(gl.int64) * WIDTH_V)[:, None], (16, 16))
    gl.store(at + dv, o, mask=mask)


@gluon.jit(do_not_specialize=range(6, 17), do_not_specialize_on_alignment=range(4))
def hopper_kernel(
    q_ptr, cos_ptr, sin_ptr, o_ptr, k_desc, v_desc,
    heads, group, rows, keys, offset, scale, q_b, q_h, q_s, cos_s, sin_s,
    HALF: gl.constexpr, WIDTH_V: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Two groups' rows of one head of q against the keys they see; the last rows, which see most, begin first."""
    DOT: gl.constexpr = q_ptr.dtype.element_ty
    FACTOR: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HALF], DOT)
    tiles = gl.cdiv(rows, 2 * ROWS)
    pid = gl.program_id(0)
    start = (tiles - 1 - pid % tiles) * 2 * ROWS
    head = pid // tiles
    b = head // heads
    h = head % heads
    offset = offset.to(gl.int64)
    count = gl.cdiv(keys, KEYS)
    if CAUSAL:
        count = gl.minimum(count, gl.cdiv(start + 2 * ROWS + offset, KEYS).to(gl.int32))
    q_ptr += b.to(gl.int64) * q_b + h.to(gl.int64) * q_h
    o_ptr += head.to(gl.int64) * rows * WIDTH_V
    turned = gl.allocate_shared_memory(DOT, [4, ROWS, HALF], FACTOR)
    k_ring = gl.allocate_shared_memory(DOT, [2 * K_STAGES, 1, 1, KEYS, HALF], k_desc.layout)
    v_ring = gl.allocate_shared_memory(DOT, [V_STAGES, 1, 1, KEYS, WIDTH_V], v_desc.layout)
    raw = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_room = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_room = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(K_STAGES):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(k_room.index(place), count=2)
    for place in gl.static_range(V_STAGES):
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(v_room.index(place), count=2)
    shared = (k_ring, v_ring, full, k_room, v_full, v_room)
    numbers = (start, rows, keys, offset, scale, q_s, cos_s, sin_s, count)
    q1, q2, q3, q4 = turned.index(0), turned.index(1), turned.index(2), turned.index(3)
    gl.warp_specialize(
        [
            (attend, (q_ptr, cos_ptr, sin_ptr, o_ptr, q1, q2, shared, numbers, 0, HALF, WIDTH_V, CAUSAL)),
            (attend, (q_ptr, cos_ptr, sin_ptr, o_ptr, q3, q4, shared, numbers, 1, HALF, WIDTH_V, CAUSAL)),
            (turn_keys, (cos_ptr, sin_ptr, k_ring, raw, full, keys, count, cos_s, sin_s, HALF)),
            (bring, (k_desc, v_desc, b, h // group, k_ring, v_ring, raw, k_room, v_full, v_room, count, HALF)),
        ],
        [4, 4, 1],
        [208, 72, 24],
    )


def serves(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether the kernel takes inputs: 16 bits, 64 or 128 columns, rows at multiples of 16 bytes, some of each."""
    tensors = (q, k, v, cos, sin)
    return (
        q.dtype in TYPES
        and all(x.dtype == q.dtype and x.data_ptr() % 16 == 0 and x.stride(-1) == 1 for x in tensors)
        and not any(stride % 8 for x in tensors for stride in x.stride()[:-1])
        and not any(stride <= 0 for x in (k, v) for stride in x.stride())
        and {q.shape[3], v.shape[3]} <= {64, 128}
        and cos.shape[1] == sin.shape[1] == q.shape[3] // 2
        and min(q.numel(), k.numel(), v.numel()) > 0
    )


def _described(x: torch.Tensor, width: int) -> TensorDescriptor:
    block = [1, 1, KEYS.value, width]
    layout = gl.NVMMASharedLayout.get_default_for(block, TYPES[x.dtype])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    scale: float,
    causal: bool,
    q_offset: int,
) -> torch.Tensor:
    """o (B, Hq, Sq, Dv) for inputs that :func:`serves` accepts; tables have a row for each position."""
    (batch, heads, rows, width), heads_k = q.shape, k.shape[1]
    o = torch.empty((batch, heads, rows, v.shape[3]), dtype=q.dtype, device=q.device)
    hopper_kernel[(triton.cdiv(rows, 2 * ROWS.value) * batch * heads,)](
        q, cos, sin, o, _described(k, width // 2), _described(v, v.shape[3]),
        heads, heads // heads_k, rows, k.shape[2], q_offset, scale, *q.stride()[:3], cos.stride(0), sin.stride(0),
        HALF=width // 2, WIDTH_V=v.shape[3], CAUSAL=causal, num_warps=4,
    )  # fmt: skip
    return o


class HopperAttention(TiledAttention):
    """What the kernel does not serve, the tiled one does."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        scale: float | None = None,
        causal: bool = False,
        q_offset: int = 0,
        window: int | None = None,
        softcap: float | None = None,
        return_lse: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The contract of ``rope_attention``."""
        checked_too(q, k, v, cos, sin, q_offset, causal, window, softcap)
        plain = window is None and softcap is None and not return_lse
        enough = min(cos.shape[0], sin.shape[0]) >= max(q_offset + q.shape[2], k.shape[2])
        if plain and enough and serves(q, k, v, cos, sin):
            return attention(q, k, v, cos, sin, q.shape[3] ** -0.5 if scale is None else float(scale), causal, q_offset)
        return super().__call__(
            q, k, v, cos, sin,
            scale=scale, causal=causal, q_offset=q_offset, window=window, softcap=softcap, return_lse=return_lse,
        )  # fmt: skip
