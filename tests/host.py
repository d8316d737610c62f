"""What calls of the kernels cost the host, and whether a launch that skips Triton's binding is the same launch.

    python -m tests.host [--json FILE]

Triton's own launcher runs, against a driver that launches nothing (``driver.c``, which takes a C compiler, as Triton
itself does on a GPU), so no GPU is needed. Tensors lie in the host's memory, whose allocation takes about as long.
First each launch is made twice, bound by Triton and not: grid, block, stream, function and every byte of the
parameters have to agree. Then calls are timed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.nvidia import driver as backend

from fuzzrope.specimens import unfused_baseline
from fuzzrope.versions import versions
from kernels import launch
from kernels.pinned import pinned

ROOM = 4096  # bytes that the driver keeps of parameters
MODULES = [
    importlib.import_module(f"kernels.{name}")
    for name in ("rope", "rope_qk", "rope_attention", "rope_qk_backward", "rope_attention_backward", "placed")
]
ROUNDS, CALLS = 40, 50

Call = Callable[[], Any]


class Driver:
    """The driver of ``driver.c``, built in a folder, with Triton's launcher on top."""

    def __init__(self, folder: Path) -> None:
        library = folder / "libcuda.so.1"
        include = Path(backend.__file__).parent / "include"
        source = Path(__file__).parent / "driver.c"
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", f"-I{include}", f"-Wl,-soname,{library.name}"]
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
        (folder / "libcuda.so").symlink_to(library)
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        triton.knobs.nvidia.libcuda_path = triton.knobs.cache.dir = str(folder)
        active = backend.CudaDriver()
        active.get_current_device = lambda: 0
        active.set_current_device = lambda device: None
        active.get_current_stream = lambda device=0: 7
        active.get_device_capability = lambda device=0: (9, 0)
        triton.runtime.driver.set_active(active)

    def during(self, kernel: Any, run: Call) -> tuple[bytes, list[int]]:
        """What one launch of a compiled kernel hands to the driver: its parameters, and all the rest."""
        text = kernel.asm["ptx"]
        declared = text[: text.index("{", text.index(".entry"))]
        found = re.findall(r"\.param\s+(?:\.align \d+ )?\.[a-z](\d+)[^\n]*_param_\d+(?:\[(\d+)\])?", declared)
        sizes = [int(bits) // 8 * int(count or 1) for bits, count in found]
        before = self._last()[1][-1]
        self.library.expect((ctypes.c_size_t * len(sizes))(*sizes), len(sizes))
        run()
        self.library.expect(None, 0)
        parameters, numbers = self._last()
        if numbers.pop() != before + 1:
            raise SystemExit("not one launch")
        return parameters, numbers

    def _last(self) -> tuple[bytes, list[int]]:
        parameters, numbers = (ctypes.c_ubyte * ROOM)(), (ctypes.c_uint64 * 9)()
        self.library.last(parameters, numbers)
        return bytes(parameters), list(numbers)


def calls() -> Iterator[tuple[str, Call]]:
    """Calls of every kernel that is launched without being bound, forward and backward, by name."""
    generator = torch.Generator().manual_seed(1)

    def new(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = False) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad)

    rope, qk, attention = (importlib.import_module(f"kernels.{n}") for n in ("rope", "rope_qk", "rope_attention"))
    for name, dtype, grad in (("rope", torch.float32, False), ("rope, backward", torch.float16, True)):
        q, k, cos, sin = (new(*shape, dtype=dtype, grad=grad) for shape in ((2, 8, 4, 16),) * 2 + ((4, 8),) * 2)
        yield _whole(name, rope.rope, q, k, cos, sin)
    places = torch.tensor([3, 1, 0, 2])
    yield _whole("rope at positions", rope.rope, q.detach(), k.detach(), cos.detach(), sin.detach(), positions=places)
    cos, sin = new(2048, 8), new(2048, 8)
    for name, rows, keys, grad in (("", 32, 32, False), (", backward", 32, 32, True), (", one row", 1, 2048, False)):
        q, k, v = (new(2, heads, n, 16, grad=grad) for heads, n in ((4, rows), (2, keys), (2, keys)))
        options = {"q_offset": keys - 1, "causal": True} if rows == 1 else {}
        yield _whole(f"rope_qk{name}", qk.rope_qk, q, k, cos, sin, **options)
        yield _whole(f"rope_attention{name}", attention.rope_attention, q, k, v, cos, sin, **options)
    q, k, v, cos, sin = (new(*shape) for shape in ((2, 4, 32, 64),) * 3 + ((32, 32),) * 2)
    yield _whole("rope_qk, special", pinned("rope_qk", "special"), q, k, cos, sin)
    q, k = q.requires_grad_(), k.requires_grad_()
    yield _whole("rope_qk, special, backward", pinned("rope_qk", "special"), q, k, cos, sin)
    q, k = q.detach(), k.detach()
    yield _whole("rope_attention, special", pinned("rope_attention", "special"), q, k, v, cos, sin)


