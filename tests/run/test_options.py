"""Options of a case on their way to the target: dtypes by name, and the precision that is set, not passed."""

from dataclasses import replace

import pytest

from fuzzrope.case import Case
from fuzzrope.judge import judge
from fuzzrope.operations import OPERATIONS
from fuzzrope.run import Runner
from fuzzrope.targets import find

TARGET = """
import torch

class ModelNew:
    def __call__(self, q, k, cos, sin, *, out_dtype=None):
        assert out_dtype is None or isinstance(out_dtype, torch.dtype)
        seen = {"highest": 1.0, "high": 2.0}[torch.get_float32_matmul_precision()]
        CHANGE
        shape = (*q.shape[:3], k.shape[2])
        return torch.full(shape, seen, dtype=out_dtype or q.dtype, device=q.device)
"""


def case_with(**options):
    case = OPERATIONS["rope_qk"].probes()[0]
    return Case(case.operation, case.tensors, tuple(sorted(options.items())))


@pytest.fixture
def run(tmp_path):
    def outcomes(cases, change="pass"):
        path = tmp_path / "target.py"
        path.write_text(TARGET.replace("CHANGE", change))
        target = replace(find(str(path)), operation="rope_qk")
        with Runner(target) as runner:
            return target, [runner.run(case) for case in cases]

    return outcomes


def test_precision_is_set_for_each_case_and_never_passed(run):
    _, outcomes = run([case_with(), case_with(precision="high"), case_with(), case_with(precision="highest")])
    assert [outcome.outputs[0].data[:4].hex() for outcome in outcomes] == [
        "0000803f",
        "00000040",
        "0000803f",
        "0000803f",
    ]
    assert not any(outcome.tampered for outcome in outcomes)


def test_a_target_that_changes_the_precision_is_found_out(run):
    target, (outcome,) = run([case_with(precision="high")], "torch.set_float32_matmul_precision('highest')")
    assert outcome.tampered == ("float32 matmul precision",)
    assert "tamper" in {finding.kind for finding in judge(case_with(precision="high"), outcome, target).findings}


def test_out_dtype_arrives_as_a_dtype(run):
    _, (outcome,) = run([case_with(out_dtype="float16")])
    assert outcome.outputs[0].dtype == "float16"


@pytest.mark.parametrize("options", [{"precision": "low"}, {"out_dtype": "int4"}])
def test_options_that_torch_does_not_know_are_no_fault_of_the_target(run, options):
    _, (outcome,) = run([case_with(**options)])
    assert outcome.status == "unsupported"
