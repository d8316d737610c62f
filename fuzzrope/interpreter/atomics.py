"""Atomic operations: programs in the order of their number, lanes in the order of the tensor.

Hardware gives no order. What depends on it differs there from run to run; so the old values that an
operation returns are used only in ordered launches, where each program sees what those before it did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fuzzrope.interpreter import formats, runtime
from fuzzrope.interpreter.values import SMALL_FLOATS, carried

Array = np.ndarray
Combine = Callable[[Array, Array], Array]

COMBINE: dict[str, Combine] = {
    "add": lambda old, new: old + new,
    "fadd": lambda old, new: old + new,
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
    "max": np.maximum,
    "min": np.minimum,
    "umax": runtime.maxui,
    "umin": runtime.minui,
    "exch": lambda old, new: new,
}


class Atomics:
    """The part of a machine that does read-modify-write operations."""

    def atomic_rmw(
        self: Any,
        site: Any,
        area: Any,
        elem: str,
        what: str,
        off: Array,
        value: Array,
        mask: Any,
        act: Any,
        exact: Any = None,
    ) -> Array:
        """Combine values into memory one lane after another; what was there before each."""
        combine = COMBINE[what]
        if what in ("max", "min") and elem[0] in "fb":
            combine = runtime.maxnumf if what == "max" else runtime.minnumf
        return _apply(self, site, area, elem, off, (value,), mask, act, exact, combine, what != "exch")

    def atomic_cas(
        self: Any,
        site: Any,
        area: Any,
        elem: str,
        off: Array,
        compare: Array,
        value: Array,
        act: Any,
        exact: Any = None,
    ) -> Array:
        """Write where memory equals ``compare`` bit for bit, one lane after another; what was there before."""

        def update(old: Array, expected: Array, lanes: Array) -> Array:
            if old.dtype.kind == "f":
                same = old.view(f"u{old.dtype.itemsize}") == expected.view(f"u{old.dtype.itemsize}")
                return np.where(same, lanes, old)
            return np.where(old == expected, lanes, old)

        return _apply(self, site, area, elem, off, (compare, value), True, act, exact, update)


def _apply(
    machine: Any,
    site: Any,
    area: Any,
    elem: str,
    off: Array,
    operands: tuple[Array, ...],
    mask: Any,
    act: Any,
    exact: Any,
    update: Callable[..., Array],
    reads: bool = True,
) -> Array:
    """Apply an update to every active lane in order, lanes with distinct addresses together.

    ``reads`` says that what was there before matters.
    """
    m = machine.mask(mask, act, off.ndim)
    if machine.hasty:
        machine.hurried(site, m)
    shape = np.broadcast_shapes(off.shape, *(v.shape for v in operands), () if m is None else m.shape)
    shape = (machine.count, *shape[1:])
    off = np.broadcast_to(off, shape)
    active = np.ones(shape, dtype=bool) if m is None else np.broadcast_to(m, shape)
    if exact is not None and area is not machine.anywhere:
        machine._overflow(site, area, off, np.broadcast_to(exact, shape), m)
    result = np.zeros(shape, dtype=carried(elem))
    if area is machine.anywhere:
        parts = machine._areas(elem, off, active)
        machine._stray(site, elem, off)
    else:
        lens = area.lens(elem)
        good, _ = machine._judge(site, area, lens, off, active)
        parts = [(area, lens, good, off)]
    for view, lens, where, index in parts:
        old = _rounds(lens.flat, index[where], [np.broadcast_to(v, shape)[where] for v in operands], elem, update)
        result[where] = old
        if reads and view.fresh is not None:
            machine._uninitialized(site, view, elem, result, index, where)
        machine.log.atomic(site, view, lens, index[where], where)
    return result


def _rounds(flat: Array, index: Array, operands: list[Array], elem: str, update: Callable[..., Array]) -> Array:
    """The old values of lanes (n,): the k-th access to each address happens in the k-th round."""
    old = np.zeros(len(index), dtype=carried(elem))
    if not len(index):
        return old
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    turn = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    for number in range(int(turn.max()) + 1):
        lanes = order[turn == number]
        at = index[lanes]
        before = flat[at]
        if elem in SMALL_FLOATS:
            value = formats.decode(before, elem)
            after = formats.encode(runtime.rounded(update(value, *(v[lanes] for v in operands)), elem), elem)
        else:
            value = before
            after = update(value, *(v[lanes].astype(before.dtype, copy=False) for v in operands))
        old[lanes] = value
        flat[at] = after
    return old
