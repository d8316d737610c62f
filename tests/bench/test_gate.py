"""The gate: correct answers pass, wrong ones do not, whatever is wrong."""

from dataclasses import replace

import pytest
import torch

from fuzzrope.bench import gate
from fuzzrope.bench.gate import error_of, passes, rotated, truth
from fuzzrope.bench.inputs import make
from fuzzrope.bench.peers import PEERS
from fuzzrope.bench.session import run_of
from kernels import reference
from tests.bench.simulated import SMALL


def judged(row, results, rotates=True):
    return error_of(results, truth(row, make(row, "cpu", 0), rotates), getattr(torch, row.dtype))


def answer(row, inputs=None):
    """What the eager twin of our kernel gives, in the row's own dtype."""
    ours = next(peer for peer in PEERS if peer.ours and peer.serves(row))
    return run_of(ours.make(row), row, inputs or make(row, "cpu", 0))()


@pytest.mark.parametrize("name", SMALL)
def test_eager_answers_pass(name):
    row = SMALL[name]
    assert passes(judged(row, answer(row)), row)


@pytest.mark.parametrize("name", SMALL)
def test_the_truth_is_the_twins_in_float64(name):
    row = SMALL[name]
    inputs = make(row, "cpu", 0)
    wide = replace(
        inputs,
        **{field: getattr(inputs, field).double() for field in ("q", "k", "v", "cos", "sin")},
        given=tuple(x.double() for x in inputs.given),
    )
    for true, twin in zip(truth(row, inputs), answer(row, wide), strict=True):
        assert torch.allclose(true.double(), twin, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_an_answer_by_inputs_of_another_position_fails(name):
    row = SMALL[name]
    inputs = make(row, "cpu", 0)
    shifted = replace(inputs, cos=inputs.cos.roll(1, 0), sin=inputs.sin.roll(2, 0))
    assert not passes(judged(row, answer(row, shifted)), row)


@pytest.mark.parametrize("name", SMALL)
def test_one_wrong_row_fails(name):
    row = SMALL[name]
    results = tuple(x.clone() for x in answer(row))
    results[-1][-1, -1, -1] = results[-1][0, 0, 0]
    assert not passes(judged(row, results), row)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_fails(number):
    row = SMALL["attention"]
    (o,) = answer(row)
    o[0, 1, 2, 3] = number
    assert judged(row, (o,)) == gate.Error(float("inf"), float("inf"))


def test_another_dtype_or_shape_fails():
    row = SMALL["scores"]
    (scores,) = answer(row)
    assert not passes(judged(row, (scores.float(),)), row)
    assert not passes(judged(row, (scores[:, :, :, :-1],)), row)


def test_a_mask_that_is_off_by_one_fails():
    row = SMALL["causal attention"]
    other = replace(row, offset=1, keys=row.keys)
    inputs = make(other, "cpu", 0)
    o = reference.attention_reference(inputs.q, inputs.k, inputs.v, inputs.cos, inputs.sin, causal=True, q_offset=1)
    assert not passes(judged(row, (o,)), row)


def test_hidden_scores_have_to_be_hidden_and_no_others():
    row = SMALL["causal scores"]
    (scores,) = answer(row)
    assert (scores == -float("inf")).sum() == 4 * 15
    assert passes(judged(row, (scores.clone(),)), row)
    for i, j, number in ((2, 3, 0.0), (2, 3, float("inf")), (2, 3, float("nan")), (3, 3, -float("inf"))):
        wrong = scores.clone()
        wrong[0, 1, i, j] = number
        assert judged(row, (wrong,)) == gate.Error(float("inf"), float("inf"))
    wrong = scores.clone()
    wrong[0, 1, 5] *= 1.5
    assert not passes(judged(row, (wrong,)), row)


def test_without_rotation_only_answers_without_rotation_pass():
    row = SMALL["scores"]
    inputs = make(row, "cpu", 0)
    bare = (inputs.q @ inputs.k.repeat_interleave(2, 1).mT,)
    assert passes(judged(row, bare, rotates=False), row)
    assert not passes(judged(row, bare), row)


def test_heads_taken_in_pieces_give_the_same_truth(monkeypatch):
    row = SMALL["backward"]
    whole = truth(row, make(row, "cpu", 0))
    monkeypatch.setattr(gate, "MOST_AT_ONCE", 1)
    for one, other in zip(whole, truth(row, make(row, "cpu", 0)), strict=True):
        assert torch.allclose(one, other, rtol=1e-6)
    assert passes(judged(row, answer(row)), row)


def test_a_rotation_by_one_radian_of_one_pair():
    x, angle = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]], dtype=torch.float64)
    turned = rotated(x, angle.cos(), angle.sin())
    assert torch.allclose(turned, torch.tensor([[0.5403023, 0.8414710]], dtype=torch.float64))
