"""Each kind of finding, from an outcome that shows it and nothing else."""

from dataclasses import replace

import pytest
import torch

from fuzzrope.build import FRESH, build
from fuzzrope.case import Case
from fuzzrope.judge import judge
from fuzzrope.operations import OPERATIONS
from fuzzrope.outcome import Access, Launch, Outcome, Output, Raised
from fuzzrope.targets import find
from tests.conftest import rope_case, spec

TARGET = replace(find("kernels.ModelNew"), exact=False)
VALUES = TARGET.at("values")
CASE = rope_case()


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def right(case: Case = CASE) -> Outcome:
    """The outcome of a perfect target."""
    built = build(case)
    outputs = []
    for name, tensor in OPERATIONS["rope"].reference(built.tensors).items():
        shares = ((name, 0),) if name in ("cos", "sin") else ()
        dtype = str(tensor.dtype).removeprefix("torch.")
        outputs.append(Output("Tensor", dtype, tuple(tensor.shape), tensor.stride(), "cuda", raw(tensor), shares))
    after = tuple((name, memory.bytes()) for name, memory in built.memories.items())
    launches = (Launch("rope_kernel", (1,), ()),)
    return Outcome("returned", container="tuple", outputs=tuple(outputs), launches=launches, after=after)


def with_output(index: int, **changes: object) -> Outcome:
    outcome = right()
    outputs = list(outcome.outputs)
    outputs[index] = replace(outputs[index], **changes)  # type: ignore[arg-type]  # fields by name
    return replace(outcome, outputs=tuple(outputs))


def with_numbers(index: int, place: int, bits: bytes) -> Outcome:
    data = bytearray(right().outputs[index].data)
    data[4 * place : 4 * place + 4] = bits
    return with_output(index, data=bytes(data))


def buckets(outcome: Outcome, target=TARGET, case: Case = CASE) -> set[str]:
    return {f.bucket for f in judge(case, outcome, target).findings}


def test_a_perfect_outcome_has_no_finding():
    assert buckets(right()) == set()
    assert buckets(right(), replace(TARGET, exact=True)) == set()


WRONG = {
    "crash:SIGSEGV": Outcome("died", "SIGSEGV"),
    "timeout": Outcome("timeout", "no answer within 10 s"),
    "oom": Outcome("oom", "more than 4 GiB in use"),
    "tamper:process": Outcome("tampered", "it ended its process"),
    "tamper:torch.allclose": replace(right(), tampered=("torch.allclose",)),
    "exception:AssertionError:forward": Outcome("raised", raised=Raised("AssertionError", "", "m.py:3 in forward")),
    "out_of_bounds:load:k": replace(right(), accesses=(Access("load", "k", "m.py:3: x", "load of 4 bytes", 1),)),
    "launch:k": replace(right(), accesses=(Access("launch", "k", "m.py:3: x", "grid (1, 65536)", 1),)),
    "type:container": replace(right(), outputs=right().outputs[:2]),
    "type:q": with_output(0, type="LazyTensor"),
    "shape:q": with_output(0, shape=(1, 2, 3, 5)),
    "dtype:k": with_output(1, dtype="float64"),
    "device:q": with_output(0, device="cpu"),
    "layout:q": with_output(0, strides=(24, 12, 4, 1)),
    "alias:q": with_output(0, shares=(("q", 0),)),
    "alias:k": with_output(1, shares=(("#0", 0),)),
    "alias:cos": with_output(2, shares=()),
    "mismatch:q": with_numbers(0, 5, b"\x00\x00\x80\x3f"),
    "mismatch:cos": with_numbers(2, 1, b"\x00\x00\x80\x3f"),
    "nonfinite:k": with_numbers(1, 5, b"\x00\x00\xc0\x7f"),
    "uninitialized:q": with_numbers(0, 5, FRESH[4].to_bytes(4, "little")),
    "no_launch": replace(right(), launches=()),
}


@pytest.mark.parametrize("bucket", WRONG)
def test_each_departure_is_found_alone_and_named(bucket):
    assert buckets(WRONG[bucket]) == {bucket}


def test_an_output_that_cannot_be_written_to_is_found_at_every_level():
    assert buckets(with_output(0, strides=(24, 0, 4, 1)), VALUES) == {"alias:q:itself"}
    assert buckets(with_output(0, strides=(0, 12, 4, 1)), VALUES) == set()  # of one element along it


