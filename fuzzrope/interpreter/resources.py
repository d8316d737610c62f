"""Shared memory that a kernel takes on compute capability 9.0: compiled to know it, where it could be too much.

Compiling to the end takes a hundred times as long as the first passes. A kernel without products,
descriptors and pipelined loops has one scratch buffer at a time, for moving or reducing one tensor; if
twice its largest tensor fits, so does it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from triton.compiler.compiler import ASTSource

from fuzzrope.interpreter.dataflow import set_of_ops
from fuzzrope.interpreter.frontend import Variant
from fuzzrope.interpreter.ir import Module, read, split_types
from fuzzrope.interpreter.values import BITS

LIMIT = 232448  # bytes a block may take on an H100 or H200
_KEPT: tuple[str, ...] = (
    "tt.dot",
    "tt.dot_scaled",
    "tt.make_tensor_descriptor",
    "tt.descriptor_load",
    "tt.descriptor_store",
)
_KEPT += ("tt.descriptor_reduce", "tt.descriptor_gather", "tt.descriptor_scatter")


def may_exceed(module: Module) -> bool:
    """Whether a kernel might take more shared memory than there is."""
    largest = 0
    for op in set_of_ops(module):
        if op.name in _KEPT or "tt.num_stages" in op.attrs:
            return True
        for arrow in (" -> ", " to "):
            kinds = split_types(op.types.rpartition(arrow)[2]) if op.types else []
            for kind in kinds:
                elements = 1
                for extent in kind.shape or ():
                    elements *= extent
                largest = max(largest, elements * BITS.get(kind.elem, 64) // 8)
    return 2 * largest > LIMIT


def shared_bytes(variant: Variant, compile_fully: Callable[..., Any], src: ASTSource, options: dict[str, Any]) -> int:
    """Bytes of shared memory of a variant, 0 if they are known to fit; raises what Triton's compiler raises."""

    def measure() -> bytes:
        if not may_exceed(read(variant.text)):
            return b"0"
        src.attrs = variant.attrs  # how far loads are pipelined depends on alignment
        return str(compile_fully(src, target=variant.target, options=options).metadata.shared).encode()

    hints = hashlib.sha256(str(sorted(variant.attrs.items())).encode()).hexdigest()[:16]
    return int(variant.cached(f"{hints}.shared", measure))
