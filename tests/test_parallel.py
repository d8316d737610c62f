"""Campaigns on several processes leave none behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 60


def descendants(pid: int) -> set[int]:
    """Processes started by a process, directly or not."""
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(folder.name)
            found |= {child} | descendants(child)
    return found


def lives(pid: int) -> bool:
    """Whether a process runs, not merely waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_the_campaign_is_killed(tmp_path):
    command = [sys.executable, "-m", "fuzzrope", "fuzz", "kernels.reference", "--jobs", "2", "--max-time", "300"]
    command += [
        "--max-examples",
        "1000000",
        "--reports",
        str(tmp_path / "reports"),
        "--corpus",
        str(tmp_path / "corpus"),
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + SECONDS
        log = None
        while log is None or not log.stat().st_size:  # both workers are at work when their events arrive
            assert time.monotonic() < deadline
            log = next((tmp_path / "reports").glob("*/events.jsonl"), None) if (tmp_path / "reports").exists() else None
            time.sleep(0.2)
        time.sleep(1)
        started = descendants(process.pid)
        assert len(started) >= 6  # two workers, each with a zygote and a child
        os.kill(process.pid, signal.SIGKILL)
    while any(map(lives, started)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
