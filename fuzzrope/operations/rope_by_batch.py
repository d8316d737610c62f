"""What :mod:`.rope_placed` and :mod:`.rope_batched` share as operations: judged part by part, differentiated alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fuzzrope.build import DTYPES
from fuzzrope.case import Case, TensorSpec
from fuzzrope.draw import Draw
from fuzzrope.geometry import dense
from fuzzrope.operations import backward, rope_parts, rope_parts_gradients
from fuzzrope.operations.backward import Form
from fuzzrope.operations.base import NO_OPTIONS, Envelope, Options, Stratum, Tensors
from fuzzrope.operations.relations import Related
from fuzzrope.operations.rope_parts import TABLES, Part
from fuzzrope.operations.rope_strata import NAMES


class ByBatch(ABC):
    """An operation whose outputs are the rotated q and k, as long as each other, then the tables."""

    views: Mapping[str, str] = {"cos": "cos", "sin": "sin"}
    contiguous = False
    relations: tuple[str, ...] = ()
    #: Whether eager adds what uses of one row of a table come to in the table's dtype.
    added: bool
    #: Pins of cases that are worth a gradient, by the stratum that they lie in.
    differentiated: Mapping[str, Mapping[str, Any]]

    @abstractmethod
    def parts(self, tensors: Tensors) -> list[Part]:
        """The batches, in order, each with the rows that turn it."""

    @abstractmethod
    def passed(self, case: Case) -> dict[str, tuple[int, ...]]:
        """The shapes of the tables as they come back from a valid case."""

    @abstractmethod
    def rejects(self, case: Case) -> str | None:
        """Why the contract demands a ValueError or TypeError for this case, or None."""

    @abstractmethod
    def draw_plain(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """A case in which nothing is differentiated."""

    def results(self, options: Options = NO_OPTIONS) -> tuple[str, ...]:
        """The rotated q and k, and the tables."""
        return NAMES

    def envelopes(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, Envelope]:
        """Those of ``rope``, of each part with the rows that turn it."""
        return rope_parts.envelopes(tensors, self.parts(tensors))

    def gradients(
        self, tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], options: Options = NO_OPTIONS
    ) -> dict[str, Envelope]:
        """See :mod:`.rope_parts_gradients`."""
        with torch.no_grad():
            parts = self.parts(tensors)
            return rope_parts_gradients.gradients(tensors, cotangents, requires, parts, self.added)

    def relate(self, case: Case, relation: str) -> Related | None:
        """Nothing: there are no relations."""
        return None

    def draw(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """A case, a share of them differentiated where ``pins["gradients"]`` asks for it."""
        case = self.draw_plain(draw, pins, blocks)
        if self.rejects(case) or not backward.is_wanted(draw, pins):
            return case
        return backward.differentiated(draw, pins, case, self.forms(case))

    def forms(self, case: Case) -> dict[str, Form]:
        """dtype and shape of every output of a valid case."""
        found: dict[str, Form] = {}
        for name in ("q", "k"):
            dtype = DTYPES[case[name].dtype]
            for table in TABLES:
                dtype = torch.promote_types(dtype, DTYPES[case[table].dtype])
            found[name] = str(dtype).removeprefix("torch."), case[name].shape
        return found | {name: (case[name].dtype, shape) for name, shape in self.passed(case).items()}

    def fitted(self, case: Case) -> Case:
        """The case with cotangents of the dtypes and shapes of its outputs, for a case whose inputs were changed."""
        return case if case.backward is None or self.rejects(case) else backward.fitted(case, self.forms(case))

    def backward_strata(self) -> tuple[Stratum, ...]:
        """Every stratum of gradients."""
        used = {name: {"used": some} for name, some in backward.uses(NAMES).items()}
        large = {"tables": "exact", "B": 2, "Hq": 2, "S": 3, "D": 6, "used": NAMES}  # k may have one head
        return backward.strata(NAMES, used, {"relation": "separate"}, large, self.differentiated)

    def with_backward(self, case: Case, plain: frozenset[str]) -> frozenset[str]:
        """The strata of a valid case that lies in these, with those of gradients."""
        if case.backward is None:
            return plain
        shown = {f"gradient with: {name}" for name in self.differentiated if name in plain}
        return plain | shown | frozenset(backward.classify(case, NAMES))


def fitting(case: Case) -> Case:
    """A case of ``rope``, in which more may broadcast, with k as long as q and no tables wider than half a head."""
    (_, _, rows, width), changed = case["q"].shape, {}
    wanted = {"k": (*case["k"].shape[:2], rows, width)}
    wanted |= {name: (case[name].shape[0], width // 2) for name in TABLES if case[name].shape[1] != 1}
    for name, shape in wanted.items():
        if case[name].shape != shape:
            changed[name] = replace(case[name], shape=shape, strides=dense(shape))
    return case.with_tensors(changed)


def grown(spec: TensorSpec, rows: int) -> TensorSpec:
    """A table with at least so many rows, for what is said of layouts and sizes alone."""
    return spec if spec.shape[0] >= rows else replace(spec, shape=(rows, spec.shape[1]))
