"""Campaigns on several processes leave none behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 120
ALL = 7  # two workers, each with a zygote and a child, and what keeps track of their semaphores


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


def test_workers_end_when_the_campaign_is_killed(tmp_path):
    command = [sys.executable, "-m", "fuzzrope", "fuzz", "kernels.reference", "--jobs", "2", "--max-time", "300"]
    command += ["--max-examples", "1000000", "--reports", str(tmp_path / "reports"), "--corpus", str(tmp_path)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        started: set[int] = set()
        deadline = time.monotonic() + SECONDS
        while len(started) < ALL:
            assert time.monotonic() < deadline
            time.sleep(0.2)
            started = descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    while any(map(lives, started)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
