"""Operations on memory: pointers, loads, stores, atomics, descriptors. The checks are the runtime's."""

from __future__ import annotations

import re
from dataclasses import replace

from fuzzrope.interpreter import twins
from fuzzrope.interpreter.ir import Op, Type, read_type
from fuzzrope.interpreter.translate import Translator, emits, result_types, unknown
from fuzzrope.interpreter.values import Val, stored_elem, union, width_of


@emits("tt.addptr")
def _addptr(tr: Translator, op: Op) -> None:
    base, offset = tr.ins(op)
    scale = "" if base.root else f" * {width_of(base.type.to)}"
    twin = None
    if tr.checked and (base.twin or offset.twin):
        twin = twins.pointer(base, offset, width_of(base.type.to) if scale else 1)
    if base.uniform and offset.uniform:
        code = f"{base.code} + {offset.code}{scale}" if base.code != "0" else offset.code
        made = tr.let(code, base.type, True, (), base.root, base.const and offset.const)
    else:
        full = union([base, offset], base.type.rank)
        if base.code == "0":
            code = offset.code if offset.elem == "i64" else f"{offset.code}.astype(np.int64)"
        elif base.uniform or offset.uniform or offset.elem == "i64":
            code = f"np.add({base.code}, {offset.code}{scale}, dtype=np.int64)"
        else:
            factor = f"np.int64({width_of(base.type.to)}) * " if scale else ""
            code = f"{base.code} + {factor}{offset.code}"
        made = tr.let(code, base.type, False, full, base.root, base.const and offset.const)
    if twin and not made.uniform:
        twin = tr.let(twin, base.type, False, made.full).code
    tr.bind(op, replace(made, twin=twin))


def recast(tr: Translator, val: Val, kind: Type) -> Val:
    """A pointer as one to elements of another type."""
    before, after = width_of(val.type.to), width_of(kind.to)
    if before == after or val.root is None:
        return val.retyped(kind)
    if before > after:
        return tr.let(f"{val.code} * {before // after}", kind, val.uniform, val.full, val.root, val.const)
    # Towards wider elements an offset need not be whole any more: only a byte address stays exact.
    return tr.absolute(val).retyped(kind)


