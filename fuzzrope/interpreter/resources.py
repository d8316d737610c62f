"""Shared memory that a kernel takes on compute capability 9.0: compiled to know it, where it could be too much.

Triton lays shared memory out between its two middle stages. What comes after, LLVM and ptxas, takes ten times as
long as all before and changes nothing about it, so it is left out. A kernel without products, descriptors, pipelined
loops and buffers of its own has one scratch buffer at a time, for moving or reducing one tensor; if twice its largest
tensor fits, so does it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from triton._C.libtriton import ir as mlir
from triton._C.libtriton import nvidia, passes
from triton.backends.nvidia.compiler import get_ptx_version_from_options

from fuzzrope.interpreter.dataflow import set_of_ops
from fuzzrope.interpreter.frontend import Variant
from fuzzrope.interpreter.ir import Module, read, split_types
from fuzzrope.interpreter.values import BITS

LIMIT = 232448  # bytes a block may take on an H100 or H200
MAX_THREADS, WARP = 1024, 32  # of a block
_KEPT: tuple[str, ...] = (
    "tt.dot",
    "tt.dot_scaled",
    "tt.make_tensor_descriptor",
    "tt.descriptor_load",
    "tt.descriptor_store",
    "ttg.local_alloc",
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


def shared_bytes(variant: Variant) -> int:
    """Bytes of shared memory of a variant, 0 if they are known to fit; raises what Triton's compiler raises."""

    def measure() -> bytes:
        return str(laid_out(variant) if may_exceed(read(variant.text)) else 0).encode()

    hints = hashlib.sha256(str(sorted(variant.attrs.items())).encode()).hexdigest()[:16]
    return int(variant.cached(f"{hints}.shared", measure))


def laid_out(variant: Variant) -> int:
    """Bytes of shared memory as Triton lays them out: its passes up to there, in its order, as all versions have it."""
    capability = variant.target.arch
    ptx = get_ptx_version_from_options(variant.options, capability)

    def lay_out(module: Any) -> int:
        manager = mlir.pass_manager(module.context)
        passes.ttgpuir.add_combine_tensor_select_and_if(manager)
        try:
            passes.ttgpuir.add_allocate_warp_groups(manager)
        except TypeError:  # since 3.8 it is told whether a sanitizer is compiled in
            passes.ttgpuir.add_allocate_warp_groups(manager, False)
        passes.convert.add_scf_to_cf(manager)
        passes.gluon.add_inliner(manager)
        nvidia.passes.ttgpuir.add_allocate_shared_memory_nv(manager, capability, ptx)
        manager.run(module, "shared memory")
        return int(module.get_int_attr("ttg.shared"))

    return variant.lowered("ttgir", lay_out, hints=True)  # how far loads are pipelined depends on alignment
