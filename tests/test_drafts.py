"""Kernels that are not shipped yet are right on the engine, and flaws put into them are found."""

import importlib
import inspect
import sys
from dataclasses import replace

import pytest
import torch

from fuzzrope.geometry import dense
from fuzzrope.judge import judge
from fuzzrope.targets import find
from kernels import reference, rope_launch
from kernels.forms import Meta
from kernels.reference import qk_reference
from kernels.special import SPECIAL, Wish
from tests import special as command
from tests.drafts import DRAFTS, SPECIAL_DRAFTS, attention, long_attention, rope, scores
from tests.drafts.__main__ import take
from tests.special import ATTENTION, QK, case


@pytest.fixture
def shipped():
    """What is shipped is taken again afterwards."""
    special, prepared = dict(SPECIAL), rope_launch.Prepared
    constants = {module: dict(vars(module)) for module in (scores, rope)}
    yield
    SPECIAL.update(special)
    rope_launch.Prepared = prepared
    for module, values in constants.items():
        vars(module).update(values)


@pytest.mark.parametrize("name", SPECIAL_DRAFTS)
def test_a_draft_is_taken_and_right(name, capsys):
    assert command.main(["--draft", name, "--count", "10"]) == 0, capsys.readouterr().out
    capsys.readouterr()


def test_the_command_takes_a_draft_with_other_constants_and_refuses_what_is_none(shipped):
    before = SPECIAL["qk"]
    take("scores:PARTS=2")
    assert scores.PARTS == 2
    assert SPECIAL["qk"] is not before
    for wrong in ("", "other", "scores:PART=2", "scores:PARTS", "scores:PARTS=x"):
        with pytest.raises(ValueError, match="scores"):
            take(wrong)


def test_rope_with_hints_gives_the_same_bits(engine, shipped, monkeypatch):
    module = importlib.import_module("kernels.rope")
    monkeypatch.setattr(module, "can_launch", lambda device: True)
    tensors = [torch.randn(shape).bfloat16() for shape in ((2, 3, 5, 32), (2, 2, 5, 32), (5, 16), (5, 16))]
    true = reference.rope(*tensors)
    take("rope:EARLY=0")
    plans = module.make_plan, module.plan_by_facts
    for plan in plans:
        plan.cache_clear()
    found = module.rope(*tensors)
    assert module.make_plan(*map(Meta.of, tensors)).launch.prepared.kernel is rope.changed(1, 0)
    for plan in plans:
        plan.cache_clear()
    assert engine.launches
    assert all(map(torch.equal, found, true))


def test_rope_that_begins_early_waits_before_it_loads(shipped):
    take("rope")
    kernel = rope.changed(1, 1)
    text = inspect.getsource(sys.modules[kernel.fn.__module__])
    assert text.index("gdc_wait()") < text.index("tl.load(")
    assert text.count("evict_last") == text.count('".cs"') == 2
    assert rope_launch.Prepared(None, 1, (), {}, {}).constants == {"launch_pdl": True}


