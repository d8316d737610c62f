import copy
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzrope.case import (
    DEVICES,
    FLOATS,
    INTEGERS,
    MAX_ELEMENTS,
    MAX_EXTENT_BYTES,
    MAX_SEED,
    RECIPES,
    Backward,
    Case,
    CaseError,
    TensorSpec,
    Values,
)

SMALL = Case(
    "rope",
    (
        ("q", TensorSpec("float16", (1, 2, 3, 4), (24, 12, 4, 1), 5, "buffer", Values("wide", 7))),
        ("k", TensorSpec("float16", (1, 2, 3, 4), (0, 3, 1, 2), 0, "buffer", Values("constant", 0, (-0.5,)))),
        ("cos", TensorSpec("int64", (1, 2), (9, 1), 1, "cos", Values("listed", 0, (1.0, -0.0)), "cpu")),
    ),
    (("causal", True), ("q_offset", 3), ("scale", 0.125)),
)

MISSING = object()
LONG = "x" * 5000


def changed(path, value):
    data = copy.deepcopy(SMALL.to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def refusal(data):
    with pytest.raises(CaseError) as caught:
        Case.from_json(data)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@st.composite
def values(draw, numel):
    kind = draw(st.sampled_from(RECIPES))
    numbers = st.floats(allow_nan=False)
    if kind == "constant":
        return Values(kind, 0, (draw(numbers),))
    if kind == "listed":
        return Values(kind, 0, tuple(draw(st.lists(numbers, min_size=numel, max_size=numel))))
    return Values(kind, draw(st.integers(0, MAX_SEED)))


@st.composite
def specs(draw, storage):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    strides = tuple(draw(st.integers(0, 2**30)) for _ in shape)
    return TensorSpec(
        draw(st.sampled_from(FLOATS + INTEGERS)),
        shape,
        strides,
        draw(st.integers(0, 2**20)),
        storage,
        draw(values(math.prod(shape))),
        draw(st.sampled_from(DEVICES)),
    )


@st.composite
def cases(draw):
    names = draw(st.lists(st.from_regex("[a-z_][a-z0-9_]{0,4}", fullmatch=True), unique=True, max_size=4))
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    options = draw(st.dictionaries(st.text(max_size=4), scalars, max_size=3))
    tensors = tuple((name, draw(specs(f"storage of {name}"))) for name in names)
    return Case(draw(st.text(max_size=8)), tensors, tuple(sorted(options.items())))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_round_trip_through_json_text_gives_the_same_case(case):
    text = json.dumps(case.to_json(), allow_nan=False)
    again = Case.from_json(json.loads(text))
    assert again == case
    assert again.id == case.id
    assert json.dumps(again.to_json()) == text


def test_a_round_trip_keeps_the_sign_of_zero_nan_and_infinities():
    data = (math.nan, math.inf, -math.inf, -0.0)
    spec = TensorSpec("float32", (4,), (1,), 0, "q", Values("listed", 0, data))
    text = json.dumps(Case("rope", (("q", spec),)).to_json(), allow_nan=False)
    read = Case.from_json(json.loads(text))["q"].values.data
    assert [repr(x) for x in read] == ["nan", "inf", "-inf", "-0.0"]


@pytest.mark.parametrize("number", [1.5, math.inf, math.nan])
def test_one_tensor_under_two_names_is_still_one_after_a_round_trip(number):
    spec = TensorSpec("float32", (1,), (1,), 0, "q", Values("constant", 0, (number,)))
    read = Case.from_json(Case("rope", (("q", spec), ("k", spec))).to_json())
    assert read["q"] == read["k"]


def test_the_id_of_a_case_never_changes():
    assert SMALL.id == "b7c61c6987c5"


def test_the_id_does_not_depend_on_the_order_of_keys():
    data = SMALL.to_json()
    reversed_keys = {key: data[key] for key in reversed(data)}
    reversed_keys["tensors"] = {key: data["tensors"][key] for key in reversed(data["tensors"])}
    assert Case.from_json(reversed_keys).id == SMALL.id


def test_the_id_changes_with_every_field():
    q = SMALL["q"]
    others = [
        replace(SMALL, operation="rope_qk"),
        replace(SMALL, options=()),
        replace(SMALL, options=(("causal", False), ("q_offset", 3), ("scale", 0.125))),
        replace(SMALL, tensors=SMALL.tensors[:2]),
        replace(SMALL, tensors=tuple(reversed(SMALL.tensors))),
        replace(SMALL, tensors=(("Q", q), *SMALL.tensors[1:])),
        SMALL.with_tensor("cos", values=Values("listed", 0, (1.0, 0.0))),
        SMALL.with_tensor("k", values=Values("constant", 0, (0.5,))),
    ]
    changes = {
        "dtype": ("bfloat16",),
        "shape": ((1, 2, 3, 5), (2, 1, 3, 4)),
        "strides": ((24, 12, 4, 2), (0, 12, 4, 1)),
        "offset": (0, 6),
        "storage": ("", "q"),
        "values": (Values("wide", 8), Values("tiny", 7)),
        "device": ("cpu",),
    }
    others += [SMALL.with_tensor("q", **{field: value}) for field, given in changes.items() for value in given]
    ids = [case.id for case in (SMALL, *others)]
    assert len(set(ids)) == len(ids)


def test_a_case_is_frozen_and_hashable():
    assert hash(SMALL) == hash(replace(SMALL))
    with pytest.raises(AttributeError):
        SMALL.operation = "other"


def test_the_end_of_a_view_is_one_past_its_last_element():
    assert TensorSpec("float32", (2, 3), (10, 2), 4).end == 4 + 10 + 4 + 1
    assert TensorSpec("float32", (), (), 4).end == 5
    assert TensorSpec("float32", (2, 0), (10, 2), 4).end == 0


@pytest.mark.parametrize("data", [None, 5, "case", [], [["format", 1]], True])
def test_what_is_no_object_is_refused(data):
    assert refusal(data).startswith("case: expected an object")


@pytest.mark.parametrize(
    "path",
    [
        ("format",),
        ("operation",),
        ("tensors",),
        ("order",),
        ("options",),
        ("tensors", "q"),
        *(("tensors", "q", key) for key in SMALL["q"].to_json()),
        ("tensors", "q", "values", "kind"),
        ("tensors", "q", "values", "seed"),
        ("tensors", "k", "values", "data"),
    ],
)
def test_a_missing_key_is_named(path):
    message = refusal(changed(path, MISSING))
    assert repr(path[-1]) in message or ".".join(path) in message


@pytest.mark.parametrize(
    "path", [("x",), ("tensors", "x"), ("tensors", "q", "x"), ("tensors", "q", "values", "x"), ("tensors", LONG)]
)
def test_an_unknown_key_is_named(path):
    message = refusal(changed(path, 1))
    assert "unknown key 'x" in message
    assert ".".join(("case", *path[:-1])) in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("format",), 1.0),
        (("format",), True),
        (("format",), "1"),
        (("operation",), 7),
        (("operation",), LONG),
        (("order",), "qk"),
        (("order",), ["q"] * 17),
        (("order",), ["q", "k", "cos", "q"]),
        (("tensors",), []),
        (("options",), None),
        (("options",), 5),
        (("options",), [[1]]),
        (("options", "scale"), [1]),
        (("options", "scale"), {}),
        (("tensors", "q"), None),
        (("tensors", "q", "dtype"), "float8"),
        (("tensors", "q", "dtype"), ["float16"]),
        (("tensors", "q", "dtype"), LONG),
        (("tensors", "q", "shape"), 4),
        (("tensors", "q", "shape"), [1] * 9),
        (("tensors", "q", "shape"), [1, 2, 3, 4.0]),
        (("tensors", "q", "shape"), [1, 2, 3, True]),
        (("tensors", "q", "shape"), [1, 2, 3, -1]),
        (("tensors", "q", "shape"), [1, 2, 3, None]),
        (("tensors", "q", "shape"), [1, 1, 1, MAX_ELEMENTS + 1]),
        (("tensors", "q", "shape"), [2**20, 2**20, 2**20, 2**20]),
        (("tensors", "q", "shape"), [1, 2, 3, 10**300]),
        (("tensors", "q", "strides"), [24, 12, 4]),
        (("tensors", "q", "strides"), [24, 12, 4, -1]),
        (("tensors", "q", "strides"), [24, 12, 4, math.nan]),
        (("tensors", "q", "strides"), [24, 12, 4, 1.0]),
        (("tensors", "q", "strides"), [24, 12, False, 1]),
        (("tensors", "q", "strides"), [24, 12, 4, "1"]),
        (("tensors", "q", "strides"), [24, 12, 4, MAX_EXTENT_BYTES + 1]),
        (("tensors", "q", "offset"), -1),
        (("tensors", "q", "offset"), 1.0),
        (("tensors", "q", "offset"), True),
        (("tensors", "q", "offset"), None),
        (("tensors", "q", "offset"), math.inf),
        (("tensors", "q", "storage"), 1),
        (("tensors", "q", "storage"), LONG),
        (("tensors", "q", "device"), "tpu"),
        (("tensors", "q", "device"), {}),
        (("tensors", "q", "values"), "normal"),
        (("tensors", "q", "values", "kind"), "uniform"),
        (("tensors", "q", "values", "kind"), ["normal"]),
        (("tensors", "q", "values", "seed"), -1),
        (("tensors", "q", "values", "seed"), 2**63),
        (("tensors", "q", "values", "seed"), 0.5),
        (("tensors", "q", "values", "seed"), True),
        (("tensors", "k", "values", "data"), 1.0),
        (("tensors", "k", "values", "data"), []),
        (("tensors", "k", "values", "data"), [1.0, 2.0]),
        (("tensors", "k", "values", "data"), [True]),
        (("tensors", "k", "values", "data"), [None]),
        (("tensors", "k", "values", "data"), ["NaN"]),
        (("tensors", "k", "values", "data"), [[1.0]]),
        (("tensors", "k", "values", "data"), [10**400]),
        (("tensors", "cos", "values", "data"), [1.0]),
        (("tensors", "cos", "values", "data"), [1.0, 2.0, 3.0]),
    ],
)
def test_a_bad_field_is_refused_in_one_line_that_names_it(path, value):
    message = refusal(changed(path, value))
    assert ".".join(("case", *path)) in message


