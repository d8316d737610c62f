"""Code written for CUDA runs unmodified: what it asks, a CPU answers as a GPU would."""

import pytest
import torch

from fuzzrope.build import FRESH
from fuzzrope.run.facade import CudaFacade


@pytest.fixture
def facade():
    with CudaFacade() as mode:
        yield mode


def test_plain_tensors_claim_to_be_on_the_gpu():
    tensor = torch.ones(2, 3)
    with CudaFacade():
        assert tensor.is_cuda
        assert not tensor.is_cpu
        assert tensor.device == torch.device("cuda", 0)
        assert tensor.get_device() == 0
        assert (tensor + 1)[0].is_cuda
        assert torch.empty_like(tensor).is_cuda
        assert tensor.new_zeros(3).is_cuda
    assert not tensor.is_cuda


def test_factories_follow_their_device(facade):
    assert torch.zeros(2, device="cuda").is_cuda
    assert torch.zeros(2, device=torch.device("cuda:0")).is_cuda
    assert torch.zeros(2, device=0).is_cuda
    assert not torch.zeros(2).is_cuda
    assert not torch.zeros(2, device="cpu").is_cuda
    assert torch.empty(2, device="meta").device.type == "meta"
    assert torch.tensor([1.0], device="cuda").is_cuda


def test_moving_copies_only_when_the_device_changes(facade):
    on_gpu = torch.ones(3, device="cuda")
    on_host = on_gpu.cpu()
    assert not on_host.is_cuda
    assert on_host.data_ptr() != on_gpu.data_ptr()
    assert on_host.cuda().is_cuda
    assert on_gpu.cuda() is on_gpu
    assert on_gpu.to("cuda") is on_gpu
    assert on_gpu.to(on_gpu.device) is on_gpu
    assert not on_gpu.to("cpu").is_cuda
    assert on_gpu.to(torch.float64).is_cuda
    assert on_host.to(device="cuda", dtype=torch.float16).dtype == torch.float16
    assert on_gpu.to(on_host).is_cuda is False
    assert on_host[1:].is_cuda is False


def test_mixing_host_and_gpu_raises_as_on_a_gpu(facade):
    on_gpu, on_host = torch.ones(3, device="cuda"), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        on_gpu + on_host
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([on_gpu, on_host])
    assert (on_gpu * torch.tensor(2.0)).is_cuda
    on_gpu.copy_(on_host)


def test_fresh_memory_is_poisoned_and_keeps_its_strides(facade):
    pattern = torch.ones(2, 3, device="cuda").t()
    for fresh in (
        torch.empty((4, 5), device="cuda"),
        torch.empty_like(pattern),
        torch.empty_strided((2, 2), (1, 2), device="cuda"),
        pattern.new_empty(7),
    ):
        with torch._C.DisableTorchFunction():
            bits = fresh.clone().view(torch.int32)
        assert (bits == FRESH[4]).all()
    assert torch.empty_like(pattern).stride() == pattern.stride()
    assert torch.empty(0, device="cuda").numel() == 0


def test_writes_next_to_fresh_memory_are_noticed(facade):
    torch.empty(8, device="cuda")
    (memory,) = facade.fresh
    assert memory.guards_intact()
    memory.raw[memory.start + memory.size] ^= 1
    assert not memory.guards_intact()


def test_the_facade_leaves_nothing_behind():
    before = torch.ones(2)
    mode = CudaFacade()
    mode.set_host(before)
    with mode:
        assert not before.is_cuda
    assert before.device.type == "cpu"
    assert torch.empty(3).device.type == "cpu"


def test_modules_move_to_the_gpu(facade):
    module = torch.nn.Linear(2, 2)
    module.to("cuda")
    assert module.weight.is_cuda
    assert not module.cpu().weight.is_cuda


def test_types_and_meta_copies_are_as_on_a_gpu(facade):
    on_gpu = torch.ones(3, device="cuda")
    assert on_gpu.type() == "torch.cuda.FloatTensor"
    assert torch.ones(3).type() == "torch.FloatTensor"
    assert torch.ones(3).type_as(on_gpu).is_cuda
    assert on_gpu.to("meta").device.type == "meta"
    assert torch.tensor([1.0, 2.0], pin_memory=True).device.type == "cpu"
