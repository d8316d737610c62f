"""Cases of rope_qk and rope_attention: what is pinned is drawn, what is drawn is valid, what is invalid is refused."""

import pytest

from fuzzrope.build import build
from fuzzrope.case import Case
from fuzzrope.draw import search
from fuzzrope.operations import OPERATIONS
from fuzzrope.operations.fused_cases import MAX_WIDE_WORK, MAX_WORK

BLOCKS = (16, 64)
FUSED = [OPERATIONS[name] for name in ("rope_qk", "rope_attention")]
GROUPS = [
    (operation, group)
    for operation in FUSED
    for group in dict.fromkeys(stratum.group for stratum in operation.strata(BLOCKS))
]


def drawn(operation, pins, examples, seed="0"):
    cases = []
    search(lambda draw: bool(cases.append(operation.draw(draw, pins, BLOCKS))), examples, seed)
    return cases


def is_refused(operation, case):
    return operation.rejects(case) is not None


@pytest.mark.parametrize(("operation", "group"), GROUPS, ids=lambda item: item if isinstance(item, str) else item.name)
def test_what_is_pinned_puts_every_drawn_case_into_its_stratum(operation, group):
    for stratum in operation.strata(BLOCKS):
        if stratum.group == group:
            for case in drawn(operation, dict(stratum.pins), 4):
                assert stratum.name in operation.classify(case, BLOCKS)
                assert is_refused(operation, case) == (group == "invalid")
                assert Case.from_json(case.to_json()) == case


@pytest.mark.parametrize("operation", FUSED, ids=lambda operation: operation.name)
def test_every_stratum_is_declared_once(operation):
    names = [stratum.name for stratum in operation.strata(BLOCKS)]
    assert len(set(names)) == len(names)
    assert all(stratum.pins for stratum in operation.strata(BLOCKS))


@pytest.mark.parametrize("operation", FUSED, ids=lambda operation: operation.name)
def test_a_free_case_is_valid_affordable_and_understood_by_the_reference(operation):
    for case in drawn(operation, {}, 150):
        assert not is_refused(operation, case)
        (batch, heads, rows, width), keys = case["q"].shape, case["k"].shape[2]
        wide = any(spec.dtype == "float64" for _, spec in case.tensors)
        assert batch * heads * rows * keys * width <= (MAX_WIDE_WORK if wide else MAX_WORK)
        tensors, options = build(case, apart=False).tensors, dict(case.options)
        expected, envelopes = operation.reference(tensors, options), operation.envelopes(tensors, options)
        for name in operation.results(options):
            assert envelopes[name].bound.shape == (expected[name].numel(),)


@pytest.mark.parametrize("operation", FUSED, ids=lambda operation: operation.name)
def test_simpler_cases_are_valid_and_no_larger(operation):
    for case in drawn(operation, {}, 30):
        for simpler in operation.simpler(case):
            assert simpler != case
            assert not is_refused(operation, simpler)
            for name, spec in simpler.tensors:
                assert all(new <= old for new, old in zip(spec.shape, case[name].shape, strict=True))


@pytest.mark.parametrize("operation", FUSED, ids=lambda operation: operation.name)
@pytest.mark.parametrize(
    "options", [{"scale": "1"}, {"q_offset": 0.5}, {"causal": 1}, {"precision": "low"}, {"surprise": 1}], ids=str
)
def test_strange_options_are_refused(operation, options):
    case = operation.probes()[0]
    assert not is_refused(operation, case)
    assert is_refused(operation, Case(case.operation, case.tensors, tuple(options.items())))
