import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fuzzrope.case import FLOATS
from fuzzrope.judge.values import compare
from fuzzrope.numbers import format_of
from fuzzrope.operations import OPERATIONS

ROPE = OPERATIONS["rope"]
NAMES = ("q", "k", "cos", "sin")
DTYPES = {name: getattr(torch, name) for name in FLOATS}
GEOMETRIES = {
    "plain": ((2, 3, 2, 4), (2, 2, 2, 4), (2, 2), (2, 2)),
    "long tables": ((1, 2, 2, 4), (2, 1, 2, 4), (5, 2), (3, 2)),
    "one row": ((2, 1, 3, 4), (2, 2, 3, 4), (1, 2), (1, 2)),
    "one column": ((2, 1, 3, 6), (1, 2, 3, 6), (3, 1), (3, 1)),
    "k of one row": ((1, 2, 3, 4), (2, 2, 1, 4), (3, 2), (3, 2)),
    "halves spread": ((2, 2, 2, 2), (1, 2, 2, 2), (2, 3), (2, 3)),
    "tables differ": ((2, 2, 3, 2), (1, 2, 1, 2), (3, 1), (1, 4)),
}
VALUES = ("normal", "cancelling", "subnormal", "large")


def numbers(generator, shape, dtype, kind):
    info = torch.finfo(dtype)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "cancelling":  # sums of equal and opposite terms, with a little left over
        x = torch.sign(x) * (1 + torch.randint(0, 3, shape, generator=generator) * info.eps)
    elif kind == "subnormal":
        x = x * info.tiny / 4 if torch.rand((), generator=generator) < 0.5 else x
    elif kind == "large":
        x = x * math.sqrt(info.max) / 16
    return x.to(dtype)