@emits("tt.ptr_to_int", "tt.int_to_ptr")
def _pointer_int(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    kind = result_types(op)[0]
    if op.name == "tt.ptr_to_int":
        tr.bind(op, tr.absolute(a).retyped(kind))
    else:
        tr.bind(op, replace(a, type=kind, root=None, twin=None))


def _root(tr: Translator, ptr: Val) -> str:
    return tr.roots[ptr.root] if ptr.root else "rt.anywhere"


def _exact(ptr: Val) -> str:
    return f", exact={ptr.twin}" if ptr.twin else ""


@emits("tt.load")
def _load(tr: Translator, op: Op) -> None:
    ptr, *rest = tr.ins(op)
    mask = rest[0] if rest else None
    other = rest[1] if len(rest) > 1 else None
    kind = ptr.type.with_elem("ptr", read_type(ptr.type.to).to) if ptr.type.to.startswith("!tt.ptr") else None
    kind = kind or ptr.type.with_elem(ptr.type.to)
    tr.loads.add(ptr.root)
    what = "volatile load" if op.attrs.get("isVolatile") == "true" else "load"
    uniform = ptr.uniform and (mask is None or mask.uniform) and (other is None or other.uniform)
    vals = [val for val in (ptr, mask, other) if val is not None]
    full = () if uniform else union(vals, kind.rank)
    code = (
        f"rt.load({tr.site(op, what)}, {_root(tr, ptr)}, {stored_elem(ptr.type.to)!r}, {ptr.code}, "
        f"{mask.code if mask else None}, {tr.act}, {other.code if other else None}{_exact(ptr)})"
    )
    if uniform:
        code = code.replace("rt.load(", "rt.load_one(", 1)
    tr.bind(op, tr.let(code, kind, uniform, full))


@emits("tt.store")
def _store(tr: Translator, op: Op) -> None:
    ptr, value, *rest = tr.ins(op)
    mask = rest[0].code if rest else None
    tr.stores.add(ptr.root)
    if value.elem == "ptr":
        value = tr.absolute(value)
    tr.line(
        f"rt.store({tr.site(op, 'store')}, {_root(tr, ptr)}, {stored_elem(ptr.type.to)!r}, {ptr.code}, "
        f"{value.code}, {mask}, {tr.act}{_exact(ptr)})"
    )


def _lanes(tr: Translator, val: Val) -> str:
    """A value as an array in which every lane of the tensor stands for itself."""
    return tr.whole(val).code


@emits("tt.atomic_rmw")
def _atomic_rmw(tr: Translator, op: Op) -> None:
    ptr, value, *rest = tr.ins(op)
    kind = result_types(op)[0]
    words = [word.strip() for word in op.head.partition("%")[0].split(",")]
    mask = _lanes(tr, rest[0]) if rest else "None"
    tr.stores.add(ptr.root)
    tr.loads.add(ptr.root)
    code = (
        f"rt.atomic_rmw({tr.site(op, 'atomic')}, {_root(tr, ptr)}, {stored_elem(ptr.type.to)!r}, {words[0]!r}, "
        f"{_lanes(tr, ptr)}, {_lanes(tr, value)}, {mask}, {tr.act}{_exact(tr.whole(ptr))})"
    )
    tr.bind(op, tr.let(code, kind, False, (True,) * kind.rank))


@emits("tt.atomic_cas")
def _atomic_cas(tr: Translator, op: Op) -> None:
    ptr, compare, value = tr.ins(op)
    kind = result_types(op)[0]
    tr.stores.add(ptr.root)
    tr.loads.add(ptr.root)
    code = (
        f"rt.atomic_cas({tr.site(op, 'atomic')}, {_root(tr, ptr)}, {stored_elem(ptr.type.to)!r}, "
        f"{_lanes(tr, ptr)}, {_lanes(tr, compare)}, {_lanes(tr, value)}, {tr.act}{_exact(tr.whole(ptr))})"
    )
    tr.bind(op, tr.let(code, kind, False, (True,) * kind.rank))


@emits("tt.atomic_poll")
def _atomic_poll(tr: Translator, op: Op) -> None:
    raise unknown(op, tr.module)


# -- descriptors --------------------------------------------------------------------------------------


def _list(text: str) -> list[str]:
    return re.findall(r"%[\w$.\-]+(?:#\d+)?", text)


@emits("tt.make_tensor_descriptor")
def _make_descriptor(tr: Translator, op: Op) -> None:
    vals = tr.ins(op)
    groups = [_list(group) for group in re.findall(r"\[([^\]]*)\]", op.head)]
    base, rank = vals[0], len(groups[0])
    shape, strides = vals[1 : 1 + rank], vals[1 + rank : 1 + 2 * rank]
    kind = read_type("!tt.tensordesc<" + op.types[op.types.rindex(", <") + 3 :].strip()[:-1] + ">")
    tr.stores.add(base.root)
    tr.loads.add(base.root)
    padding = op.attrs.get("padding", "1")
    code = (
        f"rt.descriptor({tr.site(op, 'launch')}, {_root(tr, base)}, {stored_elem(base.type.to)!r}, {base.code}, "
        f"[{', '.join(v.code for v in shape)}], [{', '.join(v.code for v in strides)}], {kind.block!r}, "
        f"{padding not in ('1', 'true')})"
    )
    tr.bind(op, tr.let(code, kind, True))


def _indices(vals: list[Val]) -> str:
    return "[" + ", ".join(val.code for val in vals) + "]"


@emits("tt.descriptor_load")
def _descriptor_load(tr: Translator, op: Op) -> None:
    desc, *index = tr.ins(op)
    kind = result_types(op)[0]
    tr.loads.add(None)
    code = f"rt.descriptor_load({tr.site(op, 'load')}, {desc.code}, {_indices(index)}, {kind.shape!r}, {tr.act})"
    tr.bind(op, tr.let(code, kind, False, (True,) * kind.rank))


@emits("tt.descriptor_store")
def _descriptor_store(tr: Translator, op: Op) -> None:
    desc, *rest = tr.ins(op)
    # Printed as desc[indices], value.
    *index, value = rest
    tr.stores.add(None)
    tr.line(
        f"rt.descriptor_store({tr.site(op, 'store')}, {desc.code}, {_indices(index)}, {tr.whole(value).code}, {tr.act})"
    )


@emits("tt.descriptor_reduce")
def _descriptor_reduce(tr: Translator, op: Op) -> None:
    desc, *rest = tr.ins(op)
    *index, value = rest
    what = op.head.partition(",")[0].strip()
    tr.stores.add(None)
    tr.line(
        f"rt.descriptor_reduce({tr.site(op, 'atomic')}, {desc.code}, {what!r}, {_indices(index)}, "
        f"{tr.whole(value).code}, {tr.act})"
    )


@emits("tt.descriptor_gather")
def _descriptor_gather(tr: Translator, op: Op) -> None:
    desc, rows, column = tr.ins(op)
    kind = result_types(op)[0]
    tr.loads.add(None)
    code = (
        f"rt.descriptor_gather({tr.site(op, 'load')}, {desc.code}, {tr.whole(rows).code}, {column.code}, "
        f"{kind.shape!r}, {tr.act})"
    )
    tr.bind(op, tr.let(code, kind, False, (True,) * kind.rank))


@emits("tt.descriptor_scatter")
def _descriptor_scatter(tr: Translator, op: Op) -> None:
    desc, rows, column, value = tr.ins(op)
    tr.stores.add(None)
    tr.line(
        f"rt.descriptor_scatter({tr.site(op, 'store')}, {desc.code}, {tr.whole(rows).code}, {column.code}, "
        f"{tr.whole(value).code}, {tr.act})"
    )
