"""A CPU that says it is a GPU, so that code written for CUDA runs unmodified without one.

While a :class:`CudaFacade` is entered, tensors in ordinary memory answer ``is_cuda`` and ``device`` as
CUDA tensors do, factories with ``device="cuda"`` work, and tensors made without a device (or moved with
``.cpu()``) count as host tensors: mixing the two raises, and a kernel launch on one is refused, as on a
real machine. ``torch.cuda`` itself is answered by :mod:`fuzzrope.run.pretend`.

Fresh memory (``torch.empty`` and its family) comes poisoned and between guard bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fuzzrope.build import FRESH, Memory
from fuzzrope.interpreter.places import caller

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
DEFAULT_DEVICE = [CPU]  # what torch.set_default_device was told
POISON_UP_TO = 2**28  # bytes; larger allocations stay as the system gives them

_PLAIN = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.arange}
_PLAIN |= {torch.tensor, torch.as_tensor, torch.empty_strided, torch.linspace, torch.eye, torch.scalar_tensor}
_PLAIN |= {torch.logspace, torch.randperm, torch.tril_indices, torch.triu_indices, torch.from_numpy}
_LIKE = {torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like, torch.rand_like, torch.randn_like}
_LIKE |= {torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full}
_LIKE |= {torch.Tensor.new_empty_strided, torch.Tensor.new_tensor, torch.randint_like}
_FRESH = {torch.empty, torch.empty_strided, torch.empty_like, torch.Tensor.new_empty, torch.Tensor.new_empty_strided}
#: Functions that may see both kinds of tensor.
_MIXED_ALLOWED = {
    torch.Tensor.copy_,
    torch._has_compatible_shallow_copy_type,
    vars(torch._C.TensorBase)["data"].__set__,
}

#: What a tensor says of itself alone, the same in any memory: most of what is asked, so it is answered first.
_FACTS = {vars(torch._C.TensorBase)[name].__get__ for name in ("shape", "dtype", "layout", "ndim", "requires_grad")}
_FACTS |= {torch.Tensor.size, torch.Tensor.stride, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.data_ptr}
_FACTS |= {torch.Tensor.element_size, torch.Tensor.storage_offset, torch.Tensor.is_contiguous}


def tensors_in(value: Any) -> Iterable[torch.Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def _mixes(tensors: list[torch.Tensor], hosts: list[bool]) -> bool:
    """Whether host and CUDA tensors meet; a host tensor without dimensions may meet anything."""
    host = any(is_host and tensor.dim() for tensor, is_host in zip(tensors, hosts, strict=True))
    return host and not all(hosts)


class CudaFacade(TorchFunctionMode):
    """Presents tensors in ordinary memory as CUDA tensors; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self._host: dict[int, torch.UntypedStorage] = {}
        self.fresh: list[Memory] = []
        self._patterns: dict[int, int] = {}
        self._origins: dict[int, str] = {}

    def forget(self) -> None:
        """Forget the tensors of the last case."""
        self._host.clear()
        self.fresh.clear()
        self._patterns.clear()
        self._origins.clear()

    def pattern_of(self, address: int) -> int | None:
        """The pattern that the storage at an address held when it was allocated, if it was poisoned."""
        return self._patterns.get(address)

    def origin_of(self, address: int) -> str:
        """Where the target allocated the storage at an address, as ``file:line: text``, if it did."""
        return self._origins.get(address, "")

    def is_host(self, tensor: torch.Tensor) -> bool:
        """Whether this tensor counts as one in host memory."""
        return bool(self._host) and tensor.device.type == "cpu" and tensor.untyped_storage()._cdata in self._host

    def set_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make this tensor, and all that shares its memory, count as a host tensor."""
        if tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            self._host[storage._cdata] = storage
        return tensor

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        """The device that the tensor claims."""
        if tensor.device.type != "cpu":
            return tensor.device
        return CPU if self.is_host(tensor) else CUDA

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTS:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = dict(kwargs or {})
        answer = _ANSWERS.get(func)
        if answer is not None:
            return answer(self, *args, **kwargs)
        if func in _PLAIN or func in _LIKE:
            return self._create(func, args, kwargs)
        if not self._host:
            return func(*args, **kwargs)  # as what follows comes to when nothing is a host tensor
        seen = [t for t in tensors_in((args, kwargs)) if t.device.type == "cpu"]
        hosts = [self.is_host(t) for t in seen]
        if func not in _MIXED_ALLOWED and _mixes(seen, hosts):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            )
        result = func(*args, **kwargs)
        if hosts and all(hosts):
            for tensor in tensors_in(result):
                self.set_host(tensor)
        return result

    def _create(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        device = kwargs.get("device")
        kwargs.pop("pin_memory", None)
        if device is not None:
            kind = torch.device(device) if isinstance(device, (str, torch.device)) else CUDA
            if kind.type == "meta":
                return func(*args, **kwargs)
            host = kind.type == "cpu"
            kwargs["device"] = CPU
        elif func in _LIKE or func is torch.as_tensor:
            host = not isinstance(args[0], torch.Tensor) or self.is_host(args[0])
        else:
            host = DEFAULT_DEVICE[0].type == "cpu"
        result = func(*args, **kwargs)
        if func in _FRESH:
            result = self._poisoned(result)
        return self.set_host(result) if host else result

    def _poisoned(self, blank: torch.Tensor) -> torch.Tensor:
        width = blank.element_size()
        poisonable = blank.dtype.is_floating_point or blank.dtype in (torch.int32, torch.int64)
        if width not in FRESH or not poisonable or blank.layout is not torch.strided:
            return blank
        size = blank.untyped_storage().nbytes()
        if not 0 < size <= POISON_UP_TO:
            return blank
        memory = Memory(size, width, FRESH)
        if memory.lazy:
            memory.fill()
        self.fresh.append(memory)
        flat = memory.tensor(blank.dtype)
        self._patterns[flat.data_ptr()] = FRESH[width]
        self._origins[flat.data_ptr()] = caller()
        return torch.as_strided(flat, blank.shape, blank.stride())

    def move(self, tensor: torch.Tensor, host: bool, **kwargs: Any) -> torch.Tensor:
        """``Tensor.to``: a copy when the claimed device or anything else changes, the tensor itself if not."""
        changes = tensor.device.type == "cpu" and host != self.is_host(tensor)
        result = tensor.to(**kwargs) if kwargs else tensor
        if changes and result is tensor:
            result = tensor.clone()
        return self.set_host(result) if host else result


def _device(facade: CudaFacade, tensor: torch.Tensor) -> torch.device:
    return facade.device_of(tensor)


def _is_cuda(facade: CudaFacade, tensor: torch.Tensor) -> bool:
    return facade.device_of(tensor).type == "cuda"


def _is_cpu(facade: CudaFacade, tensor: torch.Tensor) -> bool:
    return facade.device_of(tensor).type == "cpu"


def _get_device(facade: CudaFacade, tensor: torch.Tensor) -> int:
    return 0 if _is_cuda(facade, tensor) else -1


def _cpu(facade: CudaFacade, tensor: torch.Tensor, memory_format: Any = None) -> torch.Tensor:
    return facade.move(tensor, host=True)


def _cuda(facade: CudaFacade, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return facade.move(tensor, host=False)


def _to(facade: CudaFacade, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    host = facade.is_host(tensor)
    device = kwargs.pop("device", None)
    rest: dict[str, Any] = dict(kwargs)
    rest.pop("non_blocking", None)
    for position, value in enumerate(args):
        if isinstance(value, torch.dtype):
            rest["dtype"] = value
        elif isinstance(value, torch.Tensor):
            host, rest["dtype"] = facade.is_host(value), value.dtype
        elif isinstance(value, (str, torch.device)) or (position == 0 and type(value) is int):
            device = value
        elif value is True and position == len(args) - 1 and position >= 2:
            rest["copy"] = True
    if isinstance(device, (str, torch.device)):
        kind = torch.device(device).type
        if kind == "meta":
            return tensor.to(device="meta", **rest)
        host = kind == "cpu"
    elif device is not None:
        host = False
    return facade.move(tensor, host, **rest)


def _type_as(facade: CudaFacade, tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return facade.move(tensor, facade.is_host(other), dtype=other.dtype)


def _type(facade: CudaFacade, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if args or kwargs:
        return tensor.type(*args, **kwargs)
    return tensor.type() if facade.is_host(tensor) else tensor.type().replace("torch.", "torch.cuda.", 1)


def _same(facade: CudaFacade, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return tensor


def _is_pinned(facade: CudaFacade, *args: Any, **kwargs: Any) -> bool:
    return False


_PROPERTIES: dict[str, Callable[..., Any]] = {"is_cuda": _is_cuda, "is_cpu": _is_cpu, "device": _device}
_ANSWERS: dict[Any, Callable[..., Any]] = {
    **{vars(torch._C.TensorBase)[name].__get__: answer for name, answer in _PROPERTIES.items()},
    torch.Tensor.get_device: _get_device,
    torch.Tensor.cpu: _cpu,
    torch.Tensor.cuda: _cuda,
    torch.Tensor.to: _to,
    torch.Tensor.pin_memory: _same,
    torch.Tensor.type_as: _type_as,
    torch.Tensor.type: _type,
    torch.Tensor.is_pinned: _is_pinned,
}
