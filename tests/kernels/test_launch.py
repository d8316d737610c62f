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

from kernels import launch
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
