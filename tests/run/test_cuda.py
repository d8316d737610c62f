"""What a child does about the memory of a GPU that it shares, told by numbers as a GPU would tell them."""

import pytest
import torch

from fuzzrope.run import cuda

GIB = 2**30


@pytest.fixture
def gpu(monkeypatch):
    numbers = {"free": 100 * GIB, "total": 140 * GIB, "reserved": 0, "emptied": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (numbers["free"], numbers["total"]))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: numbers["reserved"])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: numbers.update(emptied=numbers["emptied"] + 1))
    return numbers


def test_a_gpu_that_others_fill_is_crowded(gpu):
    assert cuda.is_crowded()


def test_a_gpu_that_the_process_itself_fills_is_not_crowded(gpu):
    gpu |= {"free": 0, "reserved": 139 * GIB}
    assert not cuda.is_crowded()


@pytest.mark.parametrize(("reserved", "emptied"), [(2 * 2**20, 0), (4 * GIB, 1)])
def test_memory_of_large_cases_is_given_back(gpu, reserved, emptied):
    gpu["reserved"] = reserved
    cuda.release()
    assert gpu["emptied"] == emptied
