"""Each flaw of arithmetic and of state is found in each dtype that shows it; what is merely different is not."""

import contextlib

import pytest

from fuzzrope.campaign import run_campaign
from fuzzrope.draw import search
from fuzzrope.events import Event, Minimized
from fuzzrope.examine import examine, sampled
from fuzzrope.findings import worst
from fuzzrope.operations import OPERATIONS
from fuzzrope.settings import Settings
from fuzzrope.targets import REGISTERED, find

DTYPES = ("float16", "bfloat16", "float32", "float64")
BLOCKS = (16,)
UNSTEADY = {"stateful", "nondeterministic"}

#: What a fair judge may say, and the dtypes in which the flaw exists.
HUNTED = {
    "specimen:drift": ({"mismatch"}, DTYPES),
    "specimen:truncates": ({"mismatch"}, DTYPES),
    "specimen:narrow-double": ({"mismatch", "nonfinite"}, ("float64",)),
    "specimen:half-inside": ({"mismatch", "nonfinite"}, ("bfloat16", "float32", "float64")),
    "specimen:flushes": ({"mismatch"}, DTYPES),
    "specimen:clamps": ({"nonfinite", "mismatch"}, DTYPES),
    "specimen:rare": ({"mismatch", "nonfinite"}, DTYPES),
    "specimen:length-path": ({"mismatch"}, DTYPES),
    "specimen:chance": ({"nondeterministic"}, DTYPES),
    "specimen:fifth-call": ({"mismatch", "nonfinite"} | UNSTEADY, DTYPES),
    "specimen:by-address": ({"mismatch", "nonfinite"} | UNSTEADY, DTYPES),
    "specimen:next-row": ({"nonfinite", "mismatch"}, DTYPES),
}
SIXTEEN_BITS = ("float16", "bfloat16")
#: Hunted too; their saved cases are test_specimens'.
EVERYWHERE = HUNTED | {
    "specimen:nan-swallower": ({"nonfinite", "mismatch"}, DTYPES),
    "specimen:qk-low-accumulator": ({"mismatch", "nonfinite"}, SIXTEEN_BITS),
    "specimen:qk-late-scale": ({"mismatch", "nonfinite"}, SIXTEEN_BITS),
    "specimen:qk-tf32": ({"mismatch"}, ("float32",)),
    "specimen:attention-low-accumulator": ({"mismatch", "nonfinite"}, SIXTEEN_BITS),
    "specimen:attention-late-scale": ({"mismatch", "nonfinite"}, SIXTEEN_BITS),
    "specimen:attention-tf32": ({"mismatch"}, ("float32",)),
    "specimen:attention-rough-exp": ({"mismatch", "nonfinite"}, DTYPES),
}
VARIANTS = [t.name for t in REGISTERED if t.name.startswith("variant:") and t.operation == "rope"]


class Found(BaseException):
    """Ends a hunt."""


def hunt(runner, name, dtype, examples=200, seed="hunt"):
    """The number of the first example in which a target shows a finding, and that finding."""
    target, settings = find(name), Settings()
    operation = OPERATIONS[target.operation]
    shown = []
    runner.turn_to(target)
    count = 0

    def fails(draw):
        nonlocal count
        count += 1
        case = operation.draw(draw, {"dtypes": (dtype,) * len(operation.inputs)}, BLOCKS)
        verdict = examine(case, runner, target, settings, sampled(case))
        if verdict.findings:
            shown.append((count, worst(verdict.findings)))
            raise Found
        return False

    with contextlib.suppress(Found):
        search(fails, examples, seed)
    return shown[0] if shown else None


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, (_, dtypes) in EVERYWHERE.items() for dtype in dtypes]
)
def test_a_flaw_is_found_within_200_examples(runner, name, dtype):
    found = hunt(runner, name, dtype)
    assert found is not None
    assert found[1].kind in EVERYWHERE[name][0]


@pytest.mark.parametrize("name", VARIANTS)
def test_another_correct_way_of_rounding_passes(runner, name):
    events: list[Event] = []
    settings = Settings(seed=21, max_examples=300, max_time=300.0)
    finished = run_campaign(find(name), settings, None, events.append, runner)
    assert not [event.finding for event in events if isinstance(event, Minimized)]
    assert finished.executed == 300
    assert len(VARIANTS) >= 5
