"""Every access is checked against the views of the launch; a correct twin of each planted fault is silent."""

import textwrap

import pytest

from fuzzrope.case import Values
from fuzzrope.judge import judge
from fuzzrope.run import Runner
from fuzzrope.targets import find
from tests.conftest import rope_case, spec

HEAD = """
import torch, triton
import triton.language as tl

@triton.jit
def kernel(x_ptr, out_ptr, n, stride, SHIFT: tl.constexpr, EXTRA: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    {load}
    {store}

class ModelNew:
    def __call__(self, q, k, cos, sin):
        {body}
        raise ValueError("done")
"""

LOAD = "value = tl.load(x_ptr + offsets * stride, mask=offsets < n, other=0.0)"
STORE = "tl.store(out_ptr + offsets, value, mask=offsets < n)"
BODY = "kernel[(1,)](cos, torch.empty_like(cos), cos.numel(), 1, 0, 0, 16)"
ROW = "kernel[(1,)](cos[1], torch.empty_like(cos[1]), cos.shape[1], cos.stride(1), 0, 0, 16)"

#: name -> load, store, body, and what the message must contain (None: silent).
PLANTED = {
    "correct": (LOAD, STORE, BODY, None),
    "correct on a row of a padded table": (LOAD, STORE, ROW, None),
    "read past the end": (LOAD.replace("< n", "<= n"), STORE, BODY, "load of 4 bytes 0 bytes past the end of x_ptr"),
    "write past the end": (
        LOAD,
        STORE.replace("< n", "<= n"),
        BODY,
        "store of 4 bytes 0 bytes past the end of out_ptr",
    ),
    "read before the start": (LOAD.replace("x_ptr +", "x_ptr - 1 +"), STORE, BODY, "4 bytes before x_ptr"),
    "read past a view inside its storage": (
        LOAD.replace("< n", "<= n"),
        STORE,
        ROW.replace("cos[1]", "cos[0]"),
        "past the end of x_ptr (inside its storage)",
    ),
    "read that is masked away afterwards": (
        LOAD.replace("mask=offsets < n, other=0.0", "mask=offsets <= n, other=0.0"),
        "tl.store(out_ptr + offsets, tl.where(offsets < n, value, 0.0), mask=offsets < n)",
        BODY,
        "load of 4 bytes",
    ),
    "wild pointer": (LOAD.replace("x_ptr +", "x_ptr + 4000000000 +"), STORE, BODY, "load of 4 bytes"),
    "atomic past the end": (LOAD, "tl.atomic_add(out_ptr + offsets, value, mask=offsets <= n)", BODY, "atomic of 4"),
}


def run(tmp_path, load, store, body, case):
    file = tmp_path / "candidate.py"
    file.write_text(textwrap.dedent(HEAD).format(load=load, store=store, body=body))
    target = find(str(file))
    with Runner(target, engine="interpret") as runner:
        outcome = runner.run(case)
    return outcome, judge(case, outcome, target)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_its_correct_twin_is_silent(name, tmp_path):
    load, store, body, message = PLANTED[name]
    outcome, verdict = run(tmp_path, load, store, body, rope_case())
    assert outcome.raised is not None
    assert outcome.raised.message == "done", outcome.raised
    found = [f for f in verdict.findings if f.kind == "out_of_bounds"]
    if message is None:
        assert not found
        return
    (finding,) = found
    assert message in finding.message
    line = load if "load" in finding.message.split(" of ")[0] else store
    assert line in finding.message


def test_the_gap_of_a_strided_view_is_out_of_bounds(tmp_path):
    gapped = spec("cos", (3, 2), strides=(8, 2))
    case = rope_case(cos=gapped)
    body = "kernel[(1,)](cos, torch.empty(6, device='cuda'), 3, {}, 0, 0, 16)"
    _, verdict = run(tmp_path, LOAD, STORE, body.format(1), case)
    assert any("in a gap of x_ptr" in f.message for f in verdict.findings)
    _, verdict = run(tmp_path, LOAD, STORE, body.format(8), case)
    assert not any(f.kind == "out_of_bounds" for f in verdict.findings)


