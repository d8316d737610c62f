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
from kernels.rope_launch import positions_together

Shape = tuple[int, ...]


def plain(shape: Shape) -> Shape:
    """Strides (batch, head, position, column) of contiguous memory."""
    _, heads, seq, width = shape
    return (heads * seq * width, seq * width, width, 1)


def turned(shape: Shape) -> Shape:
    """Strides of a view of contiguous (batch, position, head, column)."""
    _, heads, seq, width = shape
    return (heads * seq * width, width, heads * width, 1)


# How many positions are together


def test_all_positions_where_they_lie_nearer_in_both_and_one_where_heads_do():
    for seq in (2, 3, 6, 7, 32, 4096):
        shape = (2, 10, seq, 64)
        assert positions_together(shape, (plain(shape), plain(shape)), 16) == seq
        assert positions_together(shape, (turned(shape), turned(shape)), 16) == 1


@pytest.mark.parametrize(
    ("seq", "found"), [(2, 2), (3, 1), (4, 4), (6, 2), (7, 1), (8, 8), (12, 4), (16, 16), (24, 8), (48, 16), (4096, 16)]
)
def test_some_positions_where_input_and_output_differ(seq: int, found: int):
    shape = (2, 10, seq, 64)
    for steps in ((plain(shape), turned(shape)), (turned(shape), plain(shape))):
        assert positions_together(shape, steps, 16) == found
        assert positions_together(shape, steps, 8) == min(found, 8)
        assert positions_together(shape, steps, 15) == min(found, 8)
        assert positions_together(shape, steps, 1) == 1
        assert positions_together(shape, steps, 2**40) == seq & -seq


def test_a_tensor_that_repeats_its_rows_leaves_the_choice_to_the_other():
    shape = (2, 6, 10, 64)
    for repeated in ((640, 0, 64, 1), (6 * 64, 64, 0, 1), (0, 0, 0, 1)):
        assert positions_together(shape, (repeated, turned(shape)), 8) == 1
        assert positions_together(shape, (repeated, plain(shape)), 8) == 10
    assert positions_together(shape, ((0, 0, 0, 0), (0, 0, 0, 0)), 8) == 10
    assert positions_together(shape, ((0, 64, 64, 1), (0, 64, 64, 1)), 8) == 10


@pytest.mark.parametrize("shape", [(2, 1, 10, 64), (2, 6, 1, 64), (2, 0, 10, 64), (2, 6, 0, 64), (2, 0, 0, 64)])
def test_without_two_heads_and_two_positions_there_is_no_choice(shape: Shape):
    for steps in itertools.product((plain(shape), turned(shape), (0, 2**40, 1, 1), (0, 1, 2**40, 1)), repeat=2):
        assert positions_together(shape, steps, 8) == max(shape[2], 1)


def test_it_divides_the_positions_and_more_are_only_for_two_that_agree():
    rng = random.Random("together")
    regimes = {"all": 0, "one": 0, "some": 0}
    for _ in range(2000):
        shape = (rng.randrange(3), rng.randrange(9), rng.randrange(70), 16)
        steps = [tuple(rng.choice((0, 1, 16, 64, 1024)) for _ in range(4)) for _ in range(2)]
        most = rng.randrange(1, 20)
        found = positions_together(shape, steps, most)
        assert found >= 1
        assert shape[2] % found == 0
        if shape[1] < 2 or shape[2] < 2:
            continue
        # Heads and positions of tensors that repeat neither: those whose heads are nearer, and the others.
        chosen = [(head, position) for _, head, position, _ in steps if head * position]
        nearer = sum(head < position for head, position in chosen)
        regime = "all" if nearer == 0 else "one" if nearer == len(chosen) else "some"
        regimes[regime] += 1
        if regime != "some":
            assert found == {"all": shape[2], "one": 1}[regime]
        else:
            assert found <= most
            assert found.bit_count() == 1
            assert shape[2] % (2 * found) or 2 * found > most
    assert min(regimes.values()) > 100


# What is planned, for q and for k


def planned(*inputs: torch.Tensor, pairs: bool = False) -> Plan:
    """A new plan of a call; with ``pairs``, of neighbouring columns."""
    return make_plan.__wrapped__(*map(Meta.of, inputs), Turn(inputs[0].shape[3], True) if pairs else None)


