"""What kernels.rope_qk and kernels.rope_attention give, executed on the CPU engine beside their eager twins."""

import importlib
import itertools
from dataclasses import replace

import pytest
import torch

from fuzzrope.campaign import run_campaign
from fuzzrope.events import Minimized
from fuzzrope.settings import Settings
from fuzzrope.targets import find
from kernels import ModelNew
from kernels.launch import TL_DTYPES
from tests.kernels.fused_calls import Call, drawn, tensors_of

NAMES = ("rope_qk", "rope_attention")
SOFTMAX = importlib.import_module("kernels.softmax")


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference, in units of the largest finite number that there should be; infinities must agree."""
    assert ours.shape == exact.shape
    assert torch.equal(ours.isinf(), exact.isinf())
    finite = exact.isfinite()
    if not finite.any():
        return 0.0
    assert ours[finite].isfinite().all()
    return float((ours[finite].double() - exact[finite].double()).abs().max() / exact[finite].abs().max().clamp(min=1))


def worst(call: Call) -> float:
    """The largest error of any output, against the twin in float64."""
    ours = tensors_of(call.ours(*call.inputs(), **call.options))
    exact = tensors_of(call.twin(*call.inputs(torch.float64), **call.options))
    assert all(out.is_contiguous() for out in ours)
    return max(map(error, ours, exact))


@pytest.mark.parametrize("name", NAMES)
def test_drawn_calls_agree_with_the_twin_in_every_layout_mask_and_table(launching, name):
    for call in drawn(name, 40, "values"):
        assert worst(call) < 3e-5, call


@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_sees_a_position_that_is_off_by_one(launching, name):
    call = Call(name, options={"q_offset": 1})
    exact = tensors_of(call.twin(*call.inputs(torch.float64), q_offset=2))
    assert max(map(error, tensors_of(call.ours(*call.inputs(), q_offset=1)), exact)) > 1e-2


@pytest.mark.parametrize("mix", list(itertools.product(TL_DTYPES, repeat=2)), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_results_have_the_promoted_dtype_and_its_accuracy(launching, name, mix):
    rows, tables = mix
    call = Call(name, width=16)
    inputs = [
        x.to(tables if role in ("cos", "sin") else rows) for role, x in zip(call.names, call.inputs(), strict=True)
    ]
    ours = call.ours(*inputs)
    assert ours.dtype == torch.promote_types(rows, tables)
    held = 2 if name == "rope_qk" else 0  # scores are held in the promoted type, weights in v's
    coarse = max(torch.finfo(ours.dtype).eps, 0 if held else torch.finfo(rows).eps)
    assert error(ours, call.twin(*(x.double() for x in inputs))) < 8 * coarse


def test_rows_without_keys_are_zero_and_minus_infinity(launching):
    for options in ({"causal": True, "window": 2, "q_offset": 12}, {}):
        call = Call("rope_attention", keys=7 if options else 0, options=options | {"return_lse": True})
        o, lse = call.ours(*call.inputs(), **call.options)
        assert torch.equal(o, torch.zeros_like(o))
        assert torch.equal(lse, torch.full_like(lse, -torch.inf))


def test_half_precision_scores_come_back_wider_on_request(launching):
    call = Call("rope_qk", dtype=torch.float16, width=16)
    wide = call.ours(*call.inputs(), out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert not torch.equal(wide, wide.half().float())
    assert torch.equal(wide.half(), call.ours(*call.inputs()))


def test_empty_tensors_launch_nothing_where_nothing_comes_back(launching):
    for changes in ({"batch": 0}, {"rows": 0}, {"group": 0}):
        for name in NAMES:
            call = replace(Call(name), **changes)
            for out, exact in zip(*(tensors_of(f(*call.inputs())) for f in (call.ours, call.twin)), strict=True):
                assert out.shape == exact.shape
    assert launching.launches == []


def test_the_same_bits_come_back_each_time(launching):
    for name in NAMES:
        call = Call(name, rows=1, keys=700, group=3)
        one, other = (call.ours(*call.inputs()) for _ in range(2))
        assert torch.equal(one, other)


# Shared keys


def kernels_launched(engine) -> list[str]:
    found = [launch["kernel"] for launch in engine.launches]
    engine.reset()
    return found


def test_few_rows_and_many_keys_are_shared_out_and_joined(launching):
    call = Call("rope_attention", rows=1, keys=1000, group=4, options={"return_lse": True})
    assert worst(call) < 3e-5
    assert kernels_launched(launching) == ["attention_kernel", "combine_kernel"]
    masked = replace(call, rows=3, options={"causal": True, "window": 300, "q_offset": 990, "return_lse": True})
    assert worst(masked) < 3e-5
    assert kernels_launched(launching) == ["attention_kernel", "combine_kernel"]
    nothing = replace(call, options={"causal": True, "window": 3, "q_offset": 2000, "return_lse": True})
    assert worst(nothing) == 0
    worst(replace(call, rows=200, keys=70))
    assert kernels_launched(launching)[2:] == ["attention_kernel"]


def test_shared_keys_are_judged_as_strictly_as_others(tmp_path, runner):
    path = tmp_path / "shares.py"
    path.write_text(
        "import importlib\n"
        "from kernels.pinned import pinned\n"
        "module = importlib.import_module('kernels.attention_launch')\n"
        "module.choose_splits = lambda programs, tiles: 3\n"
        "ModelNew = pinned('rope_attention', 'attention=16x16x4x1')\n"
    )
    target = replace(find(str(path)), operation="rope_attention")
    events = []
    settings = Settings(seed=3, max_examples=120, max_time=300.0)
    finished = run_campaign(target, settings, None, events.append, runner)
    assert [event.finding for event in events if isinstance(event, Minimized)] == []
    assert finished.executed == 120


def test_splits_are_none_for_many_programs_and_bounded_for_few():
    assert SOFTMAX.choose_splits(1000, 1000) == 1
    assert SOFTMAX.choose_splits(1, 3) == 1
    assert SOFTMAX.choose_splits(1, 10**6) == SOFTMAX.MOST_SPLITS
    assert all(SOFTMAX.choose_splits(p, t) >= 1 for p in range(1, 600, 7) for t in (0, 1, 5, 64, 4096))


# The module


def test_the_models_methods_are_the_functions_and_it_has_no_state(launching):
    model = ModelNew()
    assert not model.state_dict()
    with pytest.raises(TypeError):
        ModelNew(1)
    scores, attention = (Call(name, group=2) for name in NAMES)
    options = {"causal": True, "q_offset": 2, "scale": 0.3}
    found = model.scores(*scores.inputs(), **options, out_dtype=torch.float64)
    assert torch.equal(found, scores.ours(*scores.inputs(), **options, out_dtype=torch.float64))
    options |= {"window": 3, "softcap": 2.0, "return_lse": True}
    found = model.attention(*attention.inputs(), **options)
    assert all(map(torch.equal, found, attention.ours(*attention.inputs(), **options)))
    with pytest.raises(TypeError):
        model.scores(*scores.inputs(), window=3)


@pytest.mark.parametrize("scale", [0.0, -0.0, 1e-40, -1e-30])
def test_a_scale_that_is_next_to_nothing_weighs_all_keys_alike_but_those_that_are_hidden(launching, scale):
    call = Call("rope_attention", rows=20, keys=20, options={"causal": True, "scale": scale, "return_lse": True})
    assert worst(call) < 3e-5


@pytest.mark.parametrize("scale", [1e9, -1e9, 2.0**60])
def test_scores_too_large_for_exact_differences_leave_the_best_key_alone(launching, scale):
    call = Call("rope_attention", rows=20, keys=20, options={"scale": scale})
    q, k, v, cos, sin = call.inputs()
    o = call.ours(q, k, v, cos, sin, scale=scale)
    spread = v.amax(2, keepdim=True), v.amin(2, keepdim=True)
    assert o.isfinite().all()
    assert (o <= spread[0].repeat_interleave(q.shape[1] // v.shape[1], 1) + 1e-5).all()
    assert (o >= spread[1].repeat_interleave(q.shape[1] // v.shape[1], 1) - 1e-5).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("keys", [3, 64])
def test_scores_that_are_infinite_once_they_are_scaled_make_nan(launching, keys, sign):
    """With 64 keys whole tiles are seen, with 3 edges alone."""
    q, k, v = torch.full((1, 1, 32, 2), 1e18), torch.full((1, 1, keys, 2), 1e18), torch.ones(1, 1, keys, 2)
    one, zero = torch.ones(64, 1), torch.zeros(64, 1)
    call = Call("rope_attention")
    o, lse = call.ours(q, sign * k, v, one, zero, scale=sign * 2.0, return_lse=True)  # 2e36 fits
    assert torch.equal(o, torch.ones_like(o))
    assert lse.isfinite().all()
    o, lse = call.ours(q, sign * k, v, one, zero, scale=sign * 2.0**20, return_lse=True)
    assert o.isnan().all()
    assert not lse.isfinite().any()
