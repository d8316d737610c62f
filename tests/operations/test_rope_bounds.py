"""The envelope of rope: what correct implementations may give lies inside, what wrong ones give does not.

Long because the exact arithmetic and the variants it judges belong on one page.
"""

import functools
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzrope.build import FRESH, build
from fuzzrope.case import FLOATS, Case, Values
from fuzzrope.draw import Draw
from fuzzrope.findings import Finding
from fuzzrope.judge.values import Comparison, compare
from fuzzrope.numbers import Format, format_of
from fuzzrope.operations import Envelope
from fuzzrope.operations.rope import Rope
from fuzzrope.values import expand

ROPE = Rope()
F16, BF16, F32, F64 = (getattr(torch, name) for name in FLOATS)
MIXES = tuple(itertools.product(FLOATS, repeat=3))  # of x, cos and sin: q and k are judged apart
UNIFORM = tuple((name,) * 3 for name in FLOATS)
SOME = (
    *UNIFORM,
    ("bfloat16", "float32", "float32"),
    ("float16", "bfloat16", "float16"),
    ("float32", "float16", "float64"),
)
RECIPES = tuple(
    Values(kind, seed, data)
    for seed, (kind, data) in enumerate(
        (
            *((kind, ()) for kind in ("normal", "wide", "tiny", "subnormal", "zeros", "infs", "nans", "powers")),
            ("constant", (0.1,)),
        )
    )
)
NORMAL = (Values("normal", 1),)
FINITE = tuple(v for v in RECIPES if v.kind not in ("infs", "nans"))

Tensors = dict[str, torch.Tensor]
Mix = tuple[str, ...]


def dtypes(mix: Mix) -> tuple[torch.dtype, ...]:
    return tuple(getattr(torch, name) for name in mix)


def types(tensors: Tensors) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """The types of both products and of the result."""
    cos_type = torch.promote_types(tensors["q"].dtype, tensors["cos"].dtype)
    sin_type = torch.promote_types(tensors["q"].dtype, tensors["sin"].dtype)
    return cos_type, sin_type, torch.promote_types(cos_type, sin_type)


@functools.lru_cache(maxsize=256)
def every_pair(mix: Mix, recipes: tuple[Values, ...], half: int = 4) -> Tensors:
    """q (recipes, 1, recipes^2, 2*half) and tables in which every recipe meets every two others."""
    x, cos, sin = dtypes(mix)
    count = len(recipes)
    rows = list(itertools.product(range(count), repeat=2))

    def table(dtype: torch.dtype, chosen: list[int]) -> torch.Tensor:
        drawn = [expand(Values(v.kind, v.seed + 100, v.data), dtype, half * len(rows)) for v in recipes]
        return torch.stack([drawn[i].view(-1, half)[row] for row, i in enumerate(chosen)])

    q = torch.stack([expand(v, x, len(rows) * 2 * half).view(1, len(rows), 2 * half) for v in recipes])
    return {"q": q, "k": q, "cos": table(cos, [i for i, _ in rows]), "sin": table(sin, [i for _, i in rows])}


