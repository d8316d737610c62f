"""With contraction, a product goes into a sum unrounded, as a GPU's compiler lets it; without, it never does."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

FORMS = {
    "a * b + c": lambda a, b, c: a * b + c,
    "c + a * b": lambda a, b, c: a * b + c,
    "a * b - c": lambda a, b, c: a * b - c,
    "c - a * b": lambda a, b, c: c - a * b,
}


@triton.jit
def sums_kernel(a_ptr, b_ptr, c_ptr, out_ptr, FORM: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b, c = tl.load(a_ptr + i), tl.load(b_ptr + i), tl.load(c_ptr + i)
    if FORM == 0:
        out = a * b + c
    elif FORM == 1:
        out = c + a * b
    elif FORM == 2:
        out = a * b - c
    else:
        out = c - a * b
    tl.store(out_ptr + i, out)


@triton.jit
def of_one_kernel(a_ptr, b_ptr, c_ptr, out_ptr):
    tl.store(out_ptr, tl.load(a_ptr) * tl.load(b_ptr) - tl.load(c_ptr))


@triton.jit
def across_kernel(a_ptr, b_ptr, c_ptr, out_ptr, turns):
    product = tl.load(a_ptr) * tl.load(b_ptr)
    total = tl.load(c_ptr)
    for _ in range(turns):
        total += product  # made before the loop
    tl.store(out_ptr, total)


@triton.jit
def softmax_kernel(s_ptr, p_ptr, unit, EXACT: tl.constexpr, N: tl.constexpr):
    s = tl.load(s_ptr + tl.arange(0, N))
    top = tl.max(s, 0)
    p = tl.exp2((s - top) * unit) if EXACT else tl.exp2(s * unit - top * unit)
    tl.store(p_ptr + tl.arange(0, N), p)


@pytest.fixture
def contracting(engine, monkeypatch):
    """The engine with contraction; nobody keeps what was compiled."""
    monkeypatch.setattr(engine, "contracts", True)
    monkeypatch.setattr(engine, "programs", {})
    kernels = sums_kernel, of_one_kernel, across_kernel, softmax_kernel
    for kernel in kernels:
        kernel.device_caches.clear()
    yield engine
    for kernel in kernels:
        kernel.device_caches.clear()


def numbers(dtype=torch.float32):
    """Factors, and what their rounded products are: sums of which nothing is left but what was rounded away."""
    generator = np.random.default_rng(3)
    a, b = (torch.from_numpy(generator.standard_normal(32)).to(dtype) for _ in range(2))
    return a, b, a * b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", range(4), ids=FORMS)
def test_a_sum_with_a_product_is_rounded_once(contracting, form, dtype):
    a, b, c = numbers(dtype)
    c = c if form > 1 else -c
    out = torch.empty_like(c)
    sums_kernel[(1,)](a, b, c, out, form, 32)
    exact = [
        list(FORMS.values())[form](*map(Fraction, each)) for each in zip(*(x.tolist() for x in (a, b, c)), strict=True)
    ]
    assert torch.equal(out, torch.tensor([float(x) for x in exact], dtype=torch.float64).to(dtype))
    assert out.any()


@pytest.mark.parametrize("fusion", [True, False])
def test_without_contraction_or_where_a_launch_forbids_it_it_is_rounded_twice(engine, fusion):
    a, b, c = numbers()
    out = torch.empty_like(c)
    sums_kernel[(1,)](a, b, c, out, 2, 32, enable_fp_fusion=fusion)
    assert not out.any()


def test_a_launch_forbids_it(contracting):
    a, b, c = numbers()
    out = torch.empty_like(c)
    sums_kernel[(1,)](a, b, c, out, 2, 32, enable_fp_fusion=False)
    assert not out.any()


def test_scalars_are_contracted_too(contracting):
    a, b, c = numbers()
    out = torch.empty(1)
    of_one_kernel[(1,)](a, b, c, out)
    assert out.item() == float(Fraction(a[0].item()) * Fraction(b[0].item()) - Fraction(c[0].item())) != 0


def test_a_product_of_another_block_is_not(contracting):
    a, b, c = numbers()
    out = torch.empty(1)
    across_kernel[(1,)](a, b, -2 * c, out, 2)
    assert out.item() == 0


@pytest.mark.parametrize("exact", [True, False])
def test_weights_of_huge_scores_are_lost_if_they_are_scaled_before_they_are_taken_from_the_largest(contracting, exact):
    s = torch.tensor([1.1e11, 1.0e11, -1e11, 0.0])
    p = torch.empty(4)
    softmax_kernel[(1,)](s, p, 0.1275, exact, 4)
    assert (p.tolist() == [1.0, 0.0, 0.0, 0.0]) is exact
