"""Processes that a target leaves behind: finding them, however they hide, and ending them. For parent and zygote."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

HUNT_SECONDS = 5.0  # that a target which forks without end may keep its judge busy
MARK = "FUZZROPE_RUNNER"  # in the environment of all processes of one runner


def stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` from the state on; None of a process that is gone."""
    try:
        return _read(f"/proc/{pid}/stat").rpartition(b")")[2].decode().split()
    except OSError:
        return None


def _read(path: str) -> bytes:
    """What the kernel says in a file of its own; after every case, so without Python's layers of files."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(file, 2**16):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(file)


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    fields = stat(pid)
    return fields is not None and fields[0] not in "ZX"


def children(pid: int) -> list[int]:
    """Its children, of all its threads, those that have ended and were not waited for included."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def below(pid: int) -> Iterator[int]:
    """All processes that come of this one and are alive."""
    for child in children(pid):
        if alive(child):
            yield child
        yield from below(child)


def resident(pid: int) -> int:
    """Bytes of memory in use by a process and all that come of it."""
    every = (stat(one) for one in (pid, *below(pid)))
    return sum(int(fields[21]) for fields in every if fields is not None) * resource.getpagesize()


def end(find: Callable[[], list[int]]) -> None:
    """Kill what ``find`` gives until it gives nothing: what it forked meanwhile shows the next time."""
    until = time.monotonic() + HUNT_SECONDS
    while (found := find()) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def marked(mark: str) -> list[int]:
    """The processes, other than this one, that were started with :data:`MARK` set to ``mark``."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read().split(b"\0") and alive(int(name)):
                    found.append(int(name))
    return found


def size_of(folder: str, limit: int) -> int:
    """Bytes on disk under a folder, a block for each entry; counting stops beyond ``limit``."""
    total, folders = 0, [folder]
    while folders and total <= limit:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += 512 * entry.stat(follow_symlinks=False).st_blocks + 4096
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return total


def remove(folder: str) -> None:
    """Remove a folder that a target could write to, however deep it is."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except (OSError, RecursionError):
        subprocess.run(["chmod", "-R", "u+rwx", folder], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)
