"""What compilers and exporters see of the kernels, which run on the CPU engine here."""

import importlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.source import ConstantSource
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._python_dispatch import TorchDispatchMode

from fuzzrope.interpreter.engine import Engine
from kernels import ModelNew, reference, rope
from kernels.forms import Turn
from kernels.launch import TL_DTYPES
from tests.kernels.test_rope import NAMES, check_plan, draw_layouts, raw, view

# Importing PyTorch's compiler and tracing with it warns of its own parts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

OP, BACK = torch.ops.rope_kernels.rope, torch.ops.rope_kernels.rope_backward
BACKENDS = ("eager", "aot_eager")
DTYPES = tuple(TL_DTYPES)


def believe(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    for name in ("kernels.rope", "kernels.placed", "kernels.operators"):
        monkeypatch.setattr(importlib.import_module(name), "can_launch", lambda device: answer)


@pytest.fixture
def launching(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """kernels.rope believes that it can launch on ordinary tensors, and can: on the engine."""
    believe(monkeypatch, True)
    return engine


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs(
    seq: int = 4, dtype: torch.dtype = torch.float32, requires: tuple[str, ...] = (), mix: Any = None
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seq)
    shapes = {"q": (2, 3, seq, 6), "k": (2, 1, seq, 6), "cos": (64, 3), "sin": (64, 3)}
    dtypes = mix or (dtype,) * 4
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(d).requires_grad_(name in requires)
        for (name, shape), d in zip(shapes.items(), dtypes, strict=True)
    ]


def same(ours: Any, theirs: Any) -> bool:
    return all(
        (a.dtype, a.shape, a.stride(), raw(a)) == (b.dtype, b.shape, b.stride(), raw(b))
        for a, b in zip(ours, theirs, strict=True)
    )


# torch.compile


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_compiled_model_is_one_graph_that_launches_once_and_gives_the_bits_of_eager(
    launching: Engine, backend: str, dtype: torch.dtype
):
    tensors = inputs(dtype=dtype)
    outputs = torch.compile(ModelNew(), fullgraph=True, backend=backend)(*tensors)
    assert same(outputs, reference.rope(*tensors))
    assert [launch["kernel"] for launch in launching.launches] == ["rope_kernel"]
    assert not launching.accesses


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("requires", [("q",), ("k",), ("cos",), ("sin",), ("q", "k"), NAMES], ids=" ".join)
def test_a_compiled_model_has_the_gradients_of_the_eager_kernel(
    launching: Engine, backend: str, requires: tuple[str, ...]
):
    def gradients(function: Callable[..., Any]) -> list[torch.Tensor | None]:
        tensors = inputs(requires=requires)
        q, k, *_ = function(*tensors)
        ((q * q).sum() + (k * k * k).sum()).backward()
        return [tensor.grad for tensor in tensors]

    ours, theirs = gradients(torch.compile(rope, fullgraph=True, backend=backend)), gradients(rope)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        assert (a is None) == (b is None) == (name not in requires)
        assert a is None or raw(a) == raw(b)


@pytest.mark.parametrize("used", [0, 1], ids=["q", "k"])
def test_an_output_not_in_use_has_no_part_in_compiled_gradients(launching: Engine, used: int):
    tensors, alike = inputs(requires=NAMES), inputs(requires=NAMES)
    torch.compile(rope, fullgraph=True, backend="aot_eager")(*tensors)[used].square().sum().backward()
    reference.rope(*alike)[used].square().sum().backward()
    for ours, theirs in zip(tensors, alike, strict=True):
        expected = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(torch.zeros_like(ours) if ours.grad is None else ours.grad, expected)


def test_inside_a_larger_graph_strided_intermediates_are_taken_as_they_are(launching: Engine):
    def attention_input(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k = (x * 2).view(2, 4, 4, 6).transpose(1, 2).split([3, 1], dim=1)
        out_q, out_k, *_ = rope(q, k, cos, sin)
        return out_q + 1, out_k.contiguous()

    x, (_, _, cos, sin) = torch.randn(2, 4, 24), inputs()
    compiled = torch.compile(attention_input, fullgraph=True, backend="aot_eager")
    assert same(compiled(x, cos, sin), attention_input(x, cos, sin))


@pytest.mark.parametrize(("dynamic", "compiles"), [(True, 1), (None, 2), (False, 6)])
def test_with_dynamic_shapes_no_sequence_length_compiles_anew(launching: Engine, dynamic: bool | None, compiles: int):
    counter = CompileCounter()
    compiled = torch.compile(rope, fullgraph=True, backend=counter, dynamic=dynamic)
    for seq in (5, 8, 16, 17, 33, 50):
        tensors = inputs(seq)
        assert same(compiled(*tensors), reference.rope(*tensors))
    assert counter.frame_count == compiles


def test_with_dynamic_shapes_no_sequence_length_compiles_gradients_anew(launching: Engine):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rope, fullgraph=True, backend=counter, dynamic=True)
    for seq in (5, 8, 33):
        tensors, alike = inputs(seq, requires=NAMES), inputs(seq, requires=NAMES)
        compiled(*tensors)[0].sum().backward()
        rope(*alike)[0].sum().backward()
        assert all(raw(a.grad) == raw(b.grad) for a, b in zip(tensors, alike, strict=True) if b.grad is not None)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_can_be_launched_the_eager_twin_is_compiled(backend: str):
    tensors = inputs()
    counter = CompileCounterWithBackend(backend)
    assert same(torch.compile(ModelNew(), fullgraph=True, backend=counter)(*tensors), reference.rope(*tensors))
    assert not any("rope_kernels" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)


def test_what_is_refused_is_refused_while_compiling(launching: Engine):
    q, k, cos, sin = inputs()
    compiled = torch.compile(rope, fullgraph=True, backend="eager")
    for bad in ((q[..., :5], k[..., :5], cos, sin), (q.int(), k, cos, sin), (q, k, cos[:2], sin)):
        with pytest.raises(Exception, match="rope: "):
            compiled(*bad)


# torch.export


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_holds_one_operator_and_gives_the_bits_of_eager(launching: Engine, strict: bool):
    tensors = inputs()
    program = torch.export.export(ModelNew(), tuple(tensors), strict=strict)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(OP.default) == 1
    assert same(program.module()(*tensors), reference.rope(*tensors))


def test_an_exported_model_takes_any_sequence_length(launching: Engine):
    seq = torch.export.Dim("seq", min=2, max=64)
    dims = ({2: seq}, {2: seq}, None, None)
    program = torch.export.export(ModelNew(), tuple(inputs()), dynamic_shapes=dims)
    for length in (2, 9, 64):
        tensors = inputs(length)
        assert same(program.module()(*tensors), reference.rope(*tensors))


# Operators by themselves


def backward_arguments(used: tuple[bool, bool], needs: list[bool], dtype: torch.dtype) -> tuple[Any, ...]:
    q, k, cos, sin = inputs(dtype=dtype)
    tables = needs[2] or needs[3]
    gradients = [torch.randn_like(x) if there else None for x, there in zip((q, k), used, strict=True)]
    saved = [x if tables else None for x in (q, k)]
    return (*gradients, *saved, cos, sin, list(q.shape), list(k.shape), q.dtype, k.dtype, needs)


@pytest.mark.parametrize("launches", [True, False])
@pytest.mark.parametrize("requires", [(), ("q",), NAMES], ids=" ".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_passes_pytorchs_own_check(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, launches: bool, requires: tuple[str, ...], dtype: torch.dtype
):
    believe(monkeypatch, launches)
    torch.library.opcheck(OP, tuple(inputs(dtype=dtype, requires=requires)))


@pytest.mark.parametrize("launches", [True, False])
@pytest.mark.parametrize("needs", [[True] * 4, [True, False, False, False], [False, True, False, True]], ids=str)
@pytest.mark.parametrize("used", [(True, True), (False, True)], ids=str)
def test_the_operator_of_gradients_passes_pytorchs_own_check(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, launches: bool, used: tuple[bool, bool], needs: list[bool]
):
    believe(monkeypatch, launches)
    torch.library.opcheck(BACK, backward_arguments(used, needs, torch.float32))


def test_pytorchs_own_check_can_fail():
    @torch.library.custom_op("rope_tests::wrong_strides", mutates_args=())
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x.clone(memory_format=torch.contiguous_format)

    @wrong.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)

    with pytest.raises(torch.testing._internal.optests.generate_tests.OpCheckError):
        torch.library.opcheck(torch.ops.rope_tests.wrong_strides, (torch.randn(2, 3).mT,))


@pytest.mark.parametrize("launches", [True, False])
def test_gradients_of_the_operator_pass_the_numerical_check(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, launches: bool
):
    believe(monkeypatch, launches)
    assert torch.autograd.gradcheck(lambda *x: OP(*x), inputs(3, torch.float64, NAMES))


@pytest.mark.parametrize("name", ["q", "k", "cos", "sin"])
def test_both_ways_to_gradients_agree_for_whatever_is_broadcast(engine: Engine, name: str):
    shapes = {"q": (2, 2, 1, 2), "k": (1, 3, 1, 2), "cos": (3, 4), "sin": (1, 4)}
    shapes |= {"q": (2, 2, 3, 2)} if name != "q" else {"cos": (1, 4)}
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes.values()]
    outs = reference.rope(*tensors)[:2]
    gradients = tuple(torch.randn_like(out) for out in outs)
    forms = [(tuple(t.shape), t.dtype) for t in tensors]
    module = importlib.import_module("kernels.rope_backward")
    ways = (reference.pull_back, module.pull_back)
    ours, theirs = (way(gradients, tensors[:2], tensors[2:], forms, [True] * 4, Turn(2, False)) for way in ways)
    leaves = [t.requires_grad_() for t in tensors]
    truth = torch.autograd.grad(reference.rope(*leaves)[:2], leaves, gradients)
    for a, b, c in zip(ours, theirs, truth, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, c)


