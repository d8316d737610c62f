"""Conversions: between floating-point formats, both ways of rounding; integers and floats; widths; bitcasts."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from tests.zoo.base import Entry
from tests.zoo.formats import (
    BF16,
    FORMATS,
    FP8E4NV,
    FP8E5,
    FP16,
    FP32,
    FP64,
    NATIVE,
    bits_of,
    decode,
    encode,
    encode_exactly,
    from_bits,
    values_of,
)
from tests.zoo.values import FLOATS, INTEGERS, NAMES, corners, draw, generator, integers, numbered, random_bits

BLOCK = 128
COUNT = 512


@triton.jit
def convert_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets).to(out_ptr.dtype.element_ty))


@triton.jit
def truncate_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(out_ptr + offsets, x.to(out_ptr.dtype.element_ty, fp_downcast_rounding="rtz"))


@triton.jit
def bitcast_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets).to(out_ptr.dtype.element_ty, bitcast=True))


@triton.jit
def widths_kernel(
    x_ptr, i8_ptr, i16_ptr, i32_ptr, i64_ptr, u8_ptr, u16_ptr, u32_ptr, u64_ptr, i1_ptr, BLOCK: tl.constexpr
):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(i8_ptr + offsets, x.to(tl.int8))
    tl.store(i16_ptr + offsets, x.to(tl.int16))
    tl.store(i32_ptr + offsets, x.to(tl.int32))
    tl.store(i64_ptr + offsets, x.to(tl.int64))
    tl.store(u8_ptr + offsets, x.to(tl.uint8))
    tl.store(u16_ptr + offsets, x.to(tl.uint16))
    tl.store(u32_ptr + offsets, x.to(tl.uint32))
    tl.store(u64_ptr + offsets, x.to(tl.uint64))
    tl.store(i1_ptr + offsets, x.to(tl.int1))


def launch(kernel, dtype, x):
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    kernel[(triton.cdiv(x.numel(), BLOCK),)](x, out, BLOCK=BLOCK)
    return {"out": out}


def truth_floats(dtype, toward_zero, x):
    """Rounded once, to nearest or toward zero. To nearest float8 saturates, as ``cvt.satfinite`` does."""
    bits = encode(values_of(x), FORMATS[dtype], toward_zero)
    return {"out": bits.view(NATIVE[dtype]) if dtype in NATIVE else bits}


def rounding_inputs(source, target):
    """Corners, random bits, and what lies on, beside and halfway between neighbours of the target format."""
    first = np.concatenate([corners(source.dtype), corners(target.dtype), [target.largest * (1 + target.unit)]])
    values = decode(random_bits(target.dtype, COUNT, 91).view(torch.uint8).numpy().view(target.bits), target)
    values = values[np.isfinite(values)]
    gap = np.ldexp(1.0, np.maximum(np.frexp(values)[1] - 1, 1 - target.bias) - target.mantissa - 1)
    near = values + gap * generator(92).choice([0, 1, 1, 1, -1, 1 + 2.0**-10, 1 - 2.0**-10, 0.3], values.size)
    numbers = np.concatenate([first, near])[: COUNT - 64]
    tail = random_bits(source.dtype, COUNT - numbers.size, 93)
    bits = np.concatenate([encode(numbers, source), bits_of(tail)])
    return {"x": from_bits(bits, source)}


def all_bits(source, target):
    """All 256. But not infinities and NaN of fp8e5 to bf16: on sm_90 Triton makes 65536 and the like of them."""
    x = from_bits(np.arange(256, dtype=np.uint8), source)
    return {
        "x": torch.where(x.float().isfinite(), x.float(), 0.0).to(x.dtype) if (source, target) == (FP8E5, BF16) else x
    }


def truth_from_integers(dtype, x):
    """Integers round to nearest even, from all their bits."""
    form = FORMATS[dtype]
    bits = np.array([encode_exactly(int(v), form) for v in x.numpy()], np.uint64).astype(form.bits)
    return {"out": bits.view(NATIVE[dtype]) if dtype in NATIVE else bits}


def integer_inputs(source, target):
    """Whole ranges, but for bfloat16: a GPU rounds through float32, so only what float32 holds is well defined."""
    x = integers(source, COUNT, 95)
    if target == torch.bfloat16 and source.itemsize > 2:
        x = torch.from_numpy(x.numpy() % 2**24)
    return {"x": x}


def truth_to_integers(dtype, x):
    return {"out": np.trunc(values_of(x)).astype(np.dtype(NAMES[dtype]))}


def in_range(source, target):
    """Numbers whose integer part the target holds; what others give is undefined."""
    info = torch.iinfo(target)
    low, high = max(float(info.min), -FORMATS[source].largest), min(float(info.max), FORMATS[source].largest)
    rng = generator(96)
    wide = rng.uniform(low, high, COUNT // 2) * 0.98
    narrow = rng.uniform(max(low, -100), min(high, 100), COUNT - wide.size - 8)
    exact = [0.0, -0.0, 0.5, 0.999, 1.0, 1.5, 2.5, 100.0]
    return {"x": numbered(np.concatenate([exact, wide, narrow]), source)}


def launch_widths(x):
    names = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
    out = {NAMES[dtype]: torch.empty(x.shape, dtype=dtype, device=x.device) for dtype in (*names, torch.bool)}
    widths_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, *out.values(), BLOCK=BLOCK)
    return out


def truth_widths(x):
    names = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
    return {name: x.numpy().astype(np.dtype(name)) for name in names}


def truth_bitcast(dtype, x):
    raw = bits_of(x) if x.dtype in FORMATS else x.numpy()
    kind = np.dtype(NATIVE.get(dtype) or (FORMATS[dtype].bits if dtype in FORMATS else NAMES[dtype]))
    return {"out": raw.view(kind)}


DOWN = ((FP64, FP32), (FP64, FP16), (FP64, BF16), (FP32, FP16), (FP32, BF16), (FP16, BF16), (BF16, FP16))
DOWN8 = tuple((source, target) for source in (FP16, BF16, FP32) for target in (FP8E4NV, FP8E5))
#: From fp16 to fp8e5 Triton 3.6 refuses.
TOWARD_ZERO = ((FP32, FP16), (FP32, BF16), (FP32, FP8E5))
UP = ((FP16, FP32), (FP16, FP64), (BF16, FP32), (BF16, FP64), (FP32, FP64))
UP8 = tuple((source, target) for source in (FP8E4NV, FP8E5) for target in (FP16, BF16, FP32))
CASTS = (
    (torch.float32, torch.int32),
    (torch.float64, torch.int64),
    (torch.float16, torch.int16),
    (torch.bfloat16, torch.int16),
    (torch.float8_e5m2, torch.uint8),
    (torch.int32, torch.float32),
    (torch.int64, torch.float64),
    (torch.int16, torch.bfloat16),
)


def _entries():
    for source, target in (*DOWN, *DOWN8, *UP):
        # Triton's interpreter cuts bfloat16 instead of rounding to it, and saturates nothing.
        right = (source, target) == (BF16, FP16) or (BF16 not in (source, target) and (source, target) not in DOWN8)
        go, truth = partial(launch, convert_kernel, target.dtype), partial(truth_floats, target.dtype, False)
        inputs = partial(rounding_inputs, source, target)
        yield Entry(f"convert-{source.name}-{target.name}", "exact", inputs, go, truth, None, right)
    for source, target in UP8:
        go, truth = partial(launch, convert_kernel, target.dtype), partial(truth_floats, target.dtype, False)
        name = f"convert-{source.name}-{target.name}"
        # Triton's interpreter knows no NaN of fp8e4nv and halves the subnormal numbers of fp8e5.
        yield Entry(
            name, "exact", partial(all_bits, source, target), go, truth, None, (source, target) == (FP8E5, BF16)
        )
    for source, target in TOWARD_ZERO:
        go, truth = partial(launch, truncate_kernel, target.dtype), partial(truth_floats, target.dtype, True)
        name = f"convert_rtz-{source.name}-{target.name}"
        yield Entry(name, "exact", partial(rounding_inputs, source, target), go, truth, None, False)
    for whole in INTEGERS:
        yield Entry(
            f"widths-{NAMES[whole]}", "exact", partial(lambda d: {"x": integers(d, COUNT, 94)}, whole),
            launch_widths, truth_widths,
        )  # fmt: skip
        for real in FLOATS:
            yield Entry(
                f"convert-{NAMES[whole]}-{NAMES[real]}", "exact", partial(integer_inputs, whole, real),
                partial(launch, convert_kernel, real), partial(truth_from_integers, real), None, real != torch.bfloat16,
            )  # fmt: skip
            yield Entry(
                f"convert-{NAMES[real]}-{NAMES[whole]}", "exact", partial(in_range, real, whole),
                partial(launch, convert_kernel, whole), partial(truth_to_integers, whole),
            )  # fmt: skip
    for source, target in CASTS:
        some = partial(lambda dtype: {"x": draw(dtype, COUNT, 97)}, source)
        yield Entry(
            f"bitcast-{NAMES[source]}-{NAMES[target]}", "exact", some,
            partial(launch, bitcast_kernel, target), partial(truth_bitcast, target),
        )  # fmt: skip


ENTRIES = tuple(_entries())
