"""The parent's side: keeps one child alive for a target, and turns whatever happens to it into an outcome."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import secrets
import signal
import socket
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple

from fuzzrope.build import contents
from fuzzrope.case import Case
from fuzzrope.outcome import Outcome, ReplyError, from_reply
from fuzzrope.run import processes, wire
from fuzzrope.run.nursery import RunnerError, Zygote
from fuzzrope.targets import Target

LOAD_SECONDS = 60.0
AWAKE = 0.1  # share of the time that a child works which waits for the processor, and not for something else
MOST_DEADLINES = 6  # that pass before a child which never gets the processor is given up
COMPILING = 4  # deadlines that a case of the strict level has: its kernels are compiled to the end

ENDING = 0.1  # seconds that a process which was told to end may take to


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use.

    Attributes:
        seconds: deadline of one case; what a child works less, because others keep the processor, is added.
        resident: bytes of memory in use; beyond it the child is killed.
        values: bytes that the values of the programs which the engine runs at once may take.
        address_space: bytes of memory asked for; large, because inputs are mapped lazily.
        file_size: bytes of any one file written.
        temporary: bytes of all files in its temporary directory.
    """

    seconds: float = 10.0
    resident: int = 4 * 2**30
    values: int = 2**30
    address_space: int = 128 * 2**30
    file_size: int = 2**30
    temporary: int = 2**30


class _TooLargeError(Exception):
    """The child took more memory or disk than its limit; the message says which."""


def _worked(pid: int) -> float:
    """Seconds of processor time of a process and of what it has waited for; 0 of one that is gone."""
    fields = processes.stat(pid)
    return 0.0 if fields is None else sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _owed(pid: int, before: float, started: float, seconds: float) -> float:
    """Seconds that a child is granted past its deadline: what it did not get of it on a busy machine.

    None if it mostly sleeps, or if it has been given several deadlines already.
    """
    passed, worked = time.monotonic() - started, _worked(pid) - before
    return 0.0 if worked < passed * AWAKE or passed > MOST_DEADLINES * seconds else max(seconds - worked, 0.0)


def _left(outcome: Outcome, pid: int, sock: socket.socket) -> Outcome:
    """The outcome, or that the child has more to say than one answer, or leaves processes running."""
    if wire.is_waiting(sock):
        return Outcome("tampered", "it sent more than one reply")
    if any(processes.below(pid)):
        time.sleep(ENDING)
        if any(processes.below(pid)):
            return Outcome("tampered", "it left a process running")
    return outcome


class _Child(NamedTuple):
    pid: int
    sock: socket.socket
    folder: str  # its temporary directory
    zygote: int | None  # that forked it


