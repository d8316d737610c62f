"""What compilers and exporters see of positions and of tables of each batch, which run on the CPU engine here."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.source import ConstantSource
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fuzzrope.interpreter.engine import Engine
from kernels import reference, rope
from kernels.forms import Turn
from kernels.launch import TL_DTYPES
from kernels.placed import Call
from tests.kernels.test_operators import BACK, BACKENDS, OP, believe, forget_compiled, launching, same
from tests.kernels.test_rope import NAMES, raw

__all__ = ["forget_compiled", "launching"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

LONG = 64
#: Batches of cos and sin, and the shape of positions, of a call with B = 2 and some rows.
KINDS: dict[str, Any] = {
    "positions": ((), ("S",)),
    "positions of each batch": ((), ("B", "S")),
    "tables of each batch": ((2, 2), None),
    "sin of each batch": ((1, 2), None),
}
OPTIONS = [(False, None), (True, 4)]


def inputs(kind: str, seq: int = 4, mix: Any = None, requires: tuple[str, ...] = (), columns: int = 6) -> list[Any]:
    """q, k, cos, sin and positions or None; some positions repeat."""
    batches, places = KINDS[kind]
    generator = torch.Generator().manual_seed(seq)
    shapes: dict[str, tuple[int, ...]] = {"q": (2, 3, seq, 6), "k": (2, 1, seq, 6)}
    for i, name in enumerate(("cos", "sin")):
        shapes[name] = (*batches[i : i + 1], LONG, columns // 2)
    tensors: list[Any] = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(d).requires_grad_(name in requires)
        for (name, shape), d in zip(shapes.items(), mix or (torch.float32,) * 4, strict=True)
    ]
    shape = None if places is None else tuple({"B": 2, "S": seq}[size] for size in places)
    return [*tensors, None if shape is None else torch.randint(0, seq, shape, generator=generator)]


def call(*tensors: Any, interleaved: bool = False, rotary_dim: int | None = None) -> Any:
    *given, positions = tensors
    return rope(*given, interleaved=interleaved, rotary_dim=rotary_dim, positions=positions)


def twin(*tensors: Any, interleaved: bool = False, rotary_dim: int | None = None) -> Any:
    *given, positions = tensors
    return reference.rope_placed(*given, interleaved, rotary_dim or given[0].shape[3], positions)


# torch.compile


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_call_is_one_graph_that_launches_once_and_gives_the_bits_of_eager(
    launching: Engine, kind: str, backend: str
):
    for mix in [(d,) * 4 for d in TL_DTYPES] + [(torch.bfloat16, torch.float32, torch.float16, torch.float32)]:
        for interleaved, columns in OPTIONS:
            torch._dynamo.reset()
            launching.reset()
            tensors = inputs(kind, mix=mix, columns=columns or 6)
            options = {"interleaved": interleaved, "rotary_dim": columns}
            counter = CompileCounterWithBackend(backend)
            compiled = torch.compile(call, fullgraph=True, backend=counter)
            assert same(compiled(*tensors, **options), twin(*tensors, **options))
            assert [launch["kernel"] for launch in launching.launches] == ["placed_kernel"]
            targets = [node.target for graph in counter.graphs for node in graph.graph.nodes]
            assert targets.count(OP.default) + targets.count(OP) == 1
    assert not launching.accesses


@pytest.mark.parametrize("requires", [("q",), ("k",), ("cos",), ("sin",), ("q", "k"), NAMES], ids=" ".join)
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_call_has_the_gradients_of_the_eager_kernel(launching: Engine, kind: str, requires: tuple[str, ...]):
    def gradients(function: Callable[..., Any]) -> list[torch.Tensor | None]:
        tensors = inputs(kind, requires=requires)
        q, k, *_ = function(*tensors)
        ((q * q).sum() + (k * k * k).sum()).backward()
        return [tensor.grad for tensor in tensors[:4]]

    ours, theirs = gradients(torch.compile(call, fullgraph=True, backend="aot_eager")), gradients(call)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        assert (a is None) == (b is None) == (name not in requires)
        assert a is None or raw(a) == raw(b)
    assert not launching.accesses


@pytest.mark.parametrize("kind", KINDS)
def test_with_dynamic_shapes_no_sequence_length_compiles_anew(launching: Engine, kind: str):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, backend=counter, dynamic=True)
    for seq in (5, 8, 17, 50):
        tensors, alike = inputs(kind, seq, requires=NAMES), inputs(kind, seq, requires=NAMES)
        ours = compiled(*tensors)
        assert same([x.detach() for x in ours], twin(*inputs(kind, seq)))
        ours[0].square().sum().backward()
        call(*alike)[0].square().sum().backward()
        assert all(
            raw(a.grad) == raw(b.grad) for a, b in zip(tensors[:4], alike[:4], strict=True) if b.grad is not None
        )
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_can_be_launched_the_eager_twin_is_compiled(kind: str):
    tensors = inputs(kind)
    counter = CompileCounterWithBackend("aot_eager")
    assert same(torch.compile(call, fullgraph=True, backend=counter)(*tensors), twin(*tensors))
    assert not any("rope_kernels" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)


def test_what_is_refused_is_refused_while_compiling(launching: Engine):
    q, k, cos, sin, positions = inputs("positions")
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    tables = cos[None, :3], sin[None]
    for bad in (
        (q, k, cos, sin, positions.float()),
        (q, k, cos, sin, positions[:3]),
        (q, k, *tables, None),
        (q, k, cos[None], sin, None),
        (q, k[:, :, :2], cos, sin, positions),
    ):
        with pytest.raises(Exception, match="rope: "):
            compiled(*bad)


# torch.export


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_call_holds_one_operator_and_takes_any_sequence_length(launching: Engine, kind: str, strict: bool):
    class Called(torch.nn.Module):
        def forward(self, q: Any, k: Any, cos: Any, sin: Any, positions: Any) -> Any:
            return rope(q, k, cos, sin, positions=positions)

    # With as many rows as a table has, its cut is contiguous: PyTorch takes a slice for another kind of graph then.
    seq = torch.export.Dim("seq", min=2, max=LONG - 1)
    example = inputs(kind)
    dims = [{2: seq}, {2: seq}, None, None, None if example[4] is None else {example[4].dim() - 1: seq}]
    program = torch.export.export(Called(), tuple(example), dynamic_shapes=tuple(dims), strict=strict)
    assert [node.target for node in program.graph.nodes].count(OP.default) == 1
    for length in (2, 9, LONG - 1):
        tensors = inputs(kind, length)
        assert same(program.module()(*tensors), twin(*tensors))


# Operators by themselves


def operands(tensors: list[Any], interleaved: bool = False, rotary_dim: int | None = None) -> tuple[Any, ...]:
    return (*tensors[:4], interleaved, rotary_dim, tensors[4])


@pytest.mark.parametrize("launches", [True, False])
@pytest.mark.parametrize("requires", [(), NAMES], ids=" ".join)
@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_passes_pytorchs_own_check(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, launches: bool, requires: tuple[str, ...], kind: str
):
    believe(monkeypatch, launches)
    for interleaved, columns in OPTIONS:
        tensors = inputs(kind, requires=requires, columns=columns or 6)
        torch.library.opcheck(OP, operands(tensors, interleaved, columns))


def backward_arguments(kind: str, used: tuple[bool, bool], needs: list[bool]) -> tuple[Any, ...]:
    q, k, cos, sin, positions = inputs(kind)
    gradients = [torch.randn_like(x) if there else None for x, there in zip((q, k), used, strict=True)]
    saved = [x if needs[2] or needs[3] else None for x in (q, k)]
    forms = list(q.shape), list(k.shape), q.dtype, k.dtype
    return (*gradients, *saved, cos, sin, *forms, needs, False, None, positions)


@pytest.mark.parametrize("launches", [True, False])
@pytest.mark.parametrize("needs", [[True] * 4, [True, False, False, False], [False, True, False, True]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_of_gradients_passes_pytorchs_own_check(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, launches: bool, needs: list[bool], kind: str
):
    believe(monkeypatch, launches)
    for used in ((True, True), (False, True)):
        torch.library.opcheck(BACK, backward_arguments(kind, used, needs))


@pytest.mark.parametrize("launches", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_operator_pass_the_numerical_check(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, launches: bool, kind: str
):
    believe(monkeypatch, launches)
    *given, positions = inputs(kind, 3, (torch.float64,) * 4, NAMES)
    shorter = [x.detach()[..., :4, :].clone().requires_grad_() for x in given[2:]]
    assert torch.autograd.gradcheck(lambda *x: OP(*x, positions=positions), [*given[:2], *shorter])


@pytest.mark.parametrize("kind", [*KINDS, "no row of the table", "one-row tables"])
@pytest.mark.parametrize(("interleaved", "columns"), OPTIONS)
def test_both_ways_to_gradients_agree(engine: Engine, kind: str, interleaved: bool, columns: int | None):
    named = kind if kind in KINDS else "tables of each batch" if kind == "one-row tables" else "positions"
    *given, positions = inputs(named, mix=(torch.float64,) * 4, columns=columns or 6)
    if kind == "no row of the table":
        positions = torch.tensor([-1, 2, LONG, 2])
    if kind == "one-row tables":
        given[2:] = [table[:, :1] for table in given[2:]]
    call_ = Call(Turn.of(6, interleaved, columns), positions)
    cotangents = tuple(torch.randn_like(x) for x in given[:2])
    forms = [(tuple(t.shape), t.dtype) for t in given]
    common = cotangents, given[:2], given[2:], forms, [True] * 4
    ours = importlib.import_module("kernels.placed_backward").pull_back_placed(*common, call_)
    theirs = reference.pull_back(*common, call_.turn, positions)
    leaves = [t.requires_grad_() for t in given]
    outputs = reference.rope_placed(*leaves, interleaved, columns or 6, positions)[:2]
    for a, b, c in zip(ours, theirs, torch.autograd.grad(outputs, leaves, cotangents), strict=True):
        torch.testing.assert_close(a, c, equal_nan=True)
        torch.testing.assert_close(b, c, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_fake_outputs_have_the_form_of_real_ones_for_symbolic_sizes_too(kind: str):
    strided = [x if x is None else torch.stack([x, x], dim=-1)[..., 0] for x in inputs(kind)]
    real = OP(*operands(strided))
    for symbolic in (False, True):
        with FakeTensorMode(shape_env=ShapeEnv() if symbolic else None) as mode:
            given: list[Any] = []
            for i, x in enumerate(strided):
                how: dict[str, Any] = {}
                if symbolic and x is not None:
                    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * x.dim())
                    how = {"symbolic_context": context, "source": ConstantSource(f"x{i}")}
                given.append(None if x is None else mode.from_tensor(x, **how))
            ours = OP(*operands(given))
        assert symbolic == any(isinstance(size, torch.SymInt) for size in ours[0].shape)
        for imagined, out in zip(ours, real, strict=True):
            assert isinstance(imagined, FakeTensor)
            assert (tuple(map(int, imagined.shape)), imagined.dtype) == (tuple(out.shape), out.dtype)
            assert tuple(map(int, imagined.stride())) == out.stride()


# Transforms


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_batched_and_differentiated_by_function_transforms(launching: Engine, kind: str):
    q, k, cos, sin, positions = inputs(kind, mix=(torch.float64,) * 4)
    many = torch.stack([q, -q, 3 * q])

    def transformed(function: Callable[..., Any]) -> list[Any]:
        def loss(q: torch.Tensor, cos: torch.Tensor) -> Any:
            return function(q, k, cos, sin, positions)[0].square().sum()

        batched = torch.vmap(lambda q: function(q, k, cos, sin, positions)[:2])(many)
        return [
            *batched,
            *torch.func.grad(loss, (0, 1))(q, cos),
            *torch.vmap(torch.func.grad(loss), (0, None))(many, cos),
        ]

    for ours, theirs in zip(transformed(call), transformed(twin), strict=True):
        torch.testing.assert_close(ours, theirs)
