"""A target's fault costs one case: whatever it does, an outcome comes back and the next case runs."""

import os
import signal
import time

import pytest

from fuzzrope.judge import judge
from fuzzrope.run import Runner, runner
from fuzzrope.run.runner import Limits
from fuzzrope.targets import Target, find
from tests.conftest import hostile, rope_case

PROVOKES = rope_case(seq=2)
HARMLESS = rope_case(seq=3)

FAULTS = {
    "segfaults": ("died", "crash"),
    "hangs": ("timeout", "timeout"),
    "exits": ("tampered", "tamper"),
    "system_exit": ("tampered", "tamper"),
    "hoards": ("oom", "oom"),
    "patches": ("returned", "tamper"),
    "closes": ("tampered", "tamper"),
    "babbles": ("tampered", "tamper"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_one_case_and_is_named(name, runner_of):
    status, kind = FAULTS[name]
    target = hostile(name)
    runner = runner_of(target, Limits(seconds=2.0))
    for _ in range(2):
        outcome = runner.run(PROVOKES)
        assert outcome.status == status, outcome
        assert kind in {f.kind for f in judge(PROVOKES, outcome, target).findings}
        after = runner.run(HARMLESS)
        assert after.status == "returned"
        assert not judge(HARMLESS, after, target).findings


def test_a_child_that_fills_memory_is_stopped_at_the_limit(tmp_path):
    file = tmp_path / "fills.py"
    file.write_text(
        "import torch\n"
        "class ModelNew:\n"
        "    def __call__(self, q, k, cos, sin):\n"
        "        hoard = []\n"
        "        while True:\n"
        "            hoard.append(torch.ones(2**25))\n"
    )
    with Runner(find(str(file)), limits=Limits(seconds=30, resident=2**30)) as runner:
        assert runner.run(HARMLESS).status == "oom"


def test_a_target_that_cannot_be_imported_says_so(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module\n")
    with Runner(find(str(file))) as runner:
        outcome = runner.run(HARMLESS)
    assert outcome.phase == "load"
    assert outcome.raised is not None
    assert outcome.raised.type == "ModuleNotFoundError"


def test_a_child_killed_from_outside_is_replaced(runner_of):
    runner = runner_of("kernels.reference")
    assert runner.run(HARMLESS).status == "returned"
    assert runner._child is not None
    os.kill(runner._child[0], signal.SIGKILL)
    assert runner.run(HARMLESS).status == "died"
    assert runner.run(HARMLESS).status == "returned"


def test_no_process_is_left_behind(tmp_path):
    file, note = tmp_path / "forks.py", tmp_path / "pid"
    file.write_text(
        "import os, time\n"
        "class ModelNew:\n"
        "    def __call__(self, q, k, cos, sin):\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            time.sleep(300)\n"
        f"        open({str(note)!r}, 'w').write(str(pid))\n"
        "        os._exit(1)\n"
    )
    with Runner(find(str(file))) as runner:
        assert runner.run(HARMLESS).status == "tampered"
        time.sleep(0.2)
        assert not _alive(int(note.read_text()))
        assert runner._zygote is not None
        zygote = runner._zygote.pid
    assert not _alive(zygote)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_child_sees_no_secrets_of_the_parent(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    file = tmp_path / "reads.py"
    file.write_text(
        "import os\n"
        "class ModelNew:\n"
        "    def __call__(self, q, k, cos, sin):\n"
        "        raise ValueError(' '.join(sorted(os.environ)))\n"
    )
    with Runner(find(str(file))) as runner:
        outcome = runner.run(HARMLESS)
    assert outcome.raised is not None
    assert "CUDA_VISIBLE_DEVICES" in outcome.raised.message
    assert "SECRET_TOKEN" not in outcome.raised.message


@pytest.mark.parametrize("name", ["kernels.ModelNew", "kernels.reference", "specimen:tiled"])
def test_a_correct_target_gives_four_outputs_and_leaves_its_inputs(name, runner_of):
    target: Target = find(name)
    outcome = runner_of(name).run(HARMLESS)
    assert outcome.status == "returned"
    assert [output.shape for output in outcome.outputs] == [(1, 2, 3, 4), (1, 2, 3, 4), (3, 2), (3, 2)]
    assert bool(outcome.launches) == target.kernel
    assert not judge(HARMLESS, outcome, target).findings


@pytest.mark.parametrize(("worked", "owed"), [(0.0, 0.0), (0.5, 0.0), (4.0, 6.0), (10.0, 0.0), (30.0, 0.0)])
def test_a_child_that_waits_for_the_processor_is_granted_what_it_missed(monkeypatch, worked, owed):
    monkeypatch.setattr(runner, "_worked", lambda pid: 2.0 + worked)
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    assert runner._owed(1, 2.0, 100.0, 10.0) == owed


def test_a_child_that_never_gets_the_processor_is_given_up(monkeypatch):
    monkeypatch.setattr(runner, "_worked", lambda pid: 9.0)
    monkeypatch.setattr(time, "monotonic", lambda: 170.1)
    assert runner._owed(1, 0.0, 100.0, 10.0) == 0.0