def counted(plan: Plan) -> list[Shape]:
    """(positions together, heads, so many times), of q and of k."""
    _, *numbers = plan.launch.prepared.numbers
    return [(*numbers[1:4],), (*numbers[6:9],)]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "turned": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns first": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "gaps": lambda x: torch.stack([x, x], dim=2).flatten(2, 3)[:, :, ::2],
    "heads repeated": lambda x: x[:, :1].expand(x.shape),
}
#: Heads of q and k.
HEADS = [(1, 1), (3, 1), (6, 2), (12, 3), (32, 8)]
#: Positions, and how many of a contiguous input of several heads are together, of at most sixteen.
LENGTHS = {1: 1, 2: 2, 5: 1, 6: 2, 12: 4, 17: 1, 24: 8, 48: 16, 64: 16}


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many positions are together, whatever is quickest."""
    monkeypatch.setattr("kernels.rope_launch.POSITIONS_TOGETHER", 16)


def tensors(heads: tuple[int, int], seq: int, width: int = 32, dtype: torch.dtype = torch.float32, layout="contiguous"):
    generator = torch.Generator().manual_seed(heads[0] + seq)
    shapes = [(2, n, seq, width) for n in heads] + [(seq, width // 2)] * 2
    q, k, *tables = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return LAYOUTS[layout](q), LAYOUTS[layout](k), *tables


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("seq", LENGTHS)
def test_positions_are_together_by_layouts_of_each_input_and_its_output(heads: tuple[int, int], seq: int):
    def so_many(run: int, n: int) -> Shape:
        return (run, n, seq // run) if n > 1 else (seq, 1, 1)

    q, k, *tables = tensors(heads, seq)
    some, one = ([so_many(run, n) for n in heads] for run in (LENGTHS[seq], 1))
    assert counted(planned(q, k, *tables)) == some
    assert counted(planned(q, k, *tables, pairs=True)) == some
    turned_q, turned_k = map(LAYOUTS["turned"], (q, k))
    assert counted(planned(turned_q, k, *tables)) == [one[0], some[1]]
    assert counted(planned(q, turned_k, *tables)) == [some[0], one[1]]


def test_no_more_are_together_than_the_constant_says_whatever_the_tile(monkeypatch: pytest.MonkeyPatch):
    for most in (1, 4, 32, 1024):
        monkeypatch.setattr("kernels.rope_launch.POSITIONS_TOGETHER", most)
        plan = planned(*tensors((32, 8), 256, width=128))
        assert plan.launch.constants["BLOCK_R"] == 16
        run = min(most, 256)
        assert counted(plan) == [(run, 32, 256 // run), (run, 8, 256 // run)]


@pytest.mark.usefixtures("sixteen")
def test_inputs_that_are_broadcast_along_positions_leave_the_choice_to_outputs():
    q, k, *tables = tensors((6, 3), 48)
    plan = planned(q, k[:, :, :1], *tables)
    _, head, position, _ = plan.out_k.strides
    assert plan.out_k.shape[2] == 48
    assert counted(plan) == [(16, 6, 3), (1, 3, 48) if head < position else (48, 3, 1)]


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
    for seq in LENGTHS:
        q, k, cos, sin = tensors(heads, seq, layout=layout)
        assert same(rope(q, k, cos, sin), reference.rope(q, k, cos, sin))
        width = q.shape[3]
        found = rope(q, k, cos, sin, interleaved=True)
        assert same(found, reference.rope_with_options(q, k, cos, sin, True, width))


def test_indices_of_64_bits_count_rows_alike(on_engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kernels.rope_launch.INT32_MAX", 0)
    for heads, seq, layout in itertools.product(HEADS, (17, 24), ("contiguous", "turned")):
        inputs = tensors(heads, seq, layout=layout)
        plan = make_plan.__wrapped__(*map(Meta.of, inputs))
        assert plan.launch.constants["WIDE"]
        assert same(launch(plan, *inputs), reference.rope(*inputs)[:2])


@pytest.mark.parametrize("layout", ["contiguous", "turned"])
@pytest.mark.parametrize("given", ["contiguous", "turned", "repeated"])
def test_gradients_come_back_to_their_own_rows(on_engine: Engine, layout: str, given: str):
    for heads, seq in itertools.product(((6, 2), (24, 3)), (5, 24)):
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


def recounted(plan: Plan, run: int, heads: int, runs: int, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a launch makes of q whose rows are counted in another way; NaN where it writes nothing."""
    prepared = plan.launch.prepared
    first, rows, _, _, _, *rest = prepared.numbers
    numbers = (first, rows, run, heads, runs, *rest)
    changed = plan.launch._replace(prepared=prepared._replace(numbers=numbers, ready={}))
    outs = [torch.empty_strided(*out[:2]).fill_(torch.nan) for out in (plan.out_q, plan.out_k)]
    changed.run(*inputs, *outs)
    return outs[0]