class Runner:
    """Runs cases of one target in a disposable child; use as a context manager.

    ``run`` never raises for anything the target does. Raises :class:`RunnerError` if no child can be
    started at all. A ``zygote`` of this device and engine may be lent, to several runners at once: it stays.
    """

    def __init__(
        self,
        target: Target,
        device: str = "cpu",
        limits: Limits | None = None,
        engine: str = "ttir",
        zygote: Zygote | None = None,
    ) -> None:
        self.target, self.device, self.limits, self.engine = target, device, limits or Limits(), engine
        self._lent = zygote is not None
        self._zygote = zygote or Zygote(device, engine)
        self._child: _Child | None = None
        self.restarts = 0

    @property
    def deadline(self) -> float:
        """Seconds that a case has unless it is told otherwise."""
        compiles = self.device == "cpu" and (self.target.level == "strict" or self.target.bare)
        return self.limits.seconds * (COMPILING if compiles else 1)

    def __enter__(self) -> Runner:
        self._zygote.start()
        return self

    def turn_to(self, target: Target) -> None:
        """Run cases of another target from now on, in new children of the zygote that is there, or of a new one."""
        self._zygote.start()
        self.discard()
        if not self._lent:
            self._zygote.sweep()
        self.target, self.restarts = target, 0

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process of this runner; of a zygote that was lent, only the child."""
        with contextlib.suppress(RunnerError, wire.ClosedError, wire.LateError, wire.WireError):
            self.discard()
        if not self._lent:
            self._zygote.close()

    def _spawn(self) -> _Child:
        limits = {
            "address_space": self._address_space(),
            "file_size": self.limits.file_size,
            "values": self.limits.values,
            "strict": self.target.level == "strict",
        }
        entry = os.path.abspath(self.target.entry) if self.target.is_file else self.target.entry
        folder = self._zygote.folder()
        message = {"entry": entry, "device": self.device, "limits": limits}
        message |= {"engine": "bare" if self.target.bare else self.engine, "folder": folder}
        pid, sock = self._zygote.spawn(message)
        self.restarts += 1
        return _Child(pid, sock, folder, self._zygote.pid)

    def _address_space(self) -> int:
        if self.device != "cpu":
            return 0  # CUDA maps far more than it uses
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        return self.limits.address_space if hard == resource.RLIM_INFINITY else min(hard, self.limits.address_space)

    def discard(self) -> tuple[int | None, bool]:
        """End the child: its wait status, and whether it was alive and had to be killed."""
        if self._child is None:
            return None, False
        pid, sock, folder, zygote = self._child
        self._child = None
        sock.close()
        if zygote != self._zygote.pid:  # it went with the zygote that forked it
            return None, False
        status, killed = self._zygote.reap(pid)
        processes.remove(folder)
        return status, killed

    def run_alone(self, case: Case, idle: bool = False) -> Outcome:
        """Run one case as the first of a child of its own; the child at work stays as it is. ``idle``: see run."""
        used, self._child = self._child, None
        restarts, zygote = self.restarts, self._zygote.pid
        outcome = self.run(case, idle=idle)
        if self._zygote.pid == zygote:
            self.discard()
            self._child, self.restarts = used, restarts
        elif used is not None:  # it went with the zygote that forked it
            used.sock.close()
        return outcome

    def run(self, case: Case, seconds: float | None = None, same_memory: bool = False, idle: bool = False) -> Outcome:
        """Run one case, with its own deadline if given; see :class:`fuzzrope.outcome.Outcome`.

        ``same_memory``: its inputs take the place of the last case's, if they are of the same form. ``idle``: kernels
        are launched and do nothing (a CPU engine's only).
        An outcome whose ``phase`` is ``load`` says that the target could not even be imported.
        """
        loading = self._child is None
        try:
            if loading:
                self._child = self._spawn()
                outcome = self._exchange(None, LOAD_SECONDS)
                if outcome.status != "returned" or self._child is None:
                    return replace(outcome, phase="load")
            return self._exchange(case, seconds or self.deadline, same_memory, idle)
        except (RunnerError, wire.ClosedError, wire.LateError):
            self.close()
            self._zygote.close()
            self._zygote.start()
            phase = "load" if loading else "run"
            return Outcome("tampered", "it killed the process that watches over it", phase=phase)

    def _exchange(self, case: Case | None, seconds: float, same_memory: bool = False, idle: bool = False) -> Outcome:
        assert self._child is not None
        pid, sock, folder, _ = self._child
        turn = 0 if case is None else secrets.randbits(62)  # an answer that came of another question has another
        started = time.monotonic()
        try:
            if case is not None:
                blobs = [pickle.dumps(case), *contents(case)]
                wire.send(sock, {"same_memory": same_memory, "idle": idle, "turn": turn}, blobs, seconds=seconds)
            before: list[float] = []  # work done at the first look; most cases end before it

            def watch() -> None:
                before[:] = before or [_worked(pid)]
                self._watch(pid, folder)

            header, blobs = wire.receive(
                sock, started + seconds, watch, lambda: _owed(pid, sum(before), started, seconds)
            )
            self._watch_files(folder)
            if header.get("turn", 0) != turn:
                raise ReplyError("it answers nothing that was asked")
            outcome = _left(from_reply(header, blobs), pid, sock)
        except wire.LateError:
            self.discard()
            return Outcome("timeout", f"no answer within {seconds:g} s", seconds=time.monotonic() - started)
        except _TooLargeError as error:
            self.discard()
            return Outcome("oom", str(error))
        except wire.ClosedError:
            return self._post_mortem()
        except (wire.WireError, ReplyError) as error:
            self.discard()
            return Outcome("tampered", f"the reply is malformed: {error}")
        if outcome.status in ("died", "oom", "tampered") or outcome.tampered:
            self.discard()
        return outcome

    def _watch(self, pid: int, folder: str) -> None:
        """While waiting: notice a child that is too large, or dead with its socket still held open."""
        if not processes.alive(pid):
            raise wire.ClosedError
        if self.device == "cpu" and processes.resident(pid) > self.limits.resident:
            raise _TooLargeError(f"more than {self.limits.resident / 2**30:g} GiB in use")
        self._watch_files(folder)

    def _watch_files(self, folder: str) -> None:
        if processes.size_of(folder, self.limits.temporary) > self.limits.temporary:
            raise _TooLargeError(f"more than {self.limits.temporary / 2**30:g} GiB in its temporary directory")

    def _post_mortem(self) -> Outcome:
        status, killed = self.discard()
        if killed or status is None:
            return Outcome("tampered", "it closed the connection to the judge")
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return Outcome("died", name)
        return Outcome("tampered", f"it ended its process with exit code {os.WEXITSTATUS(status)}")
