"""Which tile a launch gets, and that every tile that can be shipped computes the same."""

import importlib

import pytest
import torch

from fuzzrope.campaign import run_campaign
from fuzzrope.case import CaseError
from fuzzrope.events import Minimized
from fuzzrope.settings import Settings
from fuzzrope.targets import TargetError, find
from kernels import pinned, reference, tiling
from kernels.fused import MAX_WIDTH, block_of
from kernels.tile_table import TABLE
from kernels.tiling import HOPPER, KERNELS, SHIPPED, Pins, Tiles, pick, shippable
from tests.kernels.fused_calls import Call, tensors_of

CPU = torch.device("cpu")
RULE = Tiles(16, 16, 4, 1)
SHORT, MIDDLE, LONG = (Tiles(n, 2 * n, 8, 2, 3) for n in (16, 32, 64))
SOME = {("qk", HOPPER, 2, 128): ((16, tuple(SHORT)), (256, tuple(MIDDLE)), (4096, tuple(LONG)))}
DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(tiling, "TABLE", SOME)


def test_the_nearest_length_as_a_ratio_decides(table):
    found = {n: pick("qk", CPU, 2, 128, n, RULE) for n in (1, 16, 63, 64, 65, 256, 1023, 1024, 1025, 10**9)}
    assert [n for n, tiles in found.items() if tiles == SHORT] == [1, 16, 63, 64]
    assert [n for n, tiles in found.items() if tiles == MIDDLE] == [65, 256, 1023, 1024]
    assert [n for n, tiles in found.items() if tiles == LONG] == [1025, 10**9]


@pytest.mark.parametrize("other", [("qk_dq", 2, 128), ("qk", 4, 128), ("qk", 2, 64)])
def test_what_the_table_lacks_follows_the_rule(table, other):
    assert pick(*other[:1], CPU, *other[1:], 256, RULE) == RULE


def test_a_device_of_another_kind_follows_the_rule(table, monkeypatch):
    monkeypatch.setattr(tiling, "architecture", lambda device: 80)
    assert pick("qk", CPU, 2, 128, 256, RULE) == RULE


def test_a_pin_by_name_counts_before_all_and_for_its_kernel_alone(table):
    pins = Pins((("qk", RULE),))
    assert pick("qk", CPU, 2, 128, 256, LONG, pins) == RULE
    assert pick("qk_dq", CPU, 2, 128, 256, LONG, pins) == LONG
    assert pick("qk", CPU, 2, 128, 256, LONG, SHIPPED) == MIDDLE


def test_a_pin_by_number_counts_what_can_be_shipped_round_and_round(table):
    assert shippable("qk", 2, 128, RULE) == (RULE, SHORT, MIDDLE, LONG)
    assert [pick("qk", CPU, 2, 128, 1, RULE, Pins(number=n)) for n in range(5)] == [RULE, SHORT, MIDDLE, LONG, RULE]
    assert shippable("qk", 2, 64, RULE) == (RULE,)
    assert shippable("qk", 2, 128, SHORT) == (SHORT, MIDDLE, LONG)


def test_entries_of_other_devices_can_be_shipped_too(monkeypatch):
    monkeypatch.setattr(tiling, "TABLE", {("qk", 100, 2, 128): ((16, tuple(LONG)),)})
    assert shippable("qk", 2, 128, RULE) == (RULE, LONG)
    assert pick("qk", CPU, 2, 128, 16, RULE) == RULE


def test_the_table_is_well_formed():
    for (kernel, architecture, size, width), entries in TABLE.items():
        assert kernel in KERNELS
        assert architecture >= 70
        assert size in DTYPES
        assert width == block_of(width) <= MAX_WIDTH
        lengths = [length for length, _ in entries]
        assert lengths == sorted(set(lengths))
        for _, numbers in entries:
            tiles = Tiles(*numbers)
            assert all(n > 0 and n & (n - 1) == 0 for n in tiles[:3])
            assert kernel == "rope" or min(tiles.rows, tiles.keys) >= 16  # bounds of the judge assume that many
            assert 1 <= tiles.stages <= 5
            assert tiles.steps >= 0
            assert tiles.steps == 0 or kernel == "qk"