def _whole(name: str, function: Callable[..., Any], *tensors: torch.Tensor, **options: Any) -> tuple[str, Call]:
    """A call, and its gradients where there are any."""

    def call() -> None:
        out = function(*tensors, **options)
        outs = [x for x in (out if isinstance(out, tuple) else (out,)) if x.grad_fn is not None]
        if outs:
            asked = [x for x in tensors if x.requires_grad]
            torch.autograd.grad(outs, asked, [torch.ones_like(x) for x in outs], allow_unused=True)

    return name, call


@contextmanager
def launches_seen() -> Iterator[list[tuple[Any, ...]]]:
    """Arguments of every launch that goes through :func:`kernels.launch.enqueue`."""
    seen: list[tuple[Any, ...]] = []
    enqueue = launch.enqueue

    def noted(*arguments: Any) -> Any:
        seen.append(arguments)
        return enqueue(*arguments)

    with ExitStack() as stack:
        for module in (launch, *MODULES):
            if hasattr(module, "enqueue"):
                stack.enter_context(patch.object(module, "enqueue", noted))
        yield seen


def handed_over(driver: Driver, *arguments: Any) -> list[tuple[bytes, list[int]]]:
    """What the driver gets of one launch: bound by Triton, looked up, and looked up before."""
    kernel, programs, tensors, numbers, constants = arguments
    compiled = kernel[(programs,)](*tensors, *numbers, **constants)
    again = launch.enqueue(*arguments)
    assert again is not None
    ways: Sequence[Call] = (
        lambda: bound_anew(*arguments),
        lambda: launch.enqueue(*arguments),
        lambda: again(*tensors),
    )
    return [driver.during(compiled, way) for way in ways]


def same_launches(driver: Driver) -> list[str]:
    """Names of the kernels whose launches agree; ends the process where one does not."""
    found = []
    for name, call in calls():
        with launches_seen() as seen:
            call()
        if not seen:
            raise SystemExit(f"{name}: nothing was launched")
        for arguments in seen:
            kernel = arguments[0].fn.__name__
            first, *others = handed_over(driver, *arguments)
            if any(other != first for other in others):
                raise SystemExit(f"{name}: {kernel} is launched as {others}, by Triton as {first}")
            found.append(kernel)
    return found


def bound_anew(*arguments: Any) -> None:
    """As every launch would be without :func:`kernels.launch.enqueue`."""
    kernel, programs, tensors, numbers, constants = arguments
    if programs:
        kernel[(programs,)](*tensors, *numbers, **constants)


def _bound_run(prepared: launch.Prepared, tensors: Sequence[torch.Tensor], **constants: Any) -> None:
    bound_anew(prepared.kernel, prepared.programs, tensors, prepared.numbers, {**prepared.constants, **constants})


@contextmanager
def without_enqueue() -> Iterator[None]:
    """Every launch bound by Triton."""
    with ExitStack() as stack:
        for module in (launch, *MODULES):
            if hasattr(module, "enqueue"):
                stack.enter_context(patch.object(module, "enqueue", bound_anew))
        stack.enter_context(patch.object(launch.Prepared, "run", _bound_run))
        yield


def timed() -> dict[str, dict[str, float]]:
    """Microseconds of each call, as it is and with every launch bound by Triton; the unfused design's last.

    All take turns, since a shared machine is not always equally fast; of each the quickest batch counts.
    """
    model = unfused_baseline.ModelNew()
    x, table = torch.randn(2, 8, 4, 16), torch.randn(4, 8)
    ways: list[tuple[str, str, Call, Callable[[], AbstractContextManager[Any]]]] = []
    for name, call in calls():
        ways += [(name, "direct", call, nullcontext), (name, "bound", call, without_enqueue)]
    claimed = partial(patch.object, torch.Tensor, "is_cuda", True, create=True)
    ways.append(("unfused design, rope", "bound", lambda: model(x, x, table, table), claimed))
    rows: dict[str, dict[str, float]] = {name: {} for name, *_ in ways}
    for _ in range(ROUNDS):
        for name, way, call, context in ways:
            with context():
                call()
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                spent = 1e6 * (time.perf_counter() - start) / CALLS
            rows[name][way] = min(rows[name].get(way, spent), spent)
    return rows


def main() -> None:
    """Compare, time, and print a row for each call."""
    parser = argparse.ArgumentParser(prog="python -m tests.host", description="Host time of calls, without a GPU.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the figures there.")
    parser.add_argument("--compare", action="store_true", help="Compare launches, and time nothing.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        driver = Driver(Path(folder))
        for module in MODULES:
            stack.enter_context(patch.object(module, "can_launch", lambda device: True, create=True))
        same = same_launches(driver)
        print(f"{len(same)} launches of {', '.join(sorted(set(same)))}: the same as Triton's", file=sys.stderr)
        if given.compare:
            return
        rows = timed()
    for name, times in rows.items():
        print(f"{name:28}" + "".join(f"{what:>10} {value:6.1f} us" for what, value in times.items()))
    if given.json:
        report = {"format": 1, "environment": versions(), "microseconds": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
