"""Kernels for one device alone: taken where they serve and pay, right, and each flaw put into them is found."""

import importlib.util
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kernels
from fuzzrope.judge import judge
from fuzzrope.targets import Target, find
from kernels import pinned, special
from kernels.forms import Meta
from kernels.hopper import attention, qk
from kernels.hopper.forms import Blocks, described
from kernels.special import SPECIAL, Wish, special_for
from kernels.tiling import HOPPER, SHIPPED, Pins
from tests import special as command
from tests.kernels.stores import stored_through
from tests.special import ATTENTION, BY_HAND, KERNELS, QK, case, drawn

NAMES = {QK: "qk", ATTENTION: "attention"}
MODULES = {QK: qk, ATTENTION: attention}
ANY = Pins(special=True)


def wish(*shapes: tuple[int, ...], dtype=torch.bfloat16, causal=False, q_offset=0, plain=True, **strides) -> Wish:
    names = ("q", "k", "v", "cos", "sin") if len(shapes) == 5 else ("q", "k", "cos", "sin")
    forms = {
        name: Meta(shape, strides.get(name, torch.empty(shape, device="meta").stride()), dtype)
        for name, shape in zip(names, shapes, strict=True)
    }
    return Wish(forms, dtype, 1.0, causal, q_offset, plain)


def attention_wish(rows=512, keys=512, width=128, width_v=128, table=512, heads=2, **changes) -> Wish:
    q, k, v = ((1, heads, n, w) for n, w in ((rows, width), (keys, width), (keys, width_v)))
    return wish(q, k, v, (table, width // 2), (table, width // 2), **changes)


@pytest.mark.parametrize("name", BY_HAND)
def test_they_are_taken_and_right(runner, name):
    asked = BY_HAND[name]
    target = find(f"kernels.{asked.operation}@special")
    runner.turn_to(target)
    outcome = runner.run(asked)
    verdict = judge(asked, outcome, target)
    assert not verdict.skipped
    assert not verdict.findings
    assert [launch.kernel for launch in outcome.launches] == [KERNELS[asked.operation]]


@pytest.mark.parametrize("operation", NAMES)
def test_cases_by_chance_are_taken_and_right(runner, operation):
    runner.turn_to(find(f"kernels.{operation}@special"))
    cases = [drawn(operation, number, 3) for number in range(8)]
    assert any(asked.backward for asked in cases)
    assert {command.said_of(runner, asked, "cpu") for asked in cases} == {"right"}


def test_without_pins_they_are_taken_where_they_pay():
    assert special_for("attention", HOPPER, attention_wish(heads=24), SHIPPED) is SPECIAL["attention"][0]
    for small in (attention_wish(heads=23), attention_wish(heads=512, rows=127), attention_wish(heads=24, keys=511)):
        assert special_for("attention", HOPPER, small, SHIPPED) is None
        assert special_for("attention", HOPPER, small, ANY) is SPECIAL["attention"][0]
    many = wish((4, 32, 1024, 128), (4, 32, 1024, 128), (1024, 64), (1024, 64))
    few = wish((1, 2, 1024, 128), (1, 2, 1024, 128), (1024, 64), (1024, 64))
    assert special_for("qk", HOPPER, many, SHIPPED) is SPECIAL["qk"][0]
    assert special_for("qk", HOPPER, few, SHIPPED) is None
    assert special_for("qk", HOPPER, few, ANY) is SPECIAL["qk"][0]


def test_another_device_and_pinned_tiles_have_none():
    for other in (80, 100):
        assert special_for("attention", other, attention_wish(), ANY) is None
    for pins in (Pins(number=3), pinned.parse("attention=64x64x4x2")):
        assert special_for("attention", HOPPER, attention_wish(), pins) is None
    assert special_for("rope", HOPPER, attention_wish(), ANY) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": torch.float32},
        {"width": 96},
        {"width_v": 32},
        {"table": 511},
        {"table": 1},
        {"plain": False},
        {"rows": 0},
        {"keys": 0},
        {"q_offset": 1},
        {"k": (0, 0, 128, 1)},
        {"k": (131072, 65536, 129, 1)},
        {"v": (131072, 65536, 1, 512)},
        {"cos": (0, 1)},
    ],
    ids=str,
)
def test_attention_refuses_what_bulk_copies_cannot_bring(changes):
    assert attention.serves(attention_wish())
    assert not attention.serves(attention_wish(**changes))


