"""The zygote: a process that has imported torch and Triton once, and forks a fresh child when asked.

It never runs a target's code, so a child starts in milliseconds and in a known state. It holds one
control socket to the parent; each ``spawn`` answers with the child's pid and its socket, each ``reap``
kills a child and all that came of it and answers with its wait status. When the parent goes away, all end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
from typing import Any

from fuzzrope.run import confine, processes

PR_SET_PDEATHSIG = 1
_living: set[int] = set()  # children that the parent knows; every other child was left behind by one of them


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _spawn(control: socket.socket, header: dict[str, Any]) -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        control.close()
        ours.close()
        os.setsid()
        die_with_parent()
        from fuzzrope.run import child

        child.main(theirs, header["entry"], header["device"], header["engine"], header["limits"], header["folder"])
    _living.add(pid)
    theirs.close()
    socket.send_fds(control, [str(pid).encode()], [ours.fileno()])
    ours.close()


def _reap(pid: int) -> int:
    """Kill a child; its wait status."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _sweep(pid: int) -> None:
    """Kill everything that came of a child which has ended: its session, and what left that and came to us."""
    _living.discard(pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    processes.end(_strays)


def _strays() -> list[int]:
    strays = [pid for pid in processes.children(os.getpid()) if pid not in _living]
    for pid in strays:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return [pid for pid in strays if processes.stat(pid) is not None]


def _peek(pid: int) -> int | None:
    """Let a child that is about to end do so; its wait status if it did."""
    for _ in range(20):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        signal.sigtimedwait([signal.SIGCHLD], 0.01)
    return None


def main() -> None:
    """Serve the control socket given as a file descriptor number."""
    die_with_parent()
    confine.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    control = socket.socket(fileno=int(sys.argv[1]))
    import torch

    torch.set_num_threads(1)
    from fuzzrope.run import child, wire  # noqa: F401 - imported here so that forks need not

    wire.send(control, {"ready": os.getpid()})
    while True:
        try:
            header, _ = wire.receive(control)
        except wire.ClosedError:
            return
        if header["do"] == "spawn":
            _spawn(control, header)
        else:
            pid, status = header["pid"], _peek(header["pid"])
            killed, status = (True, _reap(pid)) if status is None else (False, status)
            _sweep(pid)
            wire.send(control, {"killed": killed, "status": status})


if __name__ == "__main__":
    main()