@pytest.mark.parametrize(
    ("parts", "warps", "width"), [(1, 4, 64), (2, 4, 48), (2, 8, 128), (4, 4, 64), (4, 8, 256), (4, 8, 160)]
)
def test_other_tiles_of_scores_are_right(engine, monkeypatch, parts, warps, width):
    monkeypatch.setattr(scores, "PARTS", parts)
    monkeypatch.setattr(scores, "WARPS", warps)
    q, k = torch.randn(1, 4, 300, width).half(), torch.randn(1, 2, 1000, width).half()
    angles = torch.rand(1100, width // 2)
    tensors = q, k, angles.cos().half(), angles.sin().half()
    wish = Wish(dict(zip("qkcs", map(Meta.of, tensors), strict=True)), q.dtype, 0.5, True, 100, True)
    assert scores.serves(wish)
    out = torch.empty(1, 4, 300, 1000, dtype=q.dtype)
    scores.prepare(wish)(*tensors, out)
    assert not engine.accesses
    true = qk_reference(*tensors, scale=0.5, causal=True, q_offset=100)
    assert torch.equal(out.isinf(), true.isinf())
    torch.testing.assert_close(out, true, atol=0.02, rtol=0.002)


FAR = {"q": (2**32, 2**31, 2**25, 1), "k": (2**32, 2**31, 2**22, 1), "cos": (2**22, 1), "sin": (2**22, 1)}


@pytest.mark.parametrize("module", [scores, attention, long_attention], ids=SPECIAL_DRAFTS)
@pytest.mark.parametrize("far", FAR)
def test_a_draft_leaves_what_32_bits_do_not_reach_to_others(module, far):
    shapes = {"q": (1, 2, 128, 64)} | dict.fromkeys("kv", (1, 2, 1024, 64)) | dict.fromkeys(("cos", "sin"), (1024, 32))
    if module is scores:
        del shapes["v"]
    forms = {name: Meta(shape, dense(shape), torch.bfloat16) for name, shape in shapes.items()}
    assert module.serves(Wish(forms, torch.bfloat16, 1.0, False, 0, True))
    forms[far] = Meta(shapes[far], FAR[far], torch.bfloat16)
    by_descriptor = module is long_attention and far in ("q", "k")  # or with 64 bits
    assert module.serves(Wish(forms, torch.bfloat16, 1.0, False, 0, True)) is by_descriptor


def test_a_draft_that_takes_nothing_is_not_right(monkeypatch, capsys):
    monkeypatch.setattr(command, "BY_HAND", {"other": case(QK, "float32", rows=3, keys=8, width=64)})
    assert command.main(["--draft", "scores"]) == 1
    assert capsys.readouterr().out.startswith("0 cases, 0 of them not right")


#: What is right in the text of scores, what is wrong instead, what that has to be called.
OF_SCORES = {
    "keys where they are not looked for": ("(place & 97) |", "(place & 96) |", "mismatch"),
    "a thread's neighbours apart": ("permute((0, 1, 3, 2, 4))", "permute((0, 1, 2, 3, 4))", "mismatch"),
    "rows beyond the last of q": ("i, rows - 1)\n        q", "i, rows)\n        q", "out_of_bounds"),
    "keys beyond the last": ("at = gl.minimum(n, keys - 1)", "at = n", "out_of_bounds"),
    "scores beyond the last": ("(j < keys - start_n)", "(j < keys)", "out_of_bounds"),
    "a product that is not waited for": ("warpgroup_mma_wait(2,", "warpgroup_mma_wait(3,", "nonfinite"),
    "the diagonal hidden": ("j[None, :] <= ", "j[None, :] < ", "nonfinite"),
    "tables of the tile before": ("if part == PARTS - 2:", "if part == PARTS:", "mismatch"),
}  # fmt: skip


def found_in(name, right, wrong, asked, runner, folder, *more):
    """Kinds of findings of a case for a draft with something wrong."""
    operation, path = DRAFTS[name]
    text = path.read_text()
    for before, after in ((right, wrong), *more):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    (folder / "candidate.py").write_text(text)
    target = replace(find(str(folder / "candidate.py")), operation=operation)
    runner.turn_to(target)
    return {finding.kind for finding in judge(asked, runner.run(asked), target).findings}


@pytest.mark.parametrize("flaw", OF_SCORES)
def test_a_flaw_put_into_scores_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_SCORES[flaw]
    asked = case(QK, rows=300, keys=1000, heads=(4, 2), causal=True, q_offset=3)
    two_steps = "steps_of = *q.strides[:3]", "steps = 2\n    steps_of = *q.strides[:3]"
    assert kind in found_in("scores", right, wrong, asked, runner, tmp_path, two_steps)


DONE = "                o, left, p = warpgroup_mma_wait(0, deps=[o, left, p])\n"
ROOM = "                mbarrier.arrive(v_room.index(v_place), count=1)\n"
OF_ATTENTION = {
    "nothing": ("rows of q each", "rows of q each", ""),
    "room for values that are still multiplied": (DONE + ROOM, ROOM + DONE, "race"),
    "keys that are not turned yet": ("                mbarrier.wait(full.index(tile), 0)\n", "", "race"),
    "keys that nobody turns": ("range(WHICH, count, 2)", "range(WHICH, count - 1, 2)", "exception"),
    "values that nobody made room for": ("            mbarrier.wait(v_room.index(place), parity ^ 1)\n", "", "race"),
    "rows of the tile before": ("gl.minimum(turn + 1, last - 1)", "turn", "mismatch"),
    "heads of q not told apart": ("(following // tiles).to(gl.int64) * q_h", "0 * q_h", "mismatch"),
    "heads of o not told apart": ("above = (turn // tiles).to(gl.int64) * rows", "above = offset * 0", "uninitialized"),
    "keys beyond the last": ("SliceLayout(1, OF_ROWS)), keys - 1)", "SliceLayout(1, OF_ROWS)), keys)", "out_of_bounds"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_ATTENTION)
def test_a_flaw_put_into_attention_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_ATTENTION[flaw]
    asked = case(ATTENTION, rows=200, keys=450, heads=(4, 2), causal=True, q_offset=290, return_lse=True)
    kinds = found_in("attention", right, wrong, asked, runner, tmp_path, ("PLACES = 132", "PLACES = 1"))
    assert kind in kinds if kind else not kinds, kinds


WAIT = "            mbarrier.wait(full.index(place), parity)\n            s = multiply_keys(qa1"
DONE_B = "            o_b, left, p = warpgroup_mma_wait(0, deps=[o_b, left, p])\n"
ROOM_B = "            mbarrier.arrive(v_room.index(v_before), count=1)\n"
HIDDEN = "s = gl.where((tile * KEYS + n)[None, :] < high_b[:, None], s"
OF_LONG = {
    "nothing": ("rows of q a group", "rows of q a group", ""),
    "keys that are not turned yet": (WAIT, "            s = multiply_keys(qa1", "race"),
    "room for values that are still multiplied": (DONE_B + ROOM_B, ROOM_B + DONE_B, "race"),
    "keys that both groups free at once": (
        "mbarrier.init(k_room.index(place), count=2)", "mbarrier.init(k_room.index(place), count=1)", "exception",
    ),
    "both blocks of rows with the edge of one": (HIDDEN, HIDDEN.replace("high_b", "high"), "mismatch"),
    "keys turned by the slice before": ("(part + 1) * SLICE + n", "part * SLICE + n", "mismatch"),
    "sums of one block for the other": ("finish(o_b, top_b, total_b,", "finish(o_b, top_b, total,", "mismatch"),
    "a block that keeps its old weight": (
        "o_b = o_b * gl.convert_layout(alpha, gl.SliceLayout(1, OUT))[:, None]", "pass", "mismatch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_LONG)
def test_a_flaw_put_into_long_attention_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_LONG[flaw]
    asked = case(ATTENTION, rows=300, keys=700, heads=(2, 1), causal=True, q_offset=400, return_lse=True)
    kinds = found_in("long_attention", right, wrong, asked, runner, tmp_path)
    assert kind in kinds if kind else not kinds, kinds
