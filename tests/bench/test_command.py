"""The command line of the benchmark, which on a machine without a GPU measures nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzzrope.bench.command import chosen
from fuzzrope.bench.plot import draw
from fuzzrope.bench.rows import ROWS
from fuzzrope.bench.session import measure
from tests.bench.simulated import CEILINGS, SMALL, machine
from tests.bench.test_session import OTHERS, OURS

ROOT = Path(__file__).parents[2]


def fuzzrope(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "fuzzrope", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_without_a_gpu_it_is_one_line_and_exit_code_5(tmp_path):
    code, printed = fuzzrope("bench", "rope", "--json", "out.json", cwd=tmp_path)
    assert code == 5
    assert printed.splitlines() == ["fuzzrope: bench: PyTorch sees no GPU here, so there is nothing to measure"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("rop",), ("--only", "no such row"), ("--rounds", "3")])
def test_bad_input_is_one_line_and_exit_code_4(tmp_path, arguments):
    code, printed = fuzzrope("bench", *arguments, cwd=tmp_path)
    assert code == 4
    assert len(printed.splitlines()) == 1
    assert arguments[-1] in printed or arguments[0] in printed


def test_rows_are_chosen_by_group_and_by_a_part_of_their_name():
    assert chosen((), None) == list(ROWS)
    assert {row.group for row in chosen(("rope", "scores"), None)} == {"rope", "scores"}
    assert {row.group for row in chosen((), "scores (4")} == {"scores", "backward"}
    assert len(chosen(("attention",), "(1,32,16384,128) bfloat16 causal")) == 1


def test_a_picture_has_a_panel_for_each_group(tmp_path):
    rows = [measure(SMALL["rope"], machine(), CEILINGS, (OURS, *OTHERS), 3)]
    rows.append(measure(SMALL["attention"], machine(), CEILINGS, (), 3))
    path = tmp_path / "bench.svg"
    draw(rows, "a GPU", path)
    assert path.read_text().startswith("<?xml")
    draw(rows, "a GPU", tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="not supported"):
        draw(rows, "a GPU", tmp_path / "bench.nothing")
