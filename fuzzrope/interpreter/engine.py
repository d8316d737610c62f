"""The engine ``ttir``: launches of any ``@triton.jit`` function run on the CPU as the IR that a GPU would get.

It takes the place of Triton's compiler: what a launch gets back holds a NumPy program instead of a cubin.
Everything before that (binding, specialization, autotuning, heuristics, compile errors) is Triton's own.
"""

from __future__ import annotations

import functools
import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
from triton.compiler.compiler import ASTSource
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from fuzzrope.interpreter.areas import Area
from fuzzrope.interpreter.arguments import program_ids, scalar
from fuzzrope.interpreter.debugging import DeviceAssertError
from fuzzrope.interpreter.descriptors import Descriptor
from fuzzrope.interpreter.frontend import Variant
from fuzzrope.interpreter.ir import Type
from fuzzrope.interpreter.machine import Machine
from fuzzrope.interpreter.places import caller
from fuzzrope.interpreter.program import KIND, Program, is_intact, pack
from fuzzrope.interpreter.races import Log
from fuzzrope.interpreter.resources import LIMIT, MAX_THREADS, WARP, shared_bytes
from fuzzrope.interpreter.translate import UnknownOperationError
from fuzzrope.interpreter.warps import DeadlockError

MAX_GRID = (2**31 - 1, 65535, 65535)
MEMORY = 2**30  # bytes that the values of one chunk may take
KEPT_LAUNCHES = 100


class Unsupported(BaseException):  # targets must not catch it by accident
    """The engine cannot run this; it says nothing about the target. Not for targets to catch."""


class LaunchRefusedError(RuntimeError):
    """What the driver would say to this launch."""


class Engine:
    """Runs launches and keeps what they did; one a process.

    Attributes:
        launches: name, grid and integer constexprs of each launch.
        accesses: what was noticed, by kind, kernel and source line.
        memory: cap in bytes on the values of the programs that run at once.
        contracts: products go into sums unrounded, unless a launch forbids it.
        strict: compile what may take too much shared memory to the end, and refuse its launches.
        is_host: tells tensors that a kernel may not touch.
        fresh: gives the pattern that a storage (by first byte) held when it was allocated, or None.
        idle: launches are counted and not executed, to show what an answer owes to them.
    """

    name = "ttir"

    def __init__(self, memory: int = MEMORY, strict: bool = False, contracts: bool = False) -> None:
        self.launches: list[dict[str, Any]] = []
        self.accesses: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.memory = memory
        self.is_host: Callable[[torch.Tensor], bool] = lambda tensor: False
        self.fresh: Callable[[int], int | None] = lambda address: None
        self.strict, self.contracts = strict, contracts
        self.idle = False
        self.programs: dict[str, Program] = {}
        self._taken: dict[int, weakref.ref[torch.Tensor]] = {}
        self._stores: dict[int, dict[str, None]] = {}
        self._undo: list[Callable[[], None]] = []

    def reset(self) -> None:
        """Forget the last case."""
        self.launches.clear()
        self.accesses.clear()
        self._taken.clear()
        self._stores.clear()

    def install(self) -> None:
        """Take the place of Triton's compiler, and note whose address is asked for. See :meth:`uninstall`."""
        original, data_ptr = triton.compiler.compile, torch.Tensor.data_ptr

        def noted(tensor: torch.Tensor) -> int:
            address = data_ptr(tensor)
            if len(self._taken) < 4096:
                self._taken[address] = weakref.ref(tensor)
            return address

        original_run = JITFunction.run

        def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            # Binding asks every tensor for its facts; only code of the user's own may see them dressed up.
            if callable(grid) or function.pre_run_hooks:
                return original_run(function, *args, grid=grid, warmup=warmup, **kwargs)
            with torch._C.DisableTorchFunction():
                return original_run(function, *args, grid=grid, warmup=warmup, **kwargs)

        JITFunction.run = run
        triton.compiler.compile = self.compile
        torch.Tensor.data_ptr = noted  # type: ignore[method-assign, assignment] # it is a plain method

        def undo() -> None:
            triton.compiler.compile = original
            JITFunction.run = original_run
            torch.Tensor.data_ptr = data_ptr  # type: ignore[method-assign] # as above

        self._undo.append(undo)

    def uninstall(self) -> None:
        """Put back what :meth:`install` replaced. Kernels launched in between keep running here."""
        while self._undo:
            self._undo.pop()()

    def compile(self, src: Any, target: Any = None, options: Any = None, _env_vars: Any = None) -> Kernel:
        """What Triton calls instead of its compiler."""
        if not isinstance(src, ASTSource):  # Gluon's kernels are of a kind of it
            raise Unsupported(f"the CPU engine runs kernels from their source, not {type(src).__name__}")
        target = target or triton.runtime.driver.active.get_current_target()
        kernel = Kernel(self, src, Variant(src, target, dict(options or {})), dict(options or {}))
        if self.strict:
            kernel.shared = shared_bytes(kernel.variant)
        return kernel

    def program(self, variant: Variant) -> Program:
        """The program of a variant, loaded or translated once a process."""
        found = self.programs.get(variant.key)
        if found is None:
            stored = functools.partial(_stored, variant, self.contracts and variant.options.enable_fp_fusion)
            found = self.programs[variant.key] = Program(stored(False), lambda: stored(True))
        return found

    def reachable(self) -> list[Area]:
        """The views whose address the target has asked for: pointers in memory may lead there."""
        tensors = [reference() for reference in self._taken.values()]
        areas = [self.area(f"a {tuple(t.shape)} tensor", t) for t in tensors if t is not None and t.numel()]
        for area in areas:
            area.shared = True  # as far as is known
        return areas

    def area(self, name: str, tensor: torch.Tensor) -> Area:
        """The memory of a tensor argument."""
        area = Area(name, tensor)
        area.fresh = self.fresh(area.storage[0])
        return area

    def note_stores(self, log: Log) -> None:
        """Remember which lines of a launch stored into memory that was poisoned when it was allocated."""
        for (address, _), accesses in [*log.writes.items(), *log.atomics.items()]:
            if self.fresh(address) is not None:
                spots = dict.fromkeys(access.site for access in accesses if access.index.size)
                self._stores.setdefault(address, {}).update(dict.fromkeys(spot.text() for spot in spots))

    def stored_at(self, address: int) -> list[str]:
        """The kernels' source lines that stored into the fresh storage at an address."""
        return list(self._stores.get(address, {}))

    def record(self, what: str, kernel: str, line: str, message: str, lanes: int) -> None:
        """Note something, once for each kernel and source line."""
        known = self.accesses.get((what, kernel, line))
        if known is not None:
            known["lanes"] += lanes
        elif len(self.accesses) < 100:
            entry = {"what": what, "kernel": kernel, "line": line, "message": message, "lanes": lanes}
            self.accesses[what, kernel, line] = entry


