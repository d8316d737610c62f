"""Operations that say something about a run: assertions and prints of a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


class DeviceAssertError(RuntimeError):
    """A ``device_assert`` of the kernel failed."""


class Debugging:
    """The part of a machine that checks what a kernel asserts."""

    def check(self: Any, site: Any, cond: Any, act: Array | None, text: str) -> None:
        """``tl.device_assert``."""
        cond = np.atleast_1d(cond)
        failed = ~cond
        m = self.mask(None, act, failed.ndim)
        if m is not None:
            failed = failed & m
        if failed.any():
            _, program = self._first(failed)
            raise DeviceAssertError(f"device-side assert triggered: {text} ({site.text()}, {program})")

    def show(self, text: str, act: Array | None) -> None:
        """``tl.device_print``: what it prints is no part of a kernel's contract, and is dropped."""
