"""The contract of rope_options: its reference, its oracle, how it is led back to rope, and what it lets pass."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzrope.build import build
from fuzzrope.campaign import run_campaign
from fuzzrope.case import Case
from fuzzrope.draw import Draw
from fuzzrope.events import Event, Seen
from fuzzrope.operations import OPERATIONS
from fuzzrope.operations.base import Envelope
from fuzzrope.operations.rope_options import INVALID, RopeOptions, as_rope, with_options
from fuzzrope.run import Runner
from fuzzrope.settings import PROFILES
from fuzzrope.targets import find
from tests.conftest import rope_case

OP, ROPE = RopeOptions(), OPERATIONS["rope"]
CHOICES = [{}, {"interleaved": True}, {"rotary_dim": 4}, {"interleaved": True, "rotary_dim": 4}, {"rotary_dim": 6}]
Options = dict[str, Any]
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@st.composite
def cases(draw: Callable, **pins: Any) -> Case:
    return OP.draw(Draw(draw(st.data()).conjecture_data), {"gradients": True, **pins}, (16, 64))


def tensors(options: Options, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    half = options.get("rotary_dim", 6) // 2
    shapes = {"q": (2, 1, 3, 6), "k": (1, 2, 3, 6), "cos": (4, half), "sin": (3, half)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def by_hand(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, options: Options) -> Iterator[Fraction]:
    """Every element in row-major order, exactly."""
    width = x.shape[3]
    columns = options.get("rotary_dim", width)
    for b, h, s, d in itertools.product(*map(range, x.shape)):
        row = [Fraction(value) for value in x[b, h, s].tolist()]
        if d >= columns:
            yield row[d]
            continue
        pair, second = divmod(d, 2) if options.get("interleaved") else (d % (columns // 2), d >= columns // 2)
        other = (d - 1 if second else d + 1) if options.get("interleaved") else (d + columns // 2) % columns
        c, r = Fraction(cos[s, pair].item()), Fraction(sin[s, pair].item())
        yield row[d] * c + row[other] * r * (1 if second else -1)


@pytest.mark.parametrize("options", CHOICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_reference_and_oracle_are_what_is_computed_by_hand(options: Options, dtype: torch.dtype):
    given = tensors(options, dtype)
    answers, envelopes = OP.reference(given, options), OP.envelopes(given, options)
    for name in ("q", "k"):
        envelope = envelopes[name]
        exact = list(by_hand(given[name], given["cos"], given["sin"], options))
        for i, (value, computed) in enumerate(zip(exact, answers[name].reshape(-1).tolist(), strict=True)):
            unit = Fraction(2) ** int(envelope.exact.exponent[i])
            held = (Fraction(envelope.exact.high[i]) + Fraction(envelope.exact.low[i])) * unit
            assert abs(held - value) <= abs(value) * Fraction(2) ** -50
            assert abs(Fraction(computed) - value) <= Fraction(envelope.bound[i]) * unit
    assert answers["cos"].data_ptr() == given["cos"].data_ptr()


def test_a_copy_leaves_no_room_for_an_ulp():
    options = {"rotary_dim": 2}
    given = tensors(options, torch.float32)
    given["q"].view(-1)[2:6] = torch.tensor([np.inf, -np.inf, np.nan, -0.0])
    envelope = OP.envelopes(given, options)["q"]
    assert not allowed(envelope, 8, np.nextafter(np.float32(given["q"].view(-1)[8]), np.float32(9)))
    assert allowed(envelope, 8, given["q"].view(-1)[8].item())
    assert envelope.positive[2]
    assert envelope.negative[3]
    assert envelope.nan[4]
    assert not envelope.finite[2:5].any()
    assert envelope.zero_sign[5] == -1


def allowed(envelope: Envelope, at: int, value: float) -> bool:
    return bool(abs(value - envelope.exact.high[at]) <= envelope.bound[at])


@SETTINGS
@given(cases())
def test_a_drawn_case_is_led_back_to_one_of_rope_and_built_from_it_again(case: Case):
    plain = as_rope(case)
    assert plain.operation == "rope"
    assert plain.options == ()
    if OP.rejects(case) is None:
        assert ROPE.rejects(plain) is None
        back = with_options(plain, dict(case.options))
        assert [spec.shape for _, spec in back.specs] == [spec.shape for _, spec in case.specs]
        ROPE.reference(build(plain).tensors)
        OP.reference(build(case).tensors, dict(case.options))
    assert Case.from_json(case.to_json()) == case


@SETTINGS
@given(cases())
def test_simpler_cases_are_smaller_and_valid_and_their_cotangents_fit(case: Case):
    for simpler in OP.simpler(case):
        assert simpler != case
        assert simpler.operation == "rope_options"
        assert OP.rejects(simpler) is None
        fitted = OP.fitted(simpler)
        if fitted.backward is None:
            continue
        outputs = OP.reference(build(fitted).tensors, dict(fitted.options))
        for name, cotangent in fitted.backward.cotangents:
            assert cotangent.shape == tuple(outputs[name].shape)


@pytest.mark.parametrize("what", INVALID)
def test_strata_of_bad_options_are_drawn_and_rejected(what: str):
    (stratum,) = [s for s in OP.strata((16,)) if s.name == f"invalid option: {what}"]

    @SETTINGS
    @given(cases(**dict(stratum.pins)))
    def drawn(case: Case) -> None:
        assert OP.rejects(case)
        assert OP.classify(case, (16,)) == {stratum.name}

    drawn()


@pytest.mark.parametrize(
    "options",
    [{"rotary_dim": 3}, {"rotary_dim": 6}, {"rotary_dim": 0}, {"rotary_dim": True}, {"interleaved": 1}, {"turn": 1}],
    ids=str,
)
def test_options_outside_the_contract_are_rejected(options: Options):
    case = rope_case(width=4)
    assert OP.rejects(with_options(case, options))
    assert OP.rejects(with_options(case, {"interleaved": True, "rotary_dim": 4})) is None


def test_cases_of_rope_itself_know_nothing_of_options():
    drawn: list[Case] = []

    @SETTINGS
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        drawn.append(ROPE.draw(Draw(data.conjecture_data), {}, (16, 64)))

    draw()
    assert all(case.options == () and case.operation == "rope" for case in drawn)
    assert not any("rotated" in s.name or "option" in s.name for s in ROPE.strata((16, 64)))


EAGER = """
import torch

