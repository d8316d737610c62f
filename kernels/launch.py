"""Launches: where kernels run, how they get there without being bound again, how wide indices are, and tiles."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

INT32_MAX = 2**31 - 1
VECTOR_BYTES, VECTOR_ELEMENTS = 16, 8  # the widest load of one thread; so many elements are whole such loads
INTERPRETED = bool(triton.knobs.runtime.interpret)  # it counts when a kernel is decorated, not when it is launched

TL_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def can_launch(device: torch.device) -> bool:
    """Whether a Triton kernel runs on tensors of this device: a GPU, or any with Triton's interpreter."""
    return device.type == "cuda" or INTERPRETED


def broadcast_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Strides that read a dimension of size 1 at its one place, whatever index asks for it.

    PyTorch leaves the stride of a dimension of size 1 arbitrary, so it must never be multiplied.
    """
    return tuple(0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))


def resolved(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors as their memory has them: a lazily negated view keeps its sign outside, where no kernel sees it.

    Strides stay as they are, since launches are planned for them; ``resolve_neg`` would not keep them.
    """
    return tuple([_negated(x) if x.is_neg() else x for x in tensors])


def _negated(x: torch.Tensor) -> torch.Tensor:
    """A lazily negated view in memory of its own, with the same strides."""
    end = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    found = torch.empty(end, dtype=x.dtype, device=x.device).as_strided(x.shape, x.stride())
    once = tuple([slice(1) if step == 0 else slice(None) for step in x.stride()])
    found[once].copy_(x[once])
    return found


def start_even(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all tensors start at multiples of 16 bytes."""
    odd = 0
    for x in tensors:
        odd |= x.data_ptr()
    return odd % VECTOR_BYTES == 0


def ceil_div(n: int, size: int) -> int:
    """Blocks of ``size`` that cover n >= 0; ``triton.cdiv`` is slower by far on the host."""
    return -(-n // size)


def current_device() -> int:
    """The number of the device that Triton launches on."""
    return 0 if INTERPRETED else triton.runtime.driver.active.get_current_device()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a device the current one, which is where Triton launches, whatever memory a kernel is given."""
    number = device.index
    return nullcontext() if number is None or number == current_device() else torch.cuda.device(number)


#: Compiled kernels with blanks for their constants, by all that Triton tells their variants apart by.
COMPILED: dict[Hashable, tuple[Any, tuple[None, ...]]] = {}


def _wide(numbers: Sequence[float]) -> Hashable:
    """Which of the numbers need 64 bits; None where none does."""
    if max(numbers) <= INT32_MAX and min(numbers) >= -INT32_MAX - 1:
        return None
    return tuple(not -INT32_MAX - 1 <= n <= INT32_MAX for n in numbers)


def _dtype(x: Any) -> torch.dtype | None:
    """Of a tensor or a descriptor of one; None of None."""
    return None if x is None else (x if hasattr(x, "dtype") else x.base).dtype


def enqueue(
    kernel: Any,
    programs: int,
    tensors: Sequence[Any],
    numbers: Sequence[float],
    constants: dict[str, Any],
) -> Callable[..., None] | None:
    """Launch a kernel that specializes nothing: no number, and no alignment, of which constants tell.

    Triton binds arguments at each launch to find the variant to run, which for fifty of them takes longer than
    the launch. A variant that was compiled before goes to the driver at once.

    Args:
        kernel: takes the tensors, the numbers, then the constants.
        programs: how many; none are not launched.
        tensors: the first says on which device; None for one that the constants leave unused. Some may be
            descriptors of tensors, of blocks that the constants tell.
        numbers: integers of 32 bits where they fit, unless the kernel says otherwise.
        constants: by name, Triton's options among them.

    Returns:
        What does the same for other tensors of these dtypes on this device; None under Triton's interpreter, and
        where nothing was launched.
    """
    if not programs:
        return None
    device, types = tensors[0].device, tuple([_dtype(x) for x in tensors])
    with on(device):
        variant = (id(kernel), current_device(), types, _wide(numbers), frozenset(constants.items()))
        compiled, blanks = COMPILED.get(variant, (None, ()))
        if compiled is None:
            compiled = kernel[(programs,)](*tensors, *numbers, **constants)
            if compiled is None:
                return None
            blanks = (None,) * sum(parameter.is_constexpr for parameter in kernel.params)
            COMPILED[variant] = compiled, blanks
            run = compiled[(programs, 1, 1)]
        else:
            run = compiled[(programs, 1, 1)]
            run(*tensors, *numbers, *blanks)
    number, rest = device.index, (*numbers, *blanks)

    def again(*tensors: Any) -> None:
        if number is None or number == current_device():
            run(*tensors, *rest)
        else:
            with torch.cuda.device(number):
                run(*tensors, *rest)

    return again


class Prepared(NamedTuple):
    """A launch planned for all calls of one form: its programs (0 when there is nothing to do), numbers, constants.

    Some constants are open until tensors are there; ``ready`` is what launches on others, by device and these.
    """

    kernel: Any
    programs: int
    numbers: tuple[float, ...]
    constants: dict[str, Any]
    ready: dict[tuple[Any, ...], Callable[..., None]]

    def run(self, tensors: Sequence[Any], **constants: Any) -> None:
        """Launch on these tensors, the constants that were open last."""
        which = (tensors[0].device, *constants.values())
        ready = self.ready.get(which)
        if ready is not None:
            ready(*tensors)
            return
        ready = enqueue(self.kernel, self.programs, tensors, self.numbers, {**self.constants, **constants})
        if ready is not None:
            self.ready[which] = ready


class Tile(NamedTuple):
    """Rows and columns of one program's tile; both are powers of two."""

    rows: int
    columns: int


TILE_ELEMENTS = 1024
TILE_COLUMNS = (16, 64)
TILE_ROWS = (16, 64)


def choose_tile(columns: int) -> Tile:
    """A tile for rows of this many columns: about ``TILE_ELEMENTS`` elements, wide rows in several steps."""
    width = min(max(1 << (columns - 1).bit_length(), TILE_COLUMNS[0]), TILE_COLUMNS[1])
    height = min(max(TILE_ELEMENTS // width, TILE_ROWS[0]), TILE_ROWS[1])
    return Tile(height, width)
