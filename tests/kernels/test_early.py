"""Launches begin early where a device can, and wait before they touch memory."""

import importlib

import pytest
import torch

from kernels import early, reference
from kernels.forms import Meta
from kernels.rope_launch import rope_kernel


def test_launches_of_rope_begin_early_and_wait(launching, monkeypatch):
    module = importlib.import_module("kernels.rope")
    monkeypatch.setattr(module, "can_launch", lambda device: True)
    tensors = [torch.randn(shape) for shape in ((2, 3, 5, 32), (2, 2, 5, 32), (5, 16), (5, 16))]
    assert all(map(torch.equal, module.rope(*tensors), reference.rope(*tensors)))  # and no access came too early
    constants = module.make_plan(*map(Meta.of, tensors)).launch.constants
    assert constants["EARLY"]
    assert constants["launch_pdl"]


def test_rope_that_does_not_wait_is_seen(engine, monkeypatch):
    module = importlib.import_module("kernels.rope")
    plan = module.make_plan.__wrapped__(
        *[Meta((1, 1, 4, 16), (64, 64, 16, 1), torch.float32)] * 2, *[Meta((4, 8), (8, 1), torch.float32)] * 2
    )
    plan.launch.constants["EARLY"] = False  # and the launch is early all the same
    tensors = [torch.randn(1, 1, 4, 16), torch.randn(1, 1, 4, 16), torch.randn(4, 8), torch.randn(4, 8)]
    module.launch(plan, *tensors)
    assert plan.launch.prepared.kernel is rope_kernel
    assert {entry["what"] for entry in engine.accesses.values()} == {"race"}


@pytest.mark.parametrize(("architecture", "can"), [(80, False), (89, False), (90, True), (100, True)])
def test_devices_before_hopper_cannot(monkeypatch, architecture, can):
    monkeypatch.setattr(early, "architecture", lambda device: architecture)
    assert early.can_be_early(torch.device("cuda")) is can


def test_the_interpreter_of_triton_and_devices_of_others_cannot(monkeypatch):
    monkeypatch.setattr(early, "INTERPRETED", True)
    assert not early.can_be_early(torch.device("cpu"))
    monkeypatch.undo()
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert not early.can_be_early(torch.device("cuda"))
