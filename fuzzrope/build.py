"""From a case to tensors: the same bytes in the parent, which judges, and in the child, which runs.

Every storage lies between two guard bands; guards and the gaps of strided views hold a NaN with a known
payload, so what a target reads or writes outside its view shows. A large storage is mapped lazily, and
only the pages that hold elements are ever touched.
"""

from __future__ import annotations

import gc
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from fuzzrope.case import ITEMSIZE, Case, TensorSpec, Values
from fuzzrope.values import expand

GUARD = 4096  # bytes on either side of a storage
PAGE = 4096
APART = 2**26  # bytes of address space between storages: a stray pointer must not land in another by chance
LAZY_FROM = 2**24  # bytes of storage from which it is mapped lazily

#: NaNs with payloads that no computation makes: what lies around inputs, and what fresh memory holds.
GAP = {2: 0x7FEA, 4: 0x7FEAA55A, 8: 0x7FFAA55AA55AA55A}
FRESH = {2: 0x7FD5, 4: 0x7FD5B66B, 8: 0x7FFB66BB66BB66BB}

WORDS = {width: np.dtype(f"<u{width}") for width in (2, 4, 8)}
DTYPES = {name: getattr(torch, name) for name in ITEMSIZE}


#: Linux' flag for memory that is not counted before it is touched; Python has no name for it everywhere.
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def _lazy(size: int) -> np.ndarray:
    """Zeroed memory (size,) in bytes, of which only touched pages exist."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        room = mmap.mmap(-1, size, flags=flags)
    except OSError:  # out of addresses, of which what waits for the collector may hold some
        gc.collect()
        room = mmap.mmap(-1, size, flags=flags)
    return np.frombuffer(room, dtype=np.uint8)


class Memory:
    """Bytes between two guard bands: ``raw`` is all of it, ``inner`` what belongs to the storage.

    ``apart`` keeps ``APART`` bytes of address space free on either side.
    """

    def __init__(self, size: int, itemsize: int, pattern: dict[int, int], apart: bool = True) -> None:
        self.size, self.itemsize = size, itemsize
        self.word, self.unsigned = pattern[itemsize], WORDS[itemsize]
        self.lazy = size >= LAZY_FROM
        total = GUARD + (-(-size // PAGE) * PAGE if self.lazy else size) + GUARD
        if apart or self.lazy:
            self.raw = _lazy(APART + total + APART)[APART : APART + total]
        else:
            self.raw = np.zeros(total, np.uint8)
        self.start = GUARD
        self.inner = self.raw[GUARD : GUARD + size]
        edges = [0, *range((GUARD + size) // PAGE, -(-total // PAGE))] if self.lazy else []
        self.pages = np.array(edges, dtype=np.int64)
        for low, high in self.spans():
            self._poison(low, high)

    def _poison(self, low: int, high: int) -> None:
        width = self.itemsize
        low, high = low - low % width, high - high % width
        self.raw[low:high].view(self.unsigned).fill(self.word)

    def spans(self) -> list[tuple[int, int]]:
        """The byte ranges of ``raw`` that are looked at: all of it, or the touched pages."""
        if not self.lazy:
            return [(0, len(self.raw))]
        return [(page * PAGE, min((page + 1) * PAGE, len(self.raw))) for page in self.pages.tolist()]

    def touch(self, elements: np.ndarray) -> None:
        """Prepare the pages that these element offsets live on."""
        if not self.lazy:
            return
        pages = np.unique((GUARD + elements * self.itemsize) // PAGE)
        for page in np.setdiff1d(pages, self.pages).tolist():
            self._poison(page * PAGE, min((page + 1) * PAGE, len(self.raw)))
        self.pages = np.union1d(self.pages, pages)

    def bytes(self) -> bytes:
        """The content of the spans, one after another."""
        return b"".join(self.raw[low:high].tobytes() for low, high in self.spans())

    def where(self, position: int) -> int:
        """The byte offset from the storage's start of a position in :meth:`bytes`."""
        for low, high in self.spans():
            if position < high - low:
                return low + position - self.start
            position -= high - low
        raise IndexError(position)

    def tensor(self, dtype: torch.dtype) -> torch.Tensor:
        """A flat tensor over the storage; its torch storage ends where ``inner`` ends."""
        if self.size == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self.inner, dtype=dtype)

    def guards_intact(self) -> bool:
        """Whether nothing was written outside the storage."""
        bands = (self.raw[:GUARD], self.raw[self.start + self.size :])
        return all(bool((band.view(self.unsigned) == self.word).all()) for band in bands)

    def fill(self) -> None:
        """Let the whole storage hold the pattern, pages that were not touched yet too."""
        self.inner.view(self.unsigned).fill(self.word)


@dataclass(frozen=True)
class Built:
    """The tensors of a case by name, the memory of each storage, and the cotangents by output."""

    tensors: dict[str, torch.Tensor]
    memories: dict[str, Memory]
    cotangents: dict[str, torch.Tensor] = field(default_factory=dict)


def offsets(spec: TensorSpec) -> np.ndarray:
    """Element offsets in the storage, in row-major order of the view, as int64 (numel,)."""
    total = np.array(spec.offset, dtype=np.int64)
    for size, stride in zip(spec.shape, spec.strides, strict=True):
        total = np.add.outer(total, np.arange(size, dtype=np.int64) * stride)
    return total.reshape(-1)


