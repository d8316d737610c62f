import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzrope.case import TensorSpec
from fuzzrope.draw import Draw, search
from fuzzrope.geometry import FAR, arrange, dense, layouts, least_sizes, misaligned, orders, traits

NAMED = [(rank, layout) for rank in (2, 4) for layout in layouts(rank)]


def spec(shape, strides, offset=0, dtype="float32"):
    return TensorSpec(dtype, shape, strides, offset, "x")


def test_two_batches_however_far_apart_do_not_wrap_yet():
    assert "far batch" in traits(spec((3, 1, 2, 4), (FAR, 8, 4, 1)))
    assert "far batch" not in traits(spec((2, 1, 2, 4), (FAR, 8, 4, 1)))


def test_a_far_batch_wraps_a_32_bit_index_though_its_stride_fits_into_32_bits():
    seen = set()
    search(lambda draw: seen.add(arrange(draw, (3, 1, 2, 4), "far batch")[0]), 50, "far")
    assert seen
    assert all(stride < 2**31 <= 2 * stride for stride in seen)


def test_layouts_are_named_once_and_far_batches_need_four_dimensions():
    for rank in (2, 4):
        assert len(set(layouts(rank))) == len(layouts(rank))
        assert sum(name.startswith("permuted") for name in layouts(rank)) == math.factorial(rank) - 1
    assert "far batch" in layouts(4)
    assert "far batch" not in layouts(2)


@pytest.mark.parametrize(("rank", "layout"), NAMED)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_an_arranged_layout_is_recognised(rank, layout, data):
    shape = tuple(least + data.draw(st.integers(0, 2)) for least in least_sizes(layout, rank))
    if layout == "odd ones":
        shape = (1, *shape[1:])
    strides = arrange(Draw(data.conjecture_data), shape, layout)
    assert len(strides) == rank
    found = traits(spec(shape, strides))
    if layout == "odd ones" and all(s == d for n, s, d in zip(shape, strides, dense(shape), strict=True) if n == 1):
        assert found == {"contiguous"}
    else:
        assert layout in found


@pytest.mark.parametrize(("rank", "layout"), [pair for pair in NAMED if pair[1] != "odd ones"])
def test_the_least_sizes_suffice_whatever_is_drawn(rank, layout):
    """Every draw answered with its least or its greatest choice."""
    for last in itertools.product((False, True), repeat=2 * rank):
        shape = least_sizes(layout, rank)
        assert layout in traits(spec(shape, arrange(Extremes(last), shape, layout)))


class Extremes(Draw):
    """The least or the greatest of each choice, as told; the least when told no more."""

    def __init__(self, last):
        answers = iter(last)
        self._integer = lambda low, high: high if next(answers, False) else low


@pytest.mark.parametrize(("rank", "layout"), NAMED)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_shape_can_be_arranged_without_negative_strides(rank, layout, data):
    shape = tuple(data.draw(st.integers(0, 3)) for _ in range(rank))
    strides = arrange(Draw(data.conjecture_data), shape, layout)
    assert len(strides) == rank
    assert min(strides) >= 0


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((2, 3), (3, 1), {"contiguous"}),
        ((2, 3), (1, 2), {"permuted 10"}),
        ((2, 3), (6, 2), {"sliced"}),
        ((2, 3), (7, 2), {"sliced"}),
        ((2, 3), (5, 1), {"padded"}),
        ((2, 3), (1, 3), {"padded"}),
        ((2, 3), (0, 1), {"expanded"}),
        ((2, 3), (1, 0), {"expanded"}),
        ((2, 3), (0, 0), {"expanded"}),
        ((2, 3), (2, 1), {"overlapping"}),
        ((2, 3), (1, 1), {"overlapping"}),
        ((1, 3), (3, 1), {"contiguous"}),
        ((1, 3), (7, 1), {"contiguous", "odd ones"}),
        ((1, 3), (0, 1), {"contiguous", "odd ones"}),
        ((1, 3), (7, 2), {"odd ones", "sliced"}),
        ((1, 1), (1, 1), {"contiguous"}),
        ((1, 1), (2**31 + 1, 0), {"contiguous", "odd ones"}),
        ((0, 3), (3, 1), set()),
        ((2, 0), (9, 9), set()),
        ((2, 3, 4, 5), (60, 20, 5, 1), {"contiguous"}),
        ((2, 3, 4, 5), (60, 5, 15, 1), {"permuted 0213"}),
        ((2, 3, 4, 5), (1, 2, 6, 24), {"permuted 3210"}),
        ((2, 3, 4, 5), (120, 20, 5, 1), {"padded"}),
        ((3, 1, 2, 4), (FAR, 8, 4, 1), {"far batch"}),
        ((1, 1, 2, 4), (FAR, 8, 4, 1), {"contiguous", "odd ones"}),
        ((3, 1, 2, 4), (FAR, 8, 8, 2), {"far batch", "sliced"}),
        ((3, 1, 2, 4), (FAR - 1, 8, 4, 1), {"padded"}),
    ],
)
def test_traits_of_written_examples(shape, strides, expected):
    # A dimension of one has no order, so only what the strides of the others are counts, and "odd ones".
    assert traits(spec(shape, strides)) == expected


@pytest.mark.parametrize("rank", [2, 4])
def test_dense_strides_of_every_order_are_permutations_and_no_other(rank):
    shape = (2, 3, 4, 5)[:rank]
    for order in orders(rank):
        found = traits(spec(shape, dense(shape, order)))
        assert found == {"contiguous" if order == orders(rank)[0] else f"permuted {order}"}


def test_dense_strides_are_those_of_a_contiguous_tensor():
    assert dense((2, 3, 4)) == (12, 4, 1)
    assert dense((2, 3, 4), "210") == (1, 2, 6)
    assert dense((2, 0, 4)) == (4, 4, 1)
    assert dense(()) == ()


def test_orders_begin_with_row_major():
    assert orders(2) == ("01", "10")
    assert orders(4)[0] == "0123"
    assert len(orders(4)) == 24


@pytest.mark.parametrize(
    ("dtype", "offset", "expected"),
    [
        ("float32", 0, False),
        ("float32", 1, True),
        ("float32", 4, False),
        ("float16", 4, True),
        ("float16", 8, False),
        ("bfloat16", 3, True),
        ("float64", 1, True),
        ("float64", 2, False),
    ],
)
def test_an_offset_off_sixteen_bytes_is_misaligned(dtype, offset, expected):
    assert misaligned(spec((2, 2), (2, 1), offset, dtype)) is expected


def test_a_tensor_without_elements_is_not_misaligned():
    assert not misaligned(spec((0, 2), (2, 1), 1))