def normal(mix: Mix, shape: tuple[int, int, int, int] = (2, 3, 16, 32), seed: int = 0) -> Tensors:
    x, cos, sin = dtypes(mix)
    table = (shape[2], shape[3] // 2)
    q = expand(Values("normal", seed), x, math.prod(shape)).view(shape)
    c, s = (
        expand(Values("normal", seed + i), t, math.prod(table)).view(table) for i, t in enumerate((cos, sin), start=1)
    )
    return {"q": q, "k": q, "cos": c, "sin": s}


def single(x1: float, x2: float, cos: float, sin: float, dtype: torch.dtype = F32) -> Tensors:
    """One pair, one angle: the outputs are x1*cos - x2*sin and x2*cos + x1*sin."""
    q = torch.tensor([x1, x2], dtype=F64).to(dtype).view(1, 1, 1, 2)
    c, s = (torch.tensor([[t]], dtype=F64).to(dtype) for t in (cos, sin))
    return {"q": q, "k": q, "cos": c, "sin": s}


def operands(tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """a, c, b, s of the q output's a*c - b*s, in the inputs' own types, all in the output's shape."""
    q, cos, sin = tensors["q"], tensors["cos"], tensors["sin"]
    half = q.shape[3] // 2
    x1, x2 = q[..., :half], q[..., half:]
    pairs = (x1, x2), (cos, cos), (x2, x1), (sin, -sin)
    shape = (*q.shape[:3], half)
    return tuple(torch.cat([part.expand(shape) for part in pair], dim=-1) for pair in pairs)  # type: ignore[return-value]  # two pairs, two results


def judged(got: torch.Tensor, tensors: Tensors, output: str = "q") -> Comparison:
    return compare(output, got, ROPE.reference(tensors)[output], ROPE.envelope(output, tensors))


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


def rounded(value: Fraction, form: Format) -> float:
    """Rounded to nearest even in a format, by definition."""
    if value == 0:
        return 0.0
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    step = Fraction(2) ** max(exponent - form.digits + 1, form.smallest_exponent)
    result = round(value / step) * step
    return (math.inf if value > 0 else -math.inf) if abs(result) > Fraction(form.max) else float(result)


# The exact value


def worth(envelope: Envelope, i: int) -> tuple[Fraction, Fraction]:
    """The exact value of element i, and its unit."""
    high, low, exponent = (
        part[i].item() for part in (envelope.exact.high, envelope.exact.low, envelope.exact.exponent)
    )
    unit = Fraction(2) ** exponent
    return (Fraction(high) + Fraction(low)) * unit, unit


@pytest.mark.parametrize("mix", SOME, ids=" ".join)
def test_the_oracle_is_exact_to_a_rounding_of_float64_and_with_float64_inputs_to_2_to_the_minus_100(mix: Mix):
    tensors = every_pair(mix, FINITE, half=2)
    last = Fraction(2) ** (-100 if "float64" in mix else -52)
    envelope = ROPE.envelope("q", tensors)
    flat = [t.double().flatten().tolist() for t in operands(tensors)]
    checked = range(0, len(flat[0]), 3)
    for i in checked:
        a, c, b, s = (Fraction(t[i]) for t in flat)
        got, unit = worth(envelope, i)
        margin = max(abs(a * c), abs(b * s)) * last + unit * Fraction(2) ** -1000
        assert abs(got - (a * c - b * s)) <= margin
    assert len(checked) > 400


def test_the_oracle_survives_cancellation():
    tensors = single(1 + 2.0**-30, 1.0, 1 + 2.0**-30, 1 + 2.0**-29, F64)
    got, _ = worth(ROPE.envelope("q", tensors), 0)
    assert got == Fraction(2) ** -60
    assert ROPE.reference(tensors)["q"].flatten()[0] == 0


def error_bound_in_fractions(values: tuple[Fraction, ...], forms: tuple[Format, ...]) -> Fraction:
    """The bound of the docstring, in exact arithmetic."""
    a, c, b, s = values
    p, r, o = forms
    h_p, h_r, h_o = (Fraction(2) ** (form.smallest_exponent - 1) for form in forms)
    products = abs(a * c) * Fraction(p.roundoff) + h_p + abs(b * s) * Fraction(r.roundoff) + h_r
    return products + Fraction(o.roundoff) * (abs(a * c - b * s) + products) + h_o


@pytest.mark.parametrize("mix", SOME, ids=" ".join)
def test_the_bound_is_the_derived_one(mix: Mix):
    tensors = every_pair(mix, FINITE, half=2)
    envelope = ROPE.envelope("q", tensors)
    forms = tuple(map(format_of, types(tensors)))
    flat = [t.double().flatten().tolist() for t in operands(tensors)]
    compared = 0
    for i in range(0, len(flat[0]), 3):
        a, c, b, s = (Fraction(t[i]) for t in flat)
        _, unit = worth(envelope, i)
        ratio = Fraction(envelope.bound[i]) * unit / error_bound_in_fractions((a, c, b, s), forms)
        if a * c * b * s:
            assert abs(ratio - 1) < Fraction(2) ** -26  # room for the oracle's own rounding
            compared += 1
        else:  # a product that is zero makes no rounding error, so the bound may be smaller
            assert 0 < ratio < 1 + Fraction(2) ** -26
    assert compared > 200


# Correct variants


def eager(tensors: Tensors) -> torch.Tensor:
    return ROPE.reference(tensors)["q"]


def wide_inside(tensors: Tensors) -> torch.Tensor:
    """Everything in float64, one rounding at the end."""
    a, c, b, s = (t.double() for t in operands(tensors))
    return (a * c - b * s).to(types(tensors)[2])


def float32_inside(tensors: Tensors) -> torch.Tensor:
    """Everything in float32, or float64 where the result is, one rounding at the end."""
    out = types(tensors)[2]
    inside = F64 if out == F64 else F32
    a, c, b, s = (t.to(inside) for t in operands(tensors))
    return (a * c - b * s).to(out)


def contracted(tensors: Tensors) -> torch.Tensor:
    """fma(a, c, -round(b*s)), as a compiler contracts it; float64 holds the inner product of narrower types."""
    _, sin_type, out = types(tensors)
    a, c, b, s = (t.double() for t in operands(tensors))
    return (a * c - (b * s).to(sin_type).double()).to(out)


def contracted_on_the_right(tensors: Tensors) -> torch.Tensor:
    """fma(-b, s, round(a*c)), the other contraction."""
    cos_type, _, out = types(tensors)
    a, c, b, s = (t.double() for t in operands(tensors))
    return ((a * c).to(cos_type).double() - b * s).to(out)


def all_in_the_widest(tensors: Tensors) -> torch.Tensor:
    """Products rounded to the type of the result."""
    out = types(tensors)[2]
    a, c, b, s = (t.to(out) for t in operands(tensors))
    return a * c - b * s


CORRECT = (eager, wide_inside, float32_inside, contracted, contracted_on_the_right, all_in_the_widest)


@pytest.mark.parametrize("x", FLOATS)
@pytest.mark.parametrize("variant", CORRECT, ids=lambda f: f.__name__)
def test_correct_variants_stay_inside_for_every_dtype_mix_and_recipe(
    variant: Callable[[Tensors], torch.Tensor], x: str
):
    for mix in MIXES:
        if mix[0] == x:
            tensors = every_pair(mix, RECIPES)
            result = judged(variant(tensors), tensors)
            assert not result.findings, (mix, result.findings)
            assert result.errors.over_bound <= 1
            assert result.errors.count > 0.3 * tensors["q"].numel()


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_the_reference_stays_inside_for_every_drawn_case(data: st.DataObject):
    case: Case = ROPE.draw(Draw(data.conjecture_data), {}, (16, 64))
    tensors = build(case).tensors
    reference = ROPE.reference(tensors)
    for output in ("q", "k"):
        envelope = ROPE.envelope(output, tensors)
        assert envelope.bound.size == reference[output].numel()
        result = compare(output, reference[output], reference[output], envelope)
        assert not result.findings
        assert result.errors.over_bound <= 1
        assert result.errors.max_ulp == 0
        assert result.errors.rms_ratio in (1, None)


def fused(a: float, c: float, r: float, form: Format) -> float:
    """a*c - r rounded once, as IEEE 754 defines fusedMultiplyAdd."""
    if not (math.isfinite(a) and math.isfinite(c)):
        return a * c - r
    if not math.isfinite(r):
        return -r
    exact = Fraction(a) * Fraction(c) - Fraction(r)
    return rounded(exact, form) if exact else math.copysign(0.0, a) * math.copysign(1.0, c) - r if not r else 0.0


@pytest.mark.parametrize("mix", SOME, ids=" ".join)
def test_an_exact_fused_multiply_add_stays_inside(mix: Mix):
    tensors = every_pair(mix, RECIPES, half=1)
    cos_type, sin_type, out = types(tensors)
    form = format_of(out)
    a, c, b, s = (t.flatten() for t in operands(tensors))
    right = (b.to(sin_type) * s.to(sin_type)).double()
    left = (a.to(cos_type) * c.to(cos_type)).double()
    for one, other, addend, sign in ((a, c, right, 1.0), (-b, s, -left, 1.0)):
        triples = zip(*(t.double().tolist() for t in (one, other, addend)), strict=True)
        numbers = torch.tensor([sign * fused(*triple, form) for triple in triples], dtype=F64).to(out)
        result = judged(numbers.view(tensors["q"].shape), tensors)
        assert not result.findings
        assert result.errors.over_bound <= 1


def test_an_overflow_is_allowed_either_way():
    """x1*cos overflows float16 before x2*sin takes it back: infinite, or not, but nothing else."""
    tensors = single(300.0, 299.0, 300.0, 300.0, F16)
    for value in (300.0, math.inf, math.nan, -math.inf):
        got = eager(tensors).clone()
        got[0, 0, 0, 0] = value
        assert not judged(got, tensors).findings
    got[0, 0, 0, 0] = 500.0
    assert kinds(judged(got, tensors).findings) == {"mismatch"}


# Wrong ones


def with_element(got: torch.Tensor, at: int, value: float) -> torch.Tensor:
    changed = got.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[at] = value
    return changed


COARSER = {F16: BF16, BF16: torch.float8_e4m3fn, F32: F16, F64: F32}


@pytest.mark.parametrize("which", ["cos", "sin"])
@pytest.mark.parametrize("mix", UNIFORM, ids=lambda mix: mix[0])
def test_one_product_rounded_to_a_coarser_type_is_a_mismatch(mix: Mix, which: str):
    tensors = normal(mix)
    dtype = tensors["q"].dtype
    a, c, b, s = operands(tensors)
    left, right = a * c, b * s
    assert not judged(left - right, tensors).findings
    if which == "cos":
        left = left.to(COARSER[dtype]).to(dtype)
    else:
        right = right.to(COARSER[dtype]).to(dtype)
    assert kinds(judged(left - right, tensors).findings) == {"mismatch"}


@pytest.mark.parametrize("mix", SOME[4:], ids=" ".join)
def test_inputs_rounded_to_the_narrowest_type_are_a_mismatch(mix: Mix):
    tensors = normal(mix)
    narrow = next(t for t in (BF16, F16, F32) if t in dtypes(mix))
    a, c, b, s = (t.to(narrow).to(types(tensors)[2]) for t in operands(tensors))
    assert kinds(judged(a * c - b * s, tensors).findings) == {"mismatch"}


@pytest.mark.parametrize("recipe", ["normal", "wide", "tiny", "subnormal", "powers"])
@pytest.mark.parametrize("name", FLOATS)
def test_a_result_off_by_a_few_bounds_is_a_mismatch(name: str, recipe: str):
    tensors = every_pair((name,) * 3, (Values(recipe, 5), Values("normal", 6)), half=8)
    envelope = ROPE.envelope("q", tensors)
    reference = eager(tensors)
    maximum = torch.finfo(reference.dtype).max
    tried = 0
    for at in range(0, reference.numel(), 5):
        for bounds in (-4, 4):
            exact, unit = worth(envelope, at)
            value = rounded(exact + bounds * Fraction(envelope.bound[at]) * unit, format_of(reference.dtype))
            if not math.isfinite(value) or abs(exact) > Fraction(maximum):
                continue
            (finding,) = compare("q", with_element(reference, at, value), reference, envelope).findings
            assert finding.kind == "mismatch"
            assert finding.magnitude is not None
            assert 2 < finding.magnitude < 6
            assert "; 1 of " in finding.message
            tried += 1
    assert tried > 20


@pytest.mark.parametrize("name", FLOATS)
def test_a_result_off_by_half_a_bound_is_accepted(name: str):
    tensors = normal((name,) * 3)
    envelope, reference = ROPE.envelope("q", tensors), eager(tensors)
    for at in range(0, reference.numel(), 97):
        exact, unit = worth(envelope, at)
        value = rounded(exact + Fraction(envelope.bound[at]) * unit / 2, format_of(reference.dtype))
        if abs(Fraction(value) - exact) <= Fraction(envelope.bound[at]) * unit:
            assert not compare("q", with_element(reference, at, value), reference, envelope).findings


WRONG: dict[str, Callable[..., torch.Tensor]] = {
    "sin of the other sign": lambda a, c, b, s: a * c + b * s,
    "cos of the other sign": lambda a, c, b, s: -a * c - b * s,
    "cos for sin": lambda a, c, b, s: a * c - b * c,
    "sin and cos exchanged": lambda a, c, b, s: a * s - b * c,
    "the second term missing": lambda a, c, b, s: a * c,
    "the halves exchanged": lambda a, c, b, s: b * c - a * s,
    "not rotated": lambda a, c, b, s: a.clone(),
    "all zero": lambda a, c, b, s: torch.zeros_like(a),
    "scaled": lambda a, c, b, s: (a * c - b * s) * 1.02,
    "one row late": lambda a, c, b, s: a * c.roll(1, dims=-2) - b * s.roll(1, dims=-2),
}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_formula_is_a_mismatch(wrong: Callable[..., torch.Tensor], name: str):
    tensors = normal((name,) * 3)
    result = judged(wrong(*operands(tensors)), tensors)
    assert kinds(result.findings) == {"mismatch"}
    assert result.errors.over_bound > 1


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("recipe", ["tiny", "subnormal"])
def test_zeros_are_no_answer_for_tiny_inputs(recipe: str, name: str):
    """The products are above the smallest subnormal, so a kernel that flushes them loses digits."""
    x = expand(Values(recipe, 3), getattr(torch, name), 64).view(1, 1, 4, 16)
    ones = torch.ones(4, 8, dtype=x.dtype)
    tensors = {"q": x, "k": x, "cos": ones, "sin": ones * 0.5}
    assert not judged(eager(tensors), tensors).findings
    assert kinds(judged(torch.zeros_like(x), tensors).findings) >= {"mismatch"}


@pytest.mark.parametrize("replacement", [0.0, 1.0, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_a_nan_replaced_is_nonfinite(name: str, replacement: float):
    tensors = every_pair((name,) * 3, (Values("nans", 2), Values("normal", 6)))
    reference = eager(tensors)
    got = reference.nan_to_num(replacement, math.inf, -math.inf)
    missing = int(reference.isnan().sum())
    (finding,) = judged(got, tensors).findings
    assert (finding.kind, finding.magnitude) == ("nonfinite", missing)
    assert missing > 10


@pytest.mark.parametrize("name", FLOATS)
def test_an_infinity_replaced_is_nonfinite(name: str):
    tensors = every_pair((name,) * 3, (Values("infs", 2), Values("normal", 6)))
    reference = eager(tensors)
    largest = torch.finfo(reference.dtype).max
    infinite = int(reference.isinf().sum())
    assert infinite > 10
    for got in (
        reference.clamp(-largest, largest),
        torch.where(reference.isinf(), math.nan, reference),
        torch.where(reference.isinf(), -reference, reference),
    ):
        (finding,) = judged(got, tensors).findings
        assert (finding.kind, finding.magnitude) == ("nonfinite", infinite)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_a_finite_value_replaced_by_a_special_one_is_nonfinite(name: str, value: float):
    tensors = normal((name,) * 3, (1, 1, 2, 4))
    for at in range(8):
        (finding,) = judged(with_element(eager(tensors), at, value), tensors).findings
        assert (finding.kind, finding.magnitude) == ("nonfinite", 1.0)


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
def test_the_largest_number_in_place_of_an_overflow_is_a_mismatch(dtype: torch.dtype):
    largest = torch.finfo(dtype).max
    tensors = single(largest, 0.0, 2.0, 1.0, dtype)
    reference = eager(tensors)
    assert reference.flatten()[0] == math.inf
    assert not judged(reference, tensors).findings
    (finding,) = judged(with_element(reference, 0, largest), tensors).findings
    assert finding.kind == "mismatch"
    (finding,) = judged(with_element(reference, 0, -math.inf), tensors).findings
    assert finding.kind == "nonfinite"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_a_sum_that_overflows_is_infinite_and_of_its_own_sign(dtype: torch.dtype, sign: int):
    """Both products are finite in the type of the result; only their difference is not."""
    large = sign * 0.75 * torch.finfo(dtype).max
    tensors = single(large, -large, 1.0, 1.0, dtype)
    reference = eager(tensors)
    assert reference.flatten()[0] == sign * math.inf
    assert not judged(reference, tensors).findings
    for value, kind in ((-sign * math.inf, "nonfinite"), (math.nan, "nonfinite"), (large, "mismatch")):
        with np.errstate(over="ignore"):  # the exact value is beyond float64, in which messages spell it
            assert kinds(judged(with_element(reference, 0, value), tensors).findings) == {kind}


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_a_zero_of_the_wrong_sign_is_a_mismatch(dtype: torch.dtype):
    for x1, x2, cos, sin in itertools.product((0.0, -0.0), (0.0, -0.0), (0.5, -0.5, 0.0, -0.0), (0.5, -0.5, 0.0, -0.0)):
        tensors = single(x1, x2, cos, sin, dtype)
        reference = eager(tensors)
        assert not judged(reference, tensors).findings
        for at in range(2):
            (finding,) = judged(with_element(reference, at, -reference.flatten()[at].item()), tensors).findings
            assert finding.kind == "mismatch"
            assert "zero of the wrong sign" in finding.message


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_of_an_underflow_or_a_cancellation_is_free_where_variants_differ(sign: int):
    """Products of nonzero numbers: rounding decides whether a zero comes out, and of which sign."""
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    for tensors in (single(smallest, -smallest, 0.25, 0.25), single(1.0, 1.0, 0.5, 0.5)):
        assert not judged(with_element(eager(tensors), 0, sign * 0.0), tensors).findings


def unwritten(got: torch.Tensor, places: list[int]) -> torch.Tensor:
    """The tensor with elements that still hold the poison of fresh memory."""
    changed = got.clone(memory_format=torch.contiguous_format)
    width = changed.element_size()
    changed.view(-1).view(torch.uint8).numpy().view(f"<u{width}")[places] = FRESH[width]
    return changed


@pytest.mark.parametrize("recipe", ["normal", "nans"])
@pytest.mark.parametrize("name", FLOATS)
def test_unwritten_elements_are_uninitialized_and_nothing_else(name: str, recipe: str):
    """Even where NaN is the answer: the poison is a NaN of a kind that no computation makes."""
    tensors = every_pair((name,) * 3, (Values(recipe, 2),))
    reference = eager(tensors)
    assert not judged(reference, tensors).findings
    places = list(range(reference.numel()))
    for chosen in ([0], [1, 5], places):
        (finding,) = judged(unwritten(reference, chosen), tensors).findings
        assert (finding.kind, finding.output, finding.magnitude) == ("uninitialized", "q", len(chosen))
    assert "q[0,0,0,1]" in judged(unwritten(reference, [1, 5]), tensors).findings[0].message


def test_k_is_judged_by_its_own_type():
    tensors = normal(("float32",) * 3, (1, 2, 4, 8))
    tensors["k"] = tensors["k"].to(F64)
    tensors["k"][..., 0] += 1e-9
    reference = ROPE.reference(tensors)
    assert not judged(reference["k"], tensors, "k").findings
    assert kinds(judged(reference["k"].float().double(), tensors, "k").findings) == {"mismatch"}
    assert kinds(judged(reference["q"].double(), tensors, "k").findings) == {"mismatch"}


# How tight the bound is


@pytest.mark.parametrize("mix", UNIFORM, ids=lambda mix: mix[0])
def test_eager_pytorch_uses_up_an_eighth_of_the_bound_and_never_more_than_all_of_it(mix: Mix):
    largest = 0.0
    for seed in range(5):
        tensors = normal(mix, seed=10 * seed)
        errors = judged(eager(tensors), tensors).errors
        assert errors.over_bound <= 1
        assert errors.max_ulp == 0
        assert errors.rms_ratio == 1
        largest = max(largest, errors.over_bound)
    assert largest >= 1 / 8


@pytest.mark.parametrize("mix", UNIFORM, ids=lambda mix: mix[0])
def test_a_more_accurate_variant_has_a_smaller_mean_error(mix: Mix):
    if mix[0] != "float64":
        tensors = normal(mix)
        ratio = judged(wide_inside(tensors), tensors).errors.rms_ratio
        assert ratio is not None
        assert ratio < 0.9
