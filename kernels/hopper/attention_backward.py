"""Gradients of attention on compute capability 9.0, in Gluon: one kernel for those of rows of q and for those of keys.

A program owns rows of one side, which stay in shared memory, and lets those of the other stream by: with own rows x and
y and streamed ones x' and y', x rotated queries or keys and y the gradient of o or values,

    s = x x'^T,    dp = y y'^T,    p = exp(s - lse),    ds = p (dp - delta),    dx += ds x',    dy += p y',

the last for keys alone. Roles of warps are those of :mod:`kernels.hopper.attention`: one warp brings x' and rows of the
tables, one y' and, for keys, lse and delta of streamed rows; four warps rotate x' where it lies; twice four multiply,
64 own rows each. The launch for rows of q comes first, and leaves lse and delta as that for keys wants them. Inputs
that :func:`serves` does not accept are left to :mod:`kernels.rope_attention_backward`.
"""

import math
from collections.abc import Callable

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from kernels.early import BEGINS_EARLY, wait_for_launch
from kernels.fused import check_programs
from kernels.hopper.forms import TYPES, Blocks
from kernels.hopper.pull import pull
from kernels.hopper.streams import TILE, bring_x, bring_y, tiles_met, turn_x
from kernels.hopper.units import ROWS, pairs_are_quicker, turns_of
from kernels.launch import INT32_MAX, VECTOR_ELEMENTS, Prepared, ceil_div
from kernels.special import Wish

NAME = "rope_attention"
X_STAGES, Y_STAGES, T_STAGES = gl.constexpr(3), gl.constexpr(3), gl.constexpr(2)
ENOUGH_BLOCKS = 96  # of 132 multiprocessors


@gluon.jit(do_not_specialize=range(15, 33), do_not_specialize_on_alignment=range(10))
def hopper_gradient_kernel(
    x_ptr, y_ptr, o_ptr, cos_ptr, sin_ptr, lse_ptr, dlse_ptr, sums_ptr, dx_ptr, dy_ptr,
    x_desc, y_desc, cos_desc, sin_desc, sums_desc,
    units, heads, group, rows, others, offset, scale, x_b, x_h, x_s, y_b, y_h, y_s, cos_s, sin_s,
    dlse_b, dlse_h, dlse_s,
    HALF: gl.constexpr, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr, SPAN: gl.constexpr,
):  # fmt: skip
    """Gradients of 2 * ROWS own rows of one head: queries, or with OF_KEYS keys and values.

    ``heads`` counts those of the own side, ``others`` the rows of a head that streams by. ``sums_ptr`` holds lse in
    units of log 2 and delta of all rows of q, (heads, 2, rows rounded up).
    """
    DOT: gl.constexpr = x_ptr.dtype.element_ty
    SLICE: gl.constexpr = (1024 if OF_KEYS else 2048) // HALF  # as registers allow
    OWN: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HALF], DOT)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    offset = offset.to(gl.int64)
    own = gl.allocate_shared_memory(DOT, [12, ROWS, HALF], OWN)
    ring = gl.allocate_shared_memory(DOT, [2 * X_STAGES, 1, 1, TILE, HALF], x_desc.layout)
    y_ring = gl.allocate_shared_memory(DOT, [2 * Y_STAGES, 1, 1, TILE, HALF], y_desc.layout)
    t_ring = gl.allocate_shared_memory(DOT, [2 * T_STAGES, TILE, HALF], cos_desc.layout)
    pairs = gl.allocate_shared_memory(gl.float32, [Y_STAGES, 2, TILE], sums_desc.layout)
    numbers = gl.allocate_shared_memory(gl.int32, [2, TILE], LINE)
    raw = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    room = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    y_full = gl.allocate_shared_memory(gl.int64, [Y_STAGES, 1], mbarrier.MBarrierLayout())
    y_room = gl.allocate_shared_memory(gl.int64, [Y_STAGES, 1], mbarrier.MBarrierLayout())
    t_full = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    t_room = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(X_STAGES):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(room.index(place), count=2)
    for place in gl.static_range(Y_STAGES):
        mbarrier.init(y_full.index(place), count=1)
        mbarrier.init(y_room.index(place), count=2)
    for place in gl.static_range(T_STAGES):
        mbarrier.init(t_full.index(place), count=1)
        mbarrier.init(t_room.index(place), count=1)
    pid, programs = gl.program_id(0), gl.num_programs(0)
    work = (turns_of(units, pid, programs, SPAN), heads, group, rows, others, offset, pid, programs)
    places = (x_b, x_h, x_s, y_b, y_h, y_s, cos_s, sin_s)
    x_rings, y_rings, t_rings = (ring, raw, full, room), (y_ring, y_full, y_room), (t_ring, t_full, t_room)
    tensors, made = (x_ptr, y_ptr, cos_ptr, sin_ptr), (dx_ptr, dy_ptr)
    from_o = (o_ptr, lse_ptr, dlse_ptr, sums_ptr, dlse_b, dlse_h, dlse_s)
    given = (tensors, from_o, made, (ring, full, room), y_rings, (pairs, numbers), work, places, scale)
    of_first = (own.index(0), own.index(1), own.index(2), own.index(3), own.index(4), own.index(5))
    of_second = (own.index(6), own.index(7), own.index(8), own.index(9), own.index(10), own.index(11))
    wait_for_launch(True)
    gl.warp_specialize(
        [
            (pull, (given, of_first, 0, HALF, CAUSAL, OF_KEYS, SPAN)),
            (pull, (given, of_second, 1, HALF, CAUSAL, OF_KEYS, SPAN)),
            (turn_x, (x_rings, t_rings, work, SLICE, HALF, 2 * ROWS, CAUSAL, OF_KEYS, SPAN)),
            (bring_x, (x_desc, cos_desc, sin_desc, x_rings, t_rings, work, HALF, 2 * ROWS, CAUSAL, OF_KEYS, SPAN)),
            (bring_y, (y_desc, sums_desc, y_rings, pairs, work, HALF, 2 * ROWS, CAUSAL, OF_KEYS, SPAN)),
        ],
        [4, 4, 1, 1],
        [224, 40, 24, 24] if OF_KEYS else [208, 72, 24, 24],
    )