class ModelNew(torch.nn.Module):
    def forward(self, q, k, cos, sin, interleaved=False, rotary_dim=None):
        if interleaved not in (True, False) or not isinstance(rotary_dim, (int, type(None))):
            raise TypeError("options")
        width = q.shape[3]
        n = width if rotary_dim is None else rotary_dim
        if rotary_dim is not None and (n % 2 or not 2 <= n <= width) or width % 2 or k.shape[3] != width:
            raise ValueError("columns")
        c, s = cos[: q.shape[2]], sin[: q.shape[2]]
        {before}
        def turn(x):
            a, b = (x[..., :n:2], x[..., 1:n:2]) if interleaved else (x[..., : n // 2], x[..., n // 2 : n])
            parts = a * c - b * s, b * c + a * s
            y = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
            rest = x[..., n:]
            {after}
            return torch.cat([y, rest], -1) if n < width else y
        return turn(q), turn(k), c, s
"""
FLAWS = {
    "neighbours taken for halves": ("interleaved = False", "", "mismatch"),
    "the rest left zero": ("", "rest = torch.zeros_like(rest)", "mismatch"),
    "the rest one column late": ("", "rest = rest.roll(1, -1)", "mismatch"),
    "the rest rounded": ("", "rest = rest.to(torch.bfloat16).to(rest.dtype)", "mismatch"),
    "no gradient of the rest": ("", "rest = rest.detach()", "gradient"),
}


def judged(runner: Runner, tmp_path: Path, before: str, after: str, examples: int) -> set[str]:
    path = tmp_path / "candidate.py"
    path.write_text(EAGER.format(before=before or "pass", after=after or "pass"))
    target = replace(find(str(path)), operation="rope_options", kernel=False, gradients=True)
    events: list[Event] = []
    chosen = PROFILES["quick"].with_changes(seed=3, max_examples=examples, max_time=600.0, shrink_examples=5, grace=2.0)
    run_campaign(target, chosen, None, events.append, runner)
    return {event.finding.kind for event in events if isinstance(event, Seen)}


def test_eager_code_of_other_make_passes(runner: Runner, tmp_path: Path):
    assert judged(runner, tmp_path, "", "", 700) == set()


@pytest.mark.parametrize(("before", "after", "kind"), FLAWS.values(), ids=FLAWS)
def test_each_flaw_of_options_is_found(runner: Runner, tmp_path: Path, before: str, after: str, kind: str):
    assert kind in judged(runner, tmp_path, before, after, 150)
