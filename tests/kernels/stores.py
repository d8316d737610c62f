"""Which arguments of a kernel it stores through, read off Triton's IR and off the machine code of a GPU.

Both follow an address back through everything that it is computed from, but not through what was loaded: they name
more arguments than can be, never fewer.
"""

import re
from collections import defaultdict

import triton

from fuzzrope.interpreter.dataflow import resolve, set_of_ops
from fuzzrope.interpreter.ir import read

OTHER_WRITES = re.compile(r"atomic|descriptor|async|inline|call|print|histogram")
BULK_STORE = "ttng.async_tma_copy_local_to_global"
#: What writes shared memory, or nothing: copies into it, and what waits or orders.
INSIDE = {
    BULK_STORE, "ttng.async_tma_copy_global_to_local", "ttng.async_tma_store_wait", "ttng.fence_async_shared",
    "ttg.local_store",
}  # fmt: skip
BETWEEN_LAUNCHES = "griddepcontrol."  # assembly that waits for a launch, or lets the next one begin
OTHER_WRITES_OF_PTX = re.compile(r"atom|red\.|cp\.(async\.bulk|reduce)|multimem|call|st\.(async|bulk)")
REGISTER = re.compile(r"%[a-z]+\d+")


def stored_through(text: str) -> list[str]:
    """For each store in a kernel's IR the one argument that its address may come from; several are joined by +."""
    module = read(text)
    flow = resolve(module)
    names = dict(zip(module.entry.ids, (name.lstrip("%") for name, _ in module.entry.args), strict=True))
    ops = list(set_of_ops(module))
    came_from = dict(flow.comes_from)
    for op in ops:
        if op.name == "ttg.warp_specialize":  # what roles other than the first are given
            for blocks in op.regions[1:]:
                came_from |= {got: [given] for given, got in zip(op.ins, blocks[0].ids, strict=True)}
    found = []
    for op in ops:
        if op.name == "tt.elementwise_inline_asm" and op.strings[0].startswith(BETWEEN_LAUNCHES):
            continue
        assert op.name in INSIDE or not OTHER_WRITES.search(op.name), op.name
        if op.name != BULK_STORE and (op.name in INSIDE or "store" not in op.name):
            continue
        assert op.name in ("tt.store", BULK_STORE)
        seen: set[int] = set()
        pending = [op.ins[0]]
        while pending:
            value = pending.pop()
            if value not in seen:
                seen.add(value)
                maker = flow.made_by.get(value)
                pending += came_from.get(value, [])
                if maker is not None and not maker.regions and maker.name != "tt.load":
                    pending += maker.ins  # of numbers too: more than can be, not less
        through = (names[value] for value in seen & set(names))
        found.append("+".join(sorted(name for name in through if name.endswith(("_ptr", "_desc")))))
    return sorted(found)


def written_through(ptx: str, kernel: triton.JITFunction) -> set[str]:
    """The arguments that addresses of stores to global memory may come from, in the code of a compiled kernel."""
    pointers = {int(i) for i in re.findall(r"\.ptr \.global \.align \d+ \w+_param_(\d+)", ptx)}
    sources: dict[str, set[str]] = defaultdict(set)
    stores: list[set[str]] = []
    for line in ptx.splitlines():
        opcode, *rest = re.sub(r"^\s*(@!?%p\d+\s+)?", "", line).split(maxsplit=1) or [""]
        operands = rest[0] if rest else ""
        assert not OTHER_WRITES_OF_PTX.match(opcode), line
        if re.match(r"st\.(?!shared|local|param)", opcode):
            stores.append(set(REGISTER.findall(operands.partition("]")[0])))
        elif opcode.startswith("ld.param") or not opcode.startswith("ld."):
            results, _, others = operands.partition("}" if operands.startswith("{") else ",")
            for result in REGISTER.findall(results):
                sources[result] |= {*REGISTER.findall(others), *re.findall(r"_param_\d+", others)}
    arguments = [param.name for param in kernel.params if not param.is_constexpr]
    found: set[str] = set()
    for pending in stores:
        seen: set[str] = set()
        while pending:
            register = pending.pop()
            if register not in seen:
                seen.add(register)
                pending |= sources[register]
        through = {i for i in pointers if f"_param_{i}" in seen}
        assert through, "an address out of nothing"
        found |= {arguments[i] if i < len(arguments) else f"argument {i}" for i in through}
    return found
