"""Kernels that are not shipped yet are right on the engine, and flaws put into them are found."""

import importlib
from dataclasses import replace

import pytest
import torch

from fuzzrope.judge import judge
from fuzzrope.targets import find
from kernels.forms import Meta
from kernels.reference import qk_reference
from kernels.special import SPECIAL, Wish
from tests import special as command
from tests.drafts import DRAFTS
from tests.drafts.__main__ import take
from tests.special import QK, case

SHIPPED = dict(SPECIAL)
scores = importlib.import_module("tests.drafts.scores")
SPECIAL.update(SHIPPED)  # which importing a draft changes


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_is_taken_and_right(name, capsys):
    assert command.main(["--draft", name, "--count", "10"]) == 0, capsys.readouterr().out
    capsys.readouterr()


def test_the_command_takes_a_draft_with_other_constants_and_refuses_what_is_none(monkeypatch):
    monkeypatch.setattr(scores, "PARTS", scores.PARTS)
    take("scores:PARTS=2")
    assert scores.PARTS == 2
    for wrong in ("", "other", "scores:PART=2", "scores:PARTS", "scores:PARTS=x"):
        with pytest.raises(ValueError, match="scores"):
            take(wrong)


@pytest.mark.parametrize(("parts", "warps"), [(1, 4), (2, 4), (2, 8), (4, 4)])
def test_other_tiles_of_scores_are_right(engine, monkeypatch, parts, warps):
    monkeypatch.setattr(scores, "PARTS", parts)
    monkeypatch.setattr(scores, "WARPS", warps)
    q, k = torch.randn(1, 4, 300, 64).half(), torch.randn(1, 2, 1000, 64).half()
    angles = torch.rand(1100, 32)
    tensors = q, k, angles.cos().half(), angles.sin().half()
    wish = Wish(dict(zip("qkcs", map(Meta.of, tensors), strict=True)), q.dtype, 0.5, True, 100, True)
    assert scores.serves(wish)
    out = torch.empty(1, 4, 300, 1000, dtype=q.dtype)
    scores.prepare(wish)(*tensors, out)
    assert not engine.accesses
    true = qk_reference(*tensors, scale=0.5, causal=True, q_offset=100)
    assert torch.equal(out.isinf(), true.isinf())
    torch.testing.assert_close(out, true, atol=0.02, rtol=0.002)


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


@pytest.mark.parametrize("flaw", OF_SCORES)
def test_a_flaw_put_into_scores_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_SCORES[flaw]
    operation, path = DRAFTS["scores"]
    text = path.read_text()
    assert text.count(right) == 1, right
    (tmp_path / "candidate.py").write_text(text.replace(right, wrong).replace("FEWEST_STEPS), MOST_STEPS)", "2), 2)"))
    target = replace(find(str(tmp_path / "candidate.py")), operation=operation)
    runner.turn_to(target)
    asked = case(QK, rows=300, keys=1000, heads=(4, 2), causal=True, q_offset=3)
    verdict = judge(asked, runner.run(asked), target)
    assert kind in {finding.kind for finding in verdict.findings}, verdict.findings
