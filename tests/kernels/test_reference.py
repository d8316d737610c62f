"""kernels.reference, which defines behaviour, against element-by-element arithmetic and the judge's own twin."""

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzrope.build import build
from fuzzrope.case import FLOATS, Case
from fuzzrope.draw import Draw
from fuzzrope.operations.rope import Rope
from kernels import reference

ROPE = Rope()
NAMES = ("q", "k", "cos", "sin")

Shape = tuple[int, ...]


@st.composite
def cases(draw: Callable) -> Case:
    return ROPE.draw(Draw(draw(st.data()).conjecture_data), {}, (16, 64))


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor in row-major order, with one NaN for all."""
    plain = torch.where(torch.isnan(tensor), torch.full_like(tensor, math.nan), tensor)
    return plain.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def noise(shape: Shape, dtype: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype_of(dtype))


def noisy_inputs(shapes: tuple[Shape, ...], dtypes: tuple[str, ...], seed: int = 0) -> list[torch.Tensor]:
    return [noise(shape, dtype, seed + i) for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))]


def rounding(dtype: torch.dtype) -> Callable[[float], float]:
    """Rounding of a Python float to a dtype and back."""
    return lambda x: torch.tensor(x, dtype=torch.float64).to(dtype).item()


def spread(index: int, size: int) -> int:
    return 0 if size == 1 else index


def rotated_by_hand(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rows: int) -> Iterator[tuple[Shape, float]]:
    """Index and value of every element of the rotated x: Python floats, each operation rounded by itself.

    A product of two 24-bit numbers is exact in a float, and a sum rounded to 53 and then to at most 24
    bits is as if rounded once, so this is the arithmetic of every format.
    """
    cos_type, sin_type = torch.promote_types(x.dtype, cos.dtype), torch.promote_types(x.dtype, sin.dtype)
    to_cos, to_sin = rounding(cos_type), rounding(sin_type)
    to_out = rounding(torch.promote_types(cos_type, sin_type))
    cos, sin = cos[:rows], sin[:rows]
    batch, heads, seq, width = x.shape
    half = width // 2
    seq, columns = max(seq, len(cos), len(sin)), max(half, cos.shape[1], sin.shape[1])
    for b, h, s, d in itertools.product(range(batch), range(heads), range(seq), range(columns)):
        row, column = spread(s, x.shape[2]), spread(d, half)
        x1, x2 = x[b, h, row, column].item(), x[b, h, row, half + column].item()
        c = cos[spread(s, len(cos)), spread(d, cos.shape[1])].item()
        r = sin[spread(s, len(sin)), spread(d, sin.shape[1])].item()
        yield (b, h, s, d), to_out(to_cos(x1 * c) - to_sin(x2 * r))
        yield (b, h, s, columns + d), to_out(to_cos(x2 * c) + to_sin(x1 * r))


def check_by_hand(inputs: list[torch.Tensor]) -> None:
    q, k, cos, sin = inputs
    outputs = reference.Model()(*inputs)
    assert len(outputs) == 4
    for x, out in zip((q, k), outputs, strict=False):
        count = 0
        for index, value in rotated_by_hand(x, cos, sin, q.shape[2]):
            assert out[index].item() == value, index
            count += 1
        assert count == out.numel() > 0


SHAPES = {
    "plain": ((2, 2, 3, 4), (2, 2, 3, 4), (3, 2), (3, 2)),
    "other heads and batch": ((2, 3, 2, 4), (1, 1, 2, 4), (2, 2), (2, 2)),
    "longer tables": ((1, 2, 2, 6), (1, 2, 2, 6), (5, 3), (3, 3)),
    "one row": ((1, 2, 3, 4), (1, 1, 3, 4), (1, 2), (1, 2)),
    "one column": ((1, 2, 3, 4), (1, 1, 3, 4), (3, 1), (3, 1)),
    "tables that differ": ((1, 2, 3, 4), (1, 1, 3, 4), (1, 2), (4, 1)),
    "k of one row": ((1, 2, 3, 4), (1, 2, 1, 4), (3, 2), (3, 2)),
    "halves of one column": ((1, 2, 3, 2), (2, 1, 3, 2), (3, 5), (3, 5)),
    "q of one row": ((1, 2, 1, 4), (1, 2, 3, 4), (4, 2), (4, 2)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_every_element_is_the_rotation_of_its_pair(shapes: tuple[Shape, ...]):
    check_by_hand(noisy_inputs(shapes, ("float32",) * 4))


@pytest.mark.parametrize("mix", list(itertools.product(FLOATS, repeat=3)), ids=" ".join)
def test_every_operation_rounds_once_to_the_promoted_type(mix: tuple[str, ...]):
    x, cos, sin = mix
    check_by_hand(noisy_inputs(((1, 1, 3, 4), (1, 1, 3, 4), (3, 2), (3, 2)), (x, x, cos, sin), seed=7))


def test_float64_is_correctly_rounded_rational_arithmetic():
    q, k, cos, sin = noisy_inputs(SHAPES["plain"], ("float64",) * 4)
    out = reference.rope(q, k, cos, sin)[0]
    for b, h, s, d in itertools.product(range(2), range(2), range(3), range(2)):
        x1, x2 = Fraction(q[b, h, s, d].item()), Fraction(q[b, h, s, 2 + d].item())
        c, r = Fraction(cos[s, d].item()), Fraction(sin[s, d].item())
        assert out[b, h, s, d].item() == float(Fraction(float(x1 * c)) - Fraction(float(x2 * r)))
        assert out[b, h, s, 2 + d].item() == float(Fraction(float(x2 * c)) + Fraction(float(x1 * r)))


def test_the_halves_are_paired_not_neighbours():
    q = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    cos, sin = torch.tensor([[10.0, 100.0]]), torch.tensor([[1.0, 5.0]])
    out = reference.rope(q, q, cos, sin)[0]
    assert out.flatten().tolist() == [1 * 10 - 3 * 1, 2 * 100 - 4 * 5, 3 * 10 + 1 * 1, 4 * 100 + 2 * 5]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(cases())
def test_it_is_the_reference_of_the_judge_bit_for_bit(case: Case):
    tensors = build(case).tensors
    ours = dict(zip(NAMES, reference.rope(*(tensors[name] for name in NAMES)), strict=True))
    theirs = ROPE.reference(tensors)
    for name in NAMES:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].shape == theirs[name].shape
        assert ours[name].stride() == theirs[name].stride()
        assert bits(ours[name]) == bits(theirs[name])


def test_the_bitwise_comparison_sees_signed_zeros_and_last_bits():
    one, zero = torch.ones(1), torch.zeros(1)
    assert bits(zero) != bits(-zero)
    assert bits(one) != bits(torch.nextafter(one, 2 * one))
    assert bits(zero / zero) == bits(-(zero / zero))


def test_the_cut_tables_come_back_as_views():
    q, k, cos, sin = noisy_inputs(((1, 2, 3, 4), (1, 2, 3, 4), (5, 2), (9, 2)), ("float32",) * 4)
    before = [bits(t) for t in (q, k, cos, sin)]
    *rotated, cut_cos, cut_sin = reference.Model()(q, k, cos, sin)
    for table, cut in ((cos, cut_cos), (sin, cut_sin)):
        assert cut.data_ptr() == table.data_ptr()
        assert cut.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()
        assert cut.stride() == table.stride()
        assert torch.equal(cut, table[:3])
    inputs = {t.untyped_storage().data_ptr() for t in (q, k, cos, sin)}
    assert inputs.isdisjoint(out.untyped_storage().data_ptr() for out in rotated)
    assert [bits(t) for t in (q, k, cos, sin)] == before


def test_outputs_are_transposed_views_of_position_major_memory():
    out = reference.Model()(*reference.get_inputs())[0]
    assert not out.is_contiguous()
    assert out.transpose(1, 2).is_contiguous()


def test_inputs_are_those_of_the_benchmark():
    q, k, cos, sin = reference.get_inputs()
    assert q.shape == k.shape == (2, 8, 4, 16)
    assert cos.shape == sin.shape == (4, 8)
    for tensor in (q, k, cos, sin):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert tensor.is_contiguous()
        assert torch.isfinite(tensor).all()


def test_inputs_are_fresh_each_time():
    first, second = reference.get_inputs(), reference.get_inputs()
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_model_takes_what_get_init_inputs_gives():
    assert reference.get_init_inputs() == []
    model = reference.Model(*reference.get_init_inputs())
    assert list(model.parameters()) == []
    assert len(model(*reference.get_inputs())) == 4
