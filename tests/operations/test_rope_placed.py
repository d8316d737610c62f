"""The contract of rope with positions: its reference against plain loops, its strata, and what it finds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fuzzrope.campaign import run_campaign
from fuzzrope.case import FLOATS, Case
from fuzzrope.draw import search
from fuzzrope.events import Minimized
from fuzzrope.operations import OPERATIONS
from fuzzrope.operations.rope_placed import MISFITS, _numbers, as_rope, placed
from fuzzrope.settings import Settings
from fuzzrope.targets import find

PLACED, ROPE = OPERATIONS["rope_placed"], OPERATIONS["rope"]
BLOCKS = (16, 64)
FREE = {"floats": FLOATS, "gradients": ""}


def tensors(positions, rows=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = {"q": (2, 3, 4, 6), "k": (2, 1, 4, 6), "cos": (rows, 3), "sin": (rows, 3)}
    found = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    return found | {"positions": torch.tensor(positions)}


@pytest.mark.parametrize(
    "positions", [[3, 0, 0, 5], [[0, 1, 2, 3], [5, 4, 3, 2]], [[1, 2, 3, 4]], [0, 6, -1, 2**31 - 1]]
)
def test_the_reference_turns_each_row_by_the_row_that_its_position_names(positions):
    given = tensors(positions)
    found = PLACED.reference(given)
    for name in ("q", "k"):
        x = given[name]
        for b, h, s, i in np.ndindex(*x.shape[:3], 3):
            place = positions[b if len(positions) > 1 else 0][s] if isinstance(positions[0], list) else positions[s]
            inside = 0 <= place < 6
            c, n = ((given[t][place, i].item() if inside else math.nan) for t in ("cos", "sin"))
            a, d = x[b, h, s, i].item(), x[b, h, s, 3 + i].item()
            got = found[name][b, h, s, i].item(), found[name][b, h, s, 3 + i].item()
            assert np.allclose(got, (a * c - d * n, d * c + a * n), rtol=1e-15, equal_nan=True)


def test_envelopes_of_each_batch_hold_the_reference_and_those_of_another_do_not():
    given = tensors([[0, 1, 2, 3], [5, 4, 3, 2]], dtype=torch.float32)
    envelopes, right = PLACED.envelopes(given), PLACED.reference(given)
    swapped = PLACED.reference(given | {"positions": given["positions"].flip(0)})
    for name, envelope in envelopes.items():
        for found, inside in ((right, True), (swapped, False)):
            numbers = found[name].contiguous().double().reshape(-1).numpy()
            assert bool((envelope.exact.distance(numbers) <= envelope.bound).all()) == inside


def test_positions_in_order_are_rope():
    plain = ROPE.probes()[0]
    case = placed(plain, np.arange(4))
    assert as_rope(case) == plain
    assert PLACED.rejects(case) is None
    given = tensors([0, 1, 2, 3])
    expected = ROPE.reference({name: t for name, t in given.items() if name != "positions"})
    assert all(torch.equal(PLACED.reference(given)[name], expected[name]) for name in ("q", "k"))


@pytest.mark.parametrize("stratum", PLACED.strata(BLOCKS), ids=lambda stratum: stratum.name)
def test_every_stratum_is_reached_by_its_pins(stratum):
    reached = []

    def note(draw):
        case = PLACED.draw(draw, {**FREE, **dict(stratum.pins)}, BLOCKS)
        reached.append(stratum.name in PLACED.classify(case, BLOCKS))
        return False

    search(note, 4, stratum.name)
    assert all(reached)


def test_drawn_cases_survive_the_corpus_format_and_are_simplified_to_valid_ones():
    cases = []

    def note(draw):
        cases.append(PLACED.draw(draw, FREE, BLOCKS))
        return False

    search(note, 60, "formats")
    assert all(Case.from_json(case.to_json()) == case for case in cases)
    simpler = [smaller for case in cases for smaller in PLACED.simpler(case)]
    assert len(simpler) > 100
    assert all(PLACED.rejects(smaller) is None for smaller in simpler)


def test_misfits_are_rejected_and_far_positions_keep_their_value():
    case = placed(ROPE.probes()[0], np.array([0, 1, 2, 2**31 - 1]), "int32")
    assert _numbers(case).tolist() == [0, 1, 2, 2**31 - 1]
    assert PLACED.rejects(case) is None
    for misfit in MISFITS:
        found = []

        def note(draw, misfit=misfit, found=found):
            found.append(PLACED.rejects(PLACED.draw(draw, {**FREE, "misfit": misfit, "S": 5, "B": 2}, BLOCKS)))
            return False

        search(note, 4, misfit)
        assert all(found), misfit
    spec = replace(case["positions"], dtype="float32")
    assert PLACED.rejects(case.with_tensors({"positions": spec})) == "positions are float32"


def kinds(runner, name, examples):
    events = []
    settings = Settings(seed=5, max_examples=examples, max_time=300.0, max_findings=1, grace=2.0)
    run_campaign(find(name), settings, None, events.append, runner)
    return {event.finding.kind for event in events if isinstance(event, Minimized)}


def test_our_kernel_is_found_to_be_right(runner):
    assert kinds(runner, "kernels.rope_placed", 120) == set()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("first-batch", {"mismatch", "nonfinite"}),
        ("clamped", {"nonfinite"}),
        ("below", {"nonfinite"}),
        ("dense", {"mismatch", "nonfinite", "exception"}),
    ],
)
def test_each_flaw_is_found(runner, name, kind):
    found = kinds(runner, f"specimen:placed-{name}", 120)
    assert found
    assert found <= kind
