"""Operations that say something about a run: assertions, assumptions and prints of a kernel, and when it begins."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


class DeviceAssertError(RuntimeError):
    """A ``device_assert`` of the kernel failed."""


class Debugging:
    """The part of a machine that checks what a kernel asserts or assumes."""

    def check(self: Any, site: Any, cond: Any, act: Array | None, text: str) -> None:
        """``tl.device_assert``."""
        failed = self._failed(cond, act)
        if failed.any():
            _, program = self._first(failed)
            raise DeviceAssertError(f"device-side assert triggered: {text} ({site.text()}, {program})")

    def assume(self: Any, site: Any, cond: Any, act: Array | None) -> None:
        """``tl.assume``: the compiler may do anything where it does not hold."""
        failed = self._failed(cond, act)
        if failed.any():
            _, program = self._first(failed)
            self.report("assumption", site, f"what it assumes does not hold in {program}", self._lanes(failed))

    def _failed(self: Any, cond: Any, act: Array | None) -> Array:
        """Where a condition does not hold, among the programs and lanes that are there."""
        failed = ~np.atleast_1d(np.asarray(cond, bool))
        m = self.mask(None, act, failed.ndim)
        return failed if m is None else failed & m

    def show(self, text: str, act: Array | None) -> None:
        """``tl.device_print``: what it prints is no part of a kernel's contract, and is dropped."""

    def wait_for_launch(self: Any) -> None:
        """``griddepcontrol.wait``: all that the launches in front of this one have written is there from now on."""
        self.hasty = False

    def hurried(self: Any, site: Any, m: Array | None) -> None:
        """An access before that, in a launch that may begin before the one in front of it has ended."""
        if m is None or m.any():
            why = "before it waits for the launch in front of it, which may not have ended"
            self.report("race", site, f"{site.what} {why}", self.count if m is None else self._lanes(m))
