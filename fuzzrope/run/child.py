"""The child: loads one target, runs cases, and reports raw facts. It judges nothing.

It lives until it dies, is killed, or finds itself tampered with. Everything it says is checked by the
parent (:mod:`fuzzrope.outcome`), because by then a target's code has run in here.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import triton

from fuzzrope.build import DTYPES, Built, build, rebuild, same_form
from fuzzrope.case import Case
from fuzzrope.operations import OPERATIONS
from fuzzrope.run import confine, cuda, driver, homes, wire
from fuzzrope.run.differentiate import differentiate, require
from fuzzrope.run.engines import BARE, Engine, Unsupported, make_engine
from fuzzrope.run.facade import CudaFacade
from fuzzrope.run.loading import load
from fuzzrope.run.pretend import pretend_cuda
from fuzzrope.run.tamper import Seal, threads_left

_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_TARGETS: tuple[str, ...] = tuple(os.path.join(_OURS, name, "") for name in ("specimens", "wild"))

PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision; the first is torch's default
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory", "DefaultCPUAllocator")


def limit_resources(limits: dict[str, int]) -> None:
    """Apply the limits (bytes) that hold for this process and its children."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, kind in (("address_space", resource.RLIMIT_AS), ("file_size", resource.RLIMIT_FSIZE)):
        if limits.get(name):
            resource.setrlimit(kind, (limits[name], limits[name]))


def serve(sock: socket.socket, entry: str, device: str, engine: str, limits: dict[str, int]) -> None:
    """Load the target, say how that went, then answer cases until the parent hangs up."""
    warnings.simplefilter("ignore")
    runner = _Runner(entry, device, engine, limits)
    with contextlib.suppress(wire.ClosedError):
        wire.send(sock, *runner.load())
        while True:
            header, (case, *numbers) = wire.receive(sock)
            reply, blobs = runner.run(pickle.loads(case), numbers, header["same_memory"], header["idle"])
            wire.send(sock, {**reply, "turn": header["turn"]}, blobs)


