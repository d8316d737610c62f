"""Targets that run on a CPU as on one: nothing pretends to be a GPU, and they are judged as if it were one."""

import shutil
from dataclasses import replace

import pytest

from fuzzrope.judge import judge
from fuzzrope.run import Runner
from fuzzrope.targets import find
from tests.conftest import rope_case

HONEST = """
import torch

def turned(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)

def ModelNew(q, k, cos, sin):
    assert not q.is_cuda and q.device.type == "cpu" and not torch.cuda.is_available()
    assert "interpreter" not in torch.compile.__module__ and "fuzzrope" not in torch.compile.__module__
    cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
    return turned(q, cos, sin), turned(k, cos, FLAW), cos, sin
"""


def verdict(tmp_path, text, case):
    file = tmp_path / "bare.py"
    file.write_text(text)
    target = replace(find(str(file)), bare=True, kernel=False)
    with Runner(target) as runner:
        return judge(case, runner.run(case), target)


@pytest.mark.parametrize(("flaw", "kinds"), [("sin", set()), ("-sin", {"mismatch"})])
def test_a_bare_target_sees_a_cpu_and_is_judged_as_ever(tmp_path, flaw, kinds):
    found = verdict(tmp_path, HONEST.replace("FLAW", flaw), rope_case(seq=3)).findings
    assert {finding.kind for finding in found} == kinds


def test_a_case_on_two_devices_says_nothing_of_a_bare_target(tmp_path):
    case = rope_case(seq=3).with_tensor("cos", device="cpu")
    assert "one device alone" in verdict(tmp_path, HONEST.replace("FLAW", "sin"), case).skipped


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="Inductor needs a C++ compiler")
def test_what_inductor_makes_of_the_reference_passes(runner_of):
    target, case = find("wild:compiled"), rope_case(seq=3)
    outcome = runner_of(target).run(case)
    assert (outcome.status, judge(case, outcome, target).findings) == ("returned", [])
