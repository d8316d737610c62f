"""From a Triton kernel to the text of its IR: Triton's own front end and first passes, for compute capability 9.0.

The text is cached on disk beside Triton's own artifacts (``TRITON_CACHE_DIR``), by everything it depends
on. It is read back as data.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any

import triton
from triton._C.libtriton import ir as mlir
from triton.compiler.compiler import ASTSource, filter_traceback, make_backend
from triton.runtime.cache import get_cache_manager

VERSION = "1"  # of what the cache holds


def _key(src: ASTSource, options: Any) -> str:
    code = getattr(src.fn.fn, "__code__", None)
    parts = ("fuzzrope-ttir", VERSION, triton.__version__, src.hash(), options.hash(), getattr(code, "co_filename", ""))
    return hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()


def ttir(src: ASTSource, target: Any, options: dict[str, Any]) -> tuple[str, str]:
    """The IR of a variant and its key in the cache.

    Raises whatever Triton's compiler raises for the kernel, as on a GPU.
    """
    # Divisibility is a hint for later stages: without it variants of one body share their text.
    src.attrs = {}
    backend = make_backend(target)
    parsed = backend.parse_options(dict(options))
    key = _key(src, parsed)
    name = f"{src.name[:100]}.ttir"
    manager = None
    with contextlib.suppress(OSError):
        manager = get_cache_manager(key)
        path = manager.get_file(name)
        if path is not None and not os.environ.get("TRITON_ALWAYS_COMPILE"):
            with open(path, encoding="utf-8") as file:
                return file.read(), key
    context = mlir.context()
    mlir.load_dialects(context)
    backend.load_dialects(context)
    try:
        module = src.make_ir(
            target, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context
        )
    except Exception as error:
        filter_traceback(error)
        raise
    stages: dict[str, Any] = {}
    backend.add_stages(stages, parsed, src.language)
    text = str(stages["ttir"](module, {}))
    if manager is not None:
        with contextlib.suppress(OSError):
            manager.put(text, name, binary=False)
    return text, key
