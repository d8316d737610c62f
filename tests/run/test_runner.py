"""A target's fault costs one case: whatever it does, an outcome comes back and the next case runs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzzrope.judge import judge
from fuzzrope.run import Runner, Zygote, confine, processes, runner
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
    "forks": ("tampered", "tamper"),
    "threads": ("tampered", "tamper"),
    "talks": ("tampered", "tamper"),
    "repeats": ("tampered", "tamper"),
    "fills": ("oom", "oom"),
}


@pytest.fixture(scope="module")
def zygote():
    """None is shared: these targets harm theirs."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_one_case_and_is_named(name, runner_of):
    status, kind = FAULTS[name]
    target = hostile(name)
    runner = runner_of(target, Limits(seconds=2.0, temporary=2**24))
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
    file = tmp_path / "forks.py"
    file.write_text(
        "import os, time\n"
        "class ModelNew:\n"
        "    def __call__(self, q, k, cos, sin):\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            time.sleep(300)\n"
        "        os._exit(1)\n"
    )
    with Runner(find(str(file))) as runner:
        assert runner.run(HARMLESS).status == "tampered"
        zygote = runner._zygote.pid
        assert processes.marked(runner._zygote.mark) == [zygote]
    assert not processes.alive(zygote)


def test_a_process_that_left_its_session_and_its_parent_is_found_and_ended():
    with Runner(hostile("forks")) as runner:
        outcome = runner.run(PROVOKES)
        assert outcome.detail == "it left a process running"
        assert processes.marked(runner._zygote.mark) == [runner._zygote.pid]
        assert runner.run(HARMLESS).status == "returned"


def test_a_process_outlives_neither_its_runner_nor_the_zygote():
    with Runner(hostile("hangs"), limits=Limits(seconds=1.0)) as runner:
        runner.run(HARMLESS)
        assert runner._zygote.pid is not None
        os.kill(runner._zygote.pid, signal.SIGKILL)
    assert not processes.marked(runner._zygote.mark)


def test_a_zygote_serves_several_runners_and_outlives_them():
    target = find("kernels.reference")
    with contextlib.closing(Zygote()) as zygote:
        with Runner(target, zygote=zygote) as one, Runner(target, zygote=zygote) as other:
            assert [runner.run(HARMLESS).status for runner in (one, other)] == ["returned"] * 2
            assert len(processes.marked(zygote.mark)) == 3
            one.close()
            assert len(processes.marked(zygote.mark)) == 2
            assert other.run(HARMLESS).status == "returned"
        assert processes.marked(zygote.mark) == [zygote.pid]
    assert not processes.marked(zygote.mark)


def test_a_child_that_went_with_its_zygote_is_replaced():
    with contextlib.closing(Zygote()) as zygote, Runner(find("kernels.reference"), zygote=zygote) as runner:
        assert runner.run(HARMLESS).status == "returned"
        zygote.close()
        zygote.start()
        assert runner.run(HARMLESS).status == "tampered"
        assert runner.run(HARMLESS).status == "returned"


def test_a_thread_that_stays_is_named_with_its_line():
    with Runner(hostile("threads")) as runner:
        assert "threads.py:" in runner.run(PROVOKES).detail


confined = pytest.mark.parametrize(
    ("name", "errors"),
    [("writes", {"PermissionError"}), ("connects", {"PermissionError", "OSError"})]
    if confine.landlock_version()
    else [],
)


@confined
def test_what_is_outside_its_own_folder_is_out_of_reach(name, errors):
    target, before = hostile(name), sorted(Path(hostile(name).entry).parent.iterdir())
    with Runner(target) as runner:
        outcome = runner.run(PROVOKES)
        assert outcome.raised is not None
        assert outcome.raised.type in errors
        assert {f.kind for f in judge(PROVOKES, outcome, target).findings} == {"exception"}
        assert not judge(HARMLESS, runner.run(HARMLESS), target).findings
    assert sorted(Path(target.entry).parent.iterdir()) == before


def test_a_correct_file_that_prints_a_gigabyte_has_no_finding_and_fills_no_disk():
    target = hostile("prints")
    with Runner(target) as runner:
        assert not judge(PROVOKES, runner.run(PROVOKES), target).findings
        assert processes.size_of(str(runner._zygote._folder), 2**40) < 2**20


def test_a_correct_file_may_use_its_temporary_directory_and_wait_for_processes_and_threads(tmp_path):
    file = tmp_path / "busy.py"
    file.write_text(
        "import subprocess, tempfile, threading\n"
        "from fuzzrope.specimens.tiled import TiledRope\n"
        "class ModelNew(TiledRope):\n"
        "    def forward(self, q, k, cos, sin):\n"
        "        with tempfile.NamedTemporaryFile() as scratch, open('here', 'w') as here:\n"
        "            scratch.write(b'x' * 2**20)\n"
        "        subprocess.run(['true'], check=True)\n"
        "        thread = threading.Thread(target=id, args=(1,))\n"
        "        thread.start()\n"
        "        thread.join()\n"
        "        return super().forward(q, k, cos, sin)\n"
    )
    target = find(str(file))
    with Runner(target) as runner:
        folder = runner._zygote._folder
        for _ in range(3):
            outcome = runner.run(HARMLESS)
            assert outcome.status == "returned", outcome
            assert not judge(HARMLESS, outcome, target).findings
    assert folder is not None
    assert not Path(folder).exists()


def has_mounts_of_its_own():
    """Whether a process here may have a shared folder that nobody shares."""
    code = "from fuzzrope.run import confine as c; print(c._unshare() and c._empty_shared())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_locks_between_processes_lie_in_a_folder_that_goes_with_the_child(tmp_path):
    file = tmp_path / "locks.py"
    file.write_text(
        "import multiprocessing\n"
        "from fuzzrope.specimens.tiled import TiledRope\n"
        "class ModelNew(TiledRope):\n"
        "    def forward(self, q, k, cos, sin):\n"
        "        with multiprocessing.Lock(), open('/dev/shm/fuzzrope-left-behind', 'x'):\n"
        "            return super().forward(q, k, cos, sin)\n"
    )
    with Runner(find(str(file))) as runner:
        outcomes = [runner.run(HARMLESS), runner.discard() and runner.run(HARMLESS)]
    expected = "returned" if has_mounts_of_its_own() else "raised"
    assert [outcome.status for outcome in outcomes] == [expected] * 2
    assert not Path("/dev/shm/fuzzrope-left-behind").exists()


def test_a_folder_deeper_than_a_path_may_be_is_removed(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    here = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(1500):
            os.mkdir("deeper")
            os.chdir("deeper")
    finally:
        os.chdir(here)
    assert processes.size_of(str(folder), 2**20) > 2**20
    processes.remove(str(folder))
    assert not folder.exists()


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
