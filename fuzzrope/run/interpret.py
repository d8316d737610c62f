"""The engine ``interpret``: Triton's own interpreter, with every access checked against the launch's views.

It runs one program after another, so it is slow, and it computes bfloat16 wrongly (raw bit patterns are
multiplied, float32 is truncated): :mod:`fuzzrope.run.capability` says so, and such cases are left out and
counted.

Loads and stores may touch what the views given to the launch cover, element by element, and nothing else:
not the gap of a padded row, not the rest of the storage. A lane that leaves them is recorded with the
kernel's source line. Inside the storage the access still happens; outside it is dropped, so that a wild
pointer costs a finding and not the process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
from triton.runtime import interpreter

from fuzzrope.interpreter.engine import MAX_GRID, LaunchRefusedError, Unsupported
from fuzzrope.interpreter.places import caller

MAX_PROGRAMS = 4096


class View:
    """The bytes that one tensor argument covers."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name, self.width = name, tensor.element_size()
        storage = tensor.untyped_storage()
        self.storage = (storage.data_ptr(), storage.data_ptr() + storage.nbytes())
        self.low = tensor.data_ptr()
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
        self.high = self.low + (reach + 1) * self.width if tensor.numel() else self.low
        self.places: np.ndarray | None = None
        if 0 < tensor.numel() < reach + 1:
            total = np.zeros(1, dtype=np.int64)
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                steps = np.arange(size if stride else 1, dtype=np.int64) * stride
                total = np.unique(np.add.outer(total, steps))
            self.places = self.low + total * self.width

    def covers(self, low: np.ndarray, width: int) -> np.ndarray:
        """For each address, whether ``width`` bytes from it belong to the view."""
        inside = (low >= self.low) & (low + width <= self.high)
        if self.places is not None and inside.any():
            nearest = self.places[np.searchsorted(self.places, low, side="right").clip(1) - 1]
            inside &= low + width <= nearest + self.width
        return inside

    def describe(self, address: int) -> str:
        """Where an address outside the view lies, in the view's own terms."""
        if address < self.low:
            distance = f"{self.low - address} bytes before {self.name}"
        elif address >= self.high:
            distance = f"{address - self.high} bytes past the end of {self.name}"
        else:
            distance = f"in a gap of {self.name}, {address - self.low} bytes from its first element"
        within = self.storage[0] <= address < self.storage[1]
        return distance + (" (inside its storage)" if within else "")


