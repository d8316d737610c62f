"""Errors over bounds stay numbers that can be added up and written down, whatever an output holds."""

import json
import math

import numpy as np
import pytest
import torch

from fuzzrope.judge.values import LARGEST, Errors, compare
from fuzzrope.numbers import Exact
from fuzzrope.operations import Envelope


def envelope(exact, bound, finite=True):
    never = np.zeros(len(exact), dtype=bool)
    return Envelope(Exact.of(np.array(exact)), np.array(bound), ~never if finite else never, never, never, never, never)


@pytest.mark.parametrize("got", [[0.0, 1.0], [-0.0, 1.0]])
def test_no_error_where_none_is_allowed_counts_as_nothing(got):
    found = compare("q", torch.tensor(got), torch.tensor([0.0, 1.5]), envelope([0.0, 1.0], [0.0, 1.0]))
    assert not found.findings
    assert found.errors.over_bound == 0.0
    assert found.errors.rms_ratio == 0.0


def test_an_error_where_none_is_allowed_is_found_and_counted_as_a_number():
    found = compare("q", torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.5]), envelope([0.0, 1.0], [0.0, 1.0]))
    assert [f.kind for f in found.findings] == ["mismatch"]
    total = Errors()
    for _ in range(1000):
        total.add(found.errors)
    assert total.over_bound == LARGEST
    assert math.isfinite(total.rms_ratio)
    json.dumps([total.over_bound, total.rms_ratio, found.findings[0].to_json()], allow_nan=False)


def test_any_error_is_nothing_where_all_are_allowed():
    found = compare("q", torch.tensor([1e30]), torch.tensor([0.0]), envelope([0.0], [np.inf]))
    assert not found.findings
    assert found.errors.over_bound == 0.0
