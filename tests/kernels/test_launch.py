"""Launches: on the tensors' device, of the variant that Triton would choose, and byte for byte what Triton launches."""

import importlib
import shutil
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from triton.runtime.jit import JITFunction

import kernels
from kernels import launch, reference
from kernels.launch import INT32_MAX, Prepared, enqueue, on

MODULES = [
    importlib.import_module(f"kernels.{name}")
    for name in ("rope_launch", "placed", "rope_qk", "attention_launch", "softmax", "rope_qk_backward")
    + ("rope_attention_backward", "hopper.attention", "hopper.qk")
]
ENQUEUED = {
    f"{module.__name__}.{name}": kernel
    for module in MODULES
    for name, kernel in vars(module).items()
    if isinstance(kernel, JITFunction) and name.endswith("_kernel") and kernel.fn.__module__ == module.__name__
}


class Kernel:
    """Stands in for a kernel, which is compiled once for each variant: notes who launches what, and on which device."""

    def __init__(self, devices):
        self.params = [SimpleNamespace(is_constexpr=name.isupper()) for name in ("x", "n", "BLOCK", "FLAG")]
        self.devices, self.calls = devices, []

    def __getitem__(self, grid):
        def bound(*given, **constants):
            self.calls.append(("bound", self.devices[-1], grid, given, constants))
            return Compiled(self)

        return bound


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *given: self.kernel.calls.append(("ready", self.kernel.devices[-1], grid, given, {}))


@pytest.fixture
def devices(monkeypatch):
    """The devices that were made current, one within the other; 0 is at first."""
    stack = [0]

    @contextmanager
    def device(number):
        stack.append(torch.device(number).index if not isinstance(number, int) else number)
        yield
        stack.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(launch, "current_device", lambda: stack[-1])
    monkeypatch.setattr(launch, "COMPILED", {})
    return stack


def tensor(number, dtype=torch.float32):
    return SimpleNamespace(device=torch.device("cuda", number), dtype=dtype)


def test_a_device_is_made_current_where_it_is_not_and_only_there(devices):
    for device, current in (("cuda:1", 1), ("cuda:0", 0), ("cuda", 0), ("cpu", 0)):
        with on(torch.device(device)):
            assert devices[-1] == current
        assert devices == [0]


def test_kernels_run_on_the_device_of_their_tensors_whatever_is_current(devices):
    kernel = Kernel(devices)
    again = [enqueue(kernel, 3, [tensor(number)], [5], {"BLOCK": 16, "FLAG": True}) for number in (1, 0)]
    enqueue(kernel, 3, [tensor(1)], [5], {"BLOCK": 16, "FLAG": True})
    for call, number in zip(again, (1, 0), strict=True):
        call(tensor(number))
    prepared = Prepared(kernel, 3, (5,), {"BLOCK": 16}, {})
    for number in (1, 0, 1):
        prepared.run([tensor(number)], FLAG=True)
    assert [(how, device) for how, device, *_ in kernel.calls] == [
        ("bound", 1), ("bound", 0), ("ready", 1), ("ready", 1), ("ready", 0), ("ready", 1), ("ready", 0), ("ready", 1)
    ]  # fmt: skip
    assert devices == [0]


def test_what_is_ready_gets_all_arguments_and_blanks_for_constants(devices):
    kernel, one, other = Kernel(devices), tensor(0), tensor(0)
    again = enqueue(kernel, 3, [one], [5], {"BLOCK": 16, "FLAG": True, "num_warps": 4})
    again(other)
    enqueue(kernel, 7, [other], [6], {"BLOCK": 16, "num_warps": 4, "FLAG": True})
    assert kernel.calls == [
        ("bound", 0, (3,), (one, 5), {"BLOCK": 16, "FLAG": True, "num_warps": 4}),
        ("ready", 0, (3, 1, 1), (other, 5, None, None), {}),
        ("ready", 0, (7, 1, 1), (other, 6, None, None), {}),
    ]


@pytest.mark.parametrize(
    ("tensors", "numbers", "constants"),
    [
        ([tensor(0, torch.float16)], [5], {"BLOCK": 16}),
        ([tensor(0), None], [5], {"BLOCK": 16}),
        ([tensor(0)], [INT32_MAX + 1], {"BLOCK": 16}),
        ([tensor(0)], [-INT32_MAX - 2], {"BLOCK": 16}),
        ([tensor(0)], [5], {"BLOCK": 32}),
        ([tensor(0)], [5], {"BLOCK": 16, "num_warps": 8}),
    ],
    ids=["dtype", "no tensor", "64 bits", "64 bits below", "constant", "option"],
)
def test_what_triton_compiles_anew_for_is_bound_anew(devices, tensors, numbers, constants):
    kernel = Kernel(devices)
    enqueue(kernel, 1, [tensor(0)], [5], {"BLOCK": 16})
    for _ in range(2):
        enqueue(kernel, 1, tensors, numbers, constants)
    assert [how for how, *_ in kernel.calls] == ["bound", "bound", "ready"]


