"""The parent's handle of a zygote: the process that forks children, the folder they write to, what is left of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from fuzzrope.run import processes, wire

START_SECONDS = 120.0

#: Environment that a child may see; the rest, tokens included, stays with the parent.
KEPT: tuple[str, ...] = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "CUDA_HOME")
KEPT += ("CUDA_VISIBLE_DEVICES", "TRITON_CACHE_DIR", "CC", "CUDA_PATH")


class RunnerError(Exception):
    """The machinery itself failed: no target is to blame."""


class Zygote:
    """A process that has imported torch and Triton and forks children when asked; it knows no target.

    It starts when it is first needed, or by :meth:`start`, and again after :meth:`close`. All methods raise
    :class:`RunnerError` if it cannot be started or is gone.
    """

    def __init__(self, device: str = "cpu", engine: str = "ttir") -> None:
        self.device, self.engine = device, engine
        self.mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._folder: str | None = None

    @property
    def pid(self) -> int | None:
        """Its number, None while it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, if it does not run."""
        if self._process is not None:
            return
        self._folder = tempfile.mkdtemp(prefix="fuzzrope-")
        ours, theirs = socket.socketpair()
        # A target may print without end: its output goes nowhere, ours to a file that is read on failure.
        with Path(self._folder, "zygote.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fuzzrope.run.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        theirs.close()
        self._control = ours
        try:
            wire.receive(ours, time.monotonic() + START_SECONDS)
        except (wire.ClosedError, wire.LateError, wire.WireError) as error:
            text = Path(self._folder, "zygote.log").read_text(errors="replace").strip()[-2000:]
            self.close()
            raise RunnerError(f"the child process could not be started: {text or type(error).__name__}") from error

    def _environment(self) -> dict[str, str]:
        environment = {key: os.environ[key] for key in KEPT if key in os.environ}
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        environment |= {"TMPDIR": str(self._folder), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", processes.MARK: self.mark}
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its pool of processes would outlive an answer
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
            if self.engine == "interpret":
                environment["TRITON_INTERPRET"] = "1"
        return environment

    def folder(self) -> str:
        """A new folder for a child; it goes with the zygote."""
        return tempfile.mkdtemp(dir=self._folder)

    def spawn(self, message: dict[str, Any]) -> tuple[int, socket.socket]:
        """Fork a child: its number and its socket."""
        control = self._ask({"do": "spawn", **message})
        control.settimeout(START_SECONDS)
        data, descriptors, _, _ = socket.recv_fds(control, 100, 1)
        if not descriptors:
            raise RunnerError("the zygote process is gone")
        return int(data), socket.socket(fileno=descriptors[0])

    def reap(self, pid: int) -> tuple[int, bool]:
        """End a child and all that came of it: its wait status, and whether it had to be killed."""
        reply, _ = wire.receive(self._ask({"do": "reap", "pid": pid}), time.monotonic() + START_SECONDS)
        return int(reply["status"]), bool(reply["killed"])

    def _ask(self, message: dict[str, Any]) -> socket.socket:
        if self._control is None:
            raise RunnerError("the zygote process does not run")
        try:
            wire.send(self._control, message)
        except (wire.ClosedError, OSError) as error:
            raise RunnerError("the zygote process is gone") from error
        return self._control

    def sweep(self) -> None:
        """End whatever came of its children, wherever it hid; for a zygote that has none at work."""
        processes.end(lambda: [pid for pid in processes.marked(self.mark) if pid != self.pid])

    def close(self) -> None:
        """End it, and whatever came of it."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            processes.end(lambda: processes.marked(self.mark))
        if self._folder is not None:
            processes.remove(self._folder)
            self._folder = None
