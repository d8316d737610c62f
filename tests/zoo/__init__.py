"""The zoo: small Triton kernels, a family of operations a file, each with a truth that knows nothing of Triton.

    for entry in ZOO.values():
        outputs = entry.launch(**entry.moved("cuda"))
        for name, one in compare(entry, outputs).items():
            assert one.passed, (entry.name, name, one)

Three consumers share it: the engine of ``fuzzrope/interpreter``, Triton's own interpreter, and a real GPU.
"""

from __future__ import annotations

from types import ModuleType

from tests.zoo import (
    atomics,
    attention,
    control,
    conversions,
    descriptors,
    dots,
    elementwise,
    functions,
    integers,
    launches,
    memory,
    normalization,
    random_numbers,
    reductions,
    scaled_dots,
    scans,
    shapes,
    tutorials,
)
from tests.zoo.base import Comparison, Entry, compare

MODULES: tuple[ModuleType, ...] = (
    elementwise,
    integers,
    conversions,
    memory,
    shapes,
    control,
    reductions,
    scans,
    dots,
    scaled_dots,
    atomics,
    descriptors,
    functions,
    random_numbers,
    launches,
    tutorials,
    normalization,
    attention,
)

#: Entries by family, which is the name of their module.
FAMILIES: dict[str, tuple[Entry, ...]] = {module.__name__.rpartition(".")[2]: module.ENTRIES for module in MODULES}
#: Entries by name.
ZOO: dict[str, Entry] = {entry.name: entry for entries in FAMILIES.values() for entry in entries}

__all__ = ["FAMILIES", "ZOO", "Comparison", "Entry", "compare"]
