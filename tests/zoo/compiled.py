"""Compile every kernel of the zoo for an H200 without a GPU: ``python -m tests.zoo.compiled [NAME ...]``.

Launches go as far as the binary (sm_90), then stop. Outputs mean nothing here.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tests.zoo import ZOO


class _Sm90(triton.backends.driver.DriverBase):  # type: ignore[misc]  # Triton ships no types
    """A driver for an H200 that is not there."""

    def is_active(self) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> str:
        return "cpu"

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Any:
        def once(call: Any, *args: Any, **options: Any) -> list[float]:
            call()
            return [1.0, 1.0, 1.0]

        return once


def compile_launches() -> list[Any]:
    """From now on launches only compile; the list fills with what they compiled to."""
    kernels: list[Any] = []
    run = JITFunction.run

    def warm(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))
        return kernels[-1]

    JITFunction.run = warm
    triton.runtime.driver.set_active(_Sm90())
    return kernels


def main(names: list[str]) -> int:
    kernels = compile_launches()
    failed = 0
    for name, entry in ZOO.items():
        if names and not any(part in name for part in names):
            continue
        start, before = time.perf_counter(), len(kernels)
        try:
            entry.launch(**entry.inputs())
            note = f"{len(kernels) - before} kernels, {time.perf_counter() - start:.1f} s"
        except Exception as error:  # noqa: BLE001  # every entry is tried
            failed += 1
            note = f"FAILED {type(error).__name__}: {error}"
        print(f"{name:40} {note}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