def test_an_element_beyond_the_largest_storage_is_refused():
    most = MAX_EXTENT_BYTES // 2 - 1
    fits = changed(("tensors", "q"), replace(SMALL["q"], shape=(2,), strides=(most,), offset=0).to_json())
    Case.from_json(fits)
    for field, value in (("strides", [most + 1]), ("offset", 1)):
        data = copy.deepcopy(fits)
        data["tensors"]["q"][field] = value
        assert "case.tensors.q: reaches beyond" in refusal(data)


@pytest.mark.parametrize(("field", "value"), [("dtype", "bfloat16"), ("dtype", "float32"), ("device", "cpu")])
def test_views_of_one_storage_that_disagree_are_refused(field, value):
    assert "case.tensors.k: shares storage 'buffer'" in refusal(changed(("tensors", "k", field), value))


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", LONG])
def test_a_strange_name_does_not_spoil_the_line(name):
    message = refusal({**SMALL.to_json(), "order": [name], "tensors": {name: 5}})
    assert message.isprintable()


@pytest.mark.parametrize("item", [1, None, True, ["q"]])
def test_a_name_that_is_no_text_is_refused(item):
    data = SMALL.to_json()
    assert "case.order" in refusal({**data, "order": [item], "tensors": {str(item): data["tensors"]["q"]}})


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_an_option_that_json_cannot_spell_is_refused(number):
    assert "case.options.scale" in refusal(changed(("options", "scale"), number))


