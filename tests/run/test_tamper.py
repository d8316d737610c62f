"""What a target changes in its process is noticed, and an honest import is not."""

import math

import pytest
import torch

from fuzzrope.run.tamper import Seal

CHANGES = {
    "torch.allclose": (torch, "allclose"),
    "torch.Tensor.__eq__": (torch.Tensor, "__eq__"),
    "torch.testing.assert_close": (torch.testing, "assert_close"),
    "math.isclose": (math, "isclose"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_replaced_function_breaks_the_seal(name, monkeypatch):
    owner, key = CHANGES[name]
    seal = Seal()
    monkeypatch.setattr(owner, key, lambda *args: True)
    assert seal.broken() == [name]


def test_a_changed_global_setting_breaks_the_seal():
    seal = Seal()
    torch.set_default_dtype(torch.float64)
    try:
        assert "default dtype" in seal.broken()
    finally:
        torch.set_default_dtype(torch.float32)
    assert seal.broken() == []


def test_honest_work_keeps_the_seal():
    seal = Seal()
    torch.nn.functional.softmax(torch.randn(3), dim=0)
    import decimal  # noqa: F401 - an import like any other
    import json.tool  # noqa: F401 - likewise

    assert seal.broken() == []
