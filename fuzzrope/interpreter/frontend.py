"""From a Triton kernel to the text of its IR: Triton's own front end and first passes, for compute capability 9.0.

What is made of a variant is cached on disk beside Triton's own artifacts (``TRITON_CACHE_DIR``), by
everything it depends on. A cache is as trustworthy as whoever can write there, like Triton's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import triton
from triton._C.libtriton import ir as mlir
from triton.backends.compiler import Language
from triton.compiler.compiler import ASTSource, filter_traceback, make_backend
from triton.runtime.cache import get_cache_manager

from fuzzrope.interpreter.program import VERSION

T = TypeVar("T")

_PARSED: dict[str, Any] = {}


def _parsed(backend: Any, options: dict[str, Any]) -> Any:
    """The backend's options; most variants of a process have the same."""
    key = f"{type(backend).__name__} {backend.target} {options}"
    if key not in _PARSED:
        _PARSED[key] = backend.parse_options(dict(options))
    return _PARSED[key]


class Variant:
    """One specialization of a kernel: its IR, and a place on disk for what is made of it.

    Raises whatever Triton's compiler raises for the kernel, as on a GPU, when ``text`` is first asked for.
    """

    def __init__(self, src: ASTSource, target: Any, options: dict[str, Any]) -> None:
        # Divisibility is a hint for later stages: without it variants of one body share their text.
        self.attrs, src.attrs = src.attrs, {}
        self.src, self.target = src, target
        self.backend = make_backend(target)
        self.options = _parsed(self.backend, options)
        code = getattr(src.fn.fn, "__code__", None)
        parts: tuple[Any, ...] = ("fuzzrope", VERSION, triton.__version__, src.hash(), self.options.hash())
        parts += (getattr(code, "co_filename", ""),)
        self.key = hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()
        self.name = src.name[:100]
        # Gluon's kernels have layouts from the start: what Triton's own have before they get any is skipped.
        self.stage = "ttgir" if src.language is Language.GLUON else "ttir"
        self._text: str | None = None

    @property
    def text(self) -> str:
        """Its IR."""
        if self._text is None:
            stored = self.cached(self.stage, lambda: self.lowered(self.stage, str).encode())
            self._text = stored.decode()
        return self._text

    def cached(self, kind: str, make: Callable[[], bytes]) -> bytes:
        """The bytes stored under a kind for this variant; made, and stored if possible, when they are not there."""
        manager, name = None, f"{self.name}.{kind}"
        with contextlib.suppress(OSError):
            manager = get_cache_manager(self.key)
            path = manager.get_file(name)
            if path is not None and not os.environ.get("TRITON_ALWAYS_COMPILE"):
                with open(path, "rb") as file:
                    return file.read()
        made = make()
        if manager is not None:
            with contextlib.suppress(OSError):
                manager.put(made, name, binary=True)
        return made

    def lowered(self, stage: str, read: Callable[[Any], T], hints: bool = False) -> T:
        """What ``read`` finds in the module after a stage of Triton's backend; ``hints``: alignment is told."""
        context = mlir.context()
        mlir.load_dialects(context)
        self.backend.load_dialects(context)
        implementation = self.backend.get_codegen_implementation(self.options)
        self.src.attrs = self.attrs if hints else {}
        try:
            module = self.src.make_ir(self.target, self.options, implementation, self.backend.get_module_map(), context)
        except Exception as error:  # whatever it is, it is raised again, without frames of Triton's
            filter_traceback(error)
            raise
        finally:
            self.src.attrs = {}
        stages: dict[str, Any] = {}
        self.backend.add_stages(stages, self.options, self.src.language)
        metadata: dict[str, Any] = {}
        for name, run in stages.items():
            module = run(module, metadata)
            if name == stage:
                break
        return read(module)  # here, for it lives no longer than its context
