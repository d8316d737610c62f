"""The driver Triton asks about the GPU it runs on, where there is none: one imaginary H200."""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from fuzzrope.run.facade import CUDA
from fuzzrope.run.pretend import PROPERTIES


class _Utils:
    """What kernels ask of ``driver.active.utils``."""

    def get_device_properties(self, device: Any = 0) -> dict[str, int]:
        """The properties by Triton's names."""
        return {
            "max_shared_mem": PROPERTIES.shared_memory_per_block_optin,
            "max_num_regs": PROPERTIES.regs_per_multiprocessor,
            "multiprocessor_count": PROPERTIES.multi_processor_count,
            "warpSize": PROPERTIES.warp_size,
            "sm_clock_rate": 1980000,
            "mem_clock_rate": 3201000,
            "mem_bus_width": 6016,
        }


class ImaginaryDriver:
    """Answers as a CUDA driver; benchmarks run nothing, so autotuning takes the first configuration."""

    utils = _Utils()

    def get_current_target(self) -> GPUTarget:
        """Compute capability 9.0."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The one device."""
        return 0

    def get_current_stream(self, device: Any = 0) -> int:
        """The default stream."""
        return 0

    def set_current_device(self, device: int) -> None:
        """There is only one."""

    def get_active_torch_device(self) -> torch.device:
        """The device that tensors claim."""
        return CUDA

    def get_device_interface(self) -> Any:
        """``torch.cuda``, as the facade answers it."""
        return torch.cuda

    def get_benchmarker(self) -> Any:
        """A benchmark in which all configurations are equally fast."""
        return lambda call, quantiles=(0.5,), **options: [1.0] * len(quantiles)

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        """A cache to flush."""
        return torch.empty(1, dtype=torch.int32)

    def clear_cache(self, cache: torch.Tensor) -> None:
        """Nothing is cached."""


def install() -> None:
    """Make it the active driver. For a child process: it is never taken back."""
    triton.runtime.driver.set_active(ImaginaryDriver())