def distinct(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether each stride steps over all that lies within it, so that no two elements share a place.

    Sufficient, not necessary: elements may also interleave without meeting.
    """
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride <= reach:
            return False
        reach += (size - 1) * stride
    return True


def blank(spec: TensorSpec) -> torch.Tensor:
    """A tensor of the spec's shape and strides over bytes, for what depends on nothing else."""
    flat = torch.from_numpy(_lazy(spec.end)) if spec.end else torch.empty(0, dtype=torch.uint8)
    return torch.as_strided(flat, spec.shape, spec.strides, spec.offset if spec.numel else 0)


@lru_cache(maxsize=16)  # a case's tensors: what the parent sends to the child, it needs once more to judge
def _elements(values: Values, dtype: str, count: int) -> np.ndarray:
    """The elements of a recipe as words (count,), not to be written to."""
    if count == 0:
        return np.empty(0, WORDS[ITEMSIZE[dtype]])
    words = expand(values, DTYPES[dtype], count).view(torch.uint8).numpy().view(WORDS[ITEMSIZE[dtype]])
    words.flags.writeable = False
    return words


def contents(case: Case) -> list[bytes]:
    """The elements of each tensor in row-major order, for a process that is spared working them out."""
    return [_elements(spec.values, spec.dtype, spec.numel).tobytes() for _, spec in case.specs]


def build(case: Case, numbers: Sequence[bytes] | None = None, apart: bool = True) -> Built:
    """Allocate and fill inputs and cotangents; where views overlap, the first element and the later view win.

    ``numbers`` are the :func:`contents` if they are known; ``apart`` is for tensors that a target may see.
    """
    memories: dict[str, Memory] = {}
    for _, spec in case.specs:
        if spec.storage not in memories:
            width = ITEMSIZE[spec.dtype]
            needed = max(s.end for _, s in case.specs if s.storage == spec.storage) * width
            memories[spec.storage] = Memory(needed, width, GAP, apart)
    made: list[tuple[TensorSpec, torch.Tensor]] = []
    inputs = len(case.tensors)
    for number, (_, spec) in enumerate(case.specs):
        # An input requires a gradient, a cotangent none: they are never the same tensor.
        alike = made[:inputs] if number < inputs else made[inputs:]
        known = next((tensor for other, tensor in alike if other == spec), None)
        if known is None:
            words = None if numbers is None else np.frombuffer(numbers[number], WORDS[ITEMSIZE[spec.dtype]])
            known = _fill(spec, memories[spec.storage], words)
        made.append((spec, known))
    return named(case, [tensor for _, tensor in made], memories)


def named(case: Case, made: Sequence[torch.Tensor], memories: dict[str, Memory]) -> Built:
    """The tensors of ``case.specs``, in their order, under their names."""
    tensors = {name: tensor for (name, _), tensor in zip(case.tensors, made, strict=False)}
    outputs = [name for name, _ in case.backward.cotangents] if case.backward else []
    return Built(tensors, memories, dict(zip(outputs, made[len(tensors) :], strict=True)))


def same_form(one: Case, other: Case) -> bool:
    """Whether two cases differ in the values of their tensors alone, so that one fits the other's memory."""

    def form(case: Case) -> list[tuple[str, TensorSpec, int]]:
        specs = [spec for _, spec in case.specs]
        return [(name, replace(spec, values=Values()), specs.index(spec)) for name, spec in case.specs]

    return form(one) == form(other)


def rebuild(built: Built, case: Case, numbers: Sequence[bytes]) -> Built:
    """The inputs of a case in the memory of another of the same form: tensors that were changed, as autograd knows."""
    done: list[TensorSpec] = []
    for (_, spec), raw in zip(case.specs, numbers, strict=True):
        if spec not in done and spec.numel:
            _write(np.frombuffer(raw, WORDS[ITEMSIZE[spec.dtype]]), spec, built.memories[spec.storage])
        done.append(spec)
    torch.autograd.graph.increment_version(tuple(built.tensors.values()))
    return built


def _fill(spec: TensorSpec, memory: Memory, words: np.ndarray | None) -> torch.Tensor:
    dtype = DTYPES[spec.dtype]
    if memory.size == 0:
        return torch.empty_strided(spec.shape, spec.strides, dtype=dtype)
    if spec.numel:
        _write(_elements(spec.values, spec.dtype, spec.numel) if words is None else words, spec, memory)
    return torch.as_strided(memory.tensor(dtype), spec.shape, spec.strides, spec.offset if spec.numel else 0)


def _write(raw: np.ndarray, spec: TensorSpec, memory: Memory) -> None:
    """Put the elements (numel,) into the view; of those that meet in one place, the first."""
    # Of a dimension that takes no step, only the first index counts.
    shape = tuple(n if stride else 1 for n, stride in zip(spec.shape, spec.strides, strict=True))
    if not memory.lazy and distinct(shape, spec.strides):
        width = memory.itemsize
        steps = [stride * width for stride in spec.strides]
        view = np.ndarray(shape, memory.unsigned, memory.inner, spec.offset * width, steps)
        view[...] = raw.reshape(spec.shape)[tuple(map(slice, shape))]
        return
    places, first = np.unique(offsets(spec), return_index=True)
    memory.touch(places)
    memory.inner.view(memory.unsigned)[places] = raw[first]
