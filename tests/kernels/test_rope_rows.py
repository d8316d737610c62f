"""In which order rows are counted that rope's kernel rotates: side by side in memory, and each of them once."""

import importlib
import itertools
import random
from collections.abc import Callable

import pytest
import torch

from fuzzrope.interpreter.engine import Engine
from kernels import reference
from kernels.forms import Meta, Turn
from kernels.rope import Plan, launch, make_plan, rope
from kernels.rope_launch import heads_together

Shape = tuple[int, ...]


def plain(shape: Shape) -> Shape:
    """Strides (batch, head, position, column) of contiguous memory."""
    _, heads, seq, width = shape
    return (heads * seq * width, seq * width, width, 1)


def turned(shape: Shape) -> Shape:
    """Strides of a view of contiguous (batch, position, head, column)."""
    _, heads, seq, width = shape
    return (heads * seq * width, width, heads * width, 1)


# How many heads are together


def test_one_head_where_positions_lie_nearer_in_both_and_all_where_heads_do():
    for heads in (2, 3, 6, 7, 32, 128):
        shape = (2, heads, 10, 64)
        assert heads_together(shape, (plain(shape), plain(shape)), 8) == 1
        assert heads_together(shape, (turned(shape), turned(shape)), 8) == heads


@pytest.mark.parametrize(
    ("heads", "found"), [(2, 2), (3, 1), (4, 4), (6, 2), (7, 1), (8, 8), (12, 4), (24, 8), (32, 8), (128, 8)]
)
def test_some_heads_where_input_and_output_differ(heads: int, found: int):
    shape = (2, heads, 10, 64)
    for steps in ((plain(shape), turned(shape)), (turned(shape), plain(shape))):
        assert heads_together(shape, steps, 8) == found
        assert heads_together(shape, steps, 4) == min(found, 4)
        assert heads_together(shape, steps, 7) == min(found, 4)
        assert heads_together(shape, steps, 1) == 1


def test_a_tensor_that_repeats_its_rows_leaves_the_choice_to_the_other():
    shape = (2, 6, 10, 64)
    for repeated in ((640, 0, 64, 1), (6 * 64, 64, 0, 1), (0, 0, 0, 1)):
        assert heads_together(shape, (repeated, turned(shape)), 8) == 6
        assert heads_together(shape, (repeated, plain(shape)), 8) == 1
    assert heads_together(shape, ((0, 0, 0, 0), (0, 0, 0, 0)), 8) == 1
    assert heads_together(shape, ((0, 64, 64, 1), (0, 64, 64, 1)), 8) == 1


@pytest.mark.parametrize("shape", [(2, 1, 10, 64), (2, 6, 1, 64), (2, 0, 10, 64), (2, 6, 0, 64)])
def test_without_two_heads_and_two_positions_there_is_no_choice(shape: Shape):
    for steps in itertools.product((plain(shape), turned(shape), (0, 2**40, 1, 1), (0, 1, 2**40, 1)), repeat=2):
        assert heads_together(shape, steps, 8) == 1


def test_it_divides_the_heads_and_a_larger_group_is_only_for_two_that_agree():
    rng = random.Random("together")
    groups = set()
    for _ in range(2000):
        shape = (rng.randrange(3), rng.randrange(70), rng.randrange(9), 16)
        steps = [tuple(rng.choice((0, 1, 16, 64, 1024)) for _ in range(4)) for _ in range(2)]
        most = rng.randrange(1, 20)
        found = heads_together(shape, steps, most)
        assert found >= 1
        assert shape[1] % found == 0
        if found > most:
            assert found == shape[1]
            assert not any(0 < position <= head for _, head, position, _ in steps)
        groups.add(found)
    assert len(groups) > 20


# What is planned, for q and for k


def planned(*inputs: torch.Tensor, pairs: bool = False) -> Plan:
    """A new plan of a call; with ``pairs``, of neighbouring columns."""
    return make_plan.__wrapped__(*map(Meta.of, inputs), Turn(inputs[0].shape[3], True) if pairs else None)


