"""Minimizing: from a failing case to one where no number can go down by one and keep the failure.

Hypothesis shrinks a failure among the choices that drew it. This goes on from there, on the case itself,
and also serves cases that no campaign drew. Steps are greedy, bold ones first, and repeat until a whole
pass over every dimension, stride and offset changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from fuzzrope.build import DTYPES
from fuzzrope.case import Case, CaseError, TensorSpec, Values
from fuzzrope.geometry import dense
from fuzzrope.values import expand

#: Elements up to which a tensor's values are spelled out one by one.
SPELLED_OUT = 8

T = TypeVar("T")
Keep = Callable[[Case], bool]
Propose = Callable[[Case], list[Case]]
Fit = Callable[[Case], Case]
Write = Callable[[TensorSpec, int], TensorSpec]


class OutOfTimeError(Exception):
    """Raised by ``keep`` to end minimizing early."""


def minimize(case: Case, keep: Keep, simpler: Propose, fitted: Fit = lambda case: case) -> tuple[Case, bool]:
    """The smallest case reachable from ``case`` for which ``keep`` holds, and whether it is a minimum.

    ``simpler`` proposes cases whose linked dimensions shrink together, ``fitted`` makes cotangents follow the
    inputs. ``keep`` must hold for ``case``.
    """
    search = _Search(case, keep, fitted)
    try:
        while search.step(_less_backward) or search.step(simpler) or search.step(_plainer_memory):
            pass
        _reach_minimum(search, simpler)
        spelled = search.step(_spelled_out)
        if search.step(_plainer_numbers) or spelled:
            _reach_minimum(search, simpler)
        return search.best, True
    except OutOfTimeError:
        return search.best, False


def _reach_minimum(search: _Search, simpler: Propose) -> None:
    search.start_descent()
    while search.step(_less_backward) or search.step(simpler) or search.step(_plainer) or search.descend():
        pass


class _Search:
    """The best case so far, the cases that lost the failure, and those it has been at."""

    def __init__(self, case: Case, keep: Keep, fitted: Fit) -> None:
        self.best, self._keep, self._fitted = case, keep, fitted
        self._lost: set[str] = set()
        self._been = {case.id}

    def start_descent(self) -> None:
        """From here on every step goes down, so a case left behind before may be the next one."""
        self._been = {self.best.id}

    def accept(self, candidate: Case) -> bool:
        """Move to the candidate if it is valid, new and keeps the failure."""
        candidate = self._fitted(candidate)
        key = candidate.id
        if key in self._lost or key in self._been:
            return False
        if not _valid(candidate) or not self._keep(candidate):
            self._lost.add(key)
            return False
        self._been.add(key)
        self.best = candidate
        return True

    def step(self, proposals: Propose) -> bool:
        """Accept proposals until none is kept; whether any was."""
        moved = False
        while any(self.accept(candidate) for candidate in proposals(self.best)):
            moved = True
        return moved

    def descend(self) -> bool:
        """Lower every number as far as it goes; whether any went down."""
        moved = False
        for names in _groups(self.best):
            for read, write in list(_numbers(self.best, names)):
                while self._lower(names, read, write):
                    moved = True
        return moved

    def _lower(self, names: tuple[str, ...], read: Callable[[TensorSpec], int], write: Write) -> bool:
        value = read(self.best[names[0]])
        # Zero and one, then ever closer to the value, down to one less.
        closer = (value - (value >> k) for k in range(1, value.bit_length()))
        for new in sorted({n for n in (0, 1, *closer, value - 1) if 0 <= n < value}):
            if self.accept(self.best.with_tensors({name: write(self.best[name], new) for name in names})):
                return True
        return False


def _valid(case: Case) -> bool:
    try:
        Case.from_json(case.to_json())
    except CaseError:
        return False
    return True


def _groups(case: Case) -> list[tuple[str, ...]]:
    """Tensors to change together: those that are the same tensor, then each alone."""
    same: dict[TensorSpec, list[str]] = {}
    for name, spec in case.specs:
        same.setdefault(spec, []).append(name)
    together = [tuple(group) for group in same.values() if len(group) > 1]
    return together + [(name,) for name, _ in case.specs]


def _numbers(case: Case, names: tuple[str, ...]) -> Iterator[tuple[Callable[[TensorSpec], int], Write]]:
    """(read, write) of every size, stride and offset of the named tensors."""
    for dim in range(min(len(case[name].shape) for name in names)):
        yield (lambda spec, dim=dim: spec.shape[dim]), (lambda spec, n, dim=dim: _resized(spec, dim, n))  # type: ignore[misc]  # lambdas with defaults
    for dim in range(min(len(case[name].strides) for name in names)):
        yield (lambda spec, dim=dim: spec.strides[dim]), (lambda spec, n, dim=dim: _restrided(spec, dim, n))  # type: ignore[misc]  # lambdas with defaults
    yield (lambda spec: spec.offset), (lambda spec, n: replace(spec, offset=n))


def _resized(spec: TensorSpec, dim: int, size: int) -> TensorSpec:
    shape = (*spec.shape[:dim], size, *spec.shape[dim + 1 :])
    values = spec.values
    if values.kind == "listed":
        kept = np.array(values.data).reshape(spec.shape).take(np.arange(size), axis=dim)
        values = Values("listed", 0, tuple(kept.reshape(-1).tolist()))
    return replace(spec, shape=shape, values=values)


def _restrided(spec: TensorSpec, dim: int, stride: int) -> TensorSpec:
    return replace(spec, strides=(*spec.strides[:dim], stride, *spec.strides[dim + 1 :]))


def _less_backward(case: Case) -> list[Case]:
    """Nothing differentiated; else fewer inputs that require a gradient, and fewer outputs in use."""
    if case.backward is None:
        return []
    requires, cotangents = case.backward.requires, case.backward.cotangents
    fewer = [replace(case.backward, requires=(name,)) for name in requires if len(requires) > 1]
    fewer += [replace(case.backward, cotangents=(one,)) for one in cotangents if len(cotangents) > 1]
    fewer += [replace(case.backward, requires=_without(requires, i)) for i in range(len(requires)) if len(requires) > 2]
    fewer += [
        replace(case.backward, cotangents=_without(cotangents, i))
        for i in range(len(cotangents))
        if len(cotangents) > 2
    ]
    return [replace(case, backward=backward) for backward in (None, *fewer)]


def _without(items: tuple[T, ...], index: int) -> tuple[T, ...]:
    return items[:index] + items[index + 1 :]


def _plainer_memory(case: Case) -> list[Case]:
    """Plain values and contiguous tensors of their own, all at once and each alone."""
    plain = {name: _contiguous(name, spec) for name, spec in case.specs}
    alone = [{name: spec} for name, spec in plain.items()]
    return [*_plainer(case), *(case.with_tensors(changed) for changed in [plain, *alone])]


def _contiguous(name: str, spec: TensorSpec) -> TensorSpec:
    return replace(spec, strides=dense(spec.shape), offset=0, storage=name)


#: Recipes from the plainest up; a step only ever goes to a plainer one, so minimizing ends.
_PLAIN_VALUES = (Values("constant", 0, (1.0,)), Values("constant", 0, (0.0,)), Values("normal", 0))


def _plainer(case: Case) -> list[Case]:
    """Plainer dtypes, devices, storages and values, all tensors at once and each alone."""
    changes = [
        {name: replace(spec, dtype="float32") for name, spec in case.specs},
        {name: replace(spec, values=_PLAIN_VALUES[0]) for name, spec in case.specs if _is_recipe(spec)},
    ]
    for name, spec in case.specs:
        rank = _PLAIN_VALUES.index(spec.values) if spec.values in _PLAIN_VALUES else len(_PLAIN_VALUES)
        plainer = _PLAIN_VALUES[:rank] if _is_recipe(spec) else ()
        changes += [{name: replace(spec, values=values)} for values in plainer]
        changes += [{name: replace(spec, dtype="float32")}, {name: replace(spec, device="cuda")}]
        changes.append({name: replace(spec, storage=name)})
    return [case.with_tensors(changed) for changed in changes]


def _is_recipe(spec: TensorSpec) -> bool:
    return spec.values.kind != "listed"


def _spelled_out(case: Case) -> list[Case]:
    """The same case with the values of small tensors written out."""
    changed = {}
    for name, spec in case.specs:
        if spec.values.kind not in ("listed", "constant") and 0 < spec.numel <= SPELLED_OUT:
            numbers = expand(spec.values, DTYPES[spec.dtype], spec.numel).to(torch.float64).tolist()
            changed[name] = replace(spec, values=Values("listed", 0, tuple(numbers)))
    return [case.with_tensors(changed)] if changed else []


def _plainer_numbers(case: Case) -> list[Case]:
    """Single spelled-out numbers replaced by one, zero or the nearest integer."""
    found = []
    for name, spec in case.specs:
        if spec.values.kind != "listed":
            continue
        for i, number in enumerate(spec.values.data):
            ladder = [1.0, 0.0, *([float(round(number))] if abs(number) < 1e6 else [])]
            for new in ladder[: ladder.index(number)] if number in ladder else ladder:
                data = (*spec.values.data[:i], new, *spec.values.data[i + 1 :])
                found.append(case.with_tensor(name, values=Values("listed", 0, data)))
    return found