class _Runner:
    def __init__(self, entry: str, device: str, engine: str, limits: dict[str, int]) -> None:
        self.entry, self.device = entry, device
        self.engine: Engine | None = None
        self.facade: CudaFacade | None = None
        self.counter: cuda.LaunchCounter | None = None
        if device == "cpu" and engine != BARE:
            pretend_cuda()
            driver.install()
            self.facade = CudaFacade()
            self.engine = make_engine(engine, limits["values"], bool(limits["strict"]))
            self.engine.install()
            self.engine.is_host = self.facade.is_host
            self.engine.fresh = self.facade.pattern_of
        elif device != "cpu":
            self.counter = cuda.LaunchCounter()
        self.target: Any = None
        self.derived: tuple[list[bool], list[Any], Any] | None = None  # what differentiating gave, and raised
        self.seal = Seal()
        self._last: tuple[Case, Built] | None = None
        self.answers = homes.Answers()

    def load(self) -> tuple[dict[str, Any], list[bytes]]:
        """Import the target; a reply without outputs."""

        def work() -> None:
            self.target = load(self.entry)

        report = self._report(work, Built({}, {}))
        gc.freeze()  # what is loaded by now stays: collections between cases need not look at it
        gc.set_threshold(50_000)  # most of what a case makes is gone before a collection would find it in use
        return report

    def run(
        self, case: Case, numbers: list[bytes], same_memory: bool, idle: bool
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Run one case, given the elements of its tensors, in the last one's memory if asked; reply and blobs.

        ``idle``: its launches do nothing.
        """
        last = self._last if same_memory else None
        self._last = self.derived = None  # their memory is free before more is asked for
        if self.device != "cpu":
            cuda.release()
        try:
            if self.device != "cpu":
                built = cuda.build_on_gpu(case, numbers)
            elif self.facade is None and any(spec.device == "cpu" for _, spec in case.tensors):
                return _unsupported("a machine without a GPU has one device alone"), []
            elif last is not None and same_form(last[0], case):
                built = rebuild(last[1], case, numbers)
            else:
                built = build(case, numbers)
            if self.device == "cpu":
                self._last = case, built
        except (OSError, MemoryError, RuntimeError) as error:
            return _unsupported(f"the inputs cannot be built here: {error}"), []
        inputs = [built.tensors[name] for name, _ in case.tensors]
        if self.engine is not None and self.facade is not None:
            self.engine.reset()
            self.engine.idle = idle
            self.facade.forget()
            for tensor, (_, spec) in zip(inputs, case.tensors, strict=True):
                if spec.device == "cpu":
                    self.facade.set_host(tensor)
        elif self.counter is not None:
            self.counter.reset()

        try:
            keywords = self._prepared(dict(case.options))
        except ValueError as error:
            return _unsupported(str(error)), []
        if case.backward is not None:
            require(built, case.backward)

        def work() -> Any:
            result = self.target(*inputs, **keywords)
            if case.backward is not None:
                self._differentiate(result, case, built)
            if self.device != "cpu":
                torch.cuda.synchronize()
            return result

        return self._report(work, built)

    def _differentiate(self, result: Any, case: Case, built: Built) -> None:
        assert case.backward is not None
        names = OPERATIONS[case.operation].results(dict(case.options))
        try:
            found = differentiate(result, names, built, case.backward)
            self.derived = None if found is None else (*found, None)
        except Exception as error:  # a target's backward may raise anything; it is evidence, as in forward
            raised = _raised(error)
            if raised["status"] != "raised":
                raise
            self.derived = [], [], raised["raised"]

    def _gradients(self, blobs: list[bytes]) -> dict[str, Any] | None:
        """Whether outputs require a gradient, the form of each gradient, or None, and what backward raised."""
        if self.derived is None:
            return None
        flags, tensors, raised = self.derived
        forms = [None if item is None else self._output(item, homes.home_of(item), {}, blobs) for item in tensors]
        return {"requires": flags, "tensors": forms, "raised": raised}

    def _prepared(self, options: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of a call: dtypes for their names, and ``precision`` set instead of passed.

        Raises:
            ValueError: there is no such dtype or precision.
        """
        precision = options.pop("precision", PRECISIONS[0])
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
        torch.set_float32_matmul_precision(precision)
        self.seal.expect_precision()
        if options.get("out_dtype") is not None:
            if options["out_dtype"] not in DTYPES:
                raise ValueError(f"out_dtype {options['out_dtype']!r} is none of {', '.join(DTYPES)}")
            options["out_dtype"] = DTYPES[options["out_dtype"]]
        return options

    def _report(self, work: Callable[[], Any], built: Built) -> tuple[dict[str, Any], list[bytes]]:
        reply: dict[str, Any] = {"status": "returned", "detail": "", "container": "", "raised": None}
        result: Any = None
        self.derived = None
        started = time.perf_counter()
        try:
            with self.facade if self.facade is not None else contextlib.nullcontext():
                result = work()
        except Unsupported as limit:
            reply |= {"status": "unsupported", "detail": str(limit)}
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as leaving:
            reply |= {"status": "tampered", "detail": f"it raised {type(leaving).__name__}({leaving})"}
        except BaseException as error:  # noqa: BLE001 - a target may raise anything; all of it is evidence
            reply |= _raised(error)
            if reply["status"] == "oom" and self.device != "cpu" and cuda.is_crowded():
                reply |= _unsupported(f"other processes hold the GPU's memory: {error}")
        reply["seconds"] = time.perf_counter() - started
        reply["tampered"] = self.seal.broken()
        if reply["status"] == "returned" and (left := threads_left()):
            reply |= {"status": "tampered", "detail": f"it left a thread running: {left}"}
        blobs: list[bytes] = []
        reply |= self._watched()
        try:
            with torch._C.DisableTorchFunction():
                reply["container"], reply["outputs"] = self._outputs(result, built, blobs)
                reply["reused"] = self.answers.reused(_items(result), built.tensors.values())
                reply["gradients"] = self._gradients(blobs)
                reply["after"] = list(built.memories)
                blobs += [memory.bytes() for memory in built.memories.values()]
        except Exception as error:  # noqa: BLE001 - e.g. a returned tensor whose memory is gone
            fatal = _raised(error)
            if fatal["status"] == "raised":
                fatal = {"status": "tampered", "detail": f"what it returned could not be read: {error}"}
            return {**reply, **fatal, "outputs": [], "reused": [], "gradients": None, "after": []}, []
        return reply, blobs

    def _watched(self) -> dict[str, Any]:
        if self.engine is None or self.facade is None:
            return {"launches": self.counter.launches if self.counter else [], "accesses": []}
        accesses = list(self.engine.accesses.values())
        for memory in self.facade.fresh:
            if not memory.guards_intact():
                message = f"wrote next to a tensor of {memory.size} bytes that the target allocated"
                accesses.append({"what": "store", "kernel": "", "line": "", "message": message, "lanes": 1})
        return {"launches": self.engine.launches[:100], "accesses": accesses[:100]}

    def _outputs(self, result: Any, built: Built, blobs: list[bytes]) -> tuple[str, list[dict[str, Any]]]:
        if result is None:
            return "None", []
        items = _items(result)
        known = {name: (tensor, homes.home(tensor)) for name, tensor in built.tensors.items()}
        outputs = []
        for i, item in enumerate(items):
            home = homes.home_of(item)
            outputs.append(self._output(item, home, known, blobs))
            if home is not None:
                known[f"#{i}"] = item, home
        return "tuple" if isinstance(result, tuple) else type(result).__name__, outputs

    def _output(
        self, item: Any, home: homes.Home | None, known: dict[str, tuple[torch.Tensor, homes.Home]], blobs: list[bytes]
    ) -> dict[str, Any]:
        form: dict[str, Any] = {"type": type(item).__name__, "dtype": "", "device": "", "shape": [], "strides": []}
        form |= {"shares": [], "has_data": False, "origin": ""}
        if type(item) is not torch.Tensor:
            return form
        if home is None:
            return form | {"type": str(item.layout)}
        form |= {
            "dtype": str(item.dtype).removeprefix("torch."),
            "device": self._device(item),
            "shape": list(item.shape),
            "strides": list(item.stride()),
            "origin": self._origin(item),
            "shares": [
                [name, item.data_ptr() - t.data_ptr()]
                for name, (t, there) in known.items()
                if there == home and homes.overlap(item, t)
            ],
        }
        if item.numel() * item.element_size() <= wire.MAX_BLOB and item.device.type != "meta":
            dense = item.detach().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
            blobs.append(dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b"")
            form["has_data"] = True
        return form

    def _device(self, item: torch.Tensor) -> str:
        """The device that an output is on; without a facade the CPU stands for the GPU of a case."""
        if self.facade is not None:
            return self.facade.device_of(item).type
        return "cuda" if self.device == "cpu" and item.device.type == "cpu" else item.device.type

    def _origin(self, tensor: torch.Tensor) -> str:
        """Where the target allocated a tensor's memory, and which lines of its kernels stored into it."""
        if self.engine is None or self.facade is None:
            return ""
        address = tensor.untyped_storage().data_ptr()
        where = [("allocated", [self.facade.origin_of(address)]), ("stored to", self.engine.stored_at(address)[:8])]
        return "; ".join(f"{what} at {', '.join(lines)}" for what, lines in where if any(lines))


def _items(result: Any) -> list[Any]:
    return list(result)[:32] if isinstance(result, (tuple, list)) else [result]


def _unsupported(detail: str) -> dict[str, Any]:
    """The reply that says nothing about the target."""
    reply: dict[str, Any] = {"status": "unsupported", "detail": detail, "container": "", "raised": None}
    empty: tuple[str, ...] = ("outputs", "reused", "accesses", "launches", "tampered", "after")
    return reply | {key: [] for key in empty} | {"seconds": 0.0, "gradients": None}


def _raised(error: BaseException) -> dict[str, Any]:
    """Status and evidence of an exception, seen through the interpreter's wrapping."""
    cause: BaseException = error
    while type(cause).__name__ == "InterpreterError" and cause.__cause__ is not None:
        cause = cause.__cause__
    text = f"{cause}"[:1000]
    raised = {"type": type(cause).__name__, "message": text, "where": _where(cause)}
    if isinstance(cause, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return {"status": "oom", "detail": text, "raised": raised}
    if "CUDA error" in text:  # e.g. an illegal access: nothing on this device works any more
        return {"status": "died", "detail": text.splitlines()[0], "raised": raised}
    return {"status": "raised", "raised": raised}


def _where(error: BaseException) -> str:
    """``file:line in function`` of the innermost frame outside installed packages and the judge's own code."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        ours = frame.filename.startswith(_OURS) and not frame.filename.startswith(_TARGETS)
        ours = ours or frame.filename.startswith(("<frozen", "<generated>"))
        if "site-packages" not in frame.filename and not ours:
            place = f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}"
    return place


def main(sock: socket.socket, entry: str, device: str, engine: str, limits: dict[str, int], folder: str) -> None:
    """Entry point after the fork; never returns."""
    try:
        if device == "cpu":  # what a GPU's driver has to write to and to talk to is not known here
            confine.withdraw(folder, str(triton.knobs.cache.dir))
        limit_resources(limits)
        torch.set_num_threads(1)
        serve(sock, entry, device, engine, limits)
    except BaseException:  # noqa: BLE001 - whatever it is, it must not run on into the zygote's code
        traceback.print_exc(file=sys.__stderr__)
        os._exit(3)
    os._exit(0)
