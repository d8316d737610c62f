"""Gradients of kernels.rope_qk and kernels.rope_attention, executed on the CPU engine."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.fused_calls import LAYOUTS, Call, drawn, laid_out, tensors_of

NAMES = ("rope_qk", "rope_attention")
CHECKED = {
    "rope_qk": Call("rope_qk", 1, 1, 2, 3, 4, 4),
    "causal scores": Call("rope_qk", 1, 1, 2, 3, 4, 4, options={"causal": True, "q_offset": 1, "scale": -0.3}),
    "scores of one row": Call("rope_qk", 1, 1, 1, 2, 3, 4, table=(1, 2)),
    "attention": Call("rope_attention", 1, 1, 2, 3, 4, 4, 3, options={"return_lse": True}),
    "window": Call("rope_attention", 1, 1, 2, 4, 4, 4, 3, options={"causal": True, "window": 2, "q_offset": 1}),
    "softcap": Call("rope_attention", 1, 2, 1, 3, 4, 4, 3, options={"softcap": 0.7, "return_lse": True}),
    "one column": Call("rope_attention", 1, 1, 1, 2, 3, 4, 1, table=(4, 1)),
    "shared keys": Call("rope_attention", 1, 1, 1, 1, 65, 2, 1),
}


@pytest.mark.parametrize("call", CHECKED.values(), ids=CHECKED)
def test_gradients_pass_the_numerical_check(launching, call):
    inputs = [x.requires_grad_() for x in call.inputs(torch.float64)]

    def finite(*tensors):
        return tuple(out.masked_fill(out.isinf(), 0.0) for out in tensors_of(call.ours(*tensors, **call.options)))

    assert torch.autograd.gradcheck(finite, inputs)
    assert launching.launches


def gradients(call: Call, function, wanted, layout, dtype=None):
    """Gradients of the wanted inputs for random gradients of what comes back, laid out in memory in some way."""
    inputs = call.inputs(dtype)
    for name, x in zip(call.names, inputs, strict=True):
        x.requires_grad_(name in wanted)
    outputs = tensors_of(function(*inputs, **call.options))
    generator = torch.Generator().manual_seed(9)
    given = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outputs]
    given = [laid_out(g, layout) if g.numel() else g for g in given]
    leaves = [x for name, x in zip(call.names, inputs, strict=True) if name in wanted]
    found = torch.autograd.grad(outputs, leaves, given)
    assert [g.shape for g in found] == [x.shape for x in leaves]
    assert [g.dtype for g in found] == [x.dtype for x in leaves]
    return found


def worst(call: Call, wanted=None, layout="contiguous") -> float:
    """The largest error of any gradient, in units of the largest number in it, against the twin in float64."""
    wanted = wanted or call.names
    ours = gradients(call, call.ours, wanted, layout)
    exact = gradients(call, call.twin, wanted, layout, torch.float64)
    errors = [
        (mine.double() - true).abs().max() / true.abs().max().clamp(min=1)
        for mine, true in zip(ours, exact, strict=True)
        if true.numel()
    ]
    assert all(mine.isfinite().all() for mine in ours)
    return float(max(errors, default=0.0))


@pytest.mark.parametrize("name", NAMES)
def test_drawn_calls_have_the_gradients_of_the_twin(launching, name):
    for i, call in enumerate(drawn(name, 40, "gradients")):
        assert worst(call, layout=LAYOUTS[i % len(LAYOUTS)]) < 1e-4, call


@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_sees_gradients_of_other_positions(launching, name):
    call = Call(name)
    ours = gradients(call, call.ours, call.names, "contiguous")
    other = replace(call, options={"causal": True})
    exact = gradients(other, call.twin, call.names, "contiguous")
    assert all((mine - true).abs().max() > 1e-2 for mine, true in zip(ours, exact, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_each_input_alone_has_the_gradient_it_has_among_all(launching, name):
    call = Call(name, group=2)
    together = gradients(call, call.ours, call.names, "contiguous")
    for wanted, all_of_it in zip(call.names, together, strict=True):
        assert torch.equal(gradients(call, call.ours, (wanted,), "contiguous")[0], all_of_it)


def test_an_output_that_is_not_used_has_no_say(launching):
    call = Call("rope_attention", options={"return_lse": True})
    for used in (0, 1):
        ours, exact = (
            torch.autograd.grad(function(*inputs, return_lse=True)[used].sum(), inputs[:2])
            for function, inputs in (
                (f, [x.requires_grad_() for x in call.inputs(torch.float64)]) for f in (call.ours, call.twin)
            )
        )
        for mine, true in zip(ours, exact, strict=True):
            torch.testing.assert_close(mine, true)


def test_values_that_are_nan_have_no_say_where_the_output_is_not_used(launching):
    call = Call("rope_attention", rows=20, keys=40, options={"return_lse": True})
    found = []
    for function in (call.ours, call.twin):
        q, k, v, cos, sin = (x.requires_grad_() for x in call.inputs(torch.float64))
        with torch.no_grad():
            v.fill_(torch.nan)
        lse = function(q, k, v, cos, sin, return_lse=True)[1]
        found.append(torch.autograd.grad(lse.sum(), (q, k, v, cos, sin), allow_unused=True))
    assert [of_all[2] for of_all in found] == [None, None]
    for mine, true in zip(found[0], found[1], strict=True):
        assert mine is None or torch.testing.assert_close(mine, true) is None


def test_what_does_not_depend_on_v_needs_no_gradient_of_it(launching):
    q, k, v, cos, sin = Call("rope_attention").inputs()
    o, lse = Call("rope_attention").ours(q, k, v.requires_grad_(), cos, sin, return_lse=True)
    assert (o.requires_grad, lse.requires_grad) == (True, False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_16_bits_are_as_exact_as_their_factors(launching, name, dtype):
    call = Call(name, rows=20, keys=30, width=16, width_v=16, group=2, dtype=dtype, options={"causal": True})
    assert worst(call) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same_bits_each_time(launching, name):
    call = Call(name, rows=40, keys=50, group=2)
    one, other = (gradients(call, call.ours, call.names, "contiguous") for _ in range(2))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", NAMES)
def test_differentiating_twice_raises(launching, name):
    call = Call(name)
    inputs = [x.requires_grad_() for x in call.inputs()]
    (first,) = torch.autograd.grad(tensors_of(call.ours(*inputs))[0].sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_rows_without_keys_and_keys_without_rows_have_gradients_of_zero(launching):
    for call in (
        Call("rope_attention", options={"causal": True, "window": 2, "q_offset": 12}),
        Call("rope_attention", rows=0),
        Call("rope_qk", rows=0),
        Call("rope_qk", keys=0),
        Call("rope_attention", keys=0),
    ):
        for gradient in gradients(call, call.ours, call.names, "contiguous"):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("of", ["q", "k", "cos", "sin"])
@pytest.mark.parametrize("empty", [{"rows": 0}, {"keys": 0}, {"group": 0}, {"batch": 0}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_nothing_is_zero_times_what_it_is_of(launching, name, empty, of):
    call = Call(name, **empty)
    found = []
    for function in (call.ours, call.twin):
        inputs = call.inputs()
        inputs[call.names.index(of)].fill_(float("inf"))
        outputs = tensors_of(function(*(x.requires_grad_() for x in inputs)))
        found.append(torch.autograd.grad(outputs[0].sum(), inputs))
    torch.testing.assert_close(*found, equal_nan=True)