@pytest.mark.parametrize("bucket", ["layout:q", "alias:cos"])
def test_the_values_level_forgives_layout_and_views(bucket):
    assert buckets(WRONG[bucket], VALUES) == set()


def test_a_changed_input_is_a_mutation_and_a_changed_gap_is_out_of_bounds():
    case = rope_case(cos=spec("cos", (3, 2), strides=(4, 1)))
    outcome = right(case)
    memory = build(case).memories["cos"]

    def damaged(element: int) -> Outcome:
        data = bytearray(dict(outcome.after)["cos"])
        data[memory.start + 4 * element] ^= 1
        after = tuple((name, bytes(data) if name == "cos" else value) for name, value in outcome.after)
        return replace(outcome, after=after)

    assert buckets(damaged(4), case=case) == {"mutation:cos"}
    assert buckets(damaged(2), case=case) == {"out_of_bounds:around cos"}
    assert buckets(damaged(-1), case=case) == {"out_of_bounds:around cos"}


def test_one_ulp_matters_only_to_an_exact_target():
    data = right().outputs[0].data
    number = int.from_bytes(data[:4], "little") ^ 1
    outcome = with_numbers(0, 0, number.to_bytes(4, "little"))
    assert buckets(outcome) == set()
    assert buckets(outcome, replace(TARGET, exact=True)) == {"mismatch:q"}


def test_errors_are_demanded_where_the_contract_or_the_reference_raises():
    odd = rope_case(q=spec("q", (1, 2, 3, 5)), k=spec("k", (1, 2, 3, 5)))
    wrong_error = Outcome("raised", raised=Raised("RuntimeError", "", "m.py:3 in forward"))
    right_error = Outcome("raised", raised=Raised("ValueError", "", "m.py:3 in forward"))
    assert buckets(right_error, case=odd) == set()
    assert buckets(wrong_error, case=odd) == {"exception:RuntimeError:forward"}
    assert buckets(wrong_error, VALUES, odd) == set()
    assert buckets(replace(right(), after=()), case=odd) == {"no_exception:head_dim"}
    no_broadcast = rope_case(cos=spec("cos", (2, 2)))
    returned = replace(right(), after=())
    assert buckets(returned, case=no_broadcast) == {"no_exception:reference"}
    assert buckets(wrong_error, case=no_broadcast) == set()


def test_a_reference_that_divides_by_zero_raises_like_any_other():
    shapes = {"q": (1, 1, 2, 0), "k": (1, 1, 2, 0), "cos": (2, 0), "sin": (2, 0)}
    empty = Case("rope_qk", tuple((name, spec(name, shape)) for name, shape in shapes.items()))
    refused = Outcome("raised", raised=Raised("ValueError", "", "m.py:3 in forward"))
    assert buckets(refused, find("kernels.rope_qk"), empty) == set()
    returned = Outcome("returned", launches=right().launches)
    assert buckets(returned, find("kernels.rope_qk"), empty) >= {"no_exception:head_dim"}


def test_what_the_engine_cannot_run_is_skipped_and_no_finding():
    verdict = judge(CASE, Outcome("unsupported", "too many programs"), TARGET)
    assert verdict.skipped == "too many programs"
    assert not verdict.findings


def test_a_deadline_binds_where_a_correct_kernel_can_meet_it_row_by_row_and_not_at_65536_rows():
    late = Outcome("timeout", "no answer within 10 s")
    verdict = judge(rope_case(seq=2**16), late, TARGET)
    assert not verdict.findings
    assert verdict.skipped == "65,536 rows: no answer within 10 s"
    assert buckets(late, case=rope_case(seq=2**14)) == {"timeout"}
    assert "crash:SIGSEGV" in buckets(Outcome("died", "SIGSEGV"), case=rope_case(seq=2**16))


def test_errors_are_measured_per_output_dtype():
    errors = judge(CASE, right(), TARGET).errors
    assert set(errors) == {"float32"}
    assert errors["float32"].count == 2 * 24
    assert errors["float32"].max_ulp == 0
    assert 0 < errors["float32"].over_bound <= 1
    assert errors["float32"].rms_ratio == 1.0