def test_numbers_of_32_bits_share_a_variant(devices):
    kernel = Kernel(devices)
    for number in (1, 16, 0, INT32_MAX, -INT32_MAX - 1, 0.5):
        enqueue(kernel, 1, [tensor(0)], [number], {"BLOCK": 16})
    assert [how for how, *_ in kernel.calls] == ["bound"] + ["ready"] * 5


def test_no_programs_are_no_launch(devices):
    kernel = Kernel(devices)
    assert enqueue(kernel, 0, [tensor(0)], [5], {}) is None
    Prepared(kernel, 0, (5,), {}, {}).run([tensor(0)])
    assert kernel.calls == []


def test_every_kernel_that_is_launched_so_is_looked_at():
    assert len(ENQUEUED) == 11


@pytest.mark.parametrize("name", ENQUEUED)
def test_a_kernel_that_is_launched_so_specializes_nothing(name):
    for param in ENQUEUED[name].params:
        pointer = param.name.endswith("_ptr")
        if not param.name.endswith("_desc"):  # of which Triton tells blocks apart, which are a matter of constants
            assert param.is_constexpr or (param.do_not_specialize_on_alignment if pointer else param.do_not_specialize)
    kinds = [(param.is_constexpr, not param.name.endswith(("_ptr", "_desc"))) for param in ENQUEUED[name].params]
    assert kinds == sorted(kinds)  # tensors, numbers, constants


def test_the_driver_gets_the_bytes_that_it_gets_of_triton():
    assert shutil.which("cc"), "a C compiler is needed, as Triton needs one itself on a GPU"
    done = subprocess.run(
        [sys.executable, "-m", "tests.host", "--compare"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for kernel in ENQUEUED.values():
        assert kernel.fn.__name__ in done.stderr


def imaginary(*shape, dtype=torch.complex64):
    """A lazily negated view, which has gaps."""
    return torch.randn(*shape, dtype=dtype).conj().imag


NEGATED = {
    "gaps": imaginary(2, 3, 5, 32),
    "rows left out": imaginary(2, 3, 10, 32)[:, :, ::2],
    "expanded": imaginary(1, 3, 1, 32).expand(2, 3, 5, 32),
    "transposed": imaginary(2, 5, 3, 32).transpose(1, 2),
    "empty": imaginary(2, 0, 5, 32),
    "part of a storage": imaginary(4, 3, 5, 32)[2:],
}


@pytest.mark.parametrize("layout", NEGATED)
def test_a_lazily_negated_view_is_resolved_with_its_strides(layout):
    x = NEGATED[layout]
    (found,) = launch.resolved(x)
    assert x.is_neg()
    assert not found.is_neg()
    assert found.stride() == x.stride()
    assert torch.equal(found, x)


@pytest.mark.parametrize("layout", [name for name in NEGATED if name != "empty"])
def test_operations_take_lazily_negated_views_forward_and_backward(engine, monkeypatch, layout):
    for name in ("rope", "operators", "rope_qk", "rope_attention", "fused_operators", "placed"):
        monkeypatch.setattr(
            importlib.import_module(f"kernels.{name}"), "can_launch", lambda device: True, raising=False
        )
    q, k, v, table = NEGATED[layout], imaginary(2, 3, 5, 32), imaginary(2, 3, 5, 32), imaginary(5, 16)
    for ours, twin, tensors in (
        (kernels.rope, reference.rope, (q, k, torch.randn(5, 16), table)),
        (kernels.rope_qk, reference.qk_reference, (q, k, torch.randn(5, 16), table)),
        (kernels.rope_attention, reference.attention_reference, (q, k, v, torch.randn(5, 16), table)),
    ):
        results = []
        for call in (ours, twin):
            leaves = [x.detach().requires_grad_() for x in tensors]
            outs = call(*leaves)
            outs = outs[:2] if isinstance(outs, tuple) else (outs,)
            given = [torch.linspace(-1, 1, out.numel()).view(out.shape) for out in outs]
            given[0] = torch.complex(given[0], given[0]).conj().imag
            results.append((*outs, *torch.autograd.grad(outs, leaves, given)))
        for found, true in zip(*results, strict=True):
            torch.testing.assert_close(found, true, atol=1e-4, rtol=1e-4)
    assert engine.launches
    assert not engine.accesses
