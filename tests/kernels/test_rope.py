"""The contract of kernels.rope, in process without a GPU, and once under Triton's interpreter.

Long because the contract is: one section a clause, sharing the layouts that are drawn.
"""

import importlib
import itertools
import math
import operator
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.jit import JITFunction

import kernels
from fuzzrope.interpreter.engine import Engine
from kernels import launch, reference
from kernels.forms import Meta
from kernels.launch import INT32_MAX, TL_DTYPES, choose_tile
from kernels.rope import make_plan, rope

# The package's name ``rope`` is the function; what it launches is in the module of that name.
MODULE, LAUNCHING = importlib.import_module("kernels.rope"), importlib.import_module("kernels.rope_launch")

NAMES = ("q", "k", "cos", "sin")
DTYPES = tuple(TL_DTYPES)
MIXES = tuple(itertools.product(DTYPES, repeat=4))
ODD = (0, 1, 3, 7, 2**20, 2**31 + 1)

Shape = tuple[int, ...]


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"q": (2, 3, 4, 6), "k": (2, 1, 4, 6), "cos": (5, 3), "sin": (4, 3)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def meta(shape: Shape, strides: Shape, dtype: torch.dtype = torch.float32) -> Meta:
    return Meta(shape, strides, dtype)


def dense(shape: Shape) -> Shape:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


# What it refuses

REFUSED: dict[str, tuple[str, Callable[[torch.Tensor], Any], type[Exception], str]] = {
    "q of rank 3": ("q", lambda t: t[0], ValueError, "q must have 4 dimensions"),
    "q of rank 5": ("q", lambda t: t[None], ValueError, "q must have 4 dimensions"),
    "k of rank 3": ("k", lambda t: t[0], ValueError, "k must have 4 dimensions"),
    "cos of rank 1": ("cos", lambda t: t[0], ValueError, "cos must have 2 dimensions"),
    "cos of rank 4": ("cos", lambda t: t[None, None], ValueError, "cos must have 2 dimensions"),
    "sin of rank 0": ("sin", lambda t: t[0, 0], ValueError, "sin must have 2 dimensions"),
    "k of another head_dim": ("k", lambda t: t[..., :4], ValueError, "q and k must have one head_dim, not 6 and 4"),
    "q with rows of its own": ("q", lambda t: t[:, :, :3], ValueError, "k .*does not broadcast"),
    "k with rows of its own": ("k", lambda t: t[:, :, :3], ValueError, "k .*does not broadcast"),
    "cos with too few rows": ("cos", lambda t: t[:3], ValueError, "q .*does not broadcast with cos"),
    "cos with too few columns": ("cos", lambda t: t[:, :2], ValueError, "q .*does not broadcast with cos"),
    "sin without rows": ("sin", lambda t: t[:0], ValueError, "q .*does not broadcast.* sin"),
}
for name in NAMES:
    REFUSED |= {
        f"{name} is None": (name, lambda t: None, TypeError, f"{name} must be a torch.Tensor, not NoneType"),
        f"{name} is a list": (name, lambda t: t.tolist(), TypeError, f"{name} must be a torch.Tensor, not list"),
        f"{name} is an array": (name, lambda t: t.numpy(), TypeError, f"{name} must be a torch.Tensor, not ndarray"),
        f"{name} is sparse": (name, lambda t: t.to_sparse(), TypeError, f"{name} must be a strided tensor"),
        f"{name} is int32": (name, lambda t: t.int(), TypeError, f"{name} must be float16, .*not torch.int32"),
        f"{name} is int64": (name, lambda t: t.long(), TypeError, f"{name} must be float16, .*not torch.int64"),
        f"{name} is bool": (name, lambda t: t.bool(), TypeError, f"{name} must be float16, .*not torch.bool"),
        f"{name} is complex": (name, lambda t: t.to(torch.complex64), TypeError, f"{name} must be float16"),
        f"{name} is float8": (name, lambda t: t.to(torch.float8_e5m2), TypeError, f"{name} must be float16"),
        f"{name} is on another device": (name, lambda t: t.to("meta"), ValueError, "one device: q on .* on "),
    }


