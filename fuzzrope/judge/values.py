"""Element by element: is each number one that a correct implementation may give?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from fuzzrope.build import DTYPES, FRESH, WORDS
from fuzzrope.case import Case
from fuzzrope.findings import Finding, finding
from fuzzrope.judge.histogram import Histogram
from fuzzrope.judge.statistics import judge_spread
from fuzzrope.operations import Envelope

GRADIENT = " gradient"  # ends the dtype under which errors of gradients are counted


@dataclass
class Errors:
    """Error statistics of one dtype, over finite elements; ``add`` folds others in.

    ``max_ulp`` is the largest distance from eager PyTorch's answer, counted in representable numbers;
    ``over_bound`` the largest error over bound, met in ``worst_case``. The squares are sums over elements of
    error over bound, the target's and eager PyTorch's own. ``as_reference`` says, of one output, that it equals
    eager's bit for bit. ``ratios`` counts error over bound, ``peaks`` the largest of each output.
    """

    count: int = 0
    max_ulp: int = 0
    over_bound: float = 0.0
    squares: float = 0.0
    reference_squares: float = 0.0
    worst_case: Case | None = None
    as_reference: bool = False
    ratios: Histogram = field(default_factory=Histogram)
    peaks: Histogram = field(default_factory=Histogram)

    def add(self, other: Errors) -> None:
        """Fold in the statistics of another case."""
        if other.over_bound > self.over_bound or not self.count:
            self.worst_case = other.worst_case
        self.count += other.count
        self.max_ulp = max(self.max_ulp, other.max_ulp)
        self.over_bound = max(self.over_bound, other.over_bound)
        self.squares += other.squares
        self.reference_squares += other.reference_squares
        self.ratios.merge(other.ratios)
        self.peaks.merge(other.peaks)

    @property
    def worst_id(self) -> str:
        """The id of the worst case, or nothing."""
        return "" if self.worst_case is None else self.worst_case.id

    @property
    def rms_ratio(self) -> float | None:
        """Root mean square error over the reference's; None where the reference makes none."""
        return (self.squares / self.reference_squares) ** 0.5 if self.reference_squares else None


@dataclass
class Comparison:
    """What comparing one output gave."""

    findings: list[Finding] = field(default_factory=list)
    errors: Errors = field(default_factory=Errors)


