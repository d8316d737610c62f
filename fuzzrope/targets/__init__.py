"""Names of implementations that can be judged, and what each promises. Nothing here imports a target.

Adding one is adding one entry to a tuple of this package; a file is a target without being registered.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from fuzzrope.targets.correct import CORRECT
from fuzzrope.targets.flawed import FLAWED
from fuzzrope.targets.ours import OURS
from fuzzrope.targets.target import LEVELS, Target, TargetError
from fuzzrope.targets.wild import WILD

__all__ = ["LEVELS", "REGISTERED", "Target", "TargetError", "find", "find_all", "names"]

REGISTERED: tuple[Target, ...] = (*OURS, *FLAWED, *CORRECT, *WILD)


def names() -> list[str]:
    """Every registered name."""
    return [target.name for target in REGISTERED]


def find_all(name: str) -> list[Target]:
    """The target of a name or path; of a folder, its files that define ``ModelNew``, in order.

    Nothing is imported. Raises :class:`TargetError` with one clear line.
    """
    if not Path(name).is_dir():
        return [find(name)]
    found = [find(str(path)) for path in sorted(Path(name).glob("*.py")) if _DEFINES.search(_text(path))]
    if not found:
        raise TargetError(f"{name}: no file in this folder defines ModelNew")
    return found


_DEFINES = re.compile(r"^(class ModelNew\b|ModelNew\s*[:=])", re.MULTILINE)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


#: What may follow a target's name and "@": other tiles for each case, kernels for one device alone, or certain tiles.
_TILES = re.compile(r"any|special|[a-z_]+=\d+(x\d+){3,4}(,[a-z_]+=\d+(x\d+){3,4})*")


def _with_tiles(target: Target, which: str) -> Target:
    """The target with tiles of one's choice; see ``kernels.pinned``."""
    if not target.tiled:
        raise TargetError(f"{target.name}@{which}: the tiles of {target.name} cannot be chosen")
    if not _TILES.fullmatch(which):
        tiles = "KERNEL=ROWSxKEYSxWARPSxSTAGES[xSTEPS],..."
        raise TargetError(f"{target.name}@{which}: expected any, special, or {tiles} after @")
    return replace(target, name=f"{target.name}@{which}", entry=f"kernels.pinned:{target.tiled}@{which}")


def find(name: str) -> Target:
    """The target of this name or path; raises :class:`TargetError` with one clear line.

    ``NAME@any`` and ``NAME@KERNEL=64x128x8x2`` are our kernels with other tiles than the shipped choice;
    ``NAME@special`` takes kernels for one device alone wherever they can run.
    """
    base, at, which = name.partition("@")
    for target in REGISTERED:
        if target.name == base:
            return _with_tiles(target, which) if at else target
    if name.endswith(".py") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise TargetError(f"{name}: no such file")
        return Target(name, str(path))
    raise TargetError(f"{name}: not a target; name a file.py, or one of {', '.join(names())}")
