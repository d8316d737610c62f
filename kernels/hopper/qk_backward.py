"""Gradients of scores on compute capability 9.0, in Gluon: those of q and those of k in one launch.

A program owns rows of one side, whose gradients it sums up, and lets rotated ones of the other stream by: with ds the
gradients of scores,

    dx = ds x',

x' rotated keys, and ds as it lies; or x' rotated queries, and ds transposed. Half of the programs own rows of q, the
others keys of the same heads at the same time, so that ds comes from memory once if so many heads fit the L2. Roles of
warps are those of :mod:`kernels.hopper.attention_backward`: one warp brings x' and rows of the tables, one ds; four
warps rotate x' where it lies; twice four multiply, OWN / 2 own rows each, whose ds they hold in registers. Inputs that
:func:`serves` does not accept are left to :mod:`kernels.rope_qk_backward`.
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
from kernels.hopper.pull_scores import bring_ds, pull_scores
from kernels.hopper.streams import TILE, bring_x, tiles_met, turn_x
from kernels.hopper.units import ROWS, pairs_are_quicker, turns_of
from kernels.launch import INT32_MAX, VECTOR_ELEMENTS, Prepared, ceil_div
from kernels.special import Wish

NAME = "rope_qk"
FEW, MANY = 128, 256  # own rows of a unit, in parts of 64: each group has one or two


@gluon.jit
def pull_either(
    given, numbers, steps, scale,
    WHICH: gl.constexpr, HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr,
    SPAN_K: gl.constexpr,
):  # fmt: skip
    """:func:`pull_scores` of the side that a program owns rows of, as all roles below."""
    own_rows, sides, outs, read, ds_rings, own = given
    of_rows, of_keys = sides
    cos_ptr, sin_ptr, dq_ptr, dk_ptr = outs
    if own_rows:
        tensors = (cos_ptr, sin_ptr, dq_ptr)
        pull_scores(tensors, read, ds_rings, own, numbers, of_rows, steps, scale, WHICH, HALF, OWN, CAUSAL, False, SPAN)
    else:
        tensors = (cos_ptr, sin_ptr, dk_ptr)
        pull_scores(
            tensors, read, ds_rings, own, numbers, of_keys, steps, scale, WHICH, HALF, OWN, CAUSAL, True, SPAN_K
        )


@gluon.jit
def turn_either(
    own_rows, sides, x_rings, t_rings,
    HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr, SPAN_K: gl.constexpr,
):  # fmt: skip
    """:func:`kernels.hopper.streams.turn_x`."""
    of_rows, of_keys = sides
    if own_rows:
        turn_x(x_rings, t_rings, of_rows, 2048 // HALF, HALF, OWN, CAUSAL, False, SPAN)
    else:
        turn_x(x_rings, t_rings, of_keys, 2048 // HALF, HALF, OWN, CAUSAL, True, SPAN_K)


@gluon.jit
def bring_either(
    own_rows, sides, descs, x_rings, t_rings,
    HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr, SPAN_K: gl.constexpr,
):  # fmt: skip
    """:func:`kernels.hopper.streams.bring_x`: keys where a program owns rows of q."""
    of_rows, of_keys = sides
    q_desc, k_desc, cos_desc, sin_desc = descs
    if own_rows:
        bring_x(k_desc, cos_desc, sin_desc, x_rings, t_rings, of_rows, HALF, OWN, CAUSAL, False, SPAN)
    else:
        bring_x(q_desc, cos_desc, sin_desc, x_rings, t_rings, of_keys, HALF, OWN, CAUSAL, True, SPAN_K)


@gluon.jit
def bring_ds_either(
    own_rows, sides, ds_desc, ds_rings,
    OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr, SPAN_K: gl.constexpr,
):  # fmt: skip
    """:func:`bring_ds`."""
    of_rows, of_keys = sides
    if own_rows:
        bring_ds(ds_desc, ds_rings, of_rows, OWN, CAUSAL, False, SPAN)
    else:
        bring_ds(ds_desc, ds_rings, of_keys, OWN, CAUSAL, True, SPAN_K)


@gluon.jit(do_not_specialize=range(9, 21), do_not_specialize_on_alignment=range(4))
def hopper_qk_gradient_kernel(
    cos_ptr, sin_ptr, dq_ptr, dk_ptr, q_desc, k_desc, ds_desc, cos_desc, sin_desc,
    units, units_k, split, heads, heads_k, group, rows, keys, offset, scale, cos_s, sin_s,
    HALF: gl.constexpr, OWN: gl.constexpr, CAUSAL: gl.constexpr, SPAN: gl.constexpr, SPAN_K: gl.constexpr,
):  # fmt: skip
    """Gradients of OWN rows of a head a unit: the first ``split`` programs have the units of q, the others those of k.

    Either may have none.
    """
    DOT: gl.constexpr = dq_ptr.dtype.element_ty
    PARTS: gl.constexpr = OWN // ROWS
    X_STAGES: gl.constexpr = 3 if HALF <= 64 else 2  # these and the next: what shared memory holds
    T_STAGES: gl.constexpr = 2 if HALF <= 64 else 1
    DS_STAGES: gl.constexpr = 3
    HELD: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HALF], DOT)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    offset = offset.to(gl.int64)
    ring = gl.allocate_shared_memory(DOT, [2 * X_STAGES, 1, 1, TILE, HALF], k_desc.layout)
    t_ring = gl.allocate_shared_memory(DOT, [2 * T_STAGES, TILE, HALF], cos_desc.layout)
    ds_ring = gl.allocate_shared_memory(DOT, [PARTS * DS_STAGES, 1, 1, ROWS, TILE], ds_desc.layout)
    own = gl.allocate_shared_memory(DOT, [4, ROWS, HALF], HELD)
    numbers = gl.allocate_shared_memory(gl.int32, [2, TILE], LINE)
    raw = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    room = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    ds_full = gl.allocate_shared_memory(gl.int64, [DS_STAGES, 1], mbarrier.MBarrierLayout())
    ds_room = gl.allocate_shared_memory(gl.int64, [DS_STAGES, 1], mbarrier.MBarrierLayout())
    t_full = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    t_room = gl.allocate_shared_memory(gl.int64, [T_STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(X_STAGES):
        mbarrier.init(raw.index(place), count=1)
        mbarrier.init(full.index(place), count=1)
        mbarrier.init(room.index(place), count=2)
    for place in gl.static_range(DS_STAGES):
        mbarrier.init(ds_full.index(place), count=1)
        mbarrier.init(ds_room.index(place), count=2)
    for place in gl.static_range(T_STAGES):
        mbarrier.init(t_full.index(place), count=1)
        mbarrier.init(t_room.index(place), count=1)
    pid, programs = gl.program_id(0), gl.num_programs(0)
    own_rows = pid < split
    pid = gl.where(own_rows, pid, pid - split)
    programs = gl.where(own_rows, split, programs - split)
    of_rows = (turns_of(units, pid, programs, SPAN), heads, group, rows, keys, offset, pid, programs)
    of_keys = (turns_of(units_k, pid, programs, SPAN_K), heads_k, group, keys, rows, offset, pid, programs)
    sides = (of_rows, of_keys)
    x_rings, t_rings, ds_rings = (ring, raw, full, room), (t_ring, t_full, t_room), (ds_ring, ds_full, ds_room)
    outs, read, steps = (cos_ptr, sin_ptr, dq_ptr, dk_ptr), (ring, full, room), (cos_s, sin_s)
    given = (own_rows, sides, outs, read, ds_rings, own)
    descs = (q_desc, k_desc, cos_desc, sin_desc)
    wait_for_launch(True)
    gl.warp_specialize(
        [
            (pull_either, (given, numbers.index(0), steps, scale, 0, HALF, OWN, CAUSAL, SPAN, SPAN_K)),
            (pull_either, (given, numbers.index(1), steps, scale, 1, HALF, OWN, CAUSAL, SPAN, SPAN_K)),
            (turn_either, (own_rows, sides, x_rings, t_rings, HALF, OWN, CAUSAL, SPAN, SPAN_K)),
            (bring_either, (own_rows, sides, descs, x_rings, t_rings, HALF, OWN, CAUSAL, SPAN, SPAN_K)),
            (bring_ds_either, (own_rows, sides, ds_desc, ds_rings, OWN, CAUSAL, SPAN, SPAN_K)),
        ],
        [4, 4, 1, 1],
        [208, 72, 24, 24],
    )


def serves(wish: Wish) -> bool:
    """Whether they can take a call: 64, 128 or 256 columns, one dtype of 16 bits, rows at multiples of 16 bytes.

    ``wish.forms`` are those of q, k, cos, sin, and of the scores' gradient ds.
    """
    q, k, cos, sin, _ = forms = tuple(wish.forms.values())
    needed = max(wish.q_offset + q.shape[2], k.shape[2])
    return (
        wish.plain
        and wish.dtype in TYPES
        and all(x.dtype == wish.dtype and x.strides[-1] == 1 for x in forms)
        and not any(stride % VECTOR_ELEMENTS for x in forms for stride in x.strides[:-1])
        and not any(stride <= 0 for x in forms for stride in x.strides)
        and q.shape[3] in (64, 128, 256)
        and wish.q_offset + q.shape[2] + TILE.value <= INT32_MAX
        and cos.shape[1] == sin.shape[1] == q.shape[3] // 2
        and min(cos.shape[0], sin.shape[0]) >= needed
        and min(math.prod(x.shape) for x in forms) > 0
    )


def pays(wish: Wish) -> bool:
    """Whether they are quicker than the portable kernels: 2.7 to 10 times, of all sizes that were measured."""
    return True


def own_rows_of(wish: Wish) -> int:
    """How many rows a unit owns: as many as registers hold, but few where most would be hidden or not there."""
    (_, _, rows, width), keys = wish.forms["q"].shape, wish.forms["k"].shape[2]
    return FEW if width > 128 or min(rows, keys) <= (2 * MANY if wish.causal else FEW) else MANY


def prepare(wish: Wish) -> Callable[..., None]:
    """Plan their launch for what :func:`serves` accepts.

    The result takes q, k, cos, sin and ds, then dq and dk to fill, which are contiguous; None for what is not wanted.
    """
    q, k, cos, sin, _ = wish.forms.values()
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    half, own, sides = width // 2, own_rows_of(wish), []
    for count, count_heads, of_keys in ((rows, heads, False), (keys, heads_k, True)):
        units = check_programs(NAME, ceil_div(count, own) * batch * count_heads)
        paired = wish.causal and pairs_are_quicker(units, tiles_met(wish, of_keys, own), wish.places // 2)
        sides.append((units, 2 if paired else 1))
    (units, span), (units_k, span_k) = sides
    constants = {
        "HALF": half, "OWN": own, "CAUSAL": wish.causal, "SPAN": span, "SPAN_K": span_k, "num_warps": 4,
        **BEGINS_EARLY,
    }  # fmt: skip
    sizes = heads, heads_k, heads // heads_k, rows, keys, wish.q_offset, wish.scale, cos.strides[0], sin.strides[0]
    all_q, all_k = ceil_div(units, span), ceil_div(units_k, span_k)
    launches = {}
    for wanted, (most_q, most_k) in {
        (True, True): (max(wish.places // 2, wish.places - all_k), max(wish.places // 2, wish.places - all_q)),
        (True, False): (wish.places, 0),
        (False, True): (0, wish.places),
    }.items():
        of_q, of_k = min(all_q, max(most_q, int(wanted[0]))), min(all_k, max(most_k, int(wanted[1])))
        numbers = (units, units_k, of_q, *sizes)
        launches[wanted] = Prepared(hopper_qk_gradient_kernel, of_q + of_k, numbers, constants, {})
    blocks_q, blocks_k = Blocks(1, 1, TILE.value, half), Blocks(1, 1, TILE.value, half)
    of_cos, of_sin = Blocks(TILE.value, half), Blocks(TILE.value, half)
    of_ds = Blocks(1, 1, ROWS.value, TILE.value)  # of own rows and others, either way: both are 64

    def run(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, ds: torch.Tensor,
        dq: torch.Tensor | None, dk: torch.Tensor | None,
    ) -> None:  # fmt: skip
        some = dk if dq is None else dq
        if some is not None:
            made = some if dq is None else dq, some if dk is None else dk
            described = blocks_q.of(q), blocks_k.of(k), of_ds.of(ds), of_cos.of(cos), of_sin.of(sin)
            launches[dq is not None, dk is not None].run((cos, sin, *made, *described))

    return run