class Engine:
    """Runs launches and keeps what they did; one a child process."""

    name = "interpret"

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []
        self.accesses: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.views: list[View] = []
        self.kernel = ""
        self.idle = False
        self.is_host: Callable[[torch.Tensor], bool] = lambda tensor: False
        self.fresh: Callable[[int], int | None] = lambda address: None

    def reset(self) -> None:
        """Forget the last case."""
        self.launches.clear()
        self.accesses.clear()

    def stored_at(self, address: int) -> list[str]:
        """It does not remember which lines stored where."""
        return []

    def install(self) -> None:
        """Take the place of Triton's executor and watch its memory operations. For a child process."""
        executor = interpreter.GridExecutor

        def call(this: Any, *args: Any, **kwargs: Any) -> None:
            with torch._C.DisableTorchFunction():
                self._launch(this, args, kwargs)

        executor.__call__ = call
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store
        cas, rmw = builder.create_atomic_cas, builder.create_atomic_rmw

        def masked_load(this: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
            return load(this, ptrs, self._checked("load", ptrs, mask), *rest)

        def masked_store(this: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            return store(this, ptrs, value, self._checked("store", ptrs, mask), *rest)

        def atomic_rmw(this: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
            return rmw(this, op, ptr, val, self._checked("atomic", ptr, mask), *rest)

        def atomic_cas(this: Any, ptr: Any, *rest: Any) -> Any:
            everywhere = interpreter.TensorHandle(np.ones_like(ptr.data, dtype=bool), triton.language.int1)
            if not self._checked("atomic", ptr, everywhere).data.all():
                raise RuntimeError("an atomic operation left the memory of the launch")
            return cas(this, ptr, *rest)

        builder.create_masked_load = masked_load
        builder.create_masked_store = masked_store
        builder.create_atomic_rmw = atomic_rmw
        builder.create_atomic_cas = atomic_cas

    def _launch(self, this: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """``GridExecutor.__call__`` without its copies of every storage to the host and back."""
        names = inspect.getfullargspec(this.fn).args
        kwargs = {key: value for key, value in kwargs.items() if key in names}
        for hook in this.pre_run_hooks:
            hook(*args, **kwargs)
        bound = inspect.getcallargs(this.fn, *args, **kwargs)
        grid = this.grid(bound) if callable(this.grid) else this.grid
        grid = tuple(int(n) for n in (grid if isinstance(grid, (tuple, list)) else (grid,)))
        views = self._views(bound)
        self.launches.append(
            {
                "kernel": this.fn.__name__,
                "grid": list(grid),
                "constants": [[name, v] for name, v in bound.items() if name in this.constexprs and type(v) is int],
            }
        )
        if self.idle:
            return
        full = grid + (1,) * (3 - len(grid))
        if len(full) > 3 or any(not 0 <= n <= most for n, most in zip(full, MAX_GRID, strict=False)):
            self._record("launch", f"grid {grid} is beyond the hardware's {MAX_GRID}", 1, this.fn.__name__)
            raise LaunchRefusedError("Triton Error [CUDA]: invalid argument")
        programs = full[0] * full[1] * full[2]
        if programs > MAX_PROGRAMS:
            raise Unsupported(f"{programs} programs are too many for the interpreter ({MAX_PROGRAMS})")
        outer, self.views, self.kernel = (self.views, self.kernel), views, this.fn.__name__
        scope = interpreter._patch_lang(this.fn)
        try:
            values = {
                name: value if name in this.constexprs else interpreter._implicit_cvt(value)
                for name, value in bound.items()
            }
            builder = interpreter.interpreter_builder
            builder.set_grid_dim(*full)
            for x in range(full[0]):
                for y in range(full[1]):
                    for z in range(full[2]):
                        builder.set_grid_idx(x, y, z)
                        self._program(this.fn, values)
        finally:
            scope.restore()
            self.views, self.kernel = outer

    @staticmethod
    def _program(fn: Any, values: dict[str, Any]) -> None:
        """Run one program. What the interpreter does not know is its gap, not the kernel's fault.

        For example, it makes loop counters Python integers, which have no ``to``.
        """
        try:
            fn(**values)
        except (AttributeError, TypeError, NotImplementedError) as error:
            raise Unsupported(f"Triton's interpreter cannot run {fn.__name__}: {error}") from error
        except interpreter.InterpreterError as error:
            if isinstance(error.__cause__, (AttributeError, TypeError, NotImplementedError)):
                raise Unsupported(f"Triton's interpreter cannot run {fn.__name__}: {error.__cause__}") from error
            raise

    def _views(self, bound: dict[str, Any]) -> list[View]:
        views: list[View] = []

        def visit(name: str, value: Any) -> None:
            if isinstance(value, (tuple, list)):
                for i, item in enumerate(value):
                    visit(f"{name}[{i}]", item)
            elif isinstance(value, torch.Tensor):
                if self.is_host(value):
                    raise ValueError(f"Pointer argument ({name}) cannot be accessed from Triton (cpu tensor?)")
                views.append(View(name, value))
            elif hasattr(value, "base") and isinstance(value.base, torch.Tensor):
                visit(name, value.base)

        for name, value in bound.items():
            visit(name, value)
        return views

    def _checked(self, what: str, ptrs: Any, mask: Any) -> Any:
        """The mask without the lanes that leave every storage; lanes that leave every view are recorded."""
        address = ptrs.data.astype(np.int64, copy=False)
        # A block pointer's mask is a bare array, every other one a handle around one.
        handle = isinstance(mask, interpreter.TensorHandle)
        active = np.broadcast_to((mask.data if handle else mask) != 0, address.shape)
        if not active.any():
            return mask
        width = max(ptrs.get_element_ty().primitive_bitwidth // 8, 1)
        live = address[active]
        low, high = int(live.min()), int(live.max()) + width
        for view in self.views:
            if view.places is None and view.low <= low and high <= view.high:
                return mask
        inside = np.zeros(live.shape, dtype=bool)
        for view in self.views:
            inside |= view.covers(live, width)
        if inside.all():
            return mask
        wild = live[~inside]
        first = int(wild[0])
        home = min(self.views, key=lambda v: max(v.low - first, first - v.high, 0), default=None)
        where = home.describe(first) if home else "not memory of any argument"
        self._record(what, f"{what} of {width} bytes {where}", int((~inside).sum()), self.kernel)
        safe = inside.copy()
        for view in self.views:
            safe |= (live >= view.storage[0]) & (live + width <= view.storage[1])
        kept = active.copy()
        kept[active] = safe
        return interpreter.TensorHandle(kept, mask.dtype) if handle else kept

    def _record(self, what: str, message: str, lanes: int, kernel: str) -> None:
        line = caller()
        known = self.accesses.get((what, kernel, line))
        if known is not None:
            known["lanes"] += lanes
        elif len(self.accesses) < 100:
            self.accesses[what, kernel, line] = {
                "what": what,
                "kernel": kernel,
                "line": line,
                "message": message,
                "lanes": lanes,
            }
