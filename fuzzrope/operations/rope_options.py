"""The contract of ``rope_options``: :mod:`.rope` with ``interleaved`` and ``rotary_dim``.

``interleaved`` pairs column 2*i with 2*i + 1 instead of i with half + i; only the first ``rotary_dim`` columns are
rotated, by tables (R, rotary_dim/2), and the others are copied. Outputs are transposed views of contiguous
(B, S, H, D) memory. Everything is led back to ``rope``: a case is one of ``rope`` whose tables are cut, and bounds are
those of the rotated columns, sorted into halves; a copy has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fuzzrope.case import Case, TensorSpec
from fuzzrope.draw import Draw
from fuzzrope.geometry import dense
from fuzzrope.numbers import Exact
from fuzzrope.operations import rope_backward
from fuzzrope.operations.base import NO_OPTIONS, Envelope, Options, Stratum, Tensors
from fuzzrope.operations.pieces import picked, stacked
from fuzzrope.operations.rope import Rope

OPTIONS = ("interleaved", "rotary_dim")
ROTATED = ("all", "some")
INVALID = ("odd rotary_dim", "rotary_dim beyond head_dim", "rotary_dim below 2", "rotary_dim no integer")
TABLES = ("cos", "sin")


class RopeOptions(Rope):
    """Rotary position embedding of a part of each head, in halves or in neighbours."""

    name = "rope_options"

    def rejects(self, case: Case) -> str | None:
        """What ``rope`` rejects, and a rotary_dim that is no even integer from 2 to head_dim."""
        return super().rejects(case) or (_misfit(case) or ("",))[0] or None

    def reference(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, torch.Tensor]:
        """Eager PyTorch, on tensors (batch, position, head, dimension) and back."""
        if not options:
            return super().reference(tensors)
        length, columns = tensors["q"].shape[2], _columns(tensors["q"].shape[3], options)
        cos, sin = (tensors[name][:length, :] for name in TABLES)
        c, s = cos[None, :, None, :], sin[None, :, None, :]
        found = {}
        for name in ("q", "k"):
            x = tensors[name].transpose(1, 2)
            first, second = _pairs(x, columns, options)
            parts = [first * c - second * s, second * c + first * s]
            turned = torch.stack(parts, dim=-1).flatten(-2) if options.get("interleaved") else torch.cat(parts, dim=-1)
            whole = torch.cat([turned, x[..., columns:]], dim=-1) if columns < x.shape[3] else turned
            found[name] = whole.clone(memory_format=torch.contiguous_format).transpose(1, 2)
        return {**found, "cos": cos, "sin": sin}

    def envelopes(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, Envelope]:
        """Those of ``rope`` over the rotated columns; the others must be equal."""
        if not options:
            return super().envelopes(tensors)
        columns, length = _columns(tensors["q"].shape[3], options), tensors["q"].shape[2]
        turned = super().envelopes(_in_halves(tensors, columns, options))
        tables = [tensors[name][:length].shape for name in TABLES]
        found = {}
        for name, envelope in turned.items():
            batch, heads, rows, _ = tensors[name].shape
            _, seq, _, half = np.broadcast_shapes(
                (batch, rows, heads, columns // 2), *((1, table[0], 1, table[1]) for table in tables)
            )
            rest = tensors[name][..., columns:].to(torch.float64).numpy()
            found[name] = _joined(envelope, _copied(rest), (batch, heads, seq, half), rest.shape[3], options)
        return found

    def gradients(
        self, tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], options: Options = NO_OPTIONS
    ) -> dict[str, Envelope]:
        """Those of ``rope`` over the rotated columns; the others as if rotated by tables of ones and zeros."""
        if not options:
            return super().gradients(tensors, cotangents, requires)
        plain = {name: t.detach() for name, t in tensors.items()}
        for one, other in itertools.combinations(plain, 2):  # one tensor that is two inputs stays one
            if tensors[one] is tensors[other]:
                plain[other] = plain[one]
        columns = _columns(plain["q"].shape[3], options)
        rest = plain["q"].shape[3] - columns
        inner = {
            name: torch.cat(_pairs(g, g.shape[3] - rest, options), dim=-1) if name in ("q", "k") else g
            for name, g in cotangents.items()
        }
        found = super().gradients(_in_halves(plain, columns, options), inner, requires)
        copied = {}
        if rest:
            ones = {"cos": torch.ones(1, rest, dtype=plain["cos"].dtype)}
            ones["sin"] = torch.zeros(1, rest, dtype=plain["sin"].dtype)
            others = _each(plain, lambda x: torch.cat([x[..., columns:], torch.zeros_like(x[..., columns:])], dim=-1))
            used = {name: g[..., -rest:] for name, g in cotangents.items() if name in ("q", "k")}
            used = {name: torch.cat([g, torch.zeros_like(g)], dim=-1) for name, g in used.items()}
            needed = tuple(name for name in requires if name in ("q", "k"))
            copied = super().gradients({**others, **ones}, used, needed) if used and needed else {}
        for name in copied.keys() & found.keys() if rest else found.keys() & {"q", "k"}:
            shape = plain[name].shape
            own = copied[name] if rest else _copied(np.zeros(0))
            firsts = np.arange(own.finite.size).reshape(*shape[:3], 2, rest)[..., 0, :].reshape(-1) if rest else None
            part = own if firsts is None else picked(own, firsts)
            found[name] = _joined(found[name], part, (*shape[:3], columns // 2), rest, options)
        return found

    def fitted(self, case: Case) -> Case:
        """See :mod:`.rope_backward`."""
        return case if self.rejects(case) else with_options(rope_backward.fitted(as_rope(case)), dict(case.options))

    def probes(self) -> tuple[Case, ...]:
        """Those of ``rope``, and the larger one in neighbours and with a rest."""
        plain = super().probes()
        rich = {"interleaved": True, "rotary_dim": plain[-1]["q"].shape[3] // 2}
        return (*(with_options(case, {}) for case in plain), with_options(plain[-1], rich))

    def strata(self, blocks: tuple[int, ...]) -> tuple[Stratum, ...]:
        """Those of ``rope`` and what options add."""
        return super().strata(blocks) + _strata()

    def classify(self, case: Case, blocks: tuple[int, ...]) -> frozenset[str]:
        """Those of the case of ``rope`` that this one is led back to, and what options add."""
        options = dict(case.options)
        misfit = _misfit(case)
        if misfit:
            return frozenset({f"invalid option: {misfit[1]}"})
        found = super().classify(as_rope(case), blocks)
        if self.rejects(case):
            return found
        width = case["q"].shape[3]
        columns = _columns(width, options)
        kind = ROTATED[columns < width]
        return found | {f"rotated columns, in {_manner(options)}: {kind}"}

    def draw(self, draw: Draw, pins: Mapping[str, Any], blocks: tuple[int, ...]) -> Case:
        """A case of ``rope`` with options, its tables cut."""
        case = super().draw(draw, pins, blocks)
        width = case["q"].shape[-1]
        options: dict[str, Any] = {}
        if pins["interleaved"] if "interleaved" in pins else draw.flag():
            options["interleaved"] = True
        spoiled = pins.get("option")
        if spoiled:
            bad = {INVALID[0]: width - 1, INVALID[1]: width + 2, INVALID[2]: draw.choice((0, -2)), INVALID[3]: 2.5}
            return with_options(case, {**options, "rotary_dim": bad[spoiled]})
        kind = pins.get("rotated") or draw.mostly(("all", "some", "all of them"))
        if super().rejects(case) or _spreads(case) or (kind == "some" and width < 4):
            kind = "all"
        if kind == "some":
            options["rotary_dim"] = 2 * draw.integer(1, width // 2 - 1)
        elif kind != "all" and width:
            options["rotary_dim"] = width
        return with_options(case, options)

    def simpler(self, case: Case) -> list[Case]:
        """Those of ``rope``, and the case with fewer options."""
        options, plain = dict(case.options), as_rope(case)
        if self.rejects(case):
            return []
        found = [with_options(plain, {k: v for k, v in options.items() if k != name}) for name in options]
        for smaller in super().simpler(plain):
            own, width = dict(options), smaller["q"].shape[3]
            if own.get("rotary_dim", width) >= width:
                own.pop("rotary_dim", None)
            found.append(with_options(smaller, own))
        return found


@lru_cache
def _strata() -> tuple[Stratum, ...]:
    sizes = (("B", 2), ("Hq", 2), ("S", 3), ("D", 10), ("tables", "exact"), ("relation", "separate"))
    found = [
        Stratum(
            f"rotated columns, in {_manner({'interleaved': interleaved})}: {kind}",
            (("interleaved", interleaved), ("rotated", kind), *sizes),
        )
        for interleaved, kind in itertools.product((False, True), ROTATED)
    ]
    return (*found, *(Stratum(f"invalid option: {what}", (("option", what), *sizes)) for what in INVALID))


def _manner(options: Options) -> str:
    return "neighbours" if options.get("interleaved") else "halves"


def _misfit(case: Case) -> tuple[str, str] | None:
    """What is wrong with the options, as a reason and as a member of ``INVALID``."""
    options, width = dict(case.options), case["q"].shape[-1] if case["q"].shape else 0
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown or not isinstance(options.get("interleaved", False), bool):
        return f"{(unknown or ['interleaved'])[0]} is no option, or has no such value", INVALID[3]
    asked = options.get("rotary_dim")
    if asked is None:
        return None
    if isinstance(asked, bool) or not isinstance(asked, int):
        return "rotary_dim is no integer", INVALID[3]
    if asked < 2 or asked > width:
        return f"rotary_dim {asked} is not from 2 to {width}", INVALID[2 if asked < 2 else 1]
    return (f"rotary_dim {asked} is odd", INVALID[0]) if asked % 2 else None


def _columns(width: int, options: Options) -> int:
    asked = options.get("rotary_dim")
    return width if asked is None else int(asked)


def _spreads(case: Case) -> bool:
    """Whether tables have more rows or columns than q or k, so that nothing could be copied beside the rotation."""
    q, k = case["q"], case["k"]
    return k.shape[2] != q.shape[2] or (q.shape[3] == 2 and any(case[name].shape[1] > 1 for name in TABLES))


def with_options(case: Case, options: Mapping[str, Any]) -> Case:
    """A case of ``rope`` with options: tables, and their cotangents, as wide as half of what is rotated."""
    kept = tuple(sorted(options.items()))
    changed = replace(case, operation=RopeOptions.name, options=kept)
    width = case["q"].shape[-1] if case["q"].shape else 0
    asked = options.get("rotary_dim")
    if asked is None or _misfit(changed):
        return changed
    return _resized(changed, width // 2, asked // 2)


def as_rope(case: Case) -> Case:
    """The case of ``rope`` that one is made from: its tables as wide as half a head."""
    plain = replace(case, operation=Rope.name, options=())
    asked = dict(case.options).get("rotary_dim")
    if asked is None or _misfit(case) or Rope().rejects(plain):
        return plain
    return _resized(plain, asked // 2, case["q"].shape[3] // 2)


def _resized(case: Case, old: int, new: int) -> Case:
    """The case with tables of so many columns where they have the old number, more than one that spreads."""
    names = [name for name, _ in case.specs if name.removeprefix("grad_") in TABLES]
    changed: dict[str, TensorSpec] = {}
    for name in names:
        spec = case[name]
        if len(spec.shape) == 2 and spec.shape[1] == old != 1:
            shape = (spec.shape[0], new)
            strides = dense(shape) if spec.strides == dense(spec.shape) else spec.strides
            changed[name] = replace(spec, shape=shape, strides=strides)
    return case.with_tensors(changed)


def _pairs(x: torch.Tensor, columns: int, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    if options.get("interleaved"):
        return x[..., 0:columns:2], x[..., 1:columns:2]
    return x[..., : columns // 2], x[..., columns // 2 : columns]


def _in_halves(tensors: Tensors, columns: int, options: Options) -> dict[str, torch.Tensor]:
    """Inputs of ``rope``: the rotated columns of q and k, first all firsts of pairs, then all seconds."""
    return {**_each(tensors, lambda x: torch.cat(_pairs(x, columns, options), dim=-1)), **_tables(tensors)}


def _tables(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in TABLES}


def _each(tensors: Tensors, change: Any) -> dict[str, torch.Tensor]:
    """q and k changed, one tensor if they are one."""
    q = change(tensors["q"])
    return {"q": q, "k": q if tensors["k"] is tensors["q"] else change(tensors["k"])}


def _copied(numbers: np.ndarray) -> Envelope:
    """The numbers themselves; a bound of zero would leave nothing to measure an error by."""
    flat = numbers.reshape(-1)
    finite = np.isfinite(flat)
    sign = np.where(flat == 0, np.where(np.signbit(flat), -1, 1), 0)
    exact = Exact.of(np.where(finite, flat, 0.0))
    bound = np.maximum(np.abs(exact.high) * 2.0**-60, 2.0**-1074)
    return Envelope(exact, bound, finite, np.isnan(flat), flat == np.inf, flat == -np.inf, sign)


def _joined(turned: Envelope, copied: Envelope, shape: tuple[int, ...], rest: int, options: Options) -> Envelope:
    """Both in the order of columns: (..., W) pairs, given firsts before seconds, and the rest, copied."""
    count = turned.finite.size
    places = np.arange(count).reshape(*shape[:3], 2, shape[3])
    if options.get("interleaved"):
        places = np.swapaxes(places, 3, 4)
    places = places.reshape(*shape[:3], 2 * shape[3])
    others = count + np.arange(copied.finite.size).reshape(*shape[:3], rest)
    return picked(stacked([turned, copied]), np.concatenate([places, others], axis=-1).reshape(-1))
