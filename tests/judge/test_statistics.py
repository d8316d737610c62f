"""The tests over a whole output: each catches what it is for, and correct ways of rounding pass."""

import numpy as np
import pytest
import torch

from fuzzrope.build import build
from fuzzrope.case import Values
from fuzzrope.judge.statistics import MIN_SAMPLES, judge_spread
from fuzzrope.judge.values import compare
from fuzzrope.operations import OPERATIONS
from tests.conftest import rope_case, spec

DTYPES = ("float16", "bfloat16", "float32", "float64")
ROPE = OPERATIONS["rope"]


def tensors_of(dtype, **tensors):
    return build(rope_case(2, 4, 32, 32, dtype, **tensors), apart=False).tensors


def by_formula(tensors, kind):
    """Rotated q, computed in ``kind``."""
    x, c, s = (tensors[name].to(kind) for name in ("q", "cos", "sin"))
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], -1)


def found(tensors, got):
    numbers = got.to(torch.float64).reshape(-1).numpy()
    return {f.bucket: f for f in judge_spread("q", numbers, ROPE.envelopes(tensors)["q"])}


@pytest.mark.parametrize("dtype", DTYPES)
def test_eager_and_wider_computations_pass(dtype):
    tensors = tensors_of(dtype)
    own = tensors["q"].dtype
    for kind in (own, torch.float32, torch.float64):
        if torch.finfo(kind).bits >= torch.finfo(own).bits:
            assert not found(tensors, by_formula(tensors, kind).to(own))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_truncation_is_a_bias_that_the_bound_lets_pass(dtype):
    tensors = tensors_of(dtype)
    right = by_formula(tensors, torch.float64)
    got = right.to(tensors["q"].dtype)
    got = torch.where(got.double().abs() > right.abs(), torch.nextafter(got, torch.zeros_like(got)), got)
    envelope = ROPE.envelopes(tensors)["q"]
    assert (envelope.exact.distance(got.double().reshape(-1).numpy()) <= envelope.bound).all()
    shown = compare("q", got, ROPE.reference(tensors)["q"], envelope).findings
    assert "towards zero" in {f.bucket: f.message for f in shown}["mismatch:q:bias"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_twice_too_often_is_too_large_an_error(dtype):
    shape = (2, 8, 64, 32)
    tables = {name: spec(name, (64, 16), dtype, values=Values("normal", seed)) for seed, name in enumerate("cs", 5)}
    tensors = tensors_of(dtype, q=spec("q", shape, dtype), k=spec("k", shape, dtype), cos=tables["c"], sin=tables["s"])
    got = by_formula(tensors, tensors["q"].dtype)
    assert not found(tensors, got)
    assert "mismatch:q:rms" in found(tensors, got * 3 / 3 * 7 / 7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_operands_are_one_sample(dtype):
    """Four numbers in 4,096 places err in one direction by chance, not by truncation."""
    alike = spec("q", (2, 4, 32, 32), dtype, strides=(0, 0, 0, 0), values=Values("normal", 3))
    for seed in range(20):
        tables = {
            name: spec(name, (32, 16), dtype, strides=(0, 0), values=Values("normal", 10 * seed + number))
            for number, name in enumerate(("cos", "sin"))
        }
        tensors = tensors_of(dtype, q=alike, **tables)
        assert not found(tensors, by_formula(tensors, tensors["q"].dtype))


@pytest.mark.parametrize("kind", ["constant", "powers", "subnormal", "zeros", "tiny", "wide"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_few_bits_and_at_the_ends_of_the_range_raise_no_alarm(dtype, kind):
    for seed, name in enumerate(("q", "cos")):
        shape = {"q": (2, 4, 32, 32), "cos": (32, 16)}[name]
        values = Values(kind, seed, (0.1,) if kind == "constant" else ())
        tensors = tensors_of(dtype, **{name: spec(name, shape, dtype, values=values)})
        assert not found(tensors, by_formula(tensors, tensors["q"].dtype))


def test_few_samples_are_not_judged():
    tensors = build(rope_case(1, 1, 2, 64), apart=False).tensors
    envelope = ROPE.envelopes(tensors)["q"]
    assert envelope.exact.high.size < MIN_SAMPLES
    assert not judge_spread("q", envelope.exact.high - envelope.bound * np.sign(envelope.exact.high), envelope)
