"""A sample of the gauntlet: fair verdicts on files as models write them, where a fixed-shape checker passes them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fuzzrope.draw import search
from fuzzrope.findings import KINDS
from fuzzrope.judge import judge
from fuzzrope.operations import OPERATIONS
from fuzzrope.report.summary import EXIT_FINDINGS, EXIT_NOTHING
from fuzzrope.targets import find
from tests.gauntlet.judging import EVADES, FILES, judged
from tests.gauntlet.kinds import FAIR, STRICT

ROOT = Path(__file__).parents[1]
BAD = [name for name, path in FILES.items() if path.parent.name == "bad"]
GOOD = [name for name, path in FILES.items() if path.parent.name == "good"]


def test_every_bad_file_has_fair_kinds_and_no_good_one_has():
    assert set(FAIR) == set(BAD)
    assert set(BAD) >= STRICT
    assert not set(BAD) & set(GOOD)
    assert not set(FILES) & set(EVADES)
    assert all(kinds and kinds <= set(KINDS) for kinds in FAIR.values())
    assert len(BAD) >= 60
    assert len(GOOD) >= 12


@pytest.mark.parametrize("name", [*FILES, *EVADES])
def test_a_file_stands_alone_and_says_in_one_line_what_it_is(name):
    tree = ast.parse({**FILES, **EVADES}[name].read_text())
    assert len((ast.get_docstring(tree) or "").splitlines()) == 1
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported >= {"torch", "torch.nn", "triton", "triton.language"}
    assert not {module for module in imported if module.startswith(("fuzzrope", "kernels", "tests"))}
    assert "ModelNew" in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


CAUGHT = ["table_rows_unmasked", "in_place_on_q", "patches_events_only", "falls_back"]
CAUGHT += ["masked_rows_leak"]


@pytest.mark.parametrize("name", CAUGHT)
def test_a_bad_file_gets_a_fair_verdict(name):
    one = judged(name, seed=5, examples=300)
    assert one.exit_code == EXIT_FINDINGS
    assert set(one.kinds) & FAIR[name]
    assert one.fair


@pytest.mark.parametrize(("name", "kinds"), [("sequence_on_y", {"launch"}), ("persistent", set())])
def test_a_long_sequence_tells_a_grid_that_hardware_refuses_from_one_it_takes(runner, name, kinds):
    (long,) = (stratum for stratum in OPERATIONS["rope"].strata(()) if stratum.group == "long sequence")
    target, cases = find(str(FILES[name])), []
    search(lambda draw: bool(cases.append(OPERATIONS["rope"].draw(draw, dict(long.pins), ()))), 2, "long")
    assert len(cases) == 1  # nothing is left to be drawn, so a campaign pays for it once
    runner.turn_to(target)
    verdict = judge(cases[0], runner.run(cases[0]), target)
    assert not verdict.skipped
    assert {found.kind for found in verdict.findings} == kinds


@pytest.mark.parametrize("name", ["fused_qk", "cached_tables", "compiled_wrapper"])
def test_a_good_file_is_not_alarmed(name):
    one = judged(name, seed=5, examples=40)
    assert (one.kinds, one.exit_code) == ([], EXIT_NOTHING)  # so few examples do not reach all strata


def test_the_fixed_shape_checker_passes_a_good_file_and_a_hidden_flaw_and_fails_an_open_one():
    names = ("tiles", "k_with_q_strides", "system_exit", "sign_of_second_half")
    command = [sys.executable, "-m", "tests.gauntlet.fixed_shape", *(str(FILES[name]) for name in names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == ["pass", "pass", "pass", "fail"]