@pytest.mark.parametrize(("name", "spoil", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_arguments_raise_by_name_and_touch_nothing(
    name: str, spoil: Callable[[torch.Tensor], Any], error: type[Exception], message: str
):
    tensors = inputs()
    before = {key: (raw(tensor), tensor._version) for key, tensor in tensors.items()}
    arguments = {**tensors, name: spoil(tensors[name])}
    with pytest.raises(error, match=f"^rope: .*{message}"):
        rope(*arguments.values())
    assert {key: (raw(tensor), tensor._version) for key, tensor in tensors.items()} == before


@pytest.mark.parametrize("width", [1, 3, 7])
def test_an_odd_head_dim_raises(width: int):
    x, table = torch.ones(1, 1, 2, width), torch.ones(2, max(width // 2, 1))
    with pytest.raises(ValueError, match=f"^rope: head_dim must be even, not {width}$"):
        rope(x, x, table, table)


def test_the_device_message_names_the_argument_that_differs():
    tensors = inputs()
    with pytest.raises(ValueError, match=r"q on cpu, sin on meta$"):
        rope(tensors["q"], tensors["k"], tensors["cos"], tensors["sin"].to("meta"))


@pytest.mark.parametrize("count", [0, 3, 5])
def test_it_takes_four_arguments(count: int):
    with pytest.raises(TypeError):
        rope(*[torch.ones(1, 1, 1, 2)] * count)


# What it gives without a kernel


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_plain_cpu_it_is_the_reference(dtype: torch.dtype):
    tensors = inputs(dtype)
    before = {key: raw(tensor) for key, tensor in tensors.items()}
    for function in (rope, kernels.ModelNew()):
        outputs = function(*tensors.values())
        assert isinstance(outputs, tuple)
        for ours, theirs in zip(outputs, reference.rope(*tensors.values()), strict=True):
            assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
            assert raw(ours) == raw(theirs)
    assert {key: raw(tensor) for key, tensor in tensors.items()} == before


class Launches:
    """Stands in for the kernel: notes what would have been launched."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.calls.append((grid, args, kwargs))


def forget() -> None:
    """What was launched before, by plans that know what is ready."""
    MODULE.make_plan.cache_clear()
    MODULE.plan_by_facts.cache_clear()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """kernels.rope believes that it can launch, and launches nothing."""
    recorder = Launches()
    forget()
    monkeypatch.setattr(MODULE, "can_launch", lambda device: True)
    monkeypatch.setattr(launch, "COMPILED", {})
    monkeypatch.setattr(LAUNCHING, "rope_kernel", recorder)
    monkeypatch.setattr(launch, "current_device", lambda: 0)
    return recorder


@pytest.fixture
def on_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """kernels.rope launches on the CPU engine, for the first time."""
    forget()
    monkeypatch.setattr(launch, "COMPILED", {})
    monkeypatch.setattr(MODULE, "can_launch", lambda device: True)
    return engine


def test_what_was_launched_before_goes_to_the_driver_without_being_bound_again(
    on_engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    bound = []
    bind = JITFunction.run
    monkeypatch.setattr(JITFunction, "run", lambda *args, **kwargs: (bound.append(1), bind(*args, **kwargs))[1])

    def check(rows: int, offset: int, kind: torch.dtype, tables: torch.dtype) -> None:
        shapes = (2, 3, rows, 16), (2, 1, rows, 16), (rows, 8), (rows, 8)
        kinds = kind, kind, tables, tables
        flat = [torch.randn(math.prod(shape) + offset).to(t) for shape, t in zip(shapes, kinds, strict=True)]
        tensors = [x[offset:].view(shape) for x, shape in zip(flat, shapes, strict=True)]
        for ours, theirs in zip(rope(*tensors), reference.rope(*tensors), strict=True):
            assert raw(ours) == raw(theirs)

    half, single = torch.float16, torch.float32
    for rows in (4, 4, 7, 4):  # of other sizes the kernel is the same
        check(rows, 0, single, single)
    assert len(bound) == 1
    for kinds in ((single, half), (half, single), (single, single)):  # products and results have the same types
        check(4, 0, *kinds)
    assert len(bound) == 3
    for offset in (1, 0, 1):  # 4 bytes further 16 bytes are no longer loaded at once
        check(4, offset, single, single)
    assert len(bound) == 4
    assert [launch["kernel"] for launch in on_engine.launches] == ["rope_kernel"] * 10
    assert on_engine.accesses == {}


def gradients(function: Callable, wanted: tuple[str, ...], layout: str) -> list[torch.Tensor]:
    tensors = {name: t.requires_grad_(name in wanted) for name, t in inputs(torch.float64).items()}
    outputs = function(*tensors.values())[:2]
    generator = torch.Generator().manual_seed(2)
    cotangents = []
    for out in outputs:
        grad = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        if layout == "expanded":
            grad = grad[:1, :, :, :1].expand(out.shape)
        elif layout == "sliced":
            grad = torch.stack([grad, grad], dim=-1).flatten(-2)[..., ::2]
        cotangents.append(grad)
    pairs = [(out, grad) for out, grad in zip(outputs, cotangents, strict=True) if out.requires_grad]
    roots, grads = zip(*pairs, strict=True)
    return list(torch.autograd.grad(roots, [tensors[name] for name in wanted], grads))


@pytest.mark.parametrize("layout", ["contiguous", "expanded", "sliced"])
@pytest.mark.parametrize("wanted", [("q",), ("k",), ("cos",), ("sin",), NAMES], ids=" ".join)
def test_without_a_gpu_gradients_are_the_references(wanted: tuple[str, ...], layout: str):
    ours = gradients(rope, wanted, layout)
    theirs = gradients(reference.rope, wanted, layout)
    assert list(map(raw, ours)) == list(map(raw, theirs))
    assert all(grad.abs().sum() > 0 for grad in ours)


def test_gradients_pass_the_numerical_check():
    tensors = [tensor.requires_grad_() for tensor in inputs(torch.float64).values()]
    assert torch.autograd.gradcheck(rope, tensors)


def test_without_a_gradient_asked_for_it_launches_once(launches: Launches):
    tensors = inputs()
    q, k, cos, sin = tensors.values()
    with torch.no_grad():
        out_q, out_k, *_ = rope(q.requires_grad_(), k, cos, sin)
    ((grid, arguments, options),) = launches.calls
    assert arguments[4] is out_q
    assert arguments[5] is out_k
    assert grid[0] >= 1
    assert options["enable_fp_fusion"] is False


def test_outputs_are_fresh_memory_and_tables_are_views(launches: Launches):
    tensors = inputs()
    *rotated, cos, sin = rope(*tensors.values())
    pointers = [t.untyped_storage().data_ptr() for t in (*tensors.values(), *rotated)]
    assert len(set(pointers)) == 6
    for name, cut in (("cos", cos), ("sin", sin)):
        assert cut.shape == (4, 3)
        assert cut.data_ptr() == tensors[name].data_ptr()
        assert cut.stride() == tensors[name].stride()


def test_the_same_tensor_for_q_and_k_gives_two_outputs(launches: Launches):
    q, _, cos, sin = inputs().values()
    out_q, out_k, *_ = rope(q, q, cos, sin)
    assert out_q.data_ptr() != out_k.data_ptr()


def test_nothing_is_launched_for_empty_tensors(launches: Launches):
    q, k, cos, sin = inputs().values()
    for one, other, c, s in ((q[:0], k[:0], cos, sin), (q[..., :0], k[..., :0], cos[:, :0], sin[:, :0])):
        outputs = rope(one, other, c, s)
        assert [out.shape for out in outputs[:2]] == [one.shape, other.shape]
    assert not launches.calls
    rope(q[:0], k, cos, sin)
    assert len(launches.calls) == 1


def test_a_lazily_negated_view_is_resolved_before_the_launch(launches: Launches):
    tensors = inputs()
    rope(*(torch._neg_view(tensor) for tensor in tensors.values()))
    ((_, arguments, _),) = launches.calls
    for argument, tensor in zip(arguments[:4], tensors.values(), strict=True):
        assert not argument.is_neg()
        assert torch.equal(argument, -tensor)


# The plan


def draw_strides(rng: random.Random, shape: Shape) -> Shape:
    order = list(range(len(shape)))
    if rng.random() < 0.6:
        rng.shuffle(order)
    strides, step = [0] * len(shape), rng.choice((1, 1, 1, 2))
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1) + (rng.randrange(3) if rng.random() < 0.2 else 0)
    return tuple(
        rng.choice(ODD) if n == 1 and rng.random() < 0.4 else 0 if rng.random() < 0.1 else s
        for n, s in zip(shape, strides, strict=True)
    )


def draw_shapes(rng: random.Random) -> dict[str, Shape]:
    batch, heads, seq, half = (rng.choice((0, 1, 1, 2, 2, 3, 3, 4)) for _ in range(4))
    seq_k = rng.choice((1, 1, 2)) if rng.random() < 0.1 else seq
    tables = {
        name: (rng.choice((1, seq, seq, seq + 1)), rng.choice((1, half, half, half, 2 if half == 1 else half)))
        for name in ("cos", "sin")
    }
    other = {"k": (rng.choice((1, batch, batch)), rng.choice((1, heads, heads)), seq_k, 2 * half)}
    return {"q": (batch, heads, seq, 2 * half), **other, **tables}


def draw_layouts(seed: str, count: int) -> Iterator[dict[str, tuple[Shape, Shape]]]:
    rng = random.Random(seed)
    for _ in range(count):
        yield {name: (shape, draw_strides(rng, shape)) for name, shape in draw_shapes(rng).items()}


POOL = {dtype: torch.zeros(2**12, dtype=dtype) for dtype in DTYPES}


def view(layout: tuple[Shape, Shape], dtype: torch.dtype) -> torch.Tensor:
    return torch.as_strided(POOL[dtype], *layout)


def check_plan(layouts: dict[str, tuple[Shape, Shape]], mix: tuple[torch.dtype, ...]) -> bool:
    """Compare the plan with what eager code returns, or with its refusal; whether there were outputs."""
    metas = [Meta(*layout, dtype) for layout, dtype in zip(layouts.values(), mix, strict=True)]
    try:
        eager = reference.rope(*(view(layout, dtype) for layout, dtype in zip(layouts.values(), mix, strict=True)))
    except RuntimeError:
        with pytest.raises(ValueError, match="does not broadcast"):
            make_plan(*metas)
        return False
    # Eager code on a CPU converts other dtypes into temporaries, whose strides then decide.
    alike = reference.rope(*(view(layout, torch.float32) for layout in layouts.values()))
    plan = make_plan(*metas)
    for planned, out, same in zip((plan.out_q, plan.out_k), eager, alike, strict=False):
        assert planned == Meta(tuple(out.shape), same.stride(), out.dtype), (layouts, mix)
    return True


@pytest.mark.parametrize("first", DTYPES, ids=str)
def test_every_dtype_mix_is_planned_as_eager_returns_it(first: torch.dtype):
    for mix in MIXES:
        if mix[0] == first:
            assert sum(check_plan(layouts, mix) for layouts in draw_layouts(f"mix {mix}", 8)) >= 3


def test_every_layout_is_planned_as_eager_returns_it():
    mix = (torch.float32,) * 4
    results = [check_plan(layouts, mix) for layouts in draw_layouts("layouts", 1200)]
    assert sum(results) > 600
    assert results.count(False) > 20


def test_contiguous_outputs_would_often_be_wrong():
    wrong = 0
    for layouts in draw_layouts("layouts", 200):
        try:
            plan = make_plan(*(Meta(*layout, torch.float32) for layout in layouts.values()))
        except ValueError:
            continue
        wrong += plan.out_q.strides != torch.empty(plan.out_q.shape).stride()
    assert wrong > 50


def test_product_types_are_promoted_one_by_one():
    f16, f32, f64, bf16 = torch.float16, torch.float32, torch.float64, torch.bfloat16
    shape, table = (1, 1, 2, 4), (2, 2)
    plan = make_plan(
        meta(shape, dense(shape), f16), meta(shape, dense(shape), f64),
        meta(table, dense(table), bf16), meta(table, dense(table), f16),
    )  # fmt: skip
    expected = {"Q_COS": f32, "Q_SIN": f16, "Q_OUT": f32, "K_COS": f64, "K_SIN": f64, "K_OUT": f64}
    assert {key: plan.launch.constants[f"{key}_DTYPE"] for key in expected} == {
        k: TL_DTYPES[t] for k, t in expected.items()
    }


# 64-bit indices


def plan_for_q(shape: Shape, strides: Shape, table_row: int = 2) -> tuple[bool, int, int]:
    """Whether q of this layout makes the plan wide, the farthest element of q, cos, and of any masked lane."""
    batch, heads, seq, width = shape
    half = width // 2
    small = meta((1, 1, seq, width), dense((1, 1, seq, width)))
    cos = meta((seq, half), (table_row, 1))
    plan = make_plan(meta(shape, strides), small, cos, meta((seq, half), dense((seq, half))))
    rows_block, columns_block = plan.launch.constants["BLOCK_R"], plan.launch.constants["BLOCK_C"]
    rows, columns = batch * heads * seq, half
    last_row = -(-rows // rows_block) * rows_block - 1
    last_column = -(-columns // columns_block) * columns_block - 1
    spread = [0 if n == 1 else s for n, s in zip((*shape[:3], half), strides, strict=True)]
    farthest = 0
    _, _, run, counted, runs, *_ = plan.launch.prepared.numbers
    assert (run * runs, counted) == (seq, heads)
    for row in range(max(last_row - 4 * rows_block, 0), last_row + 1):
        b, within = divmod(row, heads * seq)
        block, within = divmod(within, run * heads)
        h, within = divmod(within, run)
        s = block * run + within
        offset = b * spread[0] + h * spread[1] + s * spread[2]
        farthest = max(farthest, offset + half * strides[3] + last_column * spread[3], s * table_row + last_column)
    reach = max(
        sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n > 1), (seq - 1) * table_row + half - 1
    )
    return plan.launch.constants["WIDE"], reach, farthest


FAR_DIMS = {
    "batch": (0, (3, 2, 2, 4)),
    "heads": (1, (2, 3, 2, 4)),
    "rows": (2, (1, 2, 5, 4)),
    "columns": (3, (1, 1, 2, 8)),
}


def with_stride(shape: Shape, dim: int, stride: int) -> tuple[Shape, Shape]:
    strides = list(dense(shape))
    strides[dim] = stride
    return shape, tuple(strides)


@pytest.mark.parametrize(("dim", "shape"), FAR_DIMS.values(), ids=FAR_DIMS)
def test_indices_widen_before_any_lane_needs_64_bits_and_not_long_before(dim: int, shape: Shape):
    low, high = 1, 2**31
    assert not plan_for_q(*with_stride(shape, dim, low))[0]
    assert plan_for_q(*with_stride(shape, dim, high))[0]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if plan_for_q(*with_stride(shape, dim, middle))[0] else (middle, high)
    tile = choose_tile(shape[3] // 2)
    _, _, farthest = plan_for_q(*with_stride(shape, dim, low))
    assert farthest <= INT32_MAX
    _, reach, _ = plan_for_q(*with_stride(shape, dim, high))
    widest = high * max(shape[3] // 2, 1) if dim == 3 else high  # the second half is that far from the first
    assert reach + (tile.rows + tile.columns) * widest > INT32_MAX


def test_random_layouts_widen_whenever_a_lane_needs_64_bits():
    rng = random.Random("wide")
    seen = {True: 0, False: 0}
    for _ in range(500):
        shape = (rng.choice((1, 2, 3)), rng.choice((1, 2, 5)), rng.choice((1, 2, 7, 70)), 2 * rng.choice((1, 2, 9, 70)))
        strides = tuple(int(2 ** rng.uniform(0, 31.5)) if rng.random() < 0.3 else s for s in dense(shape))
        wide, reach, farthest = plan_for_q(shape, strides, table_row=rng.choice((shape[3] // 2, 2**24, 2**31)))
        assert wide or farthest <= INT32_MAX, (shape, strides)
        assert wide or reach <= INT32_MAX
        seen[wide] += 1
    assert min(seen.values()) > 50


@pytest.mark.parametrize("name", NAMES)
def test_a_far_view_of_any_argument_widens_the_indices(name: str):
    layouts = {n: (s, dense(s)) for n, s in zip(NAMES, ((3, 2, 3, 4), (3, 2, 3, 4), (3, 2), (3, 2)), strict=True)}
    metas = {n: meta(*layout) for n, layout in layouts.items()}
    assert not make_plan(*metas.values()).launch.constants["WIDE"]
    far = (2**30, *layouts[name][1][1:])
    metas[name] = meta(layouts[name][0], far)
    assert make_plan(*metas.values()).launch.constants["WIDE"]


def test_a_huge_output_of_small_inputs_widens_the_indices():
    spread = meta((2**10, 2**10, 2**6, 64), (0, 0, 64, 1))
    small = meta((1, 1, 2**6, 64), dense((1, 1, 2**6, 64)))
    table = meta((64, 32), (32, 1))
    assert make_plan(spread, small, table, table).launch.constants["WIDE"]
    assert not make_plan(small, small, table, table).launch.constants["WIDE"]


def test_the_odd_stride_of_a_dimension_of_size_one_does_not_widen_the_indices():
    shape = (1, 1, 1, 4)
    odd = meta(shape, (2**40, 2**31 + 1, 2**35, 1))
    table = meta((1, 2), (2**33, 1))
    plan = make_plan(odd, odd, table, table)
    assert not plan.launch.constants["WIDE"]
    assert max(plan.launch.prepared.numbers) <= INT32_MAX


# Wide loads


def starts_of_groups(layout: Meta, out: Meta) -> set[int]:
    """Byte offsets from a tensor's first element of each group of eight lanes of a half row."""
    rank, half = len(layout.shape), layout.shape[-1] // (2 if len(layout.shape) == 4 else 1)
    ranges = [range(n) for n in layout.shape[:-1]]
    firsts = (0, half) if rank == 4 else (0,)
    steps = [0 if n == 1 else s for n, s in zip(layout.shape, layout.strides, strict=True)]
    return {
        layout.dtype.itemsize * (sum(map(operator.mul, place, steps)) + (first + group) * layout.strides[-1])
        for place in itertools.product(*ranges)
        for first in firsts
        for group in range(0, out.shape[3] // 2, 8)
    }


def test_an_even_plan_has_groups_of_eight_at_multiples_of_16_bytes_in_every_tensor():
    rng = random.Random("even")
    seen = {True: 0, False: 0}
    for _ in range(2000):
        half = rng.choice((4, 8, 8, 16, 24))
        shapes = {
            "q": (2, 2, 3, 2 * half),
            "k": (1, 2, 3, 2 * half),
            "cos": (3, half),
            "sin": (rng.choice((1, 4)), half),
        }
        metas = []
        for shape in shapes.values():
            strides = list(dense(shape))
            if rng.random() < 0.15:
                strides[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 4, 8, 40, 64, 100))
            metas.append(meta(shape, tuple(strides), rng.choice(DTYPES)))
        plan = make_plan(*metas)
        seen[plan.launch.even] += 1
        if plan.launch.even:
            for layout in (*metas, plan.out_q, plan.out_k):
                assert layout.strides[-1] == 1
                assert all(start % 16 == 0 for start in starts_of_groups(layout, plan.out_q)), (metas, layout)
            assert plan.out_q.shape[3] // 2 % 8 == 0
    assert min(seen.values()) > 200


@pytest.mark.parametrize("name", NAMES)
def test_loads_are_wide_only_if_no_layout_and_no_address_is_odd(launches: Launches, name: str):
    def vector(change: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        shapes = {"q": (2, 3, 4, 32), "k": (2, 1, 4, 32), "cos": (4, 16), "sin": (4, 16)}
        # Twice as many rows and columns as are used, so that a view can move and spread in its memory.
        tensors = {n: torch.ones(*s[:-2], 2 * s[-2], 2 * s[-1], dtype=torch.bfloat16) for n, s in shapes.items()}
        views = {
            n: (change(t) if n == name else t)[..., : s[-2], : s[-1]]
            for (n, s), t in zip(shapes.items(), tensors.values(), strict=True)
        }
        rope(*views.values())
        return launches.calls[-1][2]["VECTOR"]

    assert vector(lambda t: t)
    assert vector(lambda t: t[..., 8:])
    assert not vector(lambda t: t[..., 1:])
    assert not vector(lambda t: t[..., 4:])
    assert not vector(lambda t: t[..., ::2])
    assert not vector(lambda t: t.mT.contiguous().mT)
    assert not vector(lambda t: torch.nn.functional.pad(t, (0, 4)))


def test_tiles_are_powers_of_two_and_bounded():
    for columns in (*range(300), 2**15, 2**15 + 1):
        tile = choose_tile(columns)
        assert all(size > 0 and size & (size - 1) == 0 for size in tile)
        assert tile.rows * tile.columns <= 4096


# In processes of their own


def run(script: str, **environment: str) -> str:
    """Run a script in a fresh interpreter; what it prints."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script]
    root = Path(kernels.__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=kept | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORTS = """
import importlib, inspect, sys

def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "kernels"]:
        del sys.modules[name]

import kernels.ModelNew
assert inspect.isclass(kernels.ModelNew), kernels.ModelNew
assert kernels.ModelNew.__name__ == "ModelNew"
first = kernels.ModelNew
forget()
from kernels import ModelNew
assert inspect.isclass(ModelNew) and ModelNew is not first
forget()
import kernels.ModelNew as aliased
assert inspect.isclass(aliased)
forget()
from kernels.ModelNew import ModelNew as direct
import kernels
assert direct is kernels.ModelNew
assert callable(kernels.rope) and not inspect.ismodule(kernels.rope)
assert kernels.__version__
print(sorted(name for name in sys.modules if name.partition(".")[0] == "fuzzrope"))
"""


def test_every_way_to_import_the_module_gives_the_class_and_none_imports_fuzzrope():
    assert run(IMPORTS).strip() == "[]"


INTERPRETED = """
import importlib, itertools, mmap
import torch
from kernels import reference, rope

module, launching = importlib.import_module("kernels.rope"), importlib.import_module("kernels.rope_launch")
launched = 0
kernel = launching.rope_kernel

class Counted:
    def __getitem__(self, grid):
        global launched
        launched += 1
        return kernel[grid]

launching.rope_kernel = Counted()
generator = torch.Generator().manual_seed(3)

def noise(*shape):
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    flat = x.view(-1)
    flat[: flat.numel() // 8 : 3] = torch.tensor(-0.0)
    return x

def odd_ones(x):
    strides = [2**31 + 1 if n == 1 else s for n, s in zip(x.shape, x.stride())]
    return x.as_strided(x.shape, strides)

def far(shape, strides, d):
    # A view beyond 32-bit offsets, of which only the touched pages exist.
    size = d.itemsize * (1 + sum((n - 1) * s for n, s in zip(shape, strides)))
    lazily = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=lazily), dtype=d)
    return memory.as_strided(shape, strides).copy_(noise(*shape))

def layouts(d):
    q, k, cos, sin = noise(2, 3, 4, 6).to(d), noise(2, 3, 4, 6).to(d), noise(4, 3).to(d), noise(4, 3).to(d)
    yield "contiguous", (q, k, cos, sin)
    yield "position major", (q.transpose(1, 2).contiguous().transpose(1, 2), k, cos, sin)
    yield "every dimension permuted", (q.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0), k, cos, sin)
    yield "sliced", (noise(2, 3, 8, 18).to(d)[:, :, ::2, ::3], k, noise(4, 6).to(d)[:, 1::2], sin)
    yield "expanded", (q[:1, :, :, :1].expand(2, 3, 4, 6), k[:, :1].expand(2, 3, 4, 6), cos[:1].expand(4, 3), sin)
    yield "odd ones", (odd_ones(q[:1, :1]), odd_ones(k[:, :, :1]), odd_ones(cos[:1]), sin)
    yield "packed", (*noise(2, 4, 5, 6).to(d).transpose(1, 2).split([3, 2], dim=1), cos, sin)
    yield "same tensor", (q, q, cos, cos)
    yield "longer tables", (q, k, noise(9, 3).to(d), noise(5, 3).to(d))
    yield "one row and one column", (q, k, cos[:1], sin[:, :1])
    yield "k of one row", (q, k[:1, :2, :1], cos, sin)
    yield "halves of one column", (q[..., :2], k[..., 3:5], noise(4, 20).to(d), noise(4, 1).to(d))
    yield "two tiles", (noise(1, 2, 70, 8).to(d), noise(1, 1, 70, 8).to(d), noise(70, 4).to(d), noise(70, 4).to(d))
    yield "wide rows", (noise(1, 1, 3, 140).to(d), noise(1, 1, 3, 140).to(d), noise(3, 70).to(d), noise(3, 70).to(d))
    yield "negated", (torch._neg_view(q), k, torch._neg_view(cos), sin)
    yield "far batch", (far((3, 2, 2, 4), (2**30, 8, 4, 1), d), k[:, :, :2, :4], cos[:2, :2], sin[:2, :2])
    wide_k, wide_cos = noise(1, 1, 2, 36).to(d), noise(2, 18).to(d)
    yield "far columns", (far((1, 1, 2, 36), (1, 1, 1, 2**27), d), wide_k, wide_cos, sin[:2, :1])
    yield "empty k", (q, k[:, :0], cos, sin)

def bits(x):
    return x.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist()

checked = 0
floats = (torch.float16, torch.float32, torch.float64)
for dtype in floats:
    for name, inputs in layouts(dtype):
        before = [bits(x) for x in inputs]
        wide = module.make_plan(*map(module.Meta.of, inputs)).launch.constants["WIDE"]
        assert wide == name.startswith("far"), name
        ours, theirs = rope(*inputs), reference.rope(*inputs)
        assert type(ours) is tuple and len(ours) == 4
        for x, y in zip(ours, theirs):
            assert (x.dtype, x.shape, x.stride()) == (y.dtype, y.shape, y.stride()), (name, dtype)
            assert bits(x) == bits(y), (name, dtype)
        assert [bits(x) for x in inputs] == before, name
        checked += 1
launching.INT32_MAX = 0  # from here on every plan asks for 64-bit indices
module.make_plan.cache_clear()
for x, k_type, cos, sin in itertools.product(floats, repeat=4):
    if (x, k_type) in zip(floats, floats[1:] + floats[:1]):
        shapes = (1, 2, 3, 4), (2, 1, 3, 4), (3, 2), (3, 2)
        inputs = [noise(*shape).to(d) for shape, d in zip(shapes, (x, k_type, cos, sin))]
        assert module.make_plan(*map(module.Meta.of, inputs)).launch.constants["WIDE"]
        for ours, theirs in zip(rope(*inputs), reference.rope(*inputs)):
            assert ours.dtype == theirs.dtype and bits(ours) == bits(theirs), (x, k_type, cos, sin)
        checked += 1
print(checked, launched)
"""


def test_under_the_interpreter_the_kernel_gives_the_bits_of_the_reference():
    checked, launched = map(int, run(INTERPRETED, TRITON_INTERPRET="1").split())
    assert checked == launched == 3 * 18 + 27
