"""Options of kernels.rope: against arithmetic by the element, and the kernel against its eager twin, bit for bit."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fuzzrope.interpreter.engine import Engine
from kernels import reference, rope
from kernels.forms import Turn
from kernels.launch import TL_DTYPES
from tests.kernels.test_operators import OP, believe, forget_compiled, launching, same
from tests.kernels.test_rope import draw_strides, raw

__all__ = ["forget_compiled", "launching"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

DTYPES = tuple(TL_DTYPES)
CHOICES = [(inter, dim) for inter in (False, True) for dim in (None, 2, 4, 6) if inter or dim is not None]
Options = dict[str, Any]


def tensors(
    columns: int = 6, seq: int = 4, mix: tuple[torch.dtype, ...] = (torch.float32,) * 4, requires: bool = False
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    shapes = (2, 3, seq, 6), (1, 2, seq, 6), (seq + 3, columns // 2), (seq, columns // 2)
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(d) for s, d in zip(shapes, mix, strict=True)]
    return [t.requires_grad_(requires) for t in made]


def options(interleaved: bool, rotary_dim: int | None) -> Options:
    return {"interleaved": interleaved, "rotary_dim": rotary_dim}


@pytest.mark.parametrize(("interleaved", "rotary_dim"), CHOICES)
def test_each_pair_is_turned_and_the_other_columns_are_copied(interleaved: bool, rotary_dim: int | None):
    columns = 6 if rotary_dim is None else rotary_dim
    q, k, cos, sin = tensors(columns, mix=(torch.float64,) * 4)
    outputs = rope(q, k, cos, sin, **options(interleaved, rotary_dim))
    for x, out in zip((q, k), outputs, strict=False):
        expected = x.clone()
        for s, i in itertools.product(range(4), range(columns // 2)):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, columns // 2 + i)
            expected[:, :, s, a] = x[:, :, s, a] * cos[s, i] - x[:, :, s, b] * sin[s, i]
            expected[:, :, s, b] = x[:, :, s, b] * cos[s, i] + x[:, :, s, a] * sin[s, i]
        assert torch.equal(out, expected)
        assert out.transpose(1, 2).is_contiguous()


def strided(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    memory = torch.zeros(4 * x.numel() + 4096, dtype=x.dtype)
    strides = draw_strides(rng, tuple(x.shape))
    reach = sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True) if n > 1)
    if reach >= memory.numel():
        return x
    return memory.as_strided(x.shape, strides, rng.choice((0, 1))).copy_(x) if 0 not in strides else x


@pytest.mark.parametrize(("interleaved", "rotary_dim"), CHOICES)
def test_the_kernel_gives_the_bits_and_strides_of_its_twin_in_every_dtype_and_layout(
    launching: Engine, interleaved: bool, rotary_dim: int | None
):
    rng = random.Random(f"{interleaved} {rotary_dim}")
    chosen = options(interleaved, rotary_dim)
    columns = 6 if rotary_dim is None else rotary_dim
    for mix in [(d,) * 4 for d in DTYPES] + rng.sample(list(itertools.product(DTYPES, repeat=4)), 6):
        given = [strided(x, rng) for x in tensors(columns, mix=mix)]
        assert same(rope(*given, **chosen), reference.rope_with_options(*given, interleaved, columns))
        assert same(OP(*given, *chosen.values()), reference.rope_with_options(*given, interleaved, columns)[:2])
    assert not launching.accesses
    assert launching.launches


BROADCAST: dict[str, tuple[tuple[int, ...], ...]] = {
    "one row": ((2, 3, 4, 6), (1, 2, 4, 6), (1, 2), (1, 2)),
    "one column": ((2, 3, 4, 6), (1, 2, 4, 6), (4, 1), (4, 2)),
    "a pair spread over columns": ((2, 3, 4, 2), (1, 2, 4, 2), (4, 5), (4, 1)),
    "a pair spread, and a rest": ((2, 3, 4, 6), (1, 2, 4, 6), (4, 5), (1, 5)),
    "k of one row": ((2, 3, 4, 4), (1, 2, 1, 4), (4, 2), (4, 2)),
    "nothing": ((2, 0, 4, 6), (1, 2, 4, 6), (4, 2), (4, 2)),
}
TURNED = {"one row": 4, "one column": 4, "a pair spread over columns": 2, "a pair spread, and a rest": 2}
TURNED |= {"k of one row": 4, "nothing": 4}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", BROADCAST)
def test_tables_broadcast_under_options_and_gradients_are_the_twins(launching: Engine, name: str, interleaved: bool):
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in BROADCAST[name]]
    chosen = options(interleaved, TURNED[name])
    assert same(rope(*given, **chosen), reference.rope_with_options(*given, *chosen.values()))
    outs = reference.rope_with_options(*given, *chosen.values())[:2]
    cotangents = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs]
    truth = gradients(lambda *x: reference.rope_with_options(*x, *chosen.values()), given, cotangents)
    for function in (lambda *x: rope(*x, **chosen), lambda *x: OP(*x, *chosen.values())):
        for ours, theirs in zip(gradients(function, given, cotangents), truth, strict=True):
            torch.testing.assert_close(ours, theirs)
    with pytest.MonkeyPatch.context() as patch:  # the operator's own way on any other device
        believe(patch, False)
        for ours, theirs in zip(gradients(lambda *x: OP(*x, *chosen.values()), given, cotangents), truth, strict=True):
            torch.testing.assert_close(ours, theirs)


def gradients(function: Callable[..., Any], given: list[torch.Tensor], cotangents: list[torch.Tensor]) -> Any:
    leaves = [x.detach().requires_grad_() for x in given]
    return torch.autograd.grad(function(*leaves)[:2], leaves, cotangents)


@pytest.mark.parametrize(("interleaved", "rotary_dim"), CHOICES)
def test_straight_gradients_of_q_and_k_are_autograds_bit_for_bit(
    launching: Engine, interleaved: bool, rotary_dim: int | None
):
    columns = 6 if rotary_dim is None else rotary_dim
    q, k, cos, sin = tensors(columns)
    cotangents = [torch.randn(x.shape).transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    cotangents[0][0, 0] = -0.0

    def pulled(function: Callable[..., Any]) -> Any:
        leaves = q.detach().requires_grad_(), k.detach().requires_grad_()
        return torch.autograd.grad(function(*leaves, cos, sin)[:2], leaves, cotangents)

    ours = pulled(lambda *x: rope(*x, **options(interleaved, rotary_dim)))
    theirs = pulled(lambda *x: reference.rope_with_options(*x, interleaved, columns))
    assert [raw(x) for x in ours] == [raw(x) for x in theirs]


@pytest.mark.parametrize(("interleaved", "rotary_dim"), [(True, None), (True, 4), (False, 4)])
def test_options_are_compiled_exported_and_checked_like_the_rest(
    launching: Engine, interleaved: bool, rotary_dim: int | None
):
    chosen = options(interleaved, rotary_dim)
    columns = 6 if rotary_dim is None else rotary_dim
    compiled = torch.compile(lambda *x: rope(*x, **chosen), fullgraph=True, backend="aot_eager", dynamic=True)
    for seq in (3, 5, 9):
        given, alike = (tensors(columns, seq, requires=True) for _ in range(2))
        ours, theirs = compiled(*given), rope(*alike, **chosen)
        assert same([x.detach() for x in ours], [x.detach() for x in theirs])
        for outputs in (ours, theirs):
            (outputs[0].sum() + outputs[1].square().sum()).backward()
        assert [raw(x.grad) for x in given] == [raw(x.grad) for x in alike]
    torch.library.opcheck(OP, (*tensors(columns, requires=True), interleaved, rotary_dim))
    assert torch.autograd.gradcheck(
        lambda *x: OP(*x, interleaved, rotary_dim), tensors(columns, 2, (torch.float64,) * 4, True)
    )


def test_options_at_their_defaults_are_no_options():
    given = tensors()
    assert same(rope(*given, interleaved=False, rotary_dim=None), reference.rope(*given))


BAD: dict[str, tuple[Options, type[Exception], str]] = {
    "odd": ({"rotary_dim": 3}, ValueError, "rotary_dim must be even and from 2 to head_dim 6, not 3"),
    "zero": ({"rotary_dim": 0}, ValueError, "not 0"),
    "negative": ({"rotary_dim": -2}, ValueError, "not -2"),
    "too large": ({"rotary_dim": 8}, ValueError, "not 8"),
    "a float": ({"rotary_dim": 4.0}, TypeError, "rotary_dim must be an integer or None, not float"),
    "a flag": ({"rotary_dim": True}, TypeError, "not bool"),
    "no flag": ({"interleaved": 1}, TypeError, "interleaved must be True or False, not 1"),
    "wider tables": ({"rotary_dim": 4}, ValueError, "does not broadcast.*4 columns rotated"),
}


@pytest.mark.parametrize("launches", [True, False])
@pytest.mark.parametrize(("chosen", "error", "message"), BAD.values(), ids=BAD)
def test_bad_options_raise(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, launches: bool, chosen: Options, error: Any, message: str
):
    believe(monkeypatch, launches)
    with pytest.raises(error, match=f"^rope: .*{message}"):
        rope(*tensors(), **chosen)
    assert not engine.launches


def test_columns_that_are_copied_cannot_follow_rows_that_spread():
    q, k, cos, sin = tensors(4)
    with pytest.raises(ValueError, match=r"k .* does not broadcast"):
        rope(q, k[:, :, :1], cos, sin, rotary_dim=4)


def test_pairs_of_a_turn_cover_its_columns_once():
    x = torch.arange(10)
    for turn in (Turn(6, False), Turn(6, True), Turn(0, True)):
        first, second = turn.pairs(x)
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(turn.columns))
