"""The contracts as scripts have them written out: those of the operations, to the bit."""

import pytest
import torch

from fuzzrope.build import build
from fuzzrope.draw import search
from fuzzrope.operations import OPERATIONS
from fuzzrope.repro import eager


def drawn(name, count):
    cases, operation = [], OPERATIONS[name]
    pins = {"floats": ("float32", "float16", "float64"), "gradients": ""}
    search(lambda draw: bool(cases.append(operation.draw(draw, pins, (16,)))), count, "eager")
    return [case for case in cases if not operation.rejects(case) and max(s.numel for _, s in case.tensors) < 10**6]


@pytest.mark.parametrize("name", ["rope", "rope_options", "rope_placed", "rope_batched", "rope_qk", "rope_attention"])
def test_the_written_out_contract_gives_the_reference_bits(name):
    operation, function = OPERATIONS[name], getattr(eager, "rope" if name == "rope_options" else name)
    cases = drawn(name, 40)
    assert len(cases) > 10
    for case in cases:
        options = {key: value for key, value in case.options if key != "precision"}
        inputs = build(case, apart=False).tensors
        expected = operation.reference(inputs, options)
        if options.get("out_dtype"):
            options["out_dtype"] = getattr(torch, options["out_dtype"])
        found = function(*inputs.values(), **options)
        found = found if isinstance(found, tuple) else (found,)
        for key, got in zip(operation.results(dict(case.options)), found, strict=True):
            assert (got.dtype, got.shape) == (expected[key].dtype, expected[key].shape)
            assert torch.equal(got.nan_to_num(7.0), expected[key].nan_to_num(7.0)), (key, case.to_json())
            assert torch.equal(got.signbit() & ~got.isnan(), expected[key].signbit() & ~expected[key].isnan())
