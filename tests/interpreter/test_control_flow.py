"""Control flow in lockstep is what Python makes of the same text, one program after another."""

import numpy as np
import pytest
import torch

from tests.interpreter import flows, plainly

PROGRAMS = 13


def launched(kernel, x, y, out, n, grid):
    tensors = [torch.from_numpy(array.copy()) for array in (x, y, out)]
    kernel[grid](*tensors, n, N=8)
    return tensors[2].numpy()


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("name", [name for name in vars(flows) if name.endswith("_kernel")])
def test_a_kernel_does_what_its_text_says(engine, name, n):
    kernel = getattr(flows, name)
    generator = np.random.default_rng(len(name))
    x, y = (generator.integers(-9, 40, 64).astype(np.int32) for _ in range(2))
    out = np.full((PROGRAMS, 32), -7, np.int32)
    plain = out.copy()
    plainly.run(kernel, (PROGRAMS, 1, 1), x, y, plain.reshape(-1), n, N=8)
    np.testing.assert_array_equal(launched(kernel, x, y, out, n, (PROGRAMS,)), plain)
    assert (plain != out).any()
    assert engine.accesses == {}


@pytest.mark.parametrize("name", ["nested_kernel", "early_kernel", "carried_kernel", "while_kernel"])
def test_programs_in_small_chunks_do_the_same(engine, monkeypatch, name):
    kernel = getattr(flows, name)
    generator = np.random.default_rng(3)
    x, y = (generator.integers(-9, 40, 64).astype(np.int32) for _ in range(2))
    out = np.full((PROGRAMS, 32), -7, np.int32)
    whole = launched(kernel, x, y, out, 5, (PROGRAMS,))
    monkeypatch.setattr(engine, "memory", 1)
    np.testing.assert_array_equal(launched(kernel, x, y, out, 5, (PROGRAMS,)), whole)
