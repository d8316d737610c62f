"""``torch.cuda`` as it answers on a machine with one imaginary H200."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import torch

from fuzzrope.run.facade import CUDA, DEFAULT_DEVICE


class _Stream:
    """A stream on which everything has already happened."""

    cuda_stream = 0
    device = CUDA

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: Any) -> None: ...


class _Event:
    """An event that has happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 1.0


PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    total_memory=141 * 2**30,
    multi_processor_count=132,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=62914560,
    is_integrated=0,
)


@contextlib.contextmanager
def _null_context(*args: Any, **kwargs: Any) -> Any:
    yield


def _as_written(model: Any = None, **options: Any) -> Any:
    """``torch.compile`` that leaves code as it is: what it would make of it for a GPU has no place to run."""
    return (lambda function: function) if model is None else model


def pretend_cuda() -> None:
    """Answer ``torch.cuda`` for one imaginary H200. For a child process: it is never taken back."""

    def always(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    answers: dict[str, Any] = {
        "is_available": always(True),
        "is_initialized": always(True),
        "init": always(None),
        "device_count": always(1),
        "current_device": always(0),
        "set_device": always(None),
        "synchronize": always(None),
        "empty_cache": always(None),
        "is_bf16_supported": always(True),
        "get_device_name": always(PROPERTIES.name),
        "get_device_capability": always((PROPERTIES.major, PROPERTIES.minor)),
        "get_device_properties": always(PROPERTIES),
        "memory_allocated": always(0),
        "max_memory_allocated": always(0),
        "memory_reserved": always(0),
        "reset_peak_memory_stats": always(None),
        "mem_get_info": always((PROPERTIES.total_memory, PROPERTIES.total_memory)),
        "manual_seed": always(None),
        "manual_seed_all": always(None),
        "is_current_stream_capturing": always(False),
        "current_stream": lambda *args, **kwargs: _Stream(),
        "default_stream": lambda *args, **kwargs: _Stream(),
        "stream": _null_context,
        "device": _null_context,
        "device_of": _null_context,
        "Stream": _Stream,
        "Event": _Event,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name in ("range_push", "range_pop", "mark", "range_start", "range_end"):
        setattr(torch.cuda.nvtx, name, always(None))
    torch.cuda.nvtx.range = _null_context
    torch.compile = _as_written
    # These do not pass through torch functions, or check their arguments before.
    setattr(torch.Tensor, "record_stream", always(None))  # noqa: B010 - an assignment that type checkers refuse
    torch.set_default_device = lambda device: DEFAULT_DEVICE.__setitem__(0, torch.device(device or "cpu"))
    torch.get_default_device = lambda: DEFAULT_DEVICE[0]
