"""The draft of attention with roles of warps: right where it is taken, and each flaw put into it is found."""

from dataclasses import replace
from pathlib import Path

import pytest

from fuzzrope.case import Case, Values
from fuzzrope.judge import judge
from fuzzrope.specimens import attention_hopper
from fuzzrope.targets import find
from tests.conftest import spec

SOURCE = Path(attention_hopper.__file__)


def case(dtype="bfloat16", rows=130, keys=200, width=128, width_v=128, heads=(2, 2), **options):
    shapes = {"q": (1, heads[0], rows, width), "k": (1, heads[1], keys, width), "v": (1, heads[1], keys, width_v)}
    needed = max(rows + options.get("q_offset", 0), keys)
    shapes |= {"cos": (needed, width // 2), "sin": (needed, width // 2)}
    tensors = tuple(
        (name, spec(name, shape, dtype, values=Values("normal", seed)))
        for seed, (name, shape) in enumerate(shapes.items())
    )
    return Case("rope_attention", tensors, options=tuple(sorted(options.items())))


CASES = {
    "two tiles": case(),
    "a ring around": case(rows=20, keys=1100, width=64, width_v=64, heads=(1, 1)),
    "causal": case(rows=300, keys=300, causal=True, heads=(1, 1)),
    "causal, later rows": case("float16", rows=70, keys=400, causal=True, q_offset=330, width=64),
    "hidden keys": case(rows=40, keys=500, causal=True, q_offset=3, heads=(1, 1)),
    "groups": case(rows=65, keys=129, heads=(4, 2), width_v=64),
    "negative scale": case(rows=3, keys=1, scale=-2.0, width=64),
    "no scale": case(rows=3, keys=140, scale=0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_draft_is_taken_and_right(runner, name):
    target = find("variant:attention-hopper")
    runner.turn_to(target)
    outcome = runner.run(CASES[name])
    verdict = judge(CASES[name], outcome, target)
    assert not verdict.skipped
    assert not verdict.findings
    assert [launch.kernel for launch in outcome.launches] == ["hopper_kernel"]


DONE = "        o = warpgroup_mma_wait(0, deps=[o])\n"
ROOM = "        mbarrier.arrive(v_room.index(place), count=1)\n"
#: What is right in its text, what is wrong instead, what that has to be called.
FLAWS = {
    "room for values that are still multiplied": (DONE + ROOM, ROOM + DONE, "race"),
    "keys that are not turned yet": ("        mbarrier.wait(full.index(place), parity)\n", "", "exception"),
    "keys turned before they are there": ("        mbarrier.wait(raw.index(place), parity)\n", "", "race"),
    "room that one group makes for both": (
        "mbarrier.init(k_room.index(place), count=2)",
        "mbarrier.init(k_room.index(place), count=1)",
        "exception",
    ),
    "values that nobody made room for": ("        mbarrier.wait(v_room.index(place), parity ^ 1)\n", "", "race"),
    "half of the keys announced": ("2 * k_desc.block_type.nbytes", "k_desc.block_type.nbytes", "exception"),
    "sums of weights by old scores": ("total = total * alpha +", "total = total +", "mismatch"),
    "the edge seen a tile late": ("(tile + 1) * KEYS > seen", "tile * KEYS > seen", "mismatch"),
    "keys turned by the slice after": (
        "row = tile * KEYS + (part + 1) * SLICE",
        "row = tile * KEYS + (part + 2) * SLICE",
        "mismatch",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_put_into_it_is_found(runner, tmp_path, flaw):
    right, wrong, kind = FLAWS[flaw]
    text = SOURCE.read_text()
    assert text.count(right) == 1
    path = tmp_path / "candidate.py"
    path.write_text(text.replace(right, wrong) + "\nModelNew = HopperAttention\n")
    target = replace(find(str(path)), operation="rope_attention")
    runner.turn_to(target)
    asked = case(rows=130, keys=1000, heads=(1, 1), causal=True, q_offset=860)
    verdict = judge(asked, runner.run(asked), target)
    assert kind in {finding.kind for finding in verdict.findings}, verdict.findings