def test_differentiating_twice_says_so(launching: Engine):
    tensors = inputs(requires=NAMES)
    for function in (lambda *x: rope(*x)[0], lambda *x: OP(*x)[0]):
        (gradient,) = torch.autograd.grad(function(*tensors).square().sum(), tensors[:1], create_graph=True)
        with pytest.raises(RuntimeError, match=r"once_differentiable|no autograd formula"):
            gradient.sum().backward()


def test_where_nothing_can_be_launched_it_can_be_differentiated_twice():
    tensors = inputs(2, torch.float64, NAMES)
    assert torch.autograd.gradgradcheck(lambda *x: rope(*x)[:2], tensors)


# Fake tensors


def fake(layouts: dict[str, Any], mix: tuple[torch.dtype, ...]) -> list[torch.Tensor]:
    return [torch.empty_strided(*at, dtype=d, device="cuda") for at, d in zip(layouts.values(), mix, strict=True)]


@pytest.mark.parametrize("chunk", range(4))
def test_fake_outputs_have_the_shapes_dtypes_and_strides_of_real_ones(chunk: int):
    rng = random.Random(f"fake {chunk}")
    seen = 0
    for layouts in draw_layouts(f"fake {chunk}", 200):
        mix = tuple(rng.choice(DTYPES) for _ in range(4))
        if not check_plan(layouts, mix):  # real outputs are planned as eager code returns them
            with FakeTensorMode(), pytest.raises(ValueError, match="does not broadcast"):
                OP(*fake(layouts, mix))
            continue
        with FakeTensorMode():
            ours = OP(*fake(layouts, mix))
        real = OP(*(view(at, d) for at, d in zip(layouts.values(), mix, strict=True)))
        for imagined, out in zip(ours, real, strict=True):
            assert isinstance(imagined, FakeTensor)
            assert imagined.device == torch.device("cuda", 0)
            assert (imagined.shape, imagined.stride(), imagined.dtype) == (out.shape, out.stride(), out.dtype)
        seen += 1
    assert seen > 100


