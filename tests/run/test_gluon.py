"""Candidates written in Gluon are judged without a GPU like those in Triton, roles of warps included."""

from pathlib import Path

import pytest

from fuzzrope.campaign import run_campaign
from fuzzrope.case import Values
from fuzzrope.events import Event, Minimized
from fuzzrope.judge import judge
from fuzzrope.settings import Settings
from fuzzrope.targets import find
from tests.conftest import rope_case, spec

FOLDER = Path(__file__).parents[1] / "gluon"
ARRIVAL = "        mbarrier.arrive(empty.index(place), count=1)\n"
WAIT = "mbarrier.wait(empty.index(place), ((turn // DEPTH) & 1) ^ 1)"
LOADS = """        x1 = ring.index(2 * place).load(layout).to(gl.float32)
        x2 = ring.index(2 * place + 1).load(layout).to(gl.float32)
"""
#: File, what is right in it, what is wrong instead, what that has to be called.
FLAWS = {
    "rows are not masked": ("staged", "(rows < S)", "(rows < S + 1)", "out_of_bounds"),
    "one stage for both halves": ("staged", "x2 = stage.index(1)", "x2 = stage.index(0)", "mismatch"),
    "a stage too few": ("staged", "[2, ROWS, COLUMNS]", "[1, ROWS, COLUMNS]", "out_of_bounds"),
    "nobody waits for room": ("bulk", WAIT, "pass", "race"),
    "room is made before it is there": ("bulk", LOADS + ARRIVAL, ARRIVAL + LOADS, "race"),
    "room is never made": ("bulk", ARRIVAL, "", "exception"),
    "half of the bytes": ("bulk", "2 * source.block_type.nbytes", "source.block_type.nbytes", "exception"),
    "the row after": ("bulk", "[tile * ROWS, half]", "[tile * ROWS + 1, half]", "mismatch"),
}


def case():
    """Several tiles for each program, of rows that a bulk copy takes."""
    tensors = {name: spec(name, (2, 4, 50, 32), values=Values("normal", seed)) for seed, name in enumerate("qk")}
    return rope_case(2, 4, 50, 32, **tensors)


@pytest.mark.parametrize("name", ["staged", "bulk"])
def test_a_correct_candidate_passes(runner, name):
    events: list[Event] = []
    settings = Settings(seed=5, max_examples=60, max_time=120.0)
    finished = run_campaign(find(str(FOLDER / f"{name}.py")), settings, None, events.append, runner)
    assert [event.finding for event in events if isinstance(event, Minimized)] == []
    assert finished.executed == 60


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_named_for_what_it_is(flaw, tmp_path, runner):
    name, right, wrong, kind = FLAWS[flaw]
    text = (FOLDER / f"{name}.py").read_text()
    assert right in text
    path = tmp_path / "candidate.py"
    path.write_text(text.replace(right, wrong))
    target = find(str(path))
    runner.turn_to(target)
    verdict = judge(case(), runner.run(case()), target)
    assert not verdict.skipped
    assert kind in {finding.kind for finding in verdict.findings}, verdict.findings
