"""Backward in the child: kernels launched there are executed and checked like those of forward."""

from dataclasses import replace

import pytest
import torch

from fuzzrope.build import build
from fuzzrope.case import Backward, Values
from fuzzrope.judge import judge
from fuzzrope.judge.gradients import reference_gradients
from fuzzrope.operations import OPERATIONS
from fuzzrope.targets import Target, find
from tests.conftest import rope_case, spec

NAMES = ("q", "k", "cos", "sin")

HEAD = """
import torch
from torch import nn

class Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(q, k, cos, sin)
        def turn(x):
            half = x.shape[3] // 2
            a, b = x[..., :half], x[..., half:]
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return turn(q), turn(k)

    @staticmethod
    def backward(ctx, gq, gk):
        q, k, cos, sin = ctx.saved_tensors
{body}

class ModelNew(nn.Module):
    def forward(self, q, k, cos, sin):
        rows = q.shape[2]
        cos, sin = cos[:rows], sin[:rows]
        out_q, out_k = Rotate.apply(q, k, cos, sin)
        return out_q, out_k, cos, sin
"""
RIGHT = """
        half = q.shape[3] // 2
        def back(g):
            a, b = g[..., :half], g[..., half:]
            return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)
        def tables(g, x):
            g1, g2, x1, x2 = g[..., :half], g[..., half:], x[..., :half], x[..., half:]
            return (g1 * x1 + g2 * x2).sum((0, 1)), (g2 * x1 - g1 * x2).sum((0, 1))
        (cq, sq), (ck, sk) = tables(gq, q), tables(gk, k)
        return back(gq), back(gk), cq + ck, sq + sk
"""


def case(requires=NAMES, used=NAMES, **changes):
    plain = rope_case(**changes)
    shapes = {name: plain[name].shape for name in NAMES}
    cotangents = tuple((name, spec(f"grad_{name}", shapes[name])) for name in sorted(used))
    return replace(plain, backward=Backward(requires, cotangents))


@pytest.fixture
def found(tmp_path, runner_of):
    def judged(body, one, name="candidate"):
        path = tmp_path / f"{name}.py"
        path.write_text(HEAD.format(body=body))
        target = replace(find(str(path)), kernel=False)
        with_runner = runner_of(target)
        outcome = with_runner.run(one)
        return {f.bucket: f.message for f in judge(one, outcome, target).findings}

    return judged


def test_a_right_backward_passes(found):
    assert found(RIGHT, case()) == {}


def test_backward_sees_tensors_on_cuda_and_fresh_memory_that_is_poisoned(found):
    body = """
        assert gq.is_cuda and q.device.type == "cuda" and torch.empty(2, device="cuda").is_cuda
        left = torch.empty(q.shape, device="cuda")
        return left, torch.zeros_like(k), torch.zeros_like(cos), torch.zeros_like(sin)
"""
    shown = found(body, case(("q",)))
    assert set(shown) == {"gradient:q:uninitialized"}
    assert "candidate.py" in shown["gradient:q:uninitialized"]


def test_an_exception_of_backward_is_told_from_one_of_forward_and_has_its_line(found):
    shown = found('        raise KeyError("lost")', case())
    assert set(shown) == {"gradient:exception:KeyError:backward"}
    assert "candidate.py:" in shown["gradient:exception:KeyError:backward"]


def test_a_cotangent_and_an_input_changed_in_backward_are_mutations(found):
    assert set(found("        gk.add_(1)" + RIGHT, case())) >= {"mutation:grad_k"}
    body = "        q.data.add_(1)" + RIGHT
    assert "mutation:q" in found(body, case(), "other")


def test_leaving_the_process_in_backward_is_tampering(found):
    assert set(found("        raise SystemExit(0)", case())) == {"tamper:process"}


def strides_of_zero(one):
    for name in ("grad_q", "grad_k"):
        one = one.with_tensor(name, strides=(0, 0, 0, 0))
    return one


