"""What an entry of the zoo is, and how what a kernel gave is compared with the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from tests.zoo.formats import FORMATS, Format, bits_of, decode

Kind = Literal["exact", "approximate", "reduction", "dot"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel with inputs and the truth about its outputs.

    Attributes:
        kind: ``exact`` is bit for bit the same everywhere, payloads of NaN aside. ``approximate`` uses functions
            that a GPU computes to some ulps, ``reduction`` depends on the order of a sum, ``dot`` on the
            accumulator of a matrix product.
        inputs: the same tensors on the CPU, and numbers, at every call.
        launch: called with the inputs, perhaps on a GPU; allocates outputs beside them, launches, returns them.
        truth: called with the inputs on the CPU. For ``exact`` it gives arrays to be compared bit for bit:
            of NumPy's dtype where it has one, or else the unsigned bit patterns (uint16 for bfloat16, uint8 for
            float8). For the other kinds it gives float64 where there is a bound, and such arrays where there
            is none.
        bound: the absolute error allowed for each element of the named outputs, on top of nothing: rounding to
            the dtype of the output is in it. NaN and infinities of the truth must be met whatever it says.
        interpreter: whether Triton's own interpreter computes it rightly.
    """

    name: str
    kind: Kind
    inputs: Callable[[], dict[str, Any]]
    launch: Callable[..., dict[str, torch.Tensor]]
    truth: Callable[..., dict[str, np.ndarray]]
    bound: Callable[..., dict[str, np.ndarray]] | None = None
    interpreter: bool = True

    def moved(self, device: str | torch.device) -> dict[str, Any]:
        """The inputs on a device, tensors in lists and tuples too."""
        return {name: _moved(value, device) for name, value in self.inputs().items()}


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one output compares with the truth.

    Attributes:
        differing: elements with other bits than the truth rounded to the output's dtype.
        ulps: the largest distance in units of the last place of the output's dtype; infinite where one is NaN
            or infinite and the other is not.
        ratio: the worst error over the bound; 0 or infinite where the output must be exact.
    """

    elements: int
    differing: int
    ulps: float
    ratio: float

    @property
    def passed(self) -> bool:
        return self.ratio <= 1


def compare(
    entry: Entry, outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, Any] | None = None
) -> dict[str, Comparison]:
    """Compare what a kernel gave with the truth, output by output."""
    inputs = entry.inputs() if inputs is None else inputs
    with np.errstate(all="ignore"):
        truth = entry.truth(**inputs)
        bound = entry.bound(**inputs) if entry.bound else {}
        assert outputs.keys() == truth.keys(), (entry.name, sorted(outputs), sorted(truth))
        return {name: _compare_one(outputs[name], truth[name], bound.get(name)) for name in truth}


def _compare_one(output: torch.Tensor, truth: np.ndarray, bound: np.ndarray | None) -> Comparison:
    truth = np.asarray(truth)
    assert tuple(output.shape) == truth.shape, (tuple(output.shape), truth.shape)
    form = FORMATS.get(output.dtype)
    if form is None:
        return _compare_integers(output.detach().cpu().numpy(), truth)
    bits = bits_of(output)
    if bound is None:
        assert truth.dtype.itemsize == bits.dtype.itemsize, (truth.dtype, output.dtype)
        assert truth.dtype.kind in "fu", truth.dtype
        right = decode(np.ascontiguousarray(truth).view(form.bits), form)
        given = decode(bits, form)
        same = (bits == np.ascontiguousarray(truth).view(form.bits)) | (np.isnan(given) & np.isnan(right))
        return Comparison(same.size, int((~same).sum()), _ulps(given, right, form), 0.0 if same.all() else np.inf)
    given, right = decode(bits, form), truth.astype(np.float64)
    return _compare_within(given, right, np.broadcast_to(bound, truth.shape), form)


def _compare_within(given: np.ndarray, right: np.ndarray, bound: np.ndarray, form: Format) -> Comparison:
    error = np.abs(given - right)
    ratio = np.where(error == 0, 0.0, error / bound)
    special = ~np.isfinite(right) | ~np.isfinite(given)
    met = (given == right) | (np.isnan(given) & np.isnan(right))
    ratio = np.where(special, np.where(met, 0.0, np.inf), ratio)
    ulps = _ulp_distance(given, right, form)
    worst = float(ratio.max(initial=0.0))
    return Comparison(given.size, int((ulps > 0.5).sum()), float(ulps.max(initial=0.0)), worst)


def _compare_integers(given: np.ndarray, truth: np.ndarray) -> Comparison:
    assert given.dtype == truth.dtype, (given.dtype, truth.dtype)
    differing = int((given != truth).sum())
    worst = max((abs(int(a) - int(b)) for a, b in zip(given.flat, truth.flat, strict=True) if a != b), default=0)
    return Comparison(given.size, differing, float(worst), np.inf if differing else 0.0)


def _ulp_distance(given: np.ndarray, right: np.ndarray, form: Format) -> np.ndarray:
    size = np.where(np.isfinite(right), np.abs(right), 1.0)
    exponent = np.maximum(np.frexp(size)[1] - 1, 1 - form.bias)
    distance = np.abs(given - right) / np.ldexp(1.0, np.maximum(exponent - form.mantissa, -1074))
    same = (given == right) | (np.isnan(given) & np.isnan(right))
    return np.where(same, 0.0, np.where(np.isfinite(distance), distance, np.inf))


def _ulps(given: np.ndarray, right: np.ndarray, form: Format) -> float:
    return float(_ulp_distance(given, right, form).max(initial=0.0))


def _moved(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value