def test_writing_into_a_gap_of_an_input_without_a_kernel_is_out_of_bounds(tmp_path):
    case = rope_case(cos=spec("cos", (3, 2), strides=(8, 2)))
    body = "torch.as_strided(cos, (24,), (1,), 0)[1] = 0.0"
    _, verdict = run(tmp_path, LOAD, STORE, body.replace("(24,)", "(18,)"), case)
    assert any(f.bucket == "out_of_bounds:around cos" for f in verdict.findings)


@pytest.mark.parametrize("grid", ["(1, 65536)", "(1, 1, 65536)", "(2**31, 1)"])
def test_a_grid_that_hardware_refuses_is_found_before_it_runs(grid, tmp_path):
    _, verdict = run(tmp_path, LOAD, STORE, BODY.replace("(1,)", grid), rope_case())
    assert [f.kind for f in verdict.findings] == ["launch"]


def test_too_many_programs_for_the_interpreter_is_no_finding(tmp_path):
    outcome, verdict = run(tmp_path, LOAD, STORE, BODY.replace("(1,)", "(65535,)"), rope_case())
    assert outcome.status == "unsupported"
    assert not verdict.findings
    assert "too many" in verdict.skipped


def test_a_host_tensor_cannot_be_given_to_a_kernel(tmp_path):
    outcome, _ = run(tmp_path, LOAD, STORE, BODY.replace("kernel[(1,)](cos,", "kernel[(1,)](cos.cpu(),"), rope_case())
    assert outcome.raised is not None
    assert "cpu tensor" in outcome.raised.message


def test_far_batches_are_checked_without_being_mapped(tmp_path):
    far = spec("q", (3, 1, 1, 4), strides=(2**30, 4, 4, 1), values=Values("normal", 3))
    case = rope_case(heads=1, seq=1, q=far)
    body = "kernel[(1,)](q[2, 0, 0], torch.empty(4, device='cuda'), 4, 1, 0, 0, 16)"
    _, verdict = run(tmp_path, LOAD, STORE, body, case)
    assert not any(f.kind == "out_of_bounds" for f in verdict.findings)


BLOCK_POINTER = """
import torch, triton
import triton.language as tl

@triton.autotune(configs=[triton.Config({{"BLOCK": 16}}), triton.Config({{"BLOCK": 32}})], key=["n"])
@triton.jit
def kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    source = tl.make_block_ptr(x_ptr, (n,), (1,), (0,), (BLOCK,), (0,))
    target = tl.make_block_ptr(out_ptr, ({size},), (1,), (0,), (BLOCK,), (0,))
    value = tl.load(source, boundary_check=(0,), padding_option="zero")
    tl.store(target, value, boundary_check=(0,))

class ModelNew:
    def __call__(self, q, k, cos, sin):
        assert triton.runtime.driver.active.get_current_target().backend == "cuda"
        kernel[(1,)](cos, torch.empty_like(cos), cos.numel())
        raise ValueError("done")
"""


@pytest.mark.parametrize(("size", "faulty"), [("n", False), ("n + 1", True)])
def test_block_pointers_and_autotuning_run_and_are_checked(size, faulty, tmp_path):
    file = tmp_path / "candidate.py"
    file.write_text(BLOCK_POINTER.format(size=size))
    target = find(str(file))
    with Runner(target, engine="interpret") as runner:
        outcome = runner.run(rope_case())
    assert outcome.raised is not None
    assert outcome.raised.message == "done", outcome.raised
    found = {f.kind for f in judge(rope_case(), outcome, target).findings}
    assert ("out_of_bounds" in found) == faulty


def test_what_the_interpreter_does_not_know_is_no_finding(tmp_path):
    load = "for i in range(0, n):\n        i.to(tl.int64)\n    " + LOAD
    outcome, verdict = run(tmp_path, load, STORE, BODY, rope_case())
    assert outcome.status == "unsupported"
    assert "cannot run kernel" in verdict.skipped