@functools.lru_cache
def _metadata_type(names: tuple[str, ...]) -> Any:
    return namedtuple("KernelMetadata", names)


def _stored(variant: Variant, contracts: bool, checked: bool) -> bytes:
    """The packed program of a variant from the cache, made if it is not there or damaged."""
    kind = "contracted." * contracts + "checked." * checked + KIND
    stored = variant.cached(kind, lambda: _packed(variant, checked, contracts))
    return stored if is_intact(stored) else _packed(variant, checked, contracts)


def _packed(variant: Variant, checked: bool, contracts: bool) -> bytes:
    """The program of a variant, or word of what is in the way: Triton's error, or an operation not known."""
    text = variant.text
    try:
        return pack(text, checked, contracts)
    except UnknownOperationError as error:
        raise Unsupported(str(error)) from None
    except Exception as error:  # our translator's fault: the target must not be blamed for it
        what = f"{variant.name} (Triton {triton.__version__})"
        raise Unsupported(f"the CPU engine cannot translate {what}: {type(error).__name__}: {error}") from error


class Kernel:
    """What a launch gets for a variant: stands in for Triton's ``CompiledKernel``."""

    function = None
    shared = 0
    # Nothing is assembled here; occupancy code that asks gets a plausible answer, which no result depends on.
    n_regs, n_spills, n_max_threads = 64, 0, 1024

    def __init__(self, engine: Engine, src: ASTSource, variant: Variant, options: dict[str, Any]) -> None:
        self.engine, self.src, self.name, self.hash = engine, src, src.fn.__name__, variant.key
        self.variant = variant
        self.program = engine.program(variant)
        fields = {**options, "name": self.name, "target": variant.target, "shared": 0, "hash": variant.key}
        self.metadata = _metadata_type(tuple(sorted(fields)))(**fields)
        self.packed_metadata = (options.get("num_warps", 4), options.get("num_ctas", 1), 0)
        self.overlaps = bool(options.get("launch_pdl"))
        self.leaves: list[tuple[tuple[int, ...], str, str]] = []
        names = list(src.signature)
        for i, name in enumerate(names):
            self._leaf((i,), name, src.signature[name])
        self.constants = [
            [names[path[0]], value]
            for path, value in src.constants.items()
            if len(path) == 1 and type(value) is int and path[0] in getattr(src.fn, "constexprs", ())
        ]

    def _leaf(self, path: tuple[int, ...], name: str, kind: Any) -> None:
        if isinstance(kind, (tuple, list)):
            for i, item in enumerate(kind):
                self._leaf((*path, i), f"{name}[{i}]", item)
        elif kind != "constexpr":
            self.leaves.append((path, name, kind))

    @property
    def asm(self) -> dict[str, str]:
        """The IR; nothing later is made here."""
        return {self.variant.stage: self.variant.text}

    def _init_handles(self) -> None:
        """Triton's own kernels load their binary here."""

    def result(self) -> Kernel:
        """Triton 3.6 waits for compilation."""
        return self

    def launch_metadata(self, grid: Any, stream: Any, *args: Any) -> None:
        """No profiler is attached."""
        return

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, stream: Any = None) -> None:
            full = (*grid, 1, 1)[:3]
            self.run(*full, stream, None, None, None, None, None, *args)

        return launch

    def run(
        self,
        x: int,
        y: int,
        z: int,
        stream: Any,
        function: Any,
        packed: Any,
        metadata: Any,
        enter: Any,
        leave: Any,
        *args: Any,
    ) -> None:
        """Execute one launch; raises what the driver or the kernel's own assertions would."""
        with torch._C.DisableTorchFunction(), np.errstate(all="ignore"):
            self._run((int(x), int(y), int(z)), args)

    def _run(self, grid: tuple[int, int, int], args: tuple[Any, ...]) -> None:
        engine, name = self.engine, self.name
        program = self.program
        if len(engine.launches) < KEPT_LAUNCHES:
            engine.launches.append({"kernel": name, "grid": list(grid), "constants": self.constants})
        if engine.idle:
            return
        values, areas = self._arguments(args)
        if any(not 0 <= n <= most for n, most in zip(grid, MAX_GRID, strict=True)):
            engine.record("launch", name, caller(), f"grid {grid} is beyond the hardware's {MAX_GRID}", 1)
            raise LaunchRefusedError("Triton Error [CUDA]: invalid argument")
        programs = grid[0] * grid[1] * grid[2]
        if programs == 0:
            return
        threads = self.packed_metadata[0] * WARP
        for needed, most, what in ((threads, MAX_THREADS, "threads"), (self.shared, LIMIT, "bytes of shared memory")):
            if needed > most:
                engine.record("launch", name, caller(), f"a block takes {needed} {what}, {most} is the limit", 1)
                raise OutOfResources(needed, most, what.removeprefix("bytes of "))
        function, sites = program.variant(values, grid)

        def report(what: str, site: Any, message: str, lanes: int) -> None:
            kind = site.what.removeprefix("volatile ") if what == "out_of_bounds" else what
            engine.record(kind, name, site.text(), message, lanes)

        machine = Machine(grid, sites, report)
        machine.areas, machine.reachable = areas, engine.reachable
        machine.ordered, machine.overlaps = program.ordered, self.overlaps
        program.share(areas)
        chunk = program.chunk(programs, engine.memory)
        for first in range(0, programs, chunk):
            machine.begin(first, min(chunk, programs - first))
            if machine.ordered:
                machine.log.next_program()
            try:
                function(machine, None, program_ids(grid, first, machine.count), *values)
            except (DeadlockError, DeviceAssertError, MemoryError):
                raise
            except Exception as error:  # the engine's own fault, likewise
                raise Unsupported(f"the CPU engine failed in {name}: {type(error).__name__}: {error}") from error
        machine.log.report()
        engine.note_stores(machine.log)
        del machine.log  # which knows the machine: areas need not wait for the collector

    def _arguments(self, args: tuple[Any, ...]) -> tuple[list[Any], list[Area]]:
        """The values of the IR's arguments, and the memory among them."""
        values: list[Any] = []
        areas: list[Area] = []
        kinds = self.program.args
        for path, name, kind in self.leaves:
            value = args[path[0]]
            for index in path[1:]:
                value = value[index]
            if kind[0] == "*":
                area = self._pointer(name, value)
                values.append(area)
                areas.append(area)
            elif kind.startswith("tensordesc"):
                areas.append(self._pointer(name, value.base))
                values += self._descriptor(value, areas[-1], kinds[len(values)][1])
            else:
                values.append(scalar(value, kinds[len(values)][1].elem))
        return values, areas

    @staticmethod
    def _descriptor(value: Any, area: Area, kind: Type) -> list[Any]:
        """A descriptor made on the host: in the IR it is followed by its shape and strides."""
        shape, strides = tuple(map(int, value.shape)), tuple(map(int, value.strides))
        nan = getattr(value, "padding", "zero") == "nan"
        return [Descriptor(area, kind.to, 0, shape, strides, kind.block, nan), *shape, *strides]

    def _pointer(self, name: str, value: Any) -> Area:
        tensor = value
        while not isinstance(tensor, torch.Tensor) and hasattr(tensor, "base"):
            tensor = tensor.base  # triton.reinterpret wraps a tensor
        if not isinstance(tensor, torch.Tensor):
            raise Unsupported(f"argument {name} of {self.name} is a pointer without a tensor")
        if self.engine.is_host(tensor):
            raise ValueError(f"Pointer argument ({name}) cannot be accessed from Triton (cpu tensor?)")
        return self.engine.area(name, tensor)