def groups_of(plan: Plan) -> list[tuple[int, int]]:
    """(groups of heads, heads of a group), of q and of k."""
    _, *numbers = plan.launch.prepared.numbers
    return [(numbers[1], numbers[2]), (numbers[6], numbers[7])]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "turned": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns first": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "gaps": lambda x: torch.stack([x, x], dim=2).flatten(2, 3)[:, :, ::2],
    "heads repeated": lambda x: x[:, :1].expand(x.shape),
}
#: Heads of q and k, and in which groups of at most eight those of a contiguous q and k are counted.
HEADS = {
    (1, 1): [(1, 1), (1, 1)],
    (3, 1): [(3, 1), (1, 1)],
    (6, 2): [(3, 2), (1, 2)],
    (12, 3): [(3, 4), (3, 1)],
    (32, 8): [(4, 8), (1, 8)],
    (40, 24): [(5, 8), (3, 8)],
}


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many heads take turns, whatever is quickest."""
    monkeypatch.setattr("kernels.rope_launch.HEADS_TOGETHER", 8)


def tensors(heads: tuple[int, int], seq: int, width: int = 32, dtype: torch.dtype = torch.float32, layout="contiguous"):
    generator = torch.Generator().manual_seed(heads[0] + seq)
    shapes = [(2, n, seq, width) for n in heads] + [(seq, width // 2)] * 2
    q, k, *tables = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return LAYOUTS[layout](q), LAYOUTS[layout](k), *tables


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize("heads", HEADS)
def test_heads_are_grouped_by_layouts_of_each_input_and_its_output(heads: tuple[int, int]):
    q, k, *tables = tensors(heads, 5)
    assert groups_of(planned(q, k, *tables)) == HEADS[heads]
    assert groups_of(planned(q, k, *tables, pairs=True)) == HEADS[heads]
    turned_q = LAYOUTS["turned"](q)
    mixed = groups_of(planned(turned_q, k, *tables))
    assert mixed == [(1, heads[0]), HEADS[heads][1]]


def test_groups_are_no_larger_than_a_tile_of_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kernels.rope_launch.HEADS_TOGETHER", 1024)
    assert groups_of(planned(*tensors((128, 32), 5, width=128))) == [(8, 16), (2, 16)]


# What is rotated, and how it lies in memory


@pytest.fixture
def on_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """kernels.rope launches on the CPU engine, which may notice nothing."""
    monkeypatch.setattr(importlib.import_module("kernels.rope"), "can_launch", lambda device: True)
    yield engine
    assert engine.launches
    assert engine.accesses == {}


def same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> bool:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    return all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", HEADS)
def test_every_row_is_rotated_by_its_own_position(on_engine: Engine, heads: tuple[int, int], layout: str):
    for seq in (1, 5, 17, 64):
        q, k, cos, sin = tensors(heads, seq, layout=layout)
        assert same(rope(q, k, cos, sin), reference.rope(q, k, cos, sin))
        width = q.shape[3]
        found = rope(q, k, cos, sin, interleaved=True)
        assert same(found, reference.rope_with_options(q, k, cos, sin, True, width))


def test_indices_of_64_bits_count_rows_alike(on_engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kernels.rope_launch.INT32_MAX", 0)
    for heads, layout in itertools.product(HEADS, ("contiguous", "turned")):
        inputs = tensors(heads, 17, layout=layout)
        plan = make_plan.__wrapped__(*map(Meta.of, inputs))
        assert plan.launch.constants["WIDE"]
        assert same(launch(plan, *inputs), reference.rope(*inputs)[:2])


@pytest.mark.parametrize("layout", ["contiguous", "turned"])
@pytest.mark.parametrize("given", ["contiguous", "turned", "repeated"])
def test_gradients_come_back_to_their_own_rows(on_engine: Engine, layout: str, given: str):
    for heads, seq in itertools.product(((6, 2), (24, 3)), (5, 17)):
        results = []
        for function in (rope, reference.rope):
            q, k, cos, sin = (x.clone().requires_grad_(x.dim() == 4) for x in tensors(heads, seq, layout=layout))
            outs = function(q, k, cos, sin)[:2]
            gradients = [torch.linspace(-1, 1, out.numel()).view(out.shape) for out in outs]
            if given == "repeated":
                gradients = [g[:1, :1, :1].expand(g.shape) for g in gradients]
            elif given == "turned":
                gradients = [LAYOUTS["turned"](g) for g in gradients]
            results.append(torch.autograd.grad(outs, (q, k), gradients))
        assert all(map(torch.equal, *results))


def regrouped(plan: Plan, groups: int, group: int, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a launch makes of q whose heads are counted in other groups; NaN where it writes nothing."""
    prepared = plan.launch.prepared
    first, rows, _, _, *rest = prepared.numbers
    changed = plan.launch._replace(prepared=prepared._replace(numbers=(first, rows, groups, group, *rest), ready={}))
    outs = [torch.empty_strided(*out[:2]).fill_(torch.nan) for out in (plan.out_q, plan.out_k)]
    changed.run(*inputs, *outs)
    return outs[0]


def test_all_groups_that_divide_the_heads_give_the_same_bits_and_others_do_not(engine: Engine):
    inputs = tensors((12, 3), 7)
    true, plan = reference.rope(*inputs)[0], planned(*inputs)
    for group in (1, 2, 3, 4, 6, 12):
        assert torch.equal(regrouped(plan, 12 // group, group, inputs), true)
    assert engine.accesses == {}
    for groups, group in ((2, 4), (3, 3), (4, 4), (1, 4), (3, 8)):
        assert not torch.equal(regrouped(plan, groups, group, inputs), true)
    assert engine.accesses


def runs(written: torch.Tensor) -> set[int]:
    """Lengths of the runs of what is true, in the order of memory."""
    edges = torch.cat([torch.zeros(1), written.contiguous().flatten(), torch.zeros(1)]).diff().nonzero().flatten()
    return set((edges[1::2] - edges[::2]).tolist())


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("layout", "of_input", "of_output"), [("contiguous", 2, 8), ("turned", 16, 16), ("heads repeated", 1, 16)]
)
def test_a_program_reads_and_writes_rows_that_lie_side_by_side(
    engine: Engine, layout: str, of_input: int, of_output: int
):
    seq = 64
    q, k, cos, sin = tensors((32, 8), seq, width=128, dtype=torch.bfloat16, layout=layout)
    launched = planned(q, k, cos, sin).launch
    assert launched.constants["BLOCK_R"] == 16
    outs = [torch.full((2, seq, x.shape[1], 128), torch.nan, dtype=x.dtype).transpose(1, 2) for x in (q, k)]
    one = launched._replace(prepared=launched.prepared._replace(programs=3, ready={}))
    one.run(q, k, cos, sin, *outs)  # the first three programs of q
    written = ~outs[0].isnan()
    assert written.sum() == 3 * 16 * 128
    assert outs[1].isnan().all()
    by_position = runs(written.transpose(1, 2))
    assert by_position
    assert all(run % (of_output * 128) == 0 for run in by_position)
    if layout != "heads repeated":
        ordered = written.transpose(1, 2) if layout == "turned" else written
        assert all(run % (of_input * 128) == 0 for run in runs(ordered))
