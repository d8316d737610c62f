"""What compilers and exporters see of the fused kernels, which run on the CPU engine here."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import ModelNew, fused_operators
from kernels.launch import TL_DTYPES
from tests.kernels.fused_calls import LAYOUTS, Call, drawn, laid_out, tensors_of

# Importing PyTorch's compiler and tracing with it warns of its own parts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

SPACE = torch.ops.rope_kernels
NAMES = ("rope_qk", "rope_attention")
BACKENDS = ("eager", "aot_eager")
CALLS = {
    "rope_qk": Call("rope_qk", group=2, options={"causal": True, "q_offset": 2}),
    "scores of one row of tables": Call("rope_qk", table=(1, 3), options={"scale": 0.3, "out_dtype": torch.float64}),
    "rope_attention": Call("rope_attention", group=2, options={"causal": True, "q_offset": 2}),
    "attention with lse": Call("rope_attention", options={"return_lse": True, "softcap": 0.7}),
    "attention in a window": Call(
        "rope_attention", rows=9, keys=9, options={"causal": True, "window": 3, "return_lse": True}
    ),
    "empty attention": Call("rope_attention", keys=0, options={"return_lse": True}),
}
ALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
EACH = pytest.mark.parametrize("name", NAMES)
OPERATOR_OPTIONS = {
    "rope_qk": ("scale", "causal", "q_offset", "out_dtype"),
    "rope_attention": ("scale", "causal", "q_offset", "window", "softcap"),
}


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=[True, False], ids=["kernels", "PyTorch"])
def either(request: pytest.FixtureRequest) -> Any:
    """Once where kernels are launched, once where they cannot be."""
    return request.getfixturevalue("launching") if request.param else None


def function_of(call: Call, function: Callable[..., Any] | None = None) -> Callable[..., Any]:
    function = function or call.ours
    return lambda *tensors: function(*tensors, **call.options)


def same(ours: Any, theirs: Any) -> bool:
    """The same bits in the same form."""
    return all(
        (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()) and torch.equal(a, b)
        for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True)
    )


def finite_sum(result: Any) -> torch.Tensor:
    return sum((out.masked_fill(out.isinf(), 0.0) ** 2).sum() for out in tensors_of(result))


def gradients(call: Call, function: Callable[..., Any], wanted: tuple[str, ...]) -> list[torch.Tensor | None]:
    tensors = [x.requires_grad_(name in wanted) for name, x in zip(call.names, call.inputs(), strict=True)]
    finite_sum(function(*tensors)).backward()
    return [x.grad for x in tensors]


def operator_arguments(call: Call, tensors: list[torch.Tensor]) -> tuple[Any, ...]:
    """What the forward operator takes for a call."""
    default = {"causal": False, "q_offset": 0}
    return (*tensors, *(call.options.get(name, default.get(name)) for name in OPERATOR_OPTIONS[call.name]))


def backward_arguments(call: Call, needs: list[bool], used: tuple[bool, bool] = (True, True)) -> tuple[Any, ...]:
    """What the operator of gradients takes for a call."""
    tensors = call.inputs()
    arguments = operator_arguments(call, tensors)
    outputs = tensors_of(getattr(SPACE, call.name)(*arguments))
    given = [torch.randn_like(out) for out in outputs]
    options = arguments[len(tensors) :]
    if call.name == "rope_qk":
        return given[0], *tensors, needs, "ieee", *options[:-1]
    given = [g if there else None for g, there in zip(given, used, strict=True)]
    return *given, *tensors, *outputs, needs, "ieee", *options


# torch.compile


@ALL
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_call_is_one_graph_with_the_bits_of_the_eager_one(launching, call, backend):
    compiled = torch.compile(function_of(call), fullgraph=True, backend=backend)
    assert same(compiled(*call.inputs()), function_of(call)(*call.inputs()))
    if call.keys:
        assert len(launching.launches) == 2


@EACH
@pytest.mark.parametrize("dtype", TL_DTYPES, ids=str)
def test_every_dtype_compiles_to_one_operator(launching, name, dtype):
    call, counter = Call(name, dtype=dtype), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call.ours, fullgraph=True, backend=counter)
    assert same(compiled(*call.inputs()), call.ours(*call.inputs()))
    targets = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("rope_kernels" in target for target in targets) == 1


@ALL
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_call_has_the_gradients_of_the_eager_one(launching, call, backend):
    for wanted in (*((name,) for name in call.names), call.names):
        torch._dynamo.reset()
        compiled = torch.compile(function_of(call), fullgraph=True, backend=backend)
        ours, theirs = (gradients(call, f, wanted) for f in (compiled, function_of(call)))
        for name, mine, true in zip(call.names, ours, theirs, strict=True):
            assert (mine is None) == (true is None) == (name not in wanted)
            assert mine is None or torch.equal(mine, true)


@pytest.mark.parametrize("used", [0, 1], ids=["o", "lse"])
def test_an_output_not_in_use_has_no_part_in_compiled_gradients(launching, used):
    call = Call("rope_attention", options={"return_lse": True})
    found = []
    for function in (torch.compile(function_of(call), fullgraph=True, backend="aot_eager"), function_of(call)):
        tensors = [x.requires_grad_() for x in call.inputs()]
        function(*tensors)[used].square().sum().backward()
        found.append([torch.zeros_like(x) if x.grad is None else x.grad for x in tensors])
    for mine, true in zip(*found, strict=True):
        torch.testing.assert_close(mine, true)


def test_values_have_no_part_in_the_operators_gradients_of_lse(either):
    call = Call("rope_attention")
    tensors = [x.requires_grad_() for x in call.inputs()]
    with torch.no_grad():
        tensors[2].fill_(torch.nan)
    _, lse = SPACE.rope_attention(*tensors)
    found = torch.autograd.grad(lse.sum(), tensors, allow_unused=True)
    assert found[2] is None
    assert all(g.isfinite().all() for i, g in enumerate(found) if i != 2)


def test_lse_needs_no_gradient_of_v_alone(either):
    tensors = [x.requires_grad_(i == 2) for i, x in enumerate(Call("rope_attention").inputs())]
    o, lse = SPACE.rope_attention(*tensors)
    assert (o.requires_grad, lse.requires_grad) == (True, False)


@EACH
@pytest.mark.parametrize(("dynamic", "compiles"), [(True, 1), (None, 2), (False, 5)])
def test_with_dynamic_shapes_no_sequence_length_compiles_anew(launching, name, dynamic, compiles):
    counter = CompileCounter()
    call = Call(name, table=(64, 3), options={"causal": True})
    compiled = torch.compile(function_of(call), fullgraph=True, backend=counter, dynamic=dynamic)
    for seq in (9, 16, 17, 33, 50):
        one = replace(call, rows=seq, keys=seq)
        assert same(compiled(*one.inputs()), function_of(one)(*one.inputs()))
    assert counter.frame_count == compiles


@EACH
def test_with_dynamic_shapes_no_sequence_length_compiles_gradients_anew(launching, name):
    counter = CompileCounterWithBackend("aot_eager")
    call = Call(name, table=(64, 3), options={"causal": True})
    compiled = torch.compile(function_of(call), fullgraph=True, backend=counter, dynamic=True)
    for seq in (9, 16, 33):
        one = replace(call, rows=seq, keys=seq)
        for mine, true in zip(*(gradients(one, f, call.names) for f in (compiled, function_of(one))), strict=True):
            assert torch.equal(mine, true)
    assert counter.frame_count == 1


@EACH
def test_decoding_compiles_once_for_all_positions(launching, name):
    counter, call = CompileCounter(), Call(name, rows=1, table=(64, 3))

    def step(q_offset: int, *tensors: torch.Tensor) -> Any:
        return call.ours(*tensors, causal=True, q_offset=q_offset)

    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for offset in (7, 8, 20, 41):
        tensors = replace(call, keys=offset + 1).inputs()
        assert same(compiled(offset, *tensors), step(offset, *tensors))
    assert counter.frame_count == 1


@EACH
def test_where_nothing_can_be_launched_the_eager_twin_is_compiled(name):
    call, counter = CALLS[name], CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function_of(call), fullgraph=True, backend=counter, dynamic=True)
    assert same(compiled(*call.inputs()), function_of(call, call.twin)(*call.inputs()))
    assert not any("rope_kernels" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)


@EACH
def test_what_is_refused_is_refused_while_compiling(launching, name):
    call = Call(name)
    tensors = call.inputs()
    bad = {
        "head_dim": [tensors[0][..., :5], tensors[1][..., :5], *tensors[2:]],
        "float16": [tensors[0].int(), *tensors[1:]],
        "positions": [*tensors[:-1], tensors[-1][:2]],
    }
    for message, wrong in bad.items():
        with pytest.raises(Exception, match=message):
            torch.compile(call.ours, fullgraph=True, backend="eager")(*wrong)
        with FakeTensorMode() as mode, pytest.raises((TypeError, ValueError), match=message):
            getattr(SPACE, name)(*(mode.from_tensor(x) for x in wrong))


# torch.export


@EACH
def test_an_exported_model_holds_one_operator_and_takes_any_sequence_length(launching, name):
    call = Call(name, table=(64, 3), rows=7)

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = ModelNew()

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return getattr(self.kernels, "scores" if name == "rope_qk" else "attention")(*tensors, causal=True)

    seq = torch.export.Dim("seq", min=2, max=64)
    dims = ({2: seq},) * (len(call.names) - 2) + (None, None)
    program = torch.export.export(Layer(), tuple(call.inputs()), dynamic_shapes=(dims,))
    assert sum("rope_kernels" in str(node.target) for node in program.graph.nodes) == 1
    for length in (2, 9, 64):
        tensors = replace(call, rows=length, keys=length).inputs()
        assert same(program.module()(*tensors), call.ours(*tensors, causal=True))


# Operators by themselves


@ALL
@pytest.mark.parametrize("requires", ["", "q", "v", "all"])
def test_the_operator_passes_pytorchs_own_check(either, call, requires):
    wanted = call.names if requires == "all" else (requires,)
    tensors = [x.requires_grad_(name in wanted) for name, x in zip(call.names, call.inputs(), strict=True)]
    torch.library.opcheck(getattr(SPACE, call.name), operator_arguments(call, tensors))


@ALL
def test_the_operator_of_gradients_passes_pytorchs_own_check(either, call):
    count = len(call.names)
    for needs in ([True] * count, [i == 0 for i in range(count)], [i >= count - 2 for i in range(count)]):
        for used in ((True, True), (False, True)):
            arguments = backward_arguments(call, needs, used)
            torch.library.opcheck(getattr(SPACE, f"{call.name}_backward"), arguments)


@EACH
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operators_pass_pytorchs_own_check_in_every_layout(launching, name, layout):
    call = Call(name, layouts=(layout,))
    torch.library.opcheck(getattr(SPACE, name), operator_arguments(call, call.inputs()))
    first, *rest = backward_arguments(call, [True] * len(call.names))
    torch.library.opcheck(getattr(SPACE, f"{name}_backward"), (laid_out(first, layout), *rest))


@ALL
def test_gradients_of_the_operator_pass_the_numerical_check(either, call):
    if call.keys:
        call = replace(call, rows=3, keys=4, width=4, width_v=3, batch=1, table=(6, 2), options=dict(call.options))
    inputs = [x.requires_grad_() for x in call.inputs(torch.float64)]

    def finite(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = tensors_of(getattr(SPACE, call.name)(*operator_arguments(call, tensors)))
        return tuple(out.masked_fill(out.isinf(), 0.0) for out in outputs)

    assert torch.autograd.gradcheck(finite, inputs)


@EACH
def test_drawn_operators_have_values_and_gradients_of_the_twin_where_nothing_can_be_launched(name):
    for i, call in enumerate(drawn(name, 60, "operators")):
        lse = {"return_lse": True} if name == "rope_attention" else {}
        operator = lambda *x, call=call: getattr(SPACE, call.name)(*operator_arguments(call, x))  # noqa: E731 - by call
        twin = function_of(replace(call, options=call.options | lse), call.twin)
        found = []
        for function in (operator, twin):
            tensors = [x.detach().requires_grad_() for x in call.inputs(torch.float64)]
            outputs = [out.masked_fill(out.isinf(), 0.0) for out in tensors_of(function(*tensors))]
            given = [laid_out(torch.sin(out.detach() + 1), LAYOUTS[i % len(LAYOUTS)]) for out in outputs if out.numel()]
            outputs = [out for out in outputs if out.numel()]
            leaves = (
                torch.autograd.grad(outputs, tensors, given, allow_unused=True) if outputs else [None] * len(tensors)
            )
            found.append([*outputs, *(0 * x if g is None else g for g, x in zip(leaves, tensors, strict=True))])
        for mine, true in zip(*found, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-9)


def test_the_twins_gradients_are_told_from_those_of_another_mask():
    call = Call("rope_attention")
    needs = [True] * 5
    causal = replace(call, options={"causal": True})
    one, other = (SPACE.rope_attention_backward(*backward_arguments(c, needs)) for c in (call, causal))
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(one, other, strict=True))


@EACH
def test_differentiating_twice_says_so(either, name):
    call = Call(name)
    tensors = [x.requires_grad_() for x in call.inputs()]
    (gradient,) = torch.autograd.grad(
        tensors_of(getattr(SPACE, name)(*tensors))[0].square().sum(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


@EACH
def test_where_nothing_can_be_launched_it_can_be_differentiated_twice(name):
    call = Call(name, 1, 1, 1, 2, 3, 4, 2)
    inputs = [x.requires_grad_() for x in call.inputs(torch.float64)]
    assert torch.autograd.gradgradcheck(call.ours, inputs)


# Fake tensors


@EACH
def test_fake_outputs_have_the_shapes_dtypes_and_strides_of_real_ones(name):
    mixes = itertools.cycle(itertools.product(TL_DTYPES, repeat=3))
    for call in drawn(name, 60, "fake"):
        dtypes = [dtype for mix in itertools.islice(mixes, 2) for dtype in mix][: len(call.names)]
        tensors = [x.to(dtype) for x, dtype in zip(call.inputs(), dtypes, strict=True)]
        for symbolic in (False, True):
            mode = FakeTensorMode(shape_env=ShapeEnv() if symbolic else None)
            shapes = lambda x: StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * x.dim())  # noqa: E731
            imagined = [mode.from_tensor(x, symbolic_context=shapes(x) if symbolic else None) for x in tensors]
            with mode:
                ours = tensors_of(getattr(SPACE, name)(*operator_arguments(call, imagined)))
            real = tensors_of(getattr(SPACE, name)(*operator_arguments(call, tensors)))
            for fake, out in zip(ours, real, strict=True):
                assert isinstance(fake, FakeTensor)
                assert fake.dtype == out.dtype
                assert tuple(map(int, fake.shape)) == tuple(out.shape)
                assert tuple(map(int, fake.stride())) == out.stride()


@EACH
def test_a_call_on_fake_tensors_of_a_device_that_launches_launches_nothing(launching, name):
    call = Call(name)
    with FakeTensorMode():
        out = call.ours(*(torch.empty(x.shape) for x in call.inputs()))
    assert isinstance(out, FakeTensor)
    assert out.shape == call.twin(*call.inputs()).shape
    assert not launching.launches


@EACH
def test_meta_tensors_have_the_form_of_the_answer(name):
    call = CALLS[name]
    out = function_of(call)(*(x.to("meta") for x in call.inputs()))
    assert out.is_meta
    assert out.shape == function_of(call)(*call.inputs()).shape


# Autocast and function transforms


def with_gradients(function: Callable[..., Any], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a function gives, and the gradients of all its inputs."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    outputs = tensors_of(function(*leaves))
    return [*outputs, *torch.autograd.grad(finite_sum(outputs), leaves)]


@ALL
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_has_no_say(either, call, low):
    def operator(*tensors: torch.Tensor) -> Any:
        return getattr(SPACE, call.name)(*operator_arguments(call, tensors))

    compiled = torch.compile(function_of(call), fullgraph=True, backend="aot_eager")
    for dtype in TL_DTYPES:
        tensors = call.inputs(dtype)
        plain, plain_operator = function_of(call)(*tensors), with_gradients(operator, tensors)
        with torch.autocast("cpu", low):
            assert same(function_of(call)(*tensors), plain)
            assert same(compiled(*tensors), plain)
            assert same(tuple(with_gradients(operator, tensors)), tuple(plain_operator))


@EACH
def test_it_can_be_batched_and_differentiated_by_function_transforms(launching, name):
    call = Call(name)
    q, *rest = call.inputs(torch.float64)
    many = torch.stack([q, -q, 3 * q])

    def loss(function: Callable[..., Any]) -> Callable[..., torch.Tensor]:
        return lambda q, cos: function(q, *rest[:-2], cos, rest[-1]).square().sum()

    transforms: list[Callable[[Callable[..., Any]], Any]] = [
        lambda f: torch.vmap(f, (0, *(None,) * len(rest)))(many, *rest),
        lambda f: torch.func.grad(loss(f), (0, 1))(q, rest[-2]),
        lambda f: torch.vmap(torch.func.grad(loss(f), (0, 1)), (0, None))(many, rest[-2]),
        lambda f: torch.func.jvp(loss(f), (q, rest[-2]), (q, rest[-2])),
        lambda f: [torch.func.hessian(lambda c: loss(f)(q, c))(rest[-2])],
    ]
    for transform in transforms:
        for ours, theirs in zip(transform(call.ours), transform(call.twin), strict=True):
            torch.testing.assert_close(ours, theirs)


@EACH
def test_function_transforms_can_be_compiled(launching, name):
    call = Call(name)
    tensors = call.inputs(torch.float64)
    ours, theirs = (torch.func.grad(lambda *x, f=f: f(*x).square().sum(), argnums=1) for f in (call.ours, call.twin))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), theirs(*tensors))


# Eager calls


@EACH
def test_a_plain_eager_call_dispatches_no_operator(launching, name):
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    tensors = [x.requires_grad_() for x in Call(name).inputs()]
    with Watch():
        Call(name).ours(*tensors).sum().backward()
        assert seen
        assert not any("rope_kernels" in one for one in seen)
        getattr(SPACE, name)(*tensors)
    assert any("rope_kernels" in one for one in seen)


def test_operators_say_that_they_change_nothing_and_that_strides_count():
    names = ("rope_qk", "rope_qk_backward", "rope_attention", "rope_attention_backward")
    for name in names:
        operator = getattr(SPACE, name).default
        assert not operator._schema.is_mutable
        assert fused_operators.EXACT in operator.tags