def test_fake_outputs_of_symbolic_sizes_have_the_strides_of_real_ones():
    seen = 0
    for layouts in draw_layouts("symbolic", 40):
        if not check_plan(layouts, (torch.float32,) * 4):
            continue
        tensors = [view(at, torch.float32) for at in layouts.values()]
        mode = FakeTensorMode(shape_env=ShapeEnv())
        symbolic = []
        for i, tensor in enumerate(tensors):
            context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * tensor.dim())
            symbolic.append(mode.from_tensor(tensor, symbolic_context=context, source=ConstantSource(f"x{i}")))
        with mode:
            ours = OP(*symbolic)
        seen += any(isinstance(size, torch.SymInt) for size in ours[0].shape)
        for imagined, out in zip(ours, OP(*tensors), strict=True):
            assert tuple(map(int, imagined.shape)) == tuple(out.shape)
            assert tuple(map(int, imagined.stride())) == out.stride()
    assert seen > 15


def test_a_model_is_traced_with_fake_tensors_of_a_device_that_launches(launching: Engine):
    with FakeTensorMode():
        outputs = rope(*(torch.empty(x.shape) for x in inputs()))
    assert all(isinstance(out, FakeTensor) for out in outputs)
    assert [out.shape for out in outputs] == [out.shape for out in reference.rope(*inputs())]
    assert not launching.launches


