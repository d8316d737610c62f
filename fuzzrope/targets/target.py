"""What a target is: one implementation of an operation, and what it promises."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path

from fuzzrope.text import one_line

LEVELS = ("values", "strict")


class TargetError(ValueError):
    """A name that is no target; the message says what would be."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True, slots=True)
class Target:
    """One implementation of an operation.

    Attributes:
        name: what the user types.
        entry: ``module:attribute`` or the path of a file that defines ``ModelNew``.
        operation: the contract it is judged by.
        level: ``values`` (values, shapes, dtypes, memory) or ``strict`` (strides, aliasing, errors too).
        exact: it promises bit-for-bit equality with eager PyTorch.
        kernel: it promises to launch a Triton kernel; if not, ``no_launch`` is not judged.
        gradients: it promises gradients; at the strict level they are judged in any case.
        repeatable: it promises the same bits each time, whatever order its programs run in.
        summary: one line for ``fuzzrope list``.
        needs: the package that it imports besides torch and Triton, if it is somebody else's.
        launches: it runs Triton kernels, promised or not.
        bare: it runs no kernel of its own, and on a CPU as on one, not as on a GPU.
        tiled: the function of ``kernels.pinned`` that runs it with tiles of one's choice, if there is one.
        install: what ``pip install`` has to be given for that.
    """

    name: str
    entry: str
    operation: str = "rope"
    level: str = "values"
    exact: bool = False
    kernel: bool = True
    gradients: bool = False
    repeatable: bool = True
    summary: str = ""
    needs: str = ""
    install: str = ""
    launches: bool = False
    bare: bool = False
    tiled: str = ""

    @property
    def missing(self) -> str:
        """One line that says what to install before this target can be judged, or nothing. Imports nothing."""
        if not self.needs or importlib.util.find_spec(self.needs):
            return ""
        return f"{self.name}: {self.needs} is not installed; pip install {self.install}"

    @property
    def is_file(self) -> bool:
        """Whether the entry is the path of a file."""
        return self.entry.endswith(".py")

    @property
    def folder(self) -> str:
        """Name of the target's folder in the corpus."""
        name = Path(self.name).stem if self.is_file else self.name
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "target"

    def at(self, level: str | None) -> Target:
        """The same target judged at another level; ``exact`` is part of the strict level."""
        if level is None or level == self.level:
            return self
        return replace(self, level=level, exact=self.exact and level == "strict")
