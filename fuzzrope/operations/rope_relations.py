"""What ``rope`` promises of two runs: batches, heads, rows and memory do not meet, and scaling is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fuzzrope.build import DTYPES
from fuzzrope.case import Case
from fuzzrope.numbers import format_of
from fuzzrope.operations.relations import Array, Related, spelled_out, written

ALL = (slice(None),) * 4
Arrays = dict[str, Array]
POWER = 3


def relate(case: Case, name: str) -> Related | None:
    """The related case, or None where the relation says nothing about this one."""
    arrays = spelled_out(case)
    if arrays is None or 0 in (*arrays["q"].shape, *arrays["k"].shape, *arrays["cos"].shape, *arrays["sin"].shape):
        return None
    length = arrays["q"].shape[2]
    arrays |= {table: arrays[table][:length] for table in ("cos", "sin")}
    return _RELATIONS[name](case, arrays)


def _contiguous(case: Case, arrays: Arrays) -> Related:
    """Memory does not matter."""
    return Related(written(case, arrays), tuple((x, ALL, ALL) for x in "qk"))


def _permuted(case: Case, arrays: Arrays) -> Related | None:
    """Batches and heads in reverse order."""
    turned = (slice(None, None, -1), slice(None, None, -1), slice(None), slice(None))
    if all(arrays[x].shape[:2] == (1, 1) for x in "qk"):
        return None
    changed = arrays | {x: arrays[x][turned] for x in "qk"}
    return Related(written(case, changed), tuple((x, turned, ALL) for x in "qk"))


def _rows(case: Case, arrays: Arrays, rows: slice) -> Related | None:
    """Only these rows of q, and of all that has as many."""
    length = arrays["q"].shape[2]
    if length < 2 or arrays["k"].shape[2] not in (1, length):
        return None
    changed = {x: arrays[x][:, :, rows] if arrays[x].shape[2] == length else arrays[x] for x in "qk"}
    changed |= {t: arrays[t][rows] if arrays[t].shape[0] == length else arrays[t] for t in ("cos", "sin")}
    tall = max(arrays["cos"].shape[0], arrays["sin"].shape[0])
    here = (slice(None), slice(None), rows, slice(None))
    equal = [(x, here if max(arrays[x].shape[2], tall) == length else ALL, ALL) for x in "qk"]
    return Related(written(case, changed), tuple(equal))


def _cut(case: Case, arrays: Arrays) -> Related | None:
    """The first rows of a longer sequence, an odd number fewer."""
    length = arrays["q"].shape[2]
    fewer = length // 2 | 1
    return _rows(case, arrays, slice(0, max(length - fewer, 1)))


def _shifted(case: Case, arrays: Arrays) -> Related | None:
    """The last rows, an odd number fewer, which lie elsewhere in their tile."""
    return _rows(case, arrays, slice(arrays["q"].shape[2] // 3 | 1, None))


def _lonely_row(case: Case, arrays: Arrays) -> Related | None:
    """One row of one head, all others being NaN."""
    changed, equal = dict(arrays), []
    row = arrays["q"].shape[2] // 2
    tall = max(arrays["cos"].shape[0], arrays["sin"].shape[0])
    for x in "qk":
        batch, heads, length, _ = arrays[x].shape
        at = (batch // 2, heads // 2)
        kept = min(row, length - 1)
        only = np.full_like(arrays[x], np.nan)
        only[at][kept] = arrays[x][at][kept]
        changed[x] = only
        there = (*at, row if max(length, tall) > row else kept, slice(None))
        equal.append((x, there, there))
    for t in ("cos", "sin"):
        kept = min(row, arrays[t].shape[0] - 1)
        only = np.full_like(arrays[t], np.nan)
        only[kept] = arrays[t][kept]
        changed[t] = only
    if any(arrays[x].shape[2] not in (1, arrays["q"].shape[2]) for x in "qk"):
        return None
    return Related(written(case, changed), tuple(equal))


def _scaled(case: Case, arrays: Arrays) -> Related | None:
    """q and k times a power of two, where no product or sum comes near the ends of its range."""
    formats = [format_of(DTYPES[spec.dtype]) for _, spec in case.tensors]
    low = max(form.min_exponent for form in formats)
    high = min(np.frexp(form.max)[1] for form in formats)
    digits = max(form.digits for form in formats)
    if not all(np.isfinite(numbers).all() for numbers in arrays.values()):
        return None
    sizes = {name: np.abs(numbers[numbers != 0]) for name, numbers in arrays.items()}
    if any(not size.size for size in sizes.values()):
        return None
    x = [np.frexp(np.concatenate([sizes["q"], sizes["k"]]))[1]]
    t = [np.frexp(np.concatenate([sizes["cos"], sizes["sin"]]))[1]]
    least, most = int(x[0].min()) + min(int(t[0].min()), 1), int(x[0].max()) + max(int(t[0].max()), 0)
    # A sum of products is a multiple of the last place of the smallest.
    if least - 2 - digits <= low or most + POWER + 2 >= high:
        return None
    changed = arrays | {name: np.ldexp(arrays[name], POWER) for name in "qk"}
    return Related(written(case, changed), tuple((x, ALL, ALL) for x in "qk"), POWER)


_RELATIONS: dict[str, Callable[[Case, Arrays], Related | None]] = {
    "cut": _cut,
    "shifted": _shifted,
    "permuted": _permuted,
    "lonely row": _lonely_row,
    "scaled": _scaled,
    "contiguous": _contiguous,  # last: the others lay out their tensors anew as well
}
NAMES = tuple(_RELATIONS)
