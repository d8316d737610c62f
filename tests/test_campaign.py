"""A campaign keeps its promises: the same seed, the same cases; nothing lost when it is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzzrope import corpus
from fuzzrope.campaign import run_campaign
from fuzzrope.events import Event, Example, Minimized, Seen, Started
from fuzzrope.notebook import Keeper
from fuzzrope.parallel import run_parallel
from fuzzrope.run.runner import Limits
from fuzzrope.settings import Settings
from fuzzrope.targets import find
from tests.conftest import HOSTILE, hostile

ROOT = Path(__file__).parents[1]


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fuzzrope", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def case_ids(folder: Path) -> list[str]:
    (log,) = folder.glob("reports/*/events.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["case"] for row in rows if row["event"] == "example"]


def test_the_same_seed_draws_the_same_cases_in_ci_and_in_other_directories(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "three", "four")]
    settings = ({}, {}, {"CI": "true"}, {"PYTHONHASHSEED": "7"})
    for folder in folders:
        folder.mkdir()
        # Hypothesis would mix constants from local source files into what it draws.
        (folder / "constants.py").write_text(f"X = {random.randrange(300)}\n")
    arguments = ("fuzz", "kernels.reference", "--max-examples", "120")
    for folder, environment, seed in zip(folders, settings, ("7", "7", "7", "8"), strict=True):
        with command(*arguments, "--seed", seed, cwd=folder, **environment) as process:
            process.wait(timeout=120)
    ids = [case_ids(folder) for folder in folders]
    assert len(ids[0]) == 120
    assert ids[0] == ids[1] == ids[2]
    assert ids[0] != ids[3]


def test_kill_9_at_any_moment_leaves_a_corpus_that_loads(tmp_path):
    moments = random.Random(1)
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = command("fuzz", str(HOSTILE / "exits.py"), "--seed", str(attempt), cwd=folder)
        wait_for_a_saved_case(folder)
        time.sleep(2.0 * moments.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        saved = list(corpus.files([folder / "corpus"]))
        assert saved
        for path in saved:
            corpus.load(path)


def wait_for_a_saved_case(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("corpus/*/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_prints_the_summary_and_exits_2(tmp_path):
    process = command("fuzz", str(HOSTILE / "exits.py"), "--seed", "1", "--max-time", "60", cwd=tmp_path)
    wait_for_a_saved_case(tmp_path)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "INTERRUPTED" in output.splitlines()[-1]
    assert "fuzzrope replay" in output
    assert list(tmp_path.glob("reports/*/report.json"))


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_a_case_is_being_saved_loses_no_finding(when, monkeypatch, tmp_path):
    save, saves = Keeper.save, []

    def interrupted(*args):
        saves.append(args)
        path = save(*args) if when == "after" or len(saves) > 1 else None
        if len(saves) == 1:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(Keeper, "save", interrupted)
    events: list[Event] = []
    finished = run_campaign(hostile("exits"), Settings(seed=3), tmp_path, events.append)
    (minimized,) = (event for event in events if isinstance(event, Minimized))
    assert (finished.interrupted, minimized.complete) == (True, False)
    assert list(corpus.files([tmp_path])) == [minimized.path]


def collect(target, **changes) -> tuple[list[Event], object]:
    events: list[Event] = []
    settings = Settings(seed=3).with_changes(**changes)
    return events, run_campaign(target, settings, None, events.append)


def test_every_declared_stratum_is_reached_by_a_correct_target():
    events, finished = collect(find("kernels.reference"), max_examples=1000, max_time=120.0)
    assert finished.missed == ()
    assert not any(isinstance(event, Minimized) for event in events)
    (started,) = (event for event in events if isinstance(event, Started))
    assert sum(started.declared.values()) == len(finished.reached)
    assert started.left_out == {}


def test_triton_s_interpreter_is_no_judge_of_bfloat16_and_the_campaign_says_so():
    events, _ = collect(find("kernels.reference"), max_examples=5, engine="interpret")
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.left_out["dtype mix"] == 4**4 - 3**4


@pytest.mark.parametrize(("name", "fault"), [("exits", "tamper"), ("segfaults", "crash"), ("hoards", "oom")])
def test_after_a_fatal_fault_an_ordinary_flaw_is_found_in_the_same_file(name, fault):
    events, _ = collect(hostile(name), max_time=60.0, max_findings=4)
    kinds = {event.finding.kind for event in events if isinstance(event, Minimized)}
    assert {fault, "mismatch"} <= kinds


def test_a_case_that_was_late_once_and_is_in_time_when_asked_again_is_no_finding(tmp_path):
    marker = tmp_path / "is slow"
    marker.touch()
    file = tmp_path / "late.py"
    file.write_text(
        "import pathlib, time\n"
        "from kernels.reference import Model\n"
        "class ModelNew(Model):\n"
        "    def forward(self, q, k, cos, sin):\n"
        f"        if q.shape[2] == 7 and pathlib.Path({str(marker)!r}).exists():\n"
        "            time.sleep(60)\n"
        "        return super().forward(q, k, cos, sin)\n"
    )
    events: list[Event] = []

    def seen(event):
        events.append(event)
        if isinstance(event, Seen) and event.finding.kind == "timeout":
            marker.unlink(missing_ok=True)

    settings = Settings(seed=3, max_examples=300, limits=Limits(seconds=2.0))
    finished = run_campaign(find(str(file)), settings, None, seen)
    assert not marker.exists()
    assert not any(isinstance(event, Minimized) and event.finding.kind == "timeout" for event in events)
    assert [reason for reason in finished.skipped if "asked again" in reason]


def test_shards_share_the_rounds_without_overlap():
    ids = []
    for index in range(2):
        events, _ = collect(find("kernels.reference"), max_examples=60, shard=(index, 2))
        drawn = [event.case.id for event in events if isinstance(event, Example)]
        ids.append(drawn[2:])  # the probes come first in every shard
    assert not set(ids[0]) & set(ids[1])


def test_several_jobs_make_one_campaign():
    events: list[Event] = []
    settings = Settings(seed=3, max_examples=900, max_time=120.0)
    finished = run_parallel(find("kernels.reference"), settings, None, events.append, 2)
    assert finished.missed == ()
    assert finished.executed == 900
    drawn = [event for event in events if isinstance(event, Example)]
    assert [event.examples for event in drawn] == list(range(1, 901))
    assert drawn[-1].reached == len(finished.reached)
    assert sum(isinstance(event, Started) for event in events) == 1


def test_several_jobs_report_a_bucket_once():
    events: list[Event] = []
    run_parallel(hostile("exits"), Settings(seed=3, max_time=40.0, max_findings=3), None, events.append, 2)
    buckets = [event.finding.bucket for event in events if isinstance(event, Minimized)]
    assert len(buckets) == len(set(buckets)) >= 2


def test_a_target_that_cannot_be_imported_is_one_finding_and_ends_the_campaign(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no')\n")
    events, finished = collect(find(str(broken)))
    (found,) = (event for event in events if isinstance(event, Minimized))
    assert found.finding.kind == "exception"
    assert found.complete
    assert finished.executed == 0


def test_an_answer_that_depends_on_earlier_calls_is_called_stateful(tmp_path):
    file = tmp_path / "remembers.py"
    file.write_text(
        "from fuzzrope.specimens.tiled import TiledRope\n"
        "class ModelNew(TiledRope):\n"
        "    calls = 0\n"
        "    def forward(self, q, k, cos, sin):\n"
        "        type(self).calls += 1\n"
        "        return super().forward(q, k, cos, sin * 2 if self.calls > 20 else sin)[:3] + (sin[: q.shape[2]],)\n"
    )
    events, _ = collect(find(str(file)), max_time=25.0, grace=5.0, max_findings=2)
    found = [event for event in events if isinstance(event, Minimized)]
    assert "stateful" in {event.finding.kind for event in found}
    assert all(event.path is None for event in found)


@pytest.mark.parametrize("shard", [(0, 2), (1, 2)])
def test_a_shard_visits_the_strata_it_answers_for(shard):
    _, finished = collect(find("kernels.reference"), max_examples=1000, max_time=120.0, shard=shard)
    assert finished.missed == ()
