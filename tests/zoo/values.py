"""Inputs for the zoo: the corners of every format, all pairs of them, and random numbers, always the same."""

from __future__ import annotations

import numpy as np
import torch

from tests.zoo.formats import BF16, FORMATS, FP8E4NV, FP8E5, FP16, FP32, FP64, encode, from_bits

#: Triton's names of dtypes, as they end the names of entries.
NAMES = {form.dtype: form.name for form in (FP8E4NV, FP8E5, FP16, BF16, FP32, FP64)} | {
    torch.bool: "bool",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.uint16: "uint16",
    torch.uint32: "uint32",
    torch.uint64: "uint64",
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
INTEGERS = SIGNED + UNSIGNED


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def corners(dtype: torch.dtype) -> np.ndarray:
    """Zeros, units, the ends of the subnormal, normal and finite ranges, infinities and NaN, in float64."""
    form = FORMATS[dtype]
    below = form.normal - form.smallest
    positive = [0.0, 1.0, 1.0 + 2 * form.unit, 1.5, form.smallest, below, form.normal, form.largest, np.inf]
    return np.array(positive + [-value for value in positive] + [np.nan])


def random_bits(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Tensors of random bits: every exponent alike, subnormal numbers, infinities and NaN."""
    form = FORMATS[dtype]
    return from_bits(generator(seed).integers(0, 2**form.width, count, dtype=np.uint64).astype(form.bits), form)


def normals(dtype: torch.dtype, shape: int | tuple[int, ...], seed: int, scale: float = 1.0) -> torch.Tensor:
    """Normally distributed numbers."""
    form = FORMATS[dtype]
    return from_bits(encode(generator(seed).standard_normal(shape) * scale, form), form)


def small_integers(dtype: torch.dtype, shape: int | tuple[int, ...], seed: int, top: int = 8) -> torch.Tensor:
    """Whole numbers of size at most ``top``: sums and products of few are exact in any order and format."""
    numbers = generator(seed).integers(-top, top + 1, shape)
    return numbered(numbers, dtype)


def numbered(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of any dtype that holds given values, rounded to it."""
    if dtype in FORMATS:
        return from_bits(encode(values, FORMATS[dtype]), FORMATS[dtype])
    return torch.from_numpy(np.asarray(values)).to(dtype)


def hostile(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """``count`` numbers: the corners, then random bits and normal numbers in turn."""
    first = numbered(corners(dtype), dtype)
    half = (count - len(first)) // 2
    rest = [random_bits(dtype, half, seed), normals(dtype, count - len(first) - half, seed + 1, 4.0)]
    return _joined([first, *rest])


def hostile_pairs(dtype: torch.dtype, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors of ``count`` numbers: all pairs of corners, then random bits, then numbers of one size."""
    first, second = (side.ravel() for side in np.meshgrid(corners(dtype), corners(dtype)))
    rest = count - len(first)
    sides = []
    for side, values in enumerate((first, second)):
        tails = [random_bits(dtype, rest // 2, seed + side), normals(dtype, rest - rest // 2, seed + 2 + side)]
        sides.append(_joined([numbered(values, dtype), *tails]))
    return sides[0], sides[1]


def integers(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """The ends of an integer type, numbers near zero, and random bits."""
    info = torch.iinfo(dtype)
    near = [0, 1, 2, 3, 7, info.max, info.max - 1, info.min, info.min + 1, info.max // 2]
    if info.min < 0:
        near += [-1, -2, -3, -7]
    rest = generator(seed).integers(info.min, info.max, count - len(near), _numpy(dtype), endpoint=True)
    return torch.from_numpy(np.concatenate([np.array(near, _numpy(dtype)), rest]))


def draw(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Hostile numbers of any dtype."""
    return hostile(dtype, count, seed) if dtype in FORMATS else integers(dtype, count, seed)


def integer_pairs(dtype: torch.dtype, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors of integers, shuffled so that the ends meet others."""
    first, second = integers(dtype, count, seed), integers(dtype, count, seed + 1)
    return first, second[torch.from_numpy(generator(seed + 2).permutation(count))]


def _numpy(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    form = FORMATS[parts[0].dtype]
    bits = [
        part.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[part.element_size()])
        for part in parts
    ]
    return torch.cat(bits).view(form.dtype)