def problem(geometry, dtypes, kind, seed=0):
    """Inputs that require gradients, the reference's outputs, and cotangents for all of them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(zip(NAMES, GEOMETRIES[geometry], strict=True))
    tensors = {
        name: numbers(generator, shapes[name], DTYPES[dtype], kind).requires_grad_()
        for name, dtype in zip(NAMES, dtypes, strict=True)
    }
    outputs = ROPE.reference(tensors)
    cotangents = {name: numbers(generator, out.shape, out.dtype, kind) for name, out in outputs.items()}
    return tensors, outputs, cotangents


def eager(tensors, outputs, cotangents):
    roots = [outputs[name] for name in cotangents]
    found = torch.autograd.grad(roots, list(tensors.values()), list(cotangents.values()), allow_unused=True)
    return dict(zip(tensors, found, strict=True))


def terms(tensors, cotangents):
    """(element of a gradient, one factor, the other) one by one, by index; nothing is shared with the oracle."""
    rows = tensors["q"].shape[2]
    plain = {name: t.detach().double() for name, t in tensors.items()}

    def at(size, i):
        return 0 if size == 1 else i

    for output, cotangent in cotangents.items():
        g = cotangent.double()
        if output in ("cos", "sin"):
            for place in itertools.product(*map(range, g.shape)):
                yield output, place, g[place].item(), 1.0
            continue
        x, half, wide = plain[output], plain[output].shape[3] // 2, g.shape[3] // 2
        for b, h, s, d in itertools.product(*map(range, (*g.shape[:3], wide))):
            xs, xd = at(x.shape[2], s), at(half, d)
            g1, g2 = g[b, h, s, d].item(), g[b, h, s, wide + d].item()
            p1, p2 = (b, h, xs, xd), (b, h, xs, half + xd)
            x1, x2 = x[p1].item(), x[p2].item()
            pc, ps = ((at(min(plain[name].shape[0], rows), s), at(plain[name].shape[1], d)) for name in ("cos", "sin"))
            c, t = plain["cos"][pc].item(), plain["sin"][ps].item()
            yield from ((output, p1, g1, c), (output, p1, g2, t), (output, p2, g2, c), (output, p2, -g1, t))
            yield from (("cos", pc, g1, x1), ("cos", pc, g2, x2), ("sin", ps, g2, x1), ("sin", ps, -g1, x2))


def exact_values(tensors, cotangents):
    found = {name: np.full(tuple(t.shape), Fraction(0)) for name, t in tensors.items()}
    for name, place, one, other in terms(tensors, cotangents):
        found[name][place] += Fraction(one) * Fraction(other)
    return found


def value(envelope, at):
    exact = envelope.exact
    total = Fraction(float(exact.high[at])) + Fraction(float(exact.low[at]))
    return total * Fraction(2) ** int(exact.exponent[at])


def verdicts(tensors, cotangents, gradients, requires=NAMES):
    """The buckets of findings of these gradients, by input."""
    envelopes = ROPE.gradients(tensors, cotangents, requires)
    found = {}
    for name in requires:
        comparison = compare(name, gradients[name], gradients[name], envelopes[name])
        found[name] = [finding.kind for finding in comparison.findings]
    return found


CLEAN = {name: [] for name in NAMES}
MIXES = [*((name,) * 4 for name in FLOATS), ("float16", "bfloat16", "float32", "float16")]
MIXES += [("float32", "float64", "float32", "bfloat16"), ("float16", "float32", "float16", "float64")]


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtypes", MIXES, ids=" ".join)
def test_the_oracle_is_exact_far_below_the_bound(geometry, dtypes, kind):
    tensors, _, cotangents = problem(geometry, dtypes, kind)
    expected = exact_values(tensors, cotangents)
    envelopes = ROPE.gradients(tensors, cotangents, NAMES)
    for name in NAMES:
        envelope = envelopes[name]
        for i, true in enumerate(expected[name].reshape(-1)):
            bound = Fraction(float(envelope.bound[i])) * Fraction(2) ** int(envelope.exact.exponent[i])
            assert abs(value(envelope, i) - true) <= bound / 1000 + Fraction(2) ** -1300
            assert envelope.finite[i] or abs(true) > torch.finfo(tensors[name].dtype).max / 2


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtypes", MIXES, ids=" ".join)
def test_autograd_through_the_reference_stays_inside(geometry, dtypes, kind):
    for seed in range(3):
        tensors, outputs, cotangents = problem(geometry, dtypes, kind, seed)
        assert verdicts(tensors, cotangents, eager(tensors, outputs, cotangents)) == CLEAN


def accumulated(tensors, cotangents, order, product, accumulator):
    """Gradients whose products are rounded to ``product``, added in ``order`` in ``accumulator``, rounded once."""
    found = {name: torch.zeros(t.shape, dtype=accumulator) for name, t in tensors.items()}
    every = list(terms(tensors, cotangents))
    for i in order(len(every)):
        name, place, one, other = every[i]
        number = torch.tensor(one, dtype=torch.float64) * other
        found[name][place] += number.to(product).to(accumulator)
    return {name: t.to(tensors[name].dtype) for name, t in found.items()}


def shuffled(count):
    return torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_correct_variants_stay_inside(geometry, dtype):
    wide = torch.float64 if dtype == "float64" else torch.float32
    for kind in ("normal", "cancelling", "subnormal"):
        tensors, _, cotangents = problem(geometry, (dtype,) * 4, kind)
        for order, product, accumulator in (
            (range, torch.float64, torch.float64),
            (lambda n: reversed(range(n)), wide, wide),
            (range, DTYPES[dtype], wide),
            (shuffled, wide, wide),
        ):
            variant = accumulated(tensors, cotangents, order, product, accumulator)
            assert verdicts(tensors, cotangents, variant) == CLEAN


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_slightly_wrong_ones_do_not(geometry, dtype):
    tensors, outputs, cotangents = problem(geometry, (dtype,) * 4, "normal")
    right = eager(tensors, outputs, cotangents)
    unit = 2 * format_of(DTYPES[dtype]).roundoff
    for name in NAMES:
        envelope = ROPE.gradients(tensors, cotangents, NAMES)[name]
        at = int(np.argmax(np.abs(envelope.exact.high) / envelope.bound))
        off = right[name].clone().reshape(-1)
        # The error that the sum of its terms' sizes allows, plus half: a bound three times as wide would let it pass.
        exact = float(value(envelope, at))
        bound = float(envelope.bound[at]) * 2.0 ** int(envelope.exact.exponent[at])
        sizes = [
            abs(one * other)
            for n, place, one, other in terms(tensors, cotangents)
            if n == name and np.ravel_multi_index(place, tuple(tensors[name].shape)) == at
        ]
        sums = len(sizes) * (1 if dtype in ("float32", "float64") else 0)
        assert bound <= (5 + sums) * unit * sum(sizes)
        off[at] = exact + 1.5 * bound + unit * abs(exact)
        wrong = {**right, name: off.reshape(right[name].shape)}
        assert verdicts(tensors, cotangents, wrong) == {**CLEAN, name: ["mismatch"]}


def flawed(tensors, cotangents, drop):
    found = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in tensors.items()}
    for i, (name, place, one, other) in enumerate(terms(tensors, cotangents)):
        found[name][place] += drop(i, name, one * other)
    return {name: t.to(tensors[name].dtype) for name, t in found.items()}


def test_a_term_left_out_a_wrong_sign_and_a_term_counted_twice_are_outside():
    tensors, _, cotangents = problem("plain", ("float32",) * 4, "normal")
    drops = (
        lambda i, name, term: 0.0 if i == 5 else term,
        lambda i, name, term: -term if i == 5 else term,
        lambda i, name, term: 2 * term if i == 5 else term,
    )
    for drop in drops:
        assert ["mismatch"] in verdicts(tensors, cotangents, flawed(tensors, cotangents, drop)).values()
    assert verdicts(tensors, cotangents, flawed(tensors, cotangents, lambda i, name, term: term)) == CLEAN


def test_sums_held_in_sixteen_bits_are_outside():
    shapes = ((8, 160, 1, 2), (1, 1, 1, 2), (1, 1), (1, 1))
    tensors = {
        name: torch.ones(shape, dtype=torch.float16).requires_grad_() for name, shape in zip(NAMES, shapes, strict=True)
    }
    outputs = ROPE.reference(tensors)
    cotangents = {name: torch.ones_like(out) for name, out in outputs.items()}
    coarse = accumulated(tensors, cotangents, range, torch.float16, torch.float16)
    assert verdicts(tensors, cotangents, coarse)["cos"] == ["mismatch"]
    fine = accumulated(tensors, cotangents, range, torch.float16, torch.float32)
    assert verdicts(tensors, cotangents, fine) == CLEAN


def test_rows_of_a_table_beyond_those_in_use_are_zero():
    tensors, outputs, cotangents = problem("long tables", ("float32",) * 4, "normal")
    right = eager(tensors, outputs, cotangents)
    assert not right["cos"][2:].any()
    wrong = right["cos"].clone()
    wrong[4, 0] = 2.0**-149
    assert verdicts(tensors, cotangents, {**right, "cos": wrong}) == {**CLEAN, "cos": ["mismatch"]}


def test_what_no_used_output_depends_on_has_no_envelope():
    tensors, outputs, cotangents = problem("plain", ("float32",) * 4, "normal")
    only_k = {"k": cotangents["k"]}
    assert set(ROPE.gradients(tensors, only_k, NAMES)) == {"k", "cos", "sin"}
    assert set(ROPE.gradients(tensors, {"sin": cotangents["sin"]}, NAMES)) == {"sin"}
    assert eager(tensors, outputs, only_k)["q"] is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_tensor_as_q_and_k_has_the_sum_of_both(dtype):
    tensors, _, _ = problem("plain", (dtype,) * 4, "normal")
    tensors["k"] = tensors["q"]
    outputs = ROPE.reference(tensors)
    generator = torch.Generator().manual_seed(1)
    cotangents = {name: numbers(generator, out.shape, out.dtype, "normal") for name, out in outputs.items()}
    right = eager(tensors, outputs, cotangents)
    assert verdicts(tensors, cotangents, right) == CLEAN
    half = eager(tensors, ROPE.reference(tensors), {"q": cotangents["q"]})
    wrong = {**right, "q": half["q"], "k": half["q"]}
    assert verdicts(tensors, cotangents, wrong) == {**CLEAN, "q": ["mismatch"], "k": ["mismatch"]}


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "cos", "grad_q"])
def test_nan_and_infinities_come_out_as_the_references(where, special):
    tensors, _, cotangents = problem("plain", ("float32",) * 4, "normal")
    (cotangents["q"] if where == "grad_q" else tensors[where].data).view(-1)[1] = special
    right = eager(tensors, ROPE.reference(tensors), cotangents)
    assert verdicts(tensors, cotangents, right) == CLEAN
    swallowed = {name: torch.nan_to_num(t, 0.0, 0.0, 0.0) for name, t in right.items()}
    assert ["nonfinite"] in verdicts(tensors, cotangents, swallowed).values()


def test_an_infinity_is_allowed_where_partial_sums_overflow_and_not_elsewhere():
    tensors, _, cotangents = problem("one row", ("float16",) * 4, "normal")
    for t in (tensors["q"], cotangents["q"]):
        t.data.fill_(200.0)
    right = eager(tensors, ROPE.reference(tensors), cotangents)
    assert torch.isinf(right["cos"]).all()
    assert verdicts(tensors, cotangents, right) == CLEAN
    wrong = {**right, "k": torch.full_like(right["k"], math.inf)}
    assert verdicts(tensors, cotangents, wrong) == {**CLEAN, "k": ["nonfinite"]}
