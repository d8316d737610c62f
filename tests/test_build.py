import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzrope.build import DTYPES, FRESH, GAP, GUARD, LAZY_FROM, Memory, blank, build, offsets
from fuzzrope.case import ITEMSIZE, Case, TensorSpec, Values
from fuzzrope.values import expand

FAR = 2**30
PAGE_OF_THE_SYSTEM = os.sysconf("SC_PAGE_SIZE")


def one(spec, name="x"):
    return Case("rope", ((name, spec),))


def words(memory):
    return memory.inner.view(f"<u{memory.itemsize}")


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE_OF_THE_SYSTEM


def far_spec(dtype="float32", stride=FAR, batch=3):
    return TensorSpec(dtype, (batch, 1, 2, 4), (stride, 8, 4, 1), 3, "x", Values("normal", 5))


@st.composite
def specs(draw):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    strides = tuple(draw(st.integers(0, 30)) for _ in shape)
    kind = draw(st.sampled_from(("normal", "nans", "zeros", "wide")))
    dtype = draw(st.sampled_from(tuple(ITEMSIZE)))
    return TensorSpec(dtype, shape, strides, draw(st.integers(0, 9)), "x", Values(kind, draw(st.integers(0, 99))))


@settings(max_examples=80, deadline=None)
@given(specs())
def test_a_tensor_has_the_form_of_its_spec(spec):
    x = build(one(spec)).tensors["x"]
    assert x.dtype == DTYPES[spec.dtype]
    assert tuple(x.shape) == spec.shape
    assert x.stride() == spec.strides
    if spec.numel:
        assert x.storage_offset() == spec.offset


@settings(max_examples=80, deadline=None)
@given(specs())
def test_every_element_holds_its_value_and_every_gap_the_poison(spec):
    built = build(one(spec))
    memory = built.memories["x"]
    width = ITEMSIZE[spec.dtype]
    expected = np.full(spec.end, GAP[width], dtype=f"<u{width}")
    numbers = expand(spec.values, DTYPES[spec.dtype], spec.numel)
    raw = np.frombuffer(bytes(numbers.untyped_storage()), dtype=f"<u{width}")
    for place, value in reversed(list(zip(offsets(spec).tolist(), raw.tolist(), strict=True))):
        expected[place] = value
    assert words(memory).tolist() == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(specs())
def test_guard_bands_lie_on_both_sides_and_hold_the_poison(spec):
    memory = build(one(spec)).memories["x"]
    assert memory.guards_intact()
    pattern = np.array([GAP[memory.itemsize]], dtype=f"<u{memory.itemsize}").tobytes()
    raw = memory.raw.tobytes()
    assert raw[:GUARD] == pattern * (GUARD // memory.itemsize)
    assert raw[GUARD + memory.size :] == pattern * (GUARD // memory.itemsize)


@pytest.mark.parametrize("place", [0, GUARD - 1, -1, -GUARD + 8])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_write_into_a_guard_band_shows(place, width):
    memory = Memory(48, width, GAP)
    assert memory.guards_intact()
    memory.raw[place] ^= 1
    assert not memory.guards_intact()


@settings(max_examples=60, deadline=None)
@given(specs())
def test_two_builds_agree_in_every_byte(spec):
    first, second = (build(one(spec)).memories["x"] for _ in range(2))
    assert first.bytes() == second.bytes()
    assert first.spans() == second.spans()


def test_the_poison_is_a_nan_that_differs_from_fresh_memory():
    for width, dtype in ((2, torch.float16), (2, torch.bfloat16), (4, torch.float32), (8, torch.float64)):
        for pattern in (GAP[width], FRESH[width]):
            assert math.isnan(torch.frombuffer(bytearray(pattern.to_bytes(width, "little")), dtype=dtype).item())
        assert GAP[width] != FRESH[width]


def test_the_torch_storage_ends_where_the_view_ends():
    spec = TensorSpec("float32", (2, 3), (10, 2), 4, "x")
    assert build(one(spec)).tensors["x"].untyped_storage().nbytes() == spec.end * 4


def test_packed_tensors_share_one_storage():
    q = TensorSpec("float32", (2, 4), (8, 1), 0, "qk", Values("normal", 1))
    k = replace(q, offset=4, values=Values("normal", 2))
    built = build(Case("rope", (("q", q), ("k", k))))
    assert list(built.memories) == ["qk"]
    x, y = built.tensors["q"], built.tensors["k"]
    assert y.data_ptr() - x.data_ptr() == 16
    assert x.equal(expand(q.values, torch.float32, 8).reshape(2, 4))
    assert y.equal(expand(k.values, torch.float32, 8).reshape(2, 4))
    y[0, 0] = 7
    assert torch.as_strided(x, (1,), (1,), 4).item() == 7


def test_tensors_of_different_storages_do_not_touch():
    spec = TensorSpec("float32", (4,), (1,), 0, "q")
    built = build(Case("rope", (("q", spec), ("k", replace(spec, storage="k")))))
    built.tensors["q"].fill_(3)
    assert not (built.tensors["k"] == 3).any()
    assert built.memories["k"].guards_intact()


def test_where_views_overlap_the_later_one_wins():
    q = TensorSpec("float32", (4,), (1,), 0, "s", Values("constant", 0, (1.0,)))
    k = replace(q, offset=2, values=Values("constant", 0, (2.0,)))
    built = build(Case("rope", (("q", q), ("k", k))))
    assert built.tensors["q"].tolist() == [1, 1, 2, 2]
    assert built.tensors["k"].tolist() == [2, 2, 2, 2]


def test_where_a_view_overlaps_itself_the_first_element_wins():
    spec = TensorSpec("float32", (2, 3), (1, 1), 0, "x", Values("listed", 0, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)))
    assert build(one(spec)).tensors["x"].tolist() == [[1, 2, 3], [2, 3, 6]]


@pytest.mark.parametrize("kind", ["normal", "nans"])
def test_equal_specs_are_one_tensor_and_others_are_not(kind):
    q = TensorSpec("float32", (2, 4), (4, 1), 0, "q", Values(kind, 1))
    tensors = build(Case("rope", (("q", q), ("k", replace(q)), ("cos", replace(q, strides=(1, 1)))))).tensors
    assert tensors["q"] is tensors["k"]
    assert tensors["q"] is not tensors["cos"]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2**20)])
