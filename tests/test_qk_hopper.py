"""The draft of a kernel for warp groups: right where it is taken, and each flaw put into it is found."""

from dataclasses import replace
from pathlib import Path

import pytest

from fuzzrope.case import Case, Values
from fuzzrope.judge import judge
from fuzzrope.specimens import qk_hopper
from fuzzrope.targets import Target, find
from tests.conftest import spec

SOURCE = Path(qk_hopper.__file__)


def case(dtype="bfloat16", rows=100, keys=264, width=128, heads=(2, 2), **options):
    shapes = {"q": (1, heads[0], rows, width), "k": (1, heads[1], keys, width)}
    needed = max(rows + options.get("q_offset", 0), keys)
    shapes |= {"cos": (needed, width // 2), "sin": (needed, width // 2)}
    tensors = tuple(
        (name, spec(name, shape, dtype, values=Values("normal", seed)))
        for seed, (name, shape) in enumerate(shapes.items())
    )
    return Case("rope_qk", tensors, options=tuple(sorted(options.items())))


CASES = {
    "plain": case(),
    "float16": case("float16", rows=64, keys=128, width=64),
    "many steps": case(rows=640, keys=8, heads=(12, 1)),
    "groups": case(rows=70, keys=136, heads=(4, 2), width=96),
    "causal": case(rows=130, keys=400, causal=True, q_offset=200),
    "all hidden but one": case(rows=65, keys=200, causal=True, q_offset=0),
    "one column of a warp": case(rows=3, keys=16, width=16),
    "scaled": case(rows=1, keys=1024, scale=-3.0, width=48),
}


def candidate(folder: Path, right: str = "", wrong: str = "") -> Target:
    """The draft as a file, changed, whose programs take several steps each for few tiles already."""
    text = SOURCE.read_text()
    assert text.count(right) == 1 or not right
    path = folder / "candidate.py"
    text = text.replace("ENOUGH_PROGRAMS, MOST_STEPS = 528, 16", "ENOUGH_PROGRAMS, MOST_STEPS = 12, 16")
    path.write_text(
        text.replace(right, wrong) + "\nModelNew = HopperQK\n" if right else text + "\nModelNew = HopperQK\n"
    )
    return replace(find(str(path)), operation="rope_qk")


@pytest.mark.parametrize("name", CASES)
def test_the_draft_is_taken_and_right(runner, tmp_path, name):
    for target in (find("variant:qk-hopper"), candidate(tmp_path)):
        runner.turn_to(target)
        outcome = runner.run(CASES[name])
        assert [launch.kernel for launch in outcome.launches] == ["hopper_kernel"]
        verdict = judge(CASES[name], outcome, target)
        assert not verdict.skipped
        assert not verdict.findings


#: What is right in its text, what is wrong instead, what that has to be called; "" for what changes nothing.
FLAWS = {
    "columns of both factors in another order": ("((0, 1, 4, 5, 2, 3, 6))", "((0, 1, 2, 3, 4, 5, 6))", ""),
    "keys rotated by the row after": (
        "k_ptr, cos_ptr, sin_ptr, at, at,",
        "k_ptr, cos_ptr, sin_ptr, at, at + 1,",
        "mismatch",
    ),
    "a store that is not waited for": ("tma.store_wait(1)", "tma.store_wait(2)", "race"),
    "one buffer": ("buffers.index(turn % 2)", "buffers.index(turn * 0)", "race"),
    "a product that is not waited for": ("warpgroup_mma_wait(0,", "warpgroup_mma_wait(1,", "nonfinite"),
    "the diagonal hidden": ("j[None, :] <= ", "j[None, :] < ", "nonfinite"),
    "heads of k not told apart": ("k_ptr += b * k_b + h * k_h", "k_ptr += b * k_b", "mismatch"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_put_into_it_is_found(runner, tmp_path, flaw):
    right, wrong, kind = FLAWS[flaw]
    target = candidate(tmp_path, right, wrong)
    runner.turn_to(target)
    asked = case(rows=300, keys=136, heads=(4, 2), causal=True, q_offset=3)
    verdict = judge(asked, runner.run(asked), target)
    kinds = {finding.kind for finding in verdict.findings}
    assert kind in kinds if kind else not kinds, verdict.findings