# Calls with tiles of one's choice


def outcome(function, call: Call):
    """Outputs and gradients of a call."""
    tensors = [x.requires_grad_() for x in call.inputs()]
    outputs = tensors_of(function(*tensors, **call.options))
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, tensors, given)]


def assert_close(ours, true, dtype):
    """In the 2-norm, which one tile in a hundred that is wrong moves by a tenth."""
    for one, other in zip(ours, true, strict=True):
        one, other = (x.detach().double() for x in (one, other))
        assert torch.equal(one.isinf(), other.isinf())
        finite = other.isfinite()
        error = torch.linalg.vector_norm((one - other)[finite])
        assert error <= 8 * torch.finfo(dtype).eps * torch.linalg.vector_norm(other[finite])


def operation_of(kernel: str) -> str:
    return {"qk": "rope_qk", "attention": "rope_attention"}.get(kernel.partition("_")[0], "rope")


ENTRIES = [
    (kernel, size, width, Tiles(*numbers))
    for (kernel, _, size, width), entries in TABLE.items()
    for numbers in dict.fromkeys(numbers for _, numbers in entries)
]


def written(tiles: Tiles) -> str:
    return "x".join(map(str, tiles))


@pytest.mark.parametrize(("kernel", "size", "width", "tiles"), ENTRIES, ids=str)
def test_every_entry_of_the_table_computes_what_the_twin_does(launching, kernel, size, width, tiles):
    name, dtype = operation_of(kernel), DTYPES[size]
    function = pinned.pinned(name, f"{kernel}={written(tiles)}")
    if name == "rope":
        generator = torch.Generator().manual_seed(5)
        shapes = (2, 3, 19, width), (2, 1, 19, width), (19, width // 2), (19, width // 2)
        inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        pairs = zip(function(*inputs), reference.rope(*inputs), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        return
    call = Call(name, 1, 1, 2, 21, 37, width, width, dtype=dtype, options={"causal": True, "q_offset": 9})
    assert_close(outcome(function, call), outcome(call.twin, call), dtype)
    used = {tuple(dict(launch["constants"]).get(n) for n in ("BLOCK_M", "BLOCK_N")) for launch in launching.launches}
    assert (tiles.rows, tiles.keys) in used


@pytest.mark.parametrize("name", ["rope_qk", "rope_attention"])
@pytest.mark.parametrize("part", ["", "_dq", "_dk"])
def test_a_pin_reaches_its_kernel_and_no_other(launching, name, part):
    kernel = name.removeprefix("rope_") + part
    call = Call(name, 1, 1, 1, 70, 70, 16, 16)
    found = {}
    for which in (f"{kernel}=16x64x4x1", f"{kernel}=64x16x4x1"):
        launching.reset()
        assert_close(outcome(pinned.pinned(name, which), call), outcome(call.twin, call), torch.float32)
        found[which] = [
            tuple(dict(launch["constants"])[n] for n in ("BLOCK_M", "BLOCK_N")) for launch in launching.launches
        ]
    (first, second), place = found.values(), ["", "_dq", "_dk"].index(part)
    assert (first[place], second[place]) == ((16, 64), (64, 16))
    assert [a == b for a, b in zip(first, second, strict=True)] == [i != place for i in range(3)]


def test_a_pin_reaches_both_ways_of_rope(launching):
    inputs = [torch.randn(2, 3, 19, 12), torch.randn(2, 1, 19, 12), torch.randn(19, 6), torch.randn(19, 6)]
    inputs[0].requires_grad_()
    q, *_ = pinned.pinned("rope", "rope=8x4x2x1")(*inputs)
    assert torch.equal(q, reference.rope(*inputs)[0])
    q.sum().backward()
    found = [tuple(dict(launch["constants"])[n] for n in ("BLOCK_R", "BLOCK_C")) for launch in launching.launches]
    assert found == [(8, 4), (8, 4)]


def test_steps_of_a_tile_count_where_programs_are_enough():
    choose = importlib.import_module("kernels.rope_qk").choose_steps
    module = importlib.import_module("kernels.rope_qk")
    for steps in (1, 4, 16):
        tiles = Tiles(16, 16, 4, 1, steps)
        assert choose(10**6, tiles) == steps
        assert choose(2 * module.FEWEST_PROGRAMS, tiles) == min(steps, 2)
        assert choose(1, tiles) == 1
    assert choose(10**6, Tiles(16, 16, 4, 1)) == module.MOST_STEPS
    assert choose(module.ENOUGH_PROGRAMS - 1, Tiles(16, 16, 4, 1)) == 1


@pytest.mark.parametrize("name", ["kernels.ModelNew", "kernels.rope_qk", "kernels.rope_attention"])
def test_tiles_that_can_be_shipped_are_judged_as_what_is_shipped(name, runner):
    events = []
    settings = Settings(seed=11, max_examples=40, max_time=300.0)
    finished = run_campaign(find(f"{name}@any"), settings, None, events.append, runner)
    assert [event.finding for event in events if isinstance(event, Minimized)] == []
    assert finished.executed == 40


# Names


def test_any_takes_the_same_tiles_for_the_same_form_and_all_in_the_end():
    q, k, table = torch.ones(1, 2, 3, 8), torch.ones(1, 1, 5, 8), torch.ones(5, 4)
    assert pinned.drawn((q, k, table, table), {}) == pinned.drawn((q * 2, k, table, table), {})
    found = [pinned.drawn((q, k[:, :, :n], table, table), {"causal": c}) for n in range(5) for c in (True, False)]
    found += [pinned.drawn((q[..., :n], k, table.double(), table), {}) for n in range(8)]
    assert SHIPPED in found
    assert len({pins.number for pins in found}) > 5


def test_a_name_with_tiles_is_a_target_that_is_read_back_the_same():
    for name in (
        "kernels.rope_qk@any",
        "kernels.rope_qk@special",
        "kernels.rope_qk@qk=64x128x8x2",
        "kernels.rope@rope=16x32x4x3",
    ):
        target = find(name)
        assert target.name == name
        module, _, attribute = target.entry.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))
        assert find(name.partition("@")[0]).operation == target.operation


