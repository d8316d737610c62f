"""The answers that a script holds are the judge's: what it passes they pass, what it fails they fail."""

import math

from fuzzrope.case import Backward, Case, TensorSpec, Values
from fuzzrope.repro.answers import answers, number


def tensor(name, shape, data, dtype="float32"):
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return name, TensorSpec(dtype, shape, tuple(strides), 0, name, Values("listed", 0, data), "cuda")


def case(q=(1.0, 2.0), cos=(1.0,), sin=(0.0,), shape=(1, 1, 1, 2)):
    tensors = (tensor("q", shape, q), tensor("k", (1, 1, 1, 2), (0.0, -0.0)))
    return Case("rope", (*tensors, tensor("cos", (1, 1), cos), tensor("sin", (1, 1), sin)))


def rows(found, name):
    (one,) = (answer for answer in found if answer.name == name)
    return one.rows


def test_a_number_has_its_result_its_bound_and_is_finite():
    (first, bound, letters), (second, _, _) = rows(answers(case(), 10), "q")
    assert (first, second, letters) == (1.0, 2.0, "f")
    assert 0 < bound < 1e-6


def test_infinities_nan_and_the_sign_of_a_zero_are_letters():
    nan_and_inf = rows(answers(case(q=(math.nan, math.inf), sin=(0.0,)), 10), "q")
    assert [letters for _, _, letters in nan_and_inf] == ["n", "n"]  # inf * 0 is NaN
    assert [letters for _, _, letters in rows(answers(case(q=(1.0, -math.inf), sin=(1.0,)), 10), "q")] == ["p", "m"]
    assert "".join(letters for _, _, letters in rows(answers(case(sin=(1.0,)), 10), "k")) != "ff"


def test_passed_through_outputs_name_their_input_and_gradients_follow():
    q, k, cos, sin = answers(case(), 10)
    assert [one.source for one in (q, k, cos, sin)] == ["", "", "cos", "sin"]
    given = Backward(("q",), (tensor("q", (1, 1, 1, 2), (1.0, 1.0)),))
    *_, gradient = answers(Case("rope", case().tensors, backward=given), 10)
    assert (gradient.name, [exact for exact, _, _ in gradient.rows]) == ("dq", [1.0, 1.0])


def test_what_the_contract_rejects_has_no_answers_and_what_is_too_large_is_said():
    assert answers(case(q=(1.0, 2.0, 3.0), shape=(1, 1, 1, 3)), 10) == []
    assert answers(case(), 1) == "output q has more than 1 elements; `fuzzrope minimize` it first"


def test_numbers_are_written_exactly():
    assert [number(x) for x in (0.1, -0.0, math.inf, -math.inf)] == ["0.1", "-0.0", "inf", "-inf"]
    assert number(math.nan) == "nan"