@pytest.mark.parametrize("layout", ["contiguous", "turned"])
def test_all_runs_that_divide_the_positions_give_the_same_bits_and_others_do_not(engine: Engine, layout: str):
    inputs = tensors((7, 3), 12, layout=layout)
    true, plan = reference.rope(*inputs)[0], planned(*inputs)
    for run in (1, 2, 3, 4, 6, 12):
        assert torch.equal(recounted(plan, run, 7, 12 // run, inputs), true)
    assert engine.accesses == {}
    for run, heads, runs in ((2, 7, 5), (5, 7, 2), (3, 7, 3), (4, 7, 4), (1, 7, 11), (8, 7, 2), (12, 6, 1), (3, 8, 4)):
        assert not torch.equal(recounted(plan, run, heads, runs, inputs), true)
    assert engine.accesses


def stretches(written: torch.Tensor) -> set[int]:
    """Lengths of the stretches of what is true, in the order of memory."""
    edges = torch.cat([torch.zeros(1), written.contiguous().flatten(), torch.zeros(1)]).diff().nonzero().flatten()
    return set((edges[1::2] - edges[::2]).tolist())


def first_rows(shape: Shape, run: int, count: int) -> torch.Tensor:
    """Where the first so many rows are, counted over (batch, run of positions, head, position of the run)."""
    batch, heads, seq, _ = shape
    starts = itertools.product(range(batch), range(0, seq, run), range(heads))
    order = ((b, h, start + i) for b, start, h in starts for i in range(run))
    found = torch.zeros(shape, dtype=torch.bool)
    for place in itertools.islice(order, count):
        found[place] = True
    return found


#: Layouts of an input, and how many of its positions are together, of at most sixteen.
TOGETHER = {"contiguous": 16, "gaps": 16, "turned": 1, "heads repeated": 1}


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize("role", [0, 1], ids="qk")
@pytest.mark.parametrize("layout", TOGETHER)
def test_programs_that_follow_each_other_read_and_write_rows_that_lie_side_by_side(
    engine: Engine, layout: str, role: int
):
    seq, run = 64, TOGETHER[layout]
    *inputs, cos, sin = tensors((32, 8), seq, width=128, dtype=torch.bfloat16, layout=layout)
    true = reference.rope(*inputs, cos, sin)[role]
    launched, shape = planned(*inputs, cos, sin).launch, inputs[role].shape
    assert launched.constants["BLOCK_R"] == 16
    numbers = launched.prepared.numbers if role == 0 else (0, *launched.prepared.numbers[1:])  # k's programs come first
    blank = 2.0**20
    whole = max(shape[1] * run // 16, 1)  # programs that rotate so many positions, or more, of all heads
    for programs in (1, 3, whole, 2 * whole, 2 * whole + 1):
        expected = first_rows(shape, run, 16 * programs)
        given = list(inputs)
        if layout != "heads repeated":  # what is not to be read is NaN
            given[role] = torch.empty_strided(shape, inputs[role].stride(), dtype=torch.bfloat16)
            given[role].copy_(inputs[role].masked_fill(~expected, torch.nan))
        outs = [torch.full((2, seq, x.shape[1], 128), blank, dtype=x.dtype).transpose(1, 2) for x in inputs]
        prepared = launched.prepared._replace(numbers=numbers, programs=programs, ready={})
        launched._replace(prepared=prepared).run(*given, cos, sin, *outs)
        assert torch.equal(outs[role] != blank, expected)
        assert torch.equal(outs[role][expected], true[expected])
        assert (outs[1 - role] == blank).all()
        if programs % whole == 0:  # all of it lies side by side in the output, runs of it do in the input
            assert stretches(expected.transpose(1, 2)) == {programs * 16 * 128}
            if layout == "contiguous":
                assert stretches(expected) == {programs // whole * run * 128}
    assert engine.accesses == {}
