"""The tolerance report: figures by output and dtype, and worst cases that replay."""

import json

import pytest

from fuzzrope.campaign import run_campaign
from fuzzrope.corpus import files, load
from fuzzrope.replaying import replay
from fuzzrope.report import tolerance
from fuzzrope.report.summary import Run
from fuzzrope.run import Runner
from fuzzrope.settings import Settings
from fuzzrope.targets import find


@pytest.fixture(scope="module")
def folder(tmp_path_factory, zygote):
    run, there = Run(), tmp_path_factory.mktemp("run")
    with Runner(find("kernels.ModelNew"), zygote=zygote) as runner:
        run_campaign(runner.target, Settings(seed=3, max_examples=200, max_time=120.0), None, run.take, runner)
    tolerance.write(run, there)
    return there


def outputs(folder):
    return json.loads((folder / "tolerance.json").read_text())["targets"][0]["outputs"]


def test_every_output_and_dtype_has_its_figures(folder):
    rows = outputs(folder)
    assert {(row["output"], row["dtype"]) for row in rows} >= {("q", "float32"), ("k", "float64"), ("k", "float32")}
    for row in rows:
        assert sum(row["error_over_bound_by_log2"].values()) == row["elements"]
        assert 0 <= row["median_error_over_bound"] <= row["max_error_over_bound"] <= 1
        assert row["rms_over_reference_rms"] in (1, None) or row["output"].startswith("d")


def test_gradients_have_theirs(folder):
    assert {row["output"] for row in outputs(folder)} == {"q", "k", "dq", "dk", "dcos", "dsin"}


def test_the_bound_of_rope_is_at_most_eight_times_what_is_met_in_the_median(folder):
    forward = [row for row in outputs(folder) if row["output"] in ("q", "k")]
    assert len(forward) > 5
    for row in forward:
        assert 1 <= row["median_bound_over_max_error"] <= 8


def test_the_worst_cases_replay_and_the_table_says_how(folder, zygote):
    table = (folder / "tolerance.md").read_text()
    items = [(path, load(path)) for path in files([folder / "worst"])]
    assert len(items) == len(outputs(folder))
    assert all(f"fuzzrope replay {path}" in table for path, _ in items)
    assert all(result.as_expected for result in replay(items[:2], Settings(), zygote))