def test_a_tensor_without_elements_needs_no_memory(shape):
    spec = TensorSpec("float64", shape, (2**30,) * len(shape), 2**30, "x")
    built = build(one(spec))
    assert built.memories["x"].size == 0
    assert tuple(built.tensors["x"].shape) == shape
    assert built.tensors["x"].stride() == spec.strides


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_far_strides_touch_little_memory(dtype):
    spec = far_spec(dtype)
    before = resident()
    first, second = build(one(spec)), build(one(spec))
    memory = first.memories["x"]
    assert memory.lazy
    assert memory.size > 2 * FAR * ITEMSIZE[dtype]
    content = memory.bytes()
    assert content == second.memories["x"].bytes()
    assert memory.spans() == second.memories["x"].spans()
    assert len(content) <= 16 * 4096
    assert memory.guards_intact()
    assert resident() - before < 100 * 2**20
    expected = expand(spec.values, DTYPES[dtype], spec.numel).reshape(spec.shape)
    assert first.tensors["x"].equal(expected)


def test_the_pages_around_far_elements_hold_the_poison():
    spec = far_spec()
    memory = build(one(spec)).memories["x"]
    elements = set(offsets(spec).tolist())
    content = np.frombuffer(memory.bytes(), dtype="<u4")
    inside = {memory.where(4 * i) // 4: word for i, word in enumerate(content.tolist())}
    assert elements <= set(inside)
    assert {word for place, word in inside.items() if place not in elements} == {GAP[4]}
    assert GAP[4] not in {inside[place] for place in elements}


@pytest.mark.parametrize("size", [0, 16, 4096, 4104, LAZY_FROM, LAZY_FROM + 8, LAZY_FROM + 4096])
def test_positions_in_the_bytes_lead_back_to_the_memory(size):
    memory = Memory(size, 8, GAP)
    if size >= LAZY_FROM:
        memory.touch(np.array([0, 600, size // 16, size // 8 - 1], dtype=np.int64))
    content = memory.bytes()
    memory.raw[:GUARD:8] = 1
    memory.inner[::8] = 2
    content = memory.bytes()
    places = [memory.where(position) for position in range(len(content))]
    assert len(set(places)) == len(places)
    assert all(memory.raw[GUARD + place] == byte for place, byte in zip(places, content, strict=True))
    assert min(places) == -GUARD
    assert max(places) >= size - 1
    with pytest.raises(IndexError):
        memory.where(len(content))


def test_a_change_of_a_far_element_shows_in_the_bytes():
    spec = far_spec()
    built = build(one(spec))
    memory = built.memories["x"]
    before = memory.bytes()
    built.tensors["x"][2, 0, 1, 3] = 123.0
    after = memory.bytes()
    differing = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert {memory.where(i) // 4 for i in differing} == {3 + 2 * FAR + 7}


def test_offsets_are_those_of_indexing():
    spec = TensorSpec("float32", (2, 3), (10, 2), 4)
    assert offsets(spec).tolist() == [4, 6, 8, 14, 16, 18]
    assert offsets(TensorSpec("float32", (), (), 4)).tolist() == [4]
    assert offsets(TensorSpec("float32", (0, 3), (1, 1), 4)).tolist() == []


@pytest.mark.parametrize("spec", [far_spec(), TensorSpec("float16", (2, 0), (3, 1), 7), TensorSpec("float16", (), ())])
def test_a_blank_has_shape_and_strides_and_costs_nothing(spec):
    before = resident()
    x = blank(spec)
    assert (tuple(x.shape), x.stride()) == (spec.shape, spec.strides)
    assert resident() - before < 2**24


@pytest.mark.parametrize("size", [LAZY_FROM, LAZY_FROM + 4096, LAZY_FROM + 12])
def test_a_write_next_to_a_large_storage_shows(size):
    for place in (GUARD - 1, GUARD + size):
        memory = Memory(size, 4, FRESH)
        assert memory.guards_intact()
        memory.raw[place] ^= 1
        assert not memory.guards_intact()
