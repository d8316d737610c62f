"""Running on a real GPU: the same guarded bytes in device memory, and a count of launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton

from fuzzrope.build import DTYPES, Built, Memory, build, named
from fuzzrope.case import Case

DEVICE = torch.device("cuda", 0)
KEPT = 256 * 2**20  # bytes that a process may keep for its next case: other processes use the device, too
CROWDED = 1 / 8  # share of the device's memory that, in use by others, makes it theirs


def release() -> None:
    """Give memory back that large cases have left in PyTorch's cache."""
    if torch.cuda.memory_reserved(DEVICE) > KEPT:
        torch.cuda.empty_cache()


def is_crowded() -> bool:
    """Whether so much memory of the device is in others' use that a lack of it says nothing about a target."""
    free, total = torch.cuda.mem_get_info(DEVICE)
    return total - free - torch.cuda.memory_reserved(DEVICE) > CROWDED * total


class DeviceMemory:
    """A storage in device memory that mirrors a :class:`fuzzrope.build.Memory`, guards included."""

    def __init__(self, host: Memory) -> None:
        self.host = host
        self.raw = torch.empty(len(host.raw), dtype=torch.uint8, device=DEVICE)
        for low, high in host.spans():
            self.raw[low:high] = torch.from_numpy(host.raw[low:high].copy()).to(DEVICE)

    def bytes(self) -> bytes:
        """The content of the spans, one after another."""
        return b"".join(self.raw[low:high].cpu().numpy().tobytes() for low, high in self.host.spans())


def build_on_gpu(case: Case, numbers: Sequence[bytes] | None = None) -> Built:
    """Build a case in device memory; tensors declared for the CPU stay there."""
    host = build(case, numbers)
    memories: dict[str, Any] = dict(host.memories)
    tensors: list[torch.Tensor] = []
    made: dict[int, torch.Tensor] = {}
    originals = [*host.tensors.values(), *host.cotangents.values()]
    for (_, spec), original in zip(case.specs, originals, strict=True):
        if spec.device == "cpu":
            tensors.append(original)
            continue
        if id(original) not in made:
            memory = memories[spec.storage]
            if isinstance(memory, Memory):
                memory = memories[spec.storage] = DeviceMemory(memory)
            dtype = DTYPES[spec.dtype]
            start = memory.host.start // dtype.itemsize + (spec.offset if spec.numel else 0)
            blank = torch.empty(0, dtype=dtype, device=DEVICE)
            made[id(original)] = blank.set_(memory.raw.untyped_storage(), start, spec.shape, spec.strides)
        tensors.append(made[id(original)])
    return named(case, tensors, memories)


class LaunchCounter:
    """Counts Triton launches through Triton's own launch hook."""

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []
        triton.knobs.runtime.launch_enter_hook = self._note

    def reset(self) -> None:
        """Forget the last case."""
        self.launches.clear()

    def _note(self, metadata: Any) -> None:
        data = metadata.get() if hasattr(metadata, "get") else {}
        name = str(data.get("name", "?")) if isinstance(data, dict) else "?"
        if len(self.launches) < 100:
            self.launches.append({"kernel": name, "grid": [], "constants": []})
