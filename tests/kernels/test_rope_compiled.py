"""What Triton makes of the kernel: compiled for a GPU, which needs none, and counted."""

import importlib
import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.forms import Meta
from kernels.launch import TL_DTYPES
from kernels.rope import make_plan

KERNEL = importlib.import_module("kernels.rope_launch").rope_kernel
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


@cache
def accesses(dtype: torch.dtype, vector: bool) -> Counter[int]:
    """How often the PTX of a launch on plain (4, 32, 64, 128) tensors accesses memory, by bytes at a time."""
    x = Meta((4, 32, 64, 128), (32 * 64 * 128, 64 * 128, 128, 1), dtype)
    table = Meta((64, 64), (64, 1), dtype)
    plan = make_plan(x, x, table, table)
    assert plan.launch.even
    names = KERNEL.arg_names
    given = {**plan.launch.constants, "VECTOR": vector, "BACK": False}
    constants: dict[str, Any] = {name: value for name, value in given.items() if name in names}
    options = {name: value for name, value in given.items() if name not in names}
    pointers, numbers = names[:6], [name for name in names[6:] if name not in constants]
    signature = dict.fromkeys(pointers, f"*{NAMES[dtype]}") | dict.fromkeys(numbers, "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(KERNEL, signature, {(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False, **options})
    found = re.findall(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)", compiled.asm["ptx"])
    return Counter(int(count or 1) * int(bits) // 8 for count, bits in found)


@pytest.mark.parametrize("dtype", TL_DTYPES, ids=str)
def test_even_tensors_are_accessed_16_bytes_at_a_time_and_no_others(dtype: torch.dtype):
    assert set(accesses(dtype, True)) == {16}
    assert set(accesses(dtype, False)) == {dtype.itemsize}
    # Two roles, q and k, of four loads and two stores of tiles of 1024 elements by 128 threads.
    assert accesses(dtype, True)[16] == 2 * 6 * 1024 * dtype.itemsize // (128 * 16)


def test_no_number_and_no_address_asks_for_a_variant_of_its_own():
    for param in KERNEL.params:
        assert param.is_constexpr or param.do_not_specialize or param.do_not_specialize_on_alignment, param.name
    assert [param.name for param in KERNEL.params if param.do_not_specialize_on_alignment] == KERNEL.arg_names[:6]
    assert all(name.endswith("_ptr") for name in KERNEL.arg_names[:6])
