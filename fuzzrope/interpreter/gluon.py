"""Operations that Gluon kernels have beside Triton's: layouts, shared memory, copies that run beside the program.

A layout says which thread holds an element, and no result depends on it. Barriers between threads that share memory
are put in by Triton's compiler. What Hopper adds is in :mod:`.hopper`; what Blackwell adds is not known.
"""

from __future__ import annotations

import re

from fuzzrope.interpreter.ir import Op, Type, read_type
from fuzzrope.interpreter.translate import Translator, emits, result_types
from fuzzrope.interpreter.values import Val, stored_elem, union


@emits("ttg.convert_layout", "gluon.set_auto_layout")
def _same(tr: Translator, op: Op) -> None:
    (a,) = tr.ins(op)
    tr.bind(op, a)


def _piece(tr: Translator, op: Op, code: str) -> None:
    tr.bind(op, tr.let(code, result_types(op)[0], True))


@emits("ttg.local_alloc")
def _alloc(tr: Translator, op: Op) -> None:
    kind = result_types(op)[0]
    tr.account(Type(kind.to, kind.block), (True,) * len(kind.block))
    _piece(tr, op, f"rt.buffer({kind.to!r}, {kind.block!r})")
    for value in tr.ins(op):
        piece = tr.env[op.outs[0]]
        tr.line(f"rt.piece_store({tr.site(op, 'store')}, {piece.code}, {tr.whole(value).code}, {tr.act})")


@emits("ttg.local_dealloc")
def _dealloc(tr: Translator, op: Op) -> None:
    """Its memory serves for others from here on, but no operation can name it any more."""


@emits("ttg.memdesc_index")
def _index(tr: Translator, op: Op) -> None:
    piece, index = tr.ins(op)
    _piece(tr, op, f"rt.piece_at({tr.site(op, 'load')}, {piece.code}, {index.code}, {tr.act})")


@emits("ttg.memdesc_subslice")
def _part(tr: Translator, op: Op) -> None:
    (piece,) = tr.ins(op)
    starts = tuple(int(n) for n in re.findall(r"-?\d+", op.head.rpartition("[")[2]))
    _piece(tr, op, f"rt.piece_part({piece.code}, {starts!r}, {result_types(op)[0].block!r})")


@emits("ttg.memdesc_trans")
def _turned(tr: Translator, op: Op) -> None:
    (piece,) = tr.ins(op)
    order = tuple(int(n) for n in re.findall(r"-?\d+", op.attrs["order"].partition(":")[2]))
    _piece(tr, op, f"rt.piece_turned({piece.code}, {order!r})")


@emits("ttg.memdesc_reshape")
def _shaped(tr: Translator, op: Op) -> None:
    (piece,) = tr.ins(op)
    _piece(tr, op, f"rt.piece_shaped({piece.code}, {result_types(op)[0].block!r})")


def _elements(tr: Translator, op: Op, code: str) -> None:
    kind = result_types(op)[0]
    tr.bind(op, tr.let(code, kind, False, (True,) * kind.rank))


@emits("ttg.local_load")
def _load(tr: Translator, op: Op) -> None:
    piece = tr.ins(op)[0]  # behind it may be the token of the wait that it comes after
    _elements(tr, op, f"rt.piece_load({tr.site(op, 'load')}, {piece.code})")


@emits("ttg.local_store")
def _store(tr: Translator, op: Op) -> None:
    value, piece = tr.ins(op)
    tr.line(f"rt.piece_store({tr.site(op, 'store')}, {piece.code}, {tr.whole(value).code}, {tr.act})")


@emits("ttg.local_gather")
def _gather(tr: Translator, op: Op) -> None:
    piece, index = tr.ins(op)
    axis = int(op.attrs["axis"])
    index_code = tr.whole(index).code
    _elements(tr, op, f"rt.piece_gather({tr.site(op, 'load')}, {piece.code}, {index_code}, {axis}, {tr.act})")


@emits("ttg.local_scatter")
def _scatter(tr: Translator, op: Op) -> None:
    piece, index, value = tr.ins(op)  # printed as piece[index], value
    axis = int(op.attrs["axis"])
    tr.line(
        f"rt.piece_scatter({tr.site(op, 'store')}, {piece.code}, {tr.whole(index).code}, {tr.whole(value).code}, "
        f"{axis}, {tr.act})"
    )


@emits("ttg.async_copy_global_to_local")
def _copy(tr: Translator, op: Op) -> None:
    ptr, piece, *rest = tr.ins(op)
    words = re.findall(r"\b(mask|other)\b", op.head)
    given = dict(zip(words, rest, strict=False))
    mask, other = given.get("mask"), given.get("other")
    kind = ptr.type.with_elem(read_type(ptr.type.to).elem)
    tr.loads.add(ptr.root)
    root = tr.roots[ptr.root] if ptr.root else "rt.anywhere"
    fill = other.code if other else "0"  # what is masked off arrives as zeros
    exact = f", exact={ptr.twin}" if ptr.twin else ""
    vals = [val for val in (ptr, mask, other) if val is not None]
    loaded = tr.let(
        f"rt.load({tr.site(op, 'load')}, {root}, {stored_elem(ptr.type.to)!r}, {tr.array(ptr)}, "
        f"{mask.code if mask else None}, {tr.act}, {fill}{exact})",
        kind,
        False,
        union(vals, kind.rank),
    )
    tr.line(f"rt.copy_begin({tr.site(op, 'store')}, {piece.code}, {loaded.code}, {tr.act})")
    _token(tr, op)


@emits("ttg.async_commit_group")
def _commit(tr: Translator, op: Op) -> None:
    tr.line(f"rt.copy_commit({tr.act})")
    _token(tr, op)


@emits("ttg.async_wait")
def _wait(tr: Translator, op: Op) -> None:
    tr.line(f"rt.copy_wait({int(op.attrs['num'])}, {tr.act})")
    _token(tr, op)


def _token(tr: Translator, op: Op) -> None:
    """Copies, groups and waits give tokens, which order operations and are nothing."""
    tr.bind(op, *(Val("None", Type("token"), True) for _ in op.outs))
