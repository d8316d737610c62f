"""Shared memory: what a block of an H200 does not have is refused at the strict level, and only that."""

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource
from triton.runtime.errors import OutOfResources

from fuzzrope.interpreter import resources
from fuzzrope.interpreter.engine import Engine
from fuzzrope.interpreter.frontend import Variant
from fuzzrope.interpreter.resources import LIMIT
from fuzzrope.run.driver import ImaginaryDriver


@triton.jit
def product_kernel(a_ptr, b_ptr, out_ptr, K, N: tl.constexpr, STEP: tl.constexpr):
    i, j, k = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :], tl.arange(0, STEP)
    total = tl.zeros((N, N), dtype=tl.float32)
    for start in range(0, K, STEP):
        a = tl.load(a_ptr + i * K + start + k[None, :])
        b = tl.load(b_ptr + (start + k[:, None]) * N + j)
        total = tl.dot(a, b, total)
    tl.store(out_ptr + i * N + j, total)


@triton.jit
def copy_kernel(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i) * 2)


@pytest.fixture
def strict_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", ImaginaryDriver())
    for kernel in (product_kernel, copy_kernel):
        kernel.device_caches.clear()
    engine = Engine(strict=True)
    engine.install()
    yield engine
    engine.uninstall()
    for kernel in (product_kernel, copy_kernel):
        kernel.device_caches.clear()


def product(stages):
    a, b = torch.ones((128, 256), dtype=torch.float16), torch.ones((256, 128), dtype=torch.float16)
    out = torch.empty((128, 128))
    product_kernel[(1,)](a, b, out, 256, N=128, STEP=128, num_stages=stages)
    return out


def test_a_block_that_takes_too_much_shared_memory_is_refused(strict_engine):
    with pytest.raises(OutOfResources, match=str(LIMIT)):
        product(stages=5)
    ((what, kernel, line),) = strict_engine.accesses
    assert (what, kernel) == ("launch", "product_kernel")
    assert "product_kernel[(1,)]" in line


def test_one_that_fits_runs(strict_engine):
    assert (product(stages=2) == 256).all()
    assert not strict_engine.accesses


def test_a_kernel_that_moves_one_tensor_at_a_time_is_not_compiled(strict_engine, monkeypatch):
    monkeypatch.setattr(resources, "laid_out", None)
    out = torch.empty(64)
    copy_kernel[(1,)](torch.ones(64), out, N=64)
    assert (out == 2).all()


@triton.jit
def turn_kernel(x_ptr, out_ptr, rows, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    for row in tl.range(0, rows, num_stages=3):
        x = tl.load(x_ptr + row * N * N + i * N + j)
        best = tl.max(tl.cumsum(x, 1), 0)
        tl.store(out_ptr + row * N * N + j * N + i, tl.sort(x) + best[None, :])


@pytest.mark.parametrize("warps", [4, 8])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("kernel", "signature", "constants", "stages"),
    [
        (product_kernel, ("*fp16", "*fp16", "*fp32", "i32"), {"N": 128, "STEP": 64}, 3),
        (product_kernel, ("*fp32", "*fp32", "*fp32", "i32"), {"N": 64, "STEP": 32}, 4),
        (product_kernel, ("*bf16", "*bf16", "*bf16", "i32"), {"N": 64, "STEP": 128}, 1),
        (turn_kernel, ("*fp32", "*fp32", "i32"), {"N": 64}, 2),
        (turn_kernel, ("*fp16", "*fp16", "i32"), {"N": 32}, 2),
    ],
)
def test_shared_memory_is_what_a_kernel_compiled_to_the_end_has(kernel, signature, constants, stages, warps, aligned):
    def source():
        names = kernel.arg_names
        kinds = dict(zip(names, (*signature, *["constexpr"] * len(constants)), strict=True))
        hints = {(i,): [["tt.divisibility", 16]] for i in range(len(signature)) if aligned}
        return ASTSource(kernel, kinds, constants, hints)

    target, options = GPUTarget("cuda", 90, 32), {"num_warps": warps, "num_stages": stages}
    found = resources.laid_out(Variant(source(), target, options))
    assert found == triton.compile(source(), target=target, options=options).metadata.shared > 0


def test_more_threads_than_a_block_has_are_refused(engine):
    x = torch.ones(64)
    copy_kernel[(1,)](x, torch.empty_like(x), 64, num_warps=32)
    assert not engine.accesses
    with pytest.raises(OutOfResources, match="threads"):
        copy_kernel[(1,)](x, torch.empty_like(x), 64, num_warps=64)
    ((what, message),) = [(entry["what"], entry["message"]) for entry in engine.accesses.values()]
    assert (what, message) == ("launch", "a block takes 2048 threads, 1024 is the limit")