@pytest.mark.parametrize("path", [("format",), ("tensors", "q", "offset"), ("options", "scale"), ("order",)])
def test_deep_nesting_is_refused(path):
    value = []
    for depth in range(1000):
        value = [value]
        if depth < 900 and depth % 100:
            continue
        refusal(changed(path, value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
PATHS = [
    ("format",),
    ("operation",),
    ("order",),
    ("tensors",),
    ("options",),
    ("options", "scale"),
    ("tensors", "q"),
    *(("tensors", "q", key) for key in SMALL["q"].to_json()),
    ("tensors", "k", "values", "data"),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_json_in_any_field_is_read_or_refused(path, value):
    data = changed(path, value)
    try:
        case = Case.from_json(data)
    except CaseError:
        refusal(data)
    else:
        assert len(case.id) == 12


BACKWARD = Backward(
    ("q", "cos"),
    (
        ("cos", TensorSpec("float64", (1, 2), (0, 0), 0, "grad_cos", Values("wide", 3))),
        ("q", TensorSpec("float16", (1, 2, 3, 4), (0, 0, 0, 0), 1, "grad_q", Values("constant", 0, (1.0,)))),
    ),
)
DIFFERENTIATED = replace(SMALL, backward=BACKWARD)


def test_a_case_without_backward_has_the_form_and_the_id_it_always_had():
    assert "backward" not in SMALL.to_json()
    assert DIFFERENTIATED.id != SMALL.id
    assert replace(DIFFERENTIATED, backward=None).id == SMALL.id


def test_what_is_differentiated_survives_json():
    data = json.loads(json.dumps(DIFFERENTIATED.to_json()))
    assert Case.from_json(data) == DIFFERENTIATED
    data["backward"]["requires"].reverse()  # an order that means nothing
    assert Case.from_json(data).id == DIFFERENTIATED.id


def test_cotangents_are_named_and_replaced_like_inputs():
    assert [name for name, _ in DIFFERENTIATED.specs] == ["q", "k", "cos", "grad_cos", "grad_q"]
    other = DIFFERENTIATED.with_tensor("grad_q", offset=7)
    assert other["grad_q"].offset == 7
    assert other.tensors == SMALL.tensors


def spoiled(path, value):
    data = copy.deepcopy(DIFFERENTIATED.to_json())
    place = data["backward"]
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("requires",), MISSING),
        (("requires",), []),
        (("requires",), "q"),
        (("requires",), ["q", "q"]),
        (("requires",), ["v"]),
        (("requires",), [1]),
        (("requires",), ["q"] * 17),
        (("cotangents",), MISSING),
        (("cotangents",), {}),
        (("cotangents",), []),
        (("cotangents", "q"), None),
        (("cotangents", "a b"), BACKWARD.cotangents[0][1].to_json()),
        (("cotangents", "q", "dtype"), "int32"),
        (("cotangents", "q", "device"), "cpu"),
        (("cotangents", "q", "shape"), [1, 2, 3, -4]),
        (("cotangents", "q", "strides"), [0]),
        (("cotangents", "q", "storage"), "grad_cos"),
        (("cotangents", "q", "storage"), "cos"),
        (("extra",), 1),
    ],
)
def test_a_bad_backward_is_refused_in_one_line(path, value):
    assert refusal(spoiled(path, value)).startswith(("case.backward", "case.tensors.grad_q"))


def test_an_input_named_like_a_cotangent_is_refused():
    data = DIFFERENTIATED.to_json()
    data["tensors"]["grad_q"] = data["tensors"]["q"]
    data["order"].append("grad_q")
    assert "grad_q" in refusal(data)


@pytest.mark.parametrize("value", [None, [], 5])
def test_a_backward_that_is_no_object_is_refused(value):
    assert "case.backward" in refusal({**SMALL.to_json(), "backward": value})