VARIED = {
    "plain": case(),
    "one number": strides_of_zero(case()),
    "one of four": case(("sin",)),
    "one output": case(NAMES, ("k",)),
    "tables alone": case(NAMES, ("cos",)),
    "without elements": case(batch=0),
    "an expanded leaf": case(q=spec("q", (1, 2, 3, 4), strides=(0, 0, 4, 1))),
    "same tensor": case(k=spec("q", (1, 2, 3, 4)), q=spec("q", (1, 2, 3, 4))),
    "one buffer": case(
        q=spec("qk", (1, 2, 3, 4), strides=(48, 4, 16, 1)), k=spec("qk", (1, 2, 3, 4), strides=(48, 4, 16, 1), offset=8)
    ),
    "k longer than q": case(
        q=spec("q", (1, 2, 1, 4)), k=spec("k", (1, 2, 5, 4)), cos=spec("cos", (5, 2)), sin=spec("sin", (5, 2))
    ).with_tensors(
        {"grad_q": spec("grad_q", (1, 2, 1, 4))} | {name: spec(name, (1, 2)) for name in ("grad_cos", "grad_sin")}
    ),
    "rows left over": case(cos=spec("cos", (5, 2)), sin=spec("sin", (7, 2))).with_tensors(
        {"grad_cos": spec("grad_cos", (3, 2)), "grad_sin": spec("grad_sin", (3, 2))}
    ),
}


@pytest.mark.parametrize("target", ["kernels.ModelNew", "kernels.reference", "specimen:differentiable"])
@pytest.mark.parametrize("name", VARIED)
def test_correct_targets_pass_whatever_is_differentiated(runner_of, name, target):
    one, chosen = VARIED[name], find(target)
    outcome = runner_of(chosen).run(one)
    verdict = judge(one, outcome, chosen)
    assert not verdict.findings
    assert not verdict.skipped
    if name != "without elements":
        assert any(key.endswith("gradient") for key in verdict.errors)


def test_kernels_in_backward_are_held_against_exact_views(runner_of):
    one, target = strides_of_zero(case(("q",))), find("specimen:gradient-strides")
    shown = {f.bucket for f in judge(one, runner_of(target).run(one), target).findings}
    assert "out_of_bounds:load:rotate_tile" in shown


def test_a_case_without_backward_is_not_differentiated(runner_of):
    outcome = runner_of("kernels.ModelNew").run(rope_case())
    assert outcome.gradients is None
    assert OPERATIONS["rope"].results({}) == NAMES


def test_our_gradients_are_autograds_bit_for_bit_where_nothing_is_summed(runner_of):
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        one = rope_case(batch=2, heads=3, seq=5, width=10, dtype=dtype)
        grads = tuple((name, spec(f"grad_{name}", one[name].shape, dtype)) for name in ("k", "q"))
        one = replace(one, backward=Backward(("q", "k"), grads)).with_tensor("grad_q", values=Values("zeros", 3))
        built = build(one)
        for name in ("q", "k"):
            built.tensors[name].requires_grad_()
        expected = reference_gradients(one, built, OPERATIONS["rope"].reference(built.tensors))
        given = runner_of("kernels.ModelNew").run(one).gradients
        for name, gradient in zip(("q", "k"), given.tensors, strict=True):
            data = expected[name].contiguous().view(torch.uint8).numpy().tobytes()
            assert gradient.data == data


def test_a_target_is_judged_by_its_gradients_where_it_promises_them():
    assert find("kernels.ModelNew").gradients
    assert not find("specimen:tiled").gradients
    assert not Target("x.py", "x.py").gradients


def test_a_cotangent_of_an_output_that_is_not_asked_for_says_nothing_about_the_target(runner_of):
    operation, target = OPERATIONS["rope_attention"], find("variant:attention-eager-grad")
    one = operation.probes()[0]
    cotangent = spec("grad_lse", one["q"].shape[:3])
    one = replace(one, backward=Backward(("q",), (("lse", cotangent),)))
    asked = replace(one, options=(("return_lse", True),))
    assert judge(asked, runner_of(target).run(asked), target).skipped == ""
    verdict = judge(one, runner_of(target).run(one), target)
    assert "does not return" in verdict.skipped
    assert verdict.findings == []