# Autocast and function transforms


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_under_autocast_it_does_what_eager_does(launching: Engine, low: torch.dtype, compiled: bool):
    function = torch.compile(rope, fullgraph=True, backend="aot_eager") if compiled else rope
    mixes = [(d,) * 4 for d in DTYPES]
    if not compiled:
        mixes += random.Random("autocast").sample(list(itertools.product(DTYPES, repeat=4)), 40)
    answers = 0
    for mix in mixes:
        tensors = inputs(2, mix=mix)
        with torch.autocast("cpu", low):
            try:
                expected = reference.rope(*tensors)
            except RuntimeError:  # cat refuses a 16-bit type that is not autocast's own; rope has nothing to cast
                continue
            ours = function(*tensors)
        assert [(a.dtype, raw(a)) for a in ours] == [(b.dtype, raw(b)) for b in expected]
        answers += 1
    assert answers >= (3 if compiled else 20)


def test_it_can_be_batched_and_differentiated_by_function_transforms(launching: Engine):
    q, k, cos, sin = inputs(dtype=torch.float64)
    many = torch.stack([q, -q, 3 * q])

    def loss(function: Callable[..., Any]) -> Callable[..., torch.Tensor]:
        return lambda q, cos: function(q, k, cos, sin)[0].square().sum()

    transforms: list[Callable[[Callable[..., Any]], Any]] = [
        lambda f: torch.vmap(f, (0, None, None, None))(many, k, cos, sin),
        lambda f: torch.func.grad(loss(f), (0, 1))(q, cos),
        lambda f: torch.vmap(torch.func.grad(loss(f), (0, 1)), (0, None))(many, cos),
        lambda f: torch.func.jvp(loss(f), (q, cos), (q, cos)),
        lambda f: [torch.func.hessian(lambda c: loss(f)(q[:1, :1], c))(cos[:4])],
    ]
    for transform in transforms:
        for ours, theirs in zip(transform(rope), transform(reference.rope), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.grad_and_value])
def test_function_transforms_can_be_compiled(launching: Engine, transform: Callable[..., Any]):
    tensors = inputs(dtype=torch.float64)
    ours, theirs = (transform(lambda *x, f=f: f(*x)[1].square().sum(), argnums=1) for f in (rope, reference.rope))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), theirs(*tensors))


# Eager calls


def test_a_plain_eager_call_dispatches_no_operator(launching: Engine):
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        rope(*inputs(requires=NAMES))
        assert seen
        assert not any("rope_kernels" in name for name in seen)
        OP(*inputs())
    assert any("rope_kernels" in name for name in seen)
