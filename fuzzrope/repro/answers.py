"""What a correct implementation may answer to a case, element by element, as Python that a script can hold.

It is the judge's own oracle and bound, worked out once, so that a script accuses nobody whom the judge would not.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import torch

from fuzzrope.build import build
from fuzzrope.case import Case
from fuzzrope.numbers import clipped
from fuzzrope.operations import OPERATIONS, Differentiable, Envelope


@dataclass(frozen=True, slots=True)
class Answer:
    """What may come back under one name.

    Attributes:
        name: of the output, or ``dX`` for the gradient of the input X.
        source: the input that it is a view of, or nothing.
        dtype, shape: what it must have.
        rows: for each element the true result, the distance from it that is allowed, and letters for what is: ``f``
            a finite number, ``n`` NaN, ``p`` inf, ``m`` -inf, ``+`` and ``-`` the sign that a zero must have.
    """

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    rows: tuple[tuple[float, float, str], ...]

    def literal(self) -> str:
        """A Python tuple."""
        rows = ", ".join(f"({number(exact)}, {number(bound)}, {letters!r})" for exact, bound, letters in self.rows)
        return f"({self.name!r}, {self.source!r}, {self.dtype!r}, {self.shape!r}, [{rows}])"


def answers(case: Case, limit: int) -> list[Answer] | str:
    """Of all outputs, then of all gradients; or one line that says why a script cannot hold them.

    Nothing where the contract demands an error: it does not say what comes back instead, but inputs stay as they are.
    ``limit`` is the number of elements that one of them may have.
    """
    operation, options = OPERATIONS[case.operation], dict(case.options)
    if operation.rejects(case):
        return []
    built = build(case, apart=False)
    try:
        expected = operation.reference(built.tensors, options)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"scripts are written for what PyTorch accepts, and here it raises {type(error).__name__}"
    large = [name for name, tensor in expected.items() if tensor.numel() > limit]
    if large:
        return f"output {large[0]} has more than {limit} elements; `fuzzrope minimize` it first"
    envelopes = operation.envelopes(built.tensors, options)
    found = []
    for name in operation.results(options):
        source = operation.views.get(name, "")
        found.append(_answer(name, source, expected[name], None if source else envelopes[name]))
    if case.backward is not None:
        assert isinstance(operation, Differentiable)
        gradients = operation.gradients(built.tensors, built.cotangents, case.backward.requires, options)
        found += [_answer(f"d{name}", "", built.tensors[name], gradients.get(name)) for name in case.backward.requires]
    return found


def _answer(name: str, source: str, like: torch.Tensor, envelope: Envelope | None) -> Answer:
    rows = () if envelope is None else _rows(envelope)
    return Answer(name, source, str(like.dtype).removeprefix("torch."), tuple(like.shape), rows)


def _rows(envelope: Envelope) -> tuple[tuple[float, float, str], ...]:
    with np.errstate(all="ignore"):
        by = clipped(envelope.exact.exponent, -2200, 2200)
        exact = np.ldexp(envelope.exact.high + envelope.exact.low, by)
        # What rounding the exact result to float64 may take away is given back.
        bound = np.nextafter(np.ldexp(envelope.bound, by) + np.spacing(np.abs(exact)), np.inf)
    rows = []
    for i in range(exact.size):
        allowed = ("f" if envelope.finite[i] else "") + ("n" if envelope.nan[i] else "")
        allowed += ("p" if envelope.positive[i] else "") + ("m" if envelope.negative[i] else "")
        sign = {1: "+", -1: "-"}.get(int(envelope.zero_sign[i]), "")
        far = not math.isfinite(exact[i])  # beyond float64, and yet a finite answer may be right: no bound is known
        rows.append((0.0, math.inf, allowed + sign) if far else (float(exact[i]), float(bound[i]), allowed + sign))
    return tuple(rows)


def number(x: float) -> str:
    """A number as Python writes it, exactly; ``nan`` and ``inf`` are names."""
    if x - x == 0:
        return repr(x)
    sign = "-" if struct.pack(">d", x)[0] & 128 else ""
    return f"{sign}{'nan' if x != x else 'inf'}"