@pytest.mark.parametrize(
    "name", ["kernels.reference@any", "kernels.rope_qk@", "kernels.rope_qk@qk=64", "nothing@any", "specimen:tiled@any"]
)
def test_other_names_with_tiles_are_no_targets(name):
    with pytest.raises((TargetError, CaseError)):
        find(name)


@pytest.mark.parametrize(
    "text", ["", "qk", "qk=1x2x3", "qv=16x16x4x1", "qk=16x24x4x1", "qk=16x16x4x0", "qk=16x16x-4x1"]
)
def test_text_that_is_no_pin_is_refused(text):
    with pytest.raises(ValueError, match=r"KERNEL|powers of two"):
        pinned.parse(text)


def test_pins_are_read_as_they_are_written():
    pins = pinned.parse("qk=64x128x8x2x4,qk_dk=32x16x4x1")
    assert pins == Pins((("qk", Tiles(64, 128, 8, 2, 4)), ("qk_dk", Tiles(32, 16, 4, 1))))


def test_the_module_has_no_other_attributes():
    with pytest.raises(AttributeError):
        _ = pinned.nothing
    with pytest.raises(AttributeError):
        getattr(pinned, "rope_qv@any")


def test_numbers_of_another_maker_are_none_of_ours(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert tiling.architecture.__wrapped__(torch.device("cuda")) == tiling.HOPPER
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert tiling.architecture.__wrapped__(torch.device("cuda")) == 0
