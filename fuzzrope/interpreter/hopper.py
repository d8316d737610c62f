"""What Gluon has for compute capability 9.0: roles of warps, barriers, bulk copies, products out of shared memory."""

from __future__ import annotations

import re
from dataclasses import replace

from fuzzrope.interpreter.dataflow import set_of_ops
from fuzzrope.interpreter.ir import Module, Op
from fuzzrope.interpreter.translate import Frame, Translator, emits, result_types
from fuzzrope.interpreter.values import Val

PRECISIONS = ("tf32", "tf32x3", "ieee")  # as the IR numbers them


def share_memory(module: Module) -> bool:
    """Whether warps of a block, or copies and products beside them, have to be ordered by the kernel itself."""
    return any(op.name.startswith("ttng.") or op.name == "ttg.warp_specialize" for op in set_of_ops(module))


@emits("ttg.warp_specialize")
def _roles(tr: Translator, op: Op) -> None:
    given, names = tr.ins(op), []
    ends: list[Val] = []
    outer = tr.in_role
    for index, region in enumerate(op.regions):
        block = region[0]
        if index:
            for number, val in zip(block.ids, given, strict=True):
                tr.env[number] = val
        name = tr.name("r")
        names.append(name)
        tr.line(f"def {name}():")
        tr.depth += 1
        tr.frames.append(Frame(len(tr.lines), tr.depth))
        tr.in_role = True
        tr.line("yield from ()")
        found = tr.block(block)
        if index == 0:
            ends = found
            tr.line(f"return [{', '.join(val.code for val in ends)}]")
        tr.in_role = outer
        tr.frames.pop()
        tr.depth -= 1
    results = [replace(val, code=tr.name(), const=False, twin=None) for val in ends]
    target = f"[{', '.join(val.code for val in results)}] = " if results else ""
    tr.line(f"{target}rt.roles([{', '.join(names)}])")
    tr.bind(op, *results)


# -- barriers -----------------------------------------------------------------------------------------------


def _pred(vals: list[Val]) -> str:
    return vals[0].code if vals else "True"


def _number(op: Op) -> int:
    """The number among an operation's operands."""
    match = re.search(r", (\d+)", op.head)
    return int(match[1]) if match else 1


@emits("ttng.init_barrier")
def _init(tr: Translator, op: Op) -> None:
    (piece,) = tr.ins(op)
    tr.line(f"rt.barrier_init({piece.code}, {_number(op)})")


@emits("ttng.inval_barrier", "ttng.fence_async_shared", "ttng.fence_mbarrier_init_release_cluster")
def _nothing(tr: Translator, op: Op) -> None:
    """What is stored before a fence is there at once here; the compiler adds those that a kernel forgot."""


@emits("ttng.barrier_expect")
def _expect(tr: Translator, op: Op) -> None:
    piece, *pred = tr.ins(op)
    tr.line(f"rt.barrier_arrive({tr.site(op, 'arrival')}, {piece.code}, 1, {_number(op)}, {_pred(pred)})")


@emits("ttng.arrive_barrier")
def _arrive(tr: Translator, op: Op) -> None:
    piece, *pred = tr.ins(op)
    tr.line(f"rt.barrier_arrive({tr.site(op, 'arrival')}, {piece.code}, {_number(op)}, 0, {_pred(pred)})")


@emits("ttng.wait_barrier")
def _wait(tr: Translator, op: Op) -> None:
    own = len(re.findall(r"%[\w$.\-]+", op.head.partition(" deps ")[0]))
    piece, phase, *pred = tr.ins(op)[:own]
    arguments = f"{tr.site(op, 'wait')}, {piece.code}, {phase.code}, {_pred(pred)}"
    if not tr.in_role:
        tr.line(f"rt.barrier_wait({arguments})")
        return
    tr.line(f"while not rt.barrier_passed({arguments}):")
    tr.line("    yield")


# -- bulk copies --------------------------------------------------------------------------------------------


def _block(tr: Translator, op: Op) -> tuple[Val, str, list[Val]]:
    """The descriptor, code of the indices, and the operands behind them."""
    count = len(re.findall(r"%[\w$.\-]+", op.head.partition("[")[2].partition("]")[0]))
    desc, *rest = tr.ins(op)
    return desc, f"[{', '.join(val.code for val in rest[:count])}]", rest[count:]


@emits("ttng.async_tma_copy_global_to_local")
def _bulk_load(tr: Translator, op: Op) -> None:
    desc, index, (piece, barrier, *pred) = _block(tr, op)
    tr.loads.add(None)
    site = tr.site(op, "load")
    tr.line(f"rt.bulk_load({site}, {desc.code}, {index}, {piece.code}, {barrier.code}, {_pred(pred)})")


@emits("ttng.async_tma_copy_local_to_global")
def _bulk_store(tr: Translator, op: Op) -> None:
    desc, index, (piece,) = _block(tr, op)
    tr.stores.add(None)
    tr.line(f"rt.bulk_store({tr.site(op, 'store')}, {desc.code}, {index}, {piece.code})")


@emits("ttng.async_tma_store_wait")
def _bulk_wait(tr: Translator, op: Op) -> None:
    tr.line(f"rt.bulk_store_wait({int(op.attrs['pendings'])})")


# -- products -----------------------------------------------------------------------------------------------


@emits("ttng.warp_group_dot")
def _product(tr: Translator, op: Op) -> None:
    a, b, c, *use = tr.ins(op)
    kind, site = result_types(op)[0], tr.site(op, "product")
    pieces = [val.code for val in (a, b) if val.elem == "piece"]
    factors = [f"rt.piece_load({site}, {val.code})" if val.elem == "piece" else tr.whole(val).code for val in (a, b)]
    elem = a.type.to if a.elem == "piece" else a.elem
    added = f"rt.product_added({c.code})"
    total = f"({added} if {use[0].code} else 0)" if use else added
    mode = PRECISIONS[int(op.attrs.get("inputPrecision", "2"))]
    code = f"T.dot({', '.join(factors)}, {total}, {elem!r}, {kind.elem!r}, {mode!r})"
    if op.attrs.get("isAsync", "false") == "true":
        code = f"rt.product_begin({site}, [{', '.join(pieces)}], {code})"
    tr.bind(op, tr.let(code, kind, False, (True,) * kind.rank))


@emits("ttng.warp_group_dot_wait")
def _product_wait(tr: Translator, op: Op) -> None:
    tr.line(f"rt.product_wait({int(op.attrs['pendings'])})")
    tr.bind(op, *tr.ins(op))
