"""What a target changes in its process is noticed, and an honest import is not."""

import math
import subprocess
import sys

import pytest
import torch

from fuzzrope.run import tamper
from fuzzrope.run.tamper import Seal


@pytest.fixture(autouse=True, params=[True, False], ids=["versions", "no versions"])
def _versions(request, monkeypatch):
    """As on an interpreter that tells whether a dictionary has changed, and on one that does not."""
    monkeypatch.setattr(tamper, "_VERSIONED", request.param and tamper._VERSIONED)


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


def test_importing_and_using_dynamo_is_no_tampering():
    script = """
import torch
from fuzzrope.run.tamper import Seal
seal = Seal()
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
import torch._inductor.compile_fx
import sys
sys.setrecursionlimit(2 * sys.getrecursionlimit())
assert "torch._dynamo" in sys.modules
print(seal.broken())
sys.setrecursionlimit(900)
print(seal.broken())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['recursion limit']"]


class Liar:
    """A stand-in that says it is what it replaced."""

    def __eq__(self, other):
        return True

    __hash__ = None

    def __call__(self, *args):
        return True


@pytest.mark.parametrize("name", CHANGES)
def test_a_stand_in_that_equals_anything_breaks_a_seal_that_was_looked_at_before(name, monkeypatch):
    owner, key = CHANGES[name]
    seal = Seal()
    assert seal.broken() == []
    monkeypatch.setattr(owner, key, Liar())
    assert seal.broken() == [name]
    assert seal.broken() == [name]
    monkeypatch.undo()
    assert seal.broken() == []


@pytest.mark.parametrize("change", ["added", "added while another name goes"])
def test_an_inherited_method_that_is_overridden_breaks_the_seal(change, monkeypatch):
    torch.Tensor.spare = 1
    try:
        seal = Seal()
        assert seal.broken() == []
        monkeypatch.setattr(torch.Tensor, "__add__", torch.Tensor.__sub__, raising=False)
        if change != "added":
            del torch.Tensor.spare
        assert "torch.Tensor.__add__" in seal.broken()
    finally:
        if "spare" in vars(torch.Tensor):
            del torch.Tensor.spare


def test_a_function_that_is_gone_or_moved_to_another_name_breaks_the_seal(monkeypatch):
    seal = Seal()
    assert seal.broken() == []
    function = math.isclose
    monkeypatch.delattr(math, "isclose")
    math.is_near = function
    try:
        assert seal.broken() == ["math.isclose"]
    finally:
        del math.is_near


def test_a_variable_that_changes_keeps_the_seal(monkeypatch):
    seal = Seal()
    assert seal.broken() == []
    monkeypatch.setattr(math, "pi", 3)
    assert seal.broken() == []
    monkeypatch.setattr(math, "isclose", lambda *args: True)
    assert seal.broken() == ["math.isclose"]


def test_flushed_subnormals_break_the_seal():
    seal = Seal()
    assert torch.set_flush_denormal(True)
    try:
        assert seal.broken() == ["flush denormal"]
    finally:
        torch.set_flush_denormal(False)
    assert seal.broken() == []


def test_a_changed_global_setting_breaks_the_seal():
    seal = Seal()
    torch.set_default_dtype(torch.float64)
    try:
        assert "default dtype" in seal.broken()
    finally:
        torch.set_default_dtype(torch.float32)
    assert seal.broken() == []


@pytest.mark.parametrize("key", ["elapsed_time", "record"])
def test_a_replaced_clock_of_the_gpu_breaks_the_seal(key, monkeypatch):
    seal = Seal()
    monkeypatch.setattr(torch.cuda.Event, key, lambda *args: 1e-6)
    assert seal.broken() == [f"torch.cuda.Event.{key}"]


def test_the_clock_that_stands_in_for_one_is_sealed_too(monkeypatch):
    class Event:
        def elapsed_time(self, other):
            return 1.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    seal = Seal()
    monkeypatch.setattr(Event, "elapsed_time", lambda self, other: 0.0)
    assert seal.broken() == ["torch.cuda.Event.elapsed_time"]


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_sums_of_products_in_another_precision_break_the_seal(name):
    key = f"allow_{name}_reduced_precision_reduction"
    before, seal = getattr(torch.backends.cuda.matmul, key), Seal()
    setattr(torch.backends.cuda.matmul, key, not before)
    try:
        assert len(seal.broken()) == 1
    finally:
        setattr(torch.backends.cuda.matmul, key, before)
    assert seal.broken() == []


def test_honest_work_keeps_the_seal():
    seal = Seal()
    torch.nn.functional.softmax(torch.randn(3), dim=0)
    import decimal  # noqa: F401 - an import like any other
    import json.tool  # noqa: F401 - likewise

    assert seal.broken() == []