def serves(wish: Wish) -> bool:
    """Whether they can take a call: 64 or 128 columns, one dtype of 16 bits, rows that start at multiples of 16 bytes.

    ``wish.forms`` are those of q, k, v, cos, sin, and of the gradients do and dlse.
    """
    forms = dict(wish.forms)
    del forms["dlse"]
    q, k, v, cos, sin, do = forms.values()
    needed = max(wish.q_offset + q.shape[2], k.shape[2])
    return (
        wish.plain
        and wish.dtype in TYPES
        and all(x.dtype == wish.dtype and x.strides[-1] == 1 for x in forms.values())
        and not any(stride % VECTOR_ELEMENTS for x in forms.values() for stride in x.strides[:-1])
        and not any(stride <= 0 for x in (q, k, v, cos, sin, do) for stride in x.strides)
        and q.shape[3] == v.shape[3]
        and q.shape[3] in (64, 128)
        and wish.q_offset + q.shape[2] + TILE.value <= INT32_MAX
        and cos.shape[1] == sin.shape[1] == q.shape[3] // 2
        and min(cos.shape[0], sin.shape[0]) >= needed
        and min(math.prod(x.shape) for x in (q, k, v)) > 0
    )


def pays(wish: Wish) -> bool:
    """Whether they are quicker than the portable kernels: blocks that are full, and enough of them for each launch."""
    (batch, heads, rows, _), (_, heads_k, keys, _) = wish.forms["q"].shape, wish.forms["k"].shape
    own = 2 * ROWS.value
    blocks = min(ceil_div(rows, own) * heads, ceil_div(keys, own) * heads_k) * batch
    return min(rows, keys) >= own and blocks >= ENOUGH_BLOCKS


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan their launches for what :func:`serves` accepts.

    The result takes q, k, v, cos, sin, o, lse, do and dlse, then dq, dk and dv to fill, which are contiguous as o and
    lse are. ``keys`` says whether dk and dv are wanted; dq is always made.
    """
    forms = wish.forms
    q, k, v, cos, sin, do, dlse = (forms[name] for name in ("q", "k", "v", "cos", "sin", "do", "dlse"))
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    half, own = width // 2, 2 * ROWS.value
    tables = cos.strides[0], sin.strides[0]
    dlse_steps = tuple(0 if size == 1 else step for size, step in zip(dlse.shape, dlse.strides, strict=True))
    launches = []
    for x, y, count, count_heads, others, of_keys in (
        (q, do, rows, heads, keys, False),
        (k, v, keys, heads_k, rows, True),
    ):
        units = check_programs(NAME, ceil_div(count, own) * batch * count_heads)
        span = 2 if wish.causal and pairs_are_quicker(units, tiles_met(wish, of_keys, own), wish.places) else 1
        numbers = units, count_heads, heads // heads_k, count, others, wish.q_offset, wish.scale
        steps = *x.strides[:3], *y.strides[:3], *tables, *dlse_steps
        constants = {
            "HALF": half, "CAUSAL": wish.causal, "OF_KEYS": of_keys, "SPAN": span, "num_warps": 4, **BEGINS_EARLY,
        }  # fmt: skip
        programs = min(ceil_div(units, span), wish.places)
        launches.append(Prepared(hopper_gradient_kernel, programs, (*numbers, *steps), constants, {}))
    of_q, of_k, of_v, of_do = (Blocks(1, 1, TILE.value, half) for _ in range(4))
    of_cos, of_sin, of_sums = Blocks(TILE.value, half), Blocks(TILE.value, half), Blocks(2, TILE.value)
    sums_shape = 2 * batch * heads, ceil_div(rows, own) * own

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, o: torch.Tensor,
        lse: torch.Tensor, do: torch.Tensor, dlse: torch.Tensor, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor,
        keys: bool,
    ) -> None:  # fmt: skip
        sums = torch.empty(sums_shape, dtype=torch.float32, device=q.device)
        rest = of_cos.of(cos), of_sin.of(sin), of_sums.of(sums)
        launches[0].run((q, do, o, cos, sin, lse, dlse, sums, dq, dq, of_k.of(k), of_v.of(v), *rest))
        if keys:
            launches[1].run((k, v, o, cos, sin, lse, dlse, sums, dk, dv, of_q.of(q), of_do.of(do), *rest))

    return run