def test_scores_refuse_what_they_cannot_send():
    def serves(keys=136, width=64, table=136, heads=2, **changes):
        shapes = (1, heads, 64, width), (1, heads, keys, width), (table, width // 2), (table, width // 2)
        return qk.serves(wish(*shapes, **changes))

    assert serves()
    assert serves(q=(8192, 4096, 64, 1), cos=(0, 1))
    assert not serves(keys=130)
    assert not serves(keys=0)
    assert not serves(heads=0)
    assert not serves(width=24)
    assert not serves(width=144)
    assert not serves(table=135)
    assert not serves(dtype=torch.float64)
    assert not serves(q=(8192, 4096, 1, 64))


def test_a_file_that_was_exported_has_none():
    from kernels.export import exported

    assert "SPECIAL" in exported()
    assert "gluon" not in exported()
    assert special.SPECIAL.keys() == {"attention", "qk"}
    assert kernels.hopper


def test_descriptors_of_one_form_are_what_triton_makes_and_keep_no_tensor():
    blocks = Blocks(1, 8, 32)
    for number in range(3):
        x = torch.randn(4, 24, 64, dtype=torch.float16)[:, :, :48]
        made = blocks.of(x)
        assert type(made) is type(described(x, [1, 8, 32]))
        assert made.base is x
        assert vars(made) == vars(described(x, [1, 8, 32]))
        seen = weakref.ref(x)
        del x, made
        assert seen() is None, number
    with pytest.raises(AssertionError, match="16-byte aligned"):
        Blocks(1, 8, 32).of(torch.randn(4, 24, 60, dtype=torch.float16)[:, :, :48])


STORED = {QK: {"out_desc"}, ATTENTION: {"lse_ptr", "o_ptr"}}


def launched(operation: str, module, causal: bool) -> set[str]:
    """What a module's kernel stores through, by the IR of what one launch on the engine has compiled."""
    q, k, v = (torch.randn(1, heads, rows, 64).bfloat16() for heads, rows in ((4, 70), (2, 72), (2, 72)))
    tables = [torch.randn(80, 32).bfloat16() for _ in range(2)]
    inputs = (q, k, *tables) if operation == QK else (q, k, v, *tables)
    names = ("q", "k", "cos", "sin") if operation == QK else ("q", "k", "v", "cos", "sin")
    asked = Wish(dict(zip(names, map(Meta.of, inputs), strict=True)), q.dtype, 1.0, causal, 0, True)
    assert module.serves(asked)
    outputs = (torch.empty(1, 4, 70, 72 if operation == QK else 64, dtype=q.dtype), torch.empty(1, 4, 70))
    module.prepare(asked)(*inputs, *outputs[: len(STORED[operation])])
    caches = getattr(module, KERNELS[operation]).device_caches.values()
    return {name for cache in caches for made in cache[0].values() for name in stored_through(made.asm["ttgir"])}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("operation", NAMES)
def test_they_store_outputs_and_nothing_else(launching, operation, causal):
    assert launched(operation, MODULES[operation], causal) == STORED[operation]


@pytest.mark.parametrize(
    ("operation", "line", "more", "through"),
    [
        (ATTENTION, "    q1.store(y1)\n", "    gl.store(at + d, y1, mask=mask)\n", "q_ptr"),
        (
            QK,
            "    k1.store(first_half)\n",
            "    gl.store(k_ptr + 0 * at[:, None] + 0 * x1.to(gl.int32), x1)\n",
            "k_ptr",
        ),
    ],
)
def test_one_that_stores_what_it_rotated_is_seen(launching, tmp_path, operation, line, more, through):
    text = Path(MODULES[operation].__file__).read_text()
    assert text.count(line) == 1
    path = tmp_path / "storing.py"
    path.write_text(text.replace(line, line + more))
    spec = importlib.util.spec_from_file_location("storing", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert through in launched(operation, module, False)


def candidate(folder: Path, operation: str, right: str, wrong: str) -> Target:
    """The module as a file, changed, whose kernel is the one that is taken."""
    text = Path(MODULES[operation].__file__).read_text()
    assert text.count(right) == 1, right
    text = text.replace(right, wrong).replace("ENOUGH_PROGRAMS = 1024", "ENOUGH_PROGRAMS = 12")  # many steps each
    text += f"""
from kernels.pinned import pinned
from kernels.special import SPECIAL, Special
SPECIAL["{NAMES[operation]}"] = [Special(90, serves, pays, prepare)]

ModelNew = pinned("{operation}", "special")
"""
    path = folder / "candidate.py"
    path.write_text(text)
    return replace(find(str(path)), operation=operation)


#: What is right in the text of scores, what is wrong instead, what that has to be called; "" for what changes nothing.
OF_SCORES = {
    "columns of both factors in another order": ("((0, 1, 4, 5, 2, 3, 6))", "((0, 1, 2, 3, 4, 5, 6))", ""),
    "keys rotated by the row after": (
        "k_ptr, cos_ptr, sin_ptr, at, at,",
        "k_ptr, cos_ptr, sin_ptr, at, at + 1,",
        "mismatch",
    ),
    "a store that is not waited for": ("tma.store_wait(1)", "tma.store_wait(2)", "race"),
    "one buffer": ("buffers.index(1)", "buffers.index(0)", "race"),
    "a product that is not waited for": ("warpgroup_mma_wait(2,", "warpgroup_mma_wait(3,", "nonfinite"),
    "the diagonal hidden": ("j[None, :] <= ", "j[None, :] < ", "nonfinite"),
    "heads of k not told apart": ("k_ptr += b * k_b + h * k_h", "k_ptr += b * k_b", "mismatch"),
}


@pytest.mark.parametrize("flaw", OF_SCORES)
def test_a_flaw_put_into_scores_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_SCORES[flaw]
    target = candidate(tmp_path, QK, right, wrong)
    runner.turn_to(target)
    asked = case(QK, rows=300, keys=136, heads=(4, 2), causal=True, q_offset=3)
    verdict = judge(asked, runner.run(asked), target)
    kinds = {finding.kind for finding in verdict.findings}
    assert kind in kinds if kind else not kinds, verdict.findings


DONE = "            o, left, p = warpgroup_mma_wait(0, deps=[o, left, p])\n"
ROOM = "            mbarrier.arrive(v_room.index(v_place), count=1)\n"
OF_ATTENTION = {
    "room for values that are still multiplied": (DONE + ROOM, ROOM + DONE, "race"),
    "keys that are not turned yet": ("            mbarrier.wait(full.index(place), parity)\n", "", "race"),
    "keys turned before they are there": ("        mbarrier.wait(raw.index(place), parity)\n", "", "race"),
    "tables read before they are there": ("            mbarrier.wait(t_full.index(slot), phase)\n", "", "race"),
    "room that one group makes for both": (
        "mbarrier.init(k_room.index(place), count=2)",
        "mbarrier.init(k_room.index(place), count=1)",
        "exception",
    ),
    "values that nobody made room for": ("        mbarrier.wait(v_room.index(place), parity ^ 1)\n", "", "race"),
    "half of the keys announced": ("2 * k_desc.block_type.nbytes", "k_desc.block_type.nbytes", "exception"),
    "sums of weights by old scores": ("total * alpha + gl.sum", "total + gl.sum", "mismatch"),
    "the edge seen a tile late": ("gl.minimum(seen // KEYS, count)", "gl.minimum(seen // KEYS + 1, count)", "mismatch"),
    "keys turned by the slice after": ("row = tile * KEYS + part * SLICE", "row = tile * KEYS + SLICE", "mismatch"),
    "an lse without what was subtracted": ("(top * units + gl.log2", "(0.0 * units + gl.log2", "mismatch"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_ATTENTION)
def test_a_flaw_put_into_attention_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_ATTENTION[flaw]
    target = candidate(tmp_path, ATTENTION, right, wrong)
    runner.turn_to(target)
    asked = case(ATTENTION, rows=130, keys=1000, heads=(1, 1), causal=True, q_offset=860, return_lse=True)
    verdict = judge(asked, runner.run(asked), target)
    assert kind in {finding.kind for finding in verdict.findings}, verdict.findings


def test_the_command_tells_what_is_right_and_what_went_another_way(monkeypatch, capsys, tmp_path):
    cases = {"taken": case(QK, rows=3, keys=8, width=64), "not taken": case(QK, "float32", rows=3, keys=8, width=64)}
    monkeypatch.setattr(command, "BY_HAND", cases)
    assert command.main(["--json", str(tmp_path / "said.json")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "not taken: another kernel was taken"
    assert lines[1].startswith("2 cases, 1 of them not right")
    assert '"not taken": "another kernel was taken"' in (tmp_path / "said.json").read_text()
    monkeypatch.setattr(command, "BY_HAND", {"taken": cases["taken"]})
    assert command.main(["--device", "cpu", "--count", "1"]) == 0


def test_the_interpreter_of_triton_runs_none(monkeypatch):
    monkeypatch.setattr(special, "INTERPRETED", True)
    assert special_for("attention", HOPPER, attention_wish(heads=24), SHIPPED) is None
    assert special_for("attention", HOPPER, attention_wish(), ANY) is None