def as_tensor(data: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor whose contiguous bytes these are."""
    if not data:
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).reshape(shape)


def _bits(tensor: torch.Tensor) -> np.ndarray:
    flat = tensor.reshape(-1)
    if flat.stride(0) != 1:  # a step may be left over, even from a single element
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().view(WORDS[tensor.element_size()])


def _place(shape: tuple[int, ...], flat: int) -> str:
    return "[" + ",".join(str(int(i)) for i in np.unravel_index(flat, shape)) + "]"


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.float64).reshape(-1).numpy()


def _steps(tensor: torch.Tensor) -> np.ndarray:
    """Representable numbers counted from zero, negative ones downwards, as int64; both zeros are 0."""
    width = tensor.element_size()
    bits = _bits(tensor).view(f"<i{width}").astype(np.int64)
    magnitude = bits & ((1 << (8 * width - 1)) - 1)
    return np.where(bits < 0, -magnitude, magnitude)


def _ratio(error: np.ndarray, envelope: Envelope) -> np.ndarray:
    """Error over bound; where nothing is wrong it is 0, though the bound be 0 in its units."""
    return np.where(error == 0, 0.0, error / envelope.bound)


def compare(
    output: str, got: torch.Tensor, reference: torch.Tensor, envelope: Envelope, origin: str = ""
) -> Comparison:
    """Hold an output against its envelope; ``reference`` only serves the statistics.

    ``origin`` says where the output's memory came from, for when nothing was written to it.
    """
    result = Comparison()
    shape = tuple(got.shape)
    if got.numel() == 0:
        return result
    numbers = _numbers(got)
    fresh = _bits(got) == FRESH[got.element_size()]  # still the poison of fresh memory
    with np.errstate(all="ignore"):
        finite = np.isfinite(numbers)
        if envelope.tame and finite.all():  # the usual case, in which only size matters
            error = envelope.exact.distance(numbers)
            ratio = _ratio(error, envelope)
            result.errors = _statistics(got, reference, ratio, None, envelope)
            if not (error > envelope.bound).any():
                if not result.errors.as_reference:
                    result.findings += judge_spread(output, numbers, envelope)
                return result
        else:
            error = envelope.exact.distance(np.where(finite, numbers, 0.0))
            ratio = _ratio(error, envelope)
            result.errors = _statistics(got, reference, ratio, finite & envelope.finite, envelope)
        allowed = np.where(np.isnan(numbers), envelope.nan, np.where(numbers > 0, envelope.positive, envelope.negative))
        special = np.where(finite, ~envelope.finite, ~allowed) & ~fresh
        outside = finite & envelope.finite & (error > envelope.bound)
        zero = finite & (numbers == 0) & (envelope.zero_sign != 0)
        wrong_zero = zero & (np.signbit(numbers) != (envelope.zero_sign < 0))
    if fresh.any():
        where = _place(shape, int(np.argmax(fresh)))
        message = f"{int(fresh.sum())} of {got.numel()} elements were never written, the first at {output}{where}"
        message += f"; {origin}" if origin else ""
        result.findings.append(finding("uninitialized", message, output=output, magnitude=float(fresh.sum())))
    if special.any():
        at = int(np.argmax(special))
        expected = _expected(envelope, at)
        message = f"{output}{_place(shape, at)} is {numbers[at]:g}, expected {expected}"
        message += f"; {int(special.sum())} of {got.numel()} elements"
        result.findings.append(finding("nonfinite", message, output=output, magnitude=float(special.sum())))
    bad = outside | wrong_zero
    if bad.any():
        at = int(np.argmax(np.where(outside, ratio, np.where(wrong_zero, 0.0, -1.0))))
        result.findings.append(_mismatch(output, shape, at, numbers, envelope, ratio, bad, bool(outside[at])))
    if not result.findings and not result.errors.as_reference:
        result.findings += judge_spread(output, numbers, envelope)
    return result


def _statistics(
    got: torch.Tensor, reference: torch.Tensor, ratio: np.ndarray, measured: np.ndarray | None, envelope: Envelope
) -> Errors:
    """Statistics of the elements that are measured, None standing for all."""
    of_measured = ratio if measured is None else ratio[measured]
    if not of_measured.size:
        return Errors()
    errors = Errors(count=of_measured.size, over_bound=float(of_measured.max()))
    errors.ratios.count(of_measured)
    errors.peaks.count(np.array([errors.over_bound]))
    if (_bits(got) == _bits(reference)).all():  # what follows would give the same
        errors.squares = errors.reference_squares = float(np.square(of_measured).sum())
        errors.as_reference = True
        return errors
    own = _numbers(reference)
    both = np.isfinite(own) if measured is None else measured & np.isfinite(own)
    own_ratio = _ratio(envelope.exact.distance(np.where(both, own, 0.0)), envelope)
    errors.max_ulp = int(np.abs(_steps(got) - _steps(reference))[both].max(initial=0))
    errors.squares = float(np.square(ratio[both]).sum())
    errors.reference_squares = float(np.square(own_ratio[both]).sum())
    return errors


def _value(envelope: Envelope, at: int) -> float:
    high, exponent = float(envelope.exact.high[at]), int(envelope.exact.exponent[at])
    try:
        return math.ldexp(high, exponent)
    except OverflowError:
        return math.copysign(math.inf, high)


def _expected(envelope: Envelope, at: int) -> str:
    options = [
        name
        for name, allowed in (("NaN", envelope.nan), ("inf", envelope.positive), ("-inf", envelope.negative))
        if allowed[at]
    ]
    if envelope.finite[at]:
        options.insert(0, f"{_value(envelope, at):g}")
    return " or ".join(options)


def _mismatch(
    output: str,
    shape: tuple[int, ...],
    at: int,
    numbers: np.ndarray,
    envelope: Envelope,
    ratio: np.ndarray,
    bad: np.ndarray,
    outside: bool,
) -> Finding:
    place = f"{output}{_place(shape, at)}"
    count = f"; {int(bad.sum())} of {bad.size} elements"
    if not outside:
        sign = "-0" if envelope.zero_sign[at] < 0 else "+0"
        return finding("mismatch", f"{place} is a zero of the wrong sign, expected {sign}{count}", output=output)
    message = f"{place} is {numbers[at]:.9g}, expected {_value(envelope, at):.9g}: {ratio[at]:.3g} times the bound"
    return finding("mismatch", message + count, output=output, magnitude=float(ratio[at]))


def compare_exact(output: str, got: torch.Tensor, reference: torch.Tensor, promise: str) -> list[Finding]:
    """Bit for bit, NaN payloads aside; ``promise`` says who demands it."""
    if got.numel() == 0:
        return []
    ours, theirs = _bits(got), _bits(reference)
    fresh = ours == FRESH[got.element_size()]
    if not fresh.any() and (ours == theirs).all():
        return []
    nan = torch.isnan(got).reshape(-1).numpy()
    reference_nan = torch.isnan(reference).reshape(-1).numpy()
    kind = "uninitialized" if fresh.any() else "nonfinite" if (nan != reference_nan).any() else "mismatch"
    bad = (ours != theirs) & ~(nan & reference_nan) if kind != "uninitialized" else fresh
    if not bad.any():
        return []
    at = int(np.argmax(bad))
    shape = tuple(got.shape)
    message = (
        f"{output}{_place(shape, at)} is {_numbers(got)[at]:.9g}, expected exactly {_numbers(reference)[at]:.9g} "
        f"({promise}); {int(bad.sum())} of {got.numel()} elements"
    )
    return [finding(kind, message, output=output, magnitude=float(bad.sum()))]
