"""Gradients of the fused operations against exact and decimal arithmetic; correct ways inside, wrong ones outside."""

import math
from decimal import Decimal, getcontext
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from fuzzrope.case import FLOATS, Values
from fuzzrope.judge.values import compare
from fuzzrope.operations import OPERATIONS
from fuzzrope.operations.fused import visible
from fuzzrope.specimens.fused_backward import Backward, Manner
from fuzzrope.values import expand

getcontext().prec = 60
getcontext().Emin, getcontext().Emax = -(10**9), 10**9
NAMES = {"rope_qk": ("q", "k", "cos", "sin"), "rope_attention": ("q", "k", "v", "cos", "sin")}
QK, ATTENTION = (OPERATIONS[name] for name in NAMES)
BOTH = pytest.mark.parametrize("operation", [QK, ATTENTION], ids=lambda operation: operation.name)
MIXES = (*((name,) * 5 for name in FLOATS), ("bfloat16", "bfloat16", "bfloat16", "float32", "float32"))
MIXES += (
    ("float16", "float16", "float64", "float16", "bfloat16"),
    ("float64", "float32", "float16", "float32", "float32"),
)
OPTIONS = {
    "plain": {},
    "causal": {"causal": True, "q_offset": 1, "scale": -0.3},
    "window": {"causal": True, "q_offset": 1, "window": 2},
    "empty rows": {"causal": True, "q_offset": 3, "window": 1},
    "softcap": {"softcap": 2.0, "scale": 0.7},
}
MANNERS = {
    "flash": Manner(),
    "wide factors": Manner(narrow=False),
    "double": Manner(double=True),
    "by head, early, backwards": Manner(by_head=True, early=True, reversed=True),
    "softmax of its own": Manner(fresh=True, summed=True),
    "plain autograd's order": Manner(narrow=False, summed=True, by_head=True, early=True),
}


def options_of(operation, name):
    given = dict(OPTIONS[name])
    if operation is QK:
        return {key: value for key, value in given.items() if key not in ("window", "softcap")}
    return given | {"return_lse": True}


def made(operation, mix=("float32",) * 5, kind="normal", spoiled=None, seed=0, sizes=(2, 1, 3, 4, 4, 3), tables=None):
    """Inputs (heads, heads of k, rows, keys, D, Dv), outputs, and cotangents of all outputs."""
    heads, heads_k, rows, keys, width, width_v = sizes
    table = tables or (max(rows + 3, keys), width // 2)
    shapes = {"q": (1, heads, rows, width), "k": (1, heads_k, keys, width), "v": (1, heads_k, keys, width_v)}
    tensors = {}
    for i, (name, dtype) in enumerate(zip(NAMES["rope_attention"], mix, strict=True)):
        if name in NAMES[operation.name]:
            shape = shapes.get(name, table)
            recipe = Values(kind if spoiled in (None, name) else "normal", seed + i)
            tensors[name] = expand(recipe, getattr(torch, dtype), math.prod(shape)).view(shape).requires_grad_()
    return tensors


def cotangents_of(operation, tensors, options, seed=50, kind="normal"):
    expected = operation.reference(tensors, options)
    used = operation.results(options)
    given = {
        name: expand(Values(kind, seed + i), expected[name].dtype, expected[name].numel()).view(expected[name].shape)
        for i, name in enumerate(used)
    }
    return expected, given


def eager(tensors, expected, given):
    pairs = [(expected[name], g) for name, g in given.items() if expected[name].requires_grad]
    outputs, grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, list(tensors.values()), grads, retain_graph=True, allow_unused=True)
    return dict(zip(tensors, found, strict=True))


def verdicts(operation, tensors, given, options, gradients):
    """Kinds of findings by input, of those that have any."""
    envelopes = operation.gradients(tensors, given, tuple(tensors), options)
    found = {}
    for name, envelope in envelopes.items():
        kinds = [f.kind for f in compare(name, gradients[name], gradients[name], envelope).findings]
        if kinds:
            found[name] = kinds
    return found


def backward(operation, tensors, given, options, manner=MANNERS["flash"], flaw=""):
    tensors = {name: t.detach() for name, t in tensors.items()}
    expected = operation.reference(tensors, options)
    steps = Backward(tensors, options, manner, flaw)
    if operation is QK:
        return steps.qk(given["scores"])
    return steps.attention(given.get("o"), given.get("lse"), expected["o"], expected["lse"])


# Exact arithmetic: lists of numbers, by index; nothing is shared with the oracle or the reference.


def nested(tensor, number):
    return np.vectorize(lambda x: number(float(x)), otypes=[object])(tensor.detach().double().numpy())


def at(table, row, column):
    return table[row % table.shape[0] if table.shape[0] == 1 else row, column if table.shape[1] > 1 else 0]


def turned(row, cos, sin, position):
    half, found = len(row) // 2, [None] * len(row)
    for d in range(half):
        c, s = at(cos, position, d), at(sin, position, d)
        found[d], found[half + d] = row[d] * c - row[half + d] * s, row[half + d] * c + row[d] * s
    return found


def tanh(x):
    e = (-2 * abs(x)).exp()
    return (1 - e) / (1 + e) * (-1 if x < 0 else 1)


def row_gradient(scores, values, do, dl, cap):
    """dS of one row before the scale, and its weights."""
    capped = [cap * tanh(s / cap) for s in scores] if cap else scores
    weights = [(s - max(capped)).exp() for s in capped]
    weights = [w / sum(weights) for w in weights]
    inner = [sum(a * b for a, b in zip(do, v, strict=True)) for v in values]
    delta = sum(w * x for w, x in zip(weights, inner, strict=True))
    ds = [w * (x - delta + dl) for w, x in zip(weights, inner, strict=True)]
    return [d * (1 - tanh(s / cap) ** 2) if cap else d for d, s in zip(ds, scores, strict=True)], weights


def truths(operation, tensors, given, options, number):
    """Exact gradients, as arrays of numbers."""
    exact = {name: nested(t, number) for name, t in tensors.items()}
    cotangents = {name: nested(t, number) for name, t in given.items()}
    found = {name: np.full(x.shape, number(0)) for name, x in exact.items()}
    q, k, cos, sin = (exact[name] for name in ("q", "k", "cos", "sin"))
    group, half, first = q.shape[1] // k.shape[1], q.shape[3] // 2, options.get("q_offset", 0)
    scale = number(options["scale"] if "scale" in options else 1 / math.sqrt(q.shape[3]))
    cap = number(options["softcap"]) if "softcap" in options else None
    seen = visible(options, q.shape[2], k.shape[2])

    def back(name, place, g, row, position):
        """Add what the gradient g of a rotated row makes of those of the row and the tables."""
        for d in range(half):
            c, s = at(cos, position, d), at(sin, position, d)
            found[name][(*place, d)] += g[d] * c + g[half + d] * s
            found[name][(*place, half + d)] += g[half + d] * c - g[d] * s
            for table, term in (("cos", g[d] * row[d] + g[half + d] * row[half + d]),
                                ("sin", g[half + d] * row[d] - g[d] * row[half + d])):  # fmt: skip
                shape = found[table].shape
                found[table][position if shape[0] > 1 else 0, d if shape[1] > 1 else 0] += term

    for h, i in product(range(q.shape[1]), range(q.shape[2])):
        x, hk = turned(q[0, h, i], cos, sin, first + i), h // group
        chosen = [j for j in range(k.shape[2]) if seen[i, j]]
        ys = [turned(k[0, hk, j], cos, sin, j) for j in chosen]
        if not chosen:
            continue
        if operation is QK:
            ds = [cotangents["scores"][0, h, i, j] for j in chosen]
        else:
            scores = [scale * sum(a * b for a, b in zip(x, y, strict=True)) for y in ys]
            do = cotangents["o"][0, h, i] if "o" in given else [number(0)] * tensors["v"].shape[3]
            dl = cotangents["lse"][0, h, i] if "lse" in given else number(0)
            ds, weights = row_gradient(scores, [exact["v"][0, hk, j] for j in chosen], do, dl, cap)
            for w, j in zip(weights, chosen, strict=True):
                found["v"][0, hk, j] += w * np.array(do)
        back("q", (0, h, i), [scale * sum(d * y[n] for d, y in zip(ds, ys, strict=True)) for n in range(2 * half)],
             q[0, h, i], first + i)  # fmt: skip
        for d, j in zip(ds, chosen, strict=True):
            back("k", (0, hk, j), [scale * d * n for n in x], k[0, hk, j], j)
    return found


def held(envelope, i, number):
    unit = number(2) ** int(envelope.exact.exponent[i])
    exact = number(float(envelope.exact.high[i])) + number(float(envelope.exact.low[i]))
    return exact * unit, number(float(envelope.bound[i])) * unit


@pytest.mark.parametrize("choice", OPTIONS)
@pytest.mark.parametrize("mix", MIXES, ids="-".join)
@BOTH
def test_the_oracle_is_exact_to_a_hundredth_of_the_bound(operation, mix, choice):
    number, options = (Fraction if operation is QK else Decimal), options_of(operation, choice)
    for kind, spoiled in (("normal", None), ("powers", None), ("tiny", "k"), ("subnormal", "sin")):
        for tables in (None, (1, 2), (7, 1)):
            tensors = made(operation, mix, kind, spoiled, tables=tables)
            _, given = cotangents_of(operation, tensors, options)
            expected = truths(operation, tensors, given, options, number)
            envelopes = operation.gradients(tensors, given, tuple(tensors), options)
            assert set(envelopes) == set(tensors)
            for name, envelope in envelopes.items():
                assert envelope.finite.all()
                for i, true in enumerate(expected[name].reshape(-1)):
                    exact, bound = held(envelope, i, number)
                    assert abs(exact - true) * 100 <= bound


@pytest.mark.parametrize("choice", OPTIONS)
@pytest.mark.parametrize("mix", MIXES, ids="-".join)
@BOTH
def test_autograd_through_the_reference_stays_inside(operation, mix, choice):
    options = options_of(operation, choice)
    for kind in ("normal", "wide", "tiny", "subnormal", "powers", "infs", "nans"):
        for spoiled in NAMES[operation.name]:
            tensors = made(operation, mix, kind, spoiled)
            expected, given = cotangents_of(operation, tensors, options)
            assert verdicts(operation, tensors, given, options, eager(tensors, expected, given)) == {}


LARGE = (4, 2, 20, 37, 16, 8)


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("dtype", FLOATS)
@BOTH
def test_every_correct_manner_stays_inside(operation, dtype, manner):
    for choice, seed in product(OPTIONS, range(2)):
        options = options_of(operation, choice)
        tensors = made(operation, (dtype,) * 5, seed=10 * seed, sizes=LARGE, tables=(40, 8))
        _, given = cotangents_of(operation, tensors, options)
        got = backward(operation, tensors, given, options, MANNERS[manner])
        assert verdicts(operation, tensors, given, options, got) == {}


@BOTH
def test_factors_cut_to_tf32_are_inside_only_where_that_is_asked_for(operation):
    tensors = made(operation, sizes=LARGE, tables=(40, 8))
    for precision, allowed in (("high", True), ("highest", False)):
        options = options_of(operation, "plain") | {"precision": precision}
        _, given = cotangents_of(operation, tensors, options)
        got = backward(operation, tensors, given, options, Manner(tf32=True))
        assert (verdicts(operation, tensors, given, options, got) == {}) == allowed


#: What is wrong, for which operations, under which options, and in which gradients it must show.
FLAWS = (
    ("sign of dsin", (QK, ATTENTION), "plain", ("sin",)),
    ("dq without scale", (QK, ATTENTION), "plain", ("q",)),
    ("first head of a group", (QK, ATTENTION), "plain", ("k",)),
    ("causal off by one", (QK, ATTENTION), "causal", ("q", "k")),
    ("no delta", (ATTENTION,), "plain", ("q", "k")),
    ("softcap forgotten", (ATTENTION,), "softcap", ("q", "k")),
    ("dv unmasked", (ATTENTION,), "causal", ("v",)),
)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("flaw", "operation", "choice", "shown"),
                         [(f, o, c, s) for f, some, c, s in FLAWS for o in some],
                         ids=lambda item: getattr(item, "name", str(item)))  # fmt: skip
def test_what_is_wrong_lies_outside(flaw, operation, choice, shown, dtype):
    options = options_of(operation, choice)
    tensors = made(operation, (dtype,) * 5, sizes=LARGE, tables=(40, 8))
    _, given = cotangents_of(operation, tensors, options)
    found = verdicts(operation, tensors, given, options, backward(operation, tensors, given, options, flaw=flaw))
    assert set(found) >= set(shown)


def test_a_cotangent_read_as_if_it_were_contiguous_lies_outside():
    tensors = made(QK, sizes=LARGE, tables=(40, 8))
    _, given = cotangents_of(QK, tensors, {})
    given = {"scores": given["scores"].transpose(2, 3).contiguous().transpose(2, 3)}
    assert verdicts(QK, tensors, given, {}, backward(QK, tensors, given, {})) == {}
    assert verdicts(QK, tensors, given, {}, backward(QK, tensors, given, {}, flaw="as if contiguous"))


#: The median of bound over gradient, in unit roundoffs: rounding in products' 16-bit types counts once for each of
#: them, in float32 and float64 it is sums of some 40 terms that count, and scores' errors in exponents.
ROOM = {QK.name: (100, 600), ATTENTION.name: (2000, 13000)}


@pytest.mark.parametrize("dtype", FLOATS)
@BOTH
def test_bounds_leave_no_more_room_than_they_are_known_to(operation, dtype):
    options = options_of(operation, "plain")
    tensors = made(operation, (dtype,) * 5, sizes=LARGE, tables=(40, 8))
    _, given = cotangents_of(operation, tensors, options)
    unit = torch.finfo(getattr(torch, dtype)).eps / 2
    for name, envelope in operation.gradients(tensors, given, tuple(tensors), options).items():
        exact = np.abs(envelope.exact.high)
        relative = np.median(envelope.bound[exact > 0] / exact[exact > 0])
        assert relative < ROOM[operation.name][dtype in ("float32", "float64")] * unit, name


@BOTH
def test_an_error_just_beyond_the_bound_is_a_mismatch(operation):
    options = options_of(operation, "plain")
    tensors = made(operation)
    expected, given = cotangents_of(operation, tensors, options)
    right = eager(tensors, expected, given)
    for name, envelope in operation.gradients(tensors, given, tuple(tensors), options).items():
        off = right[name].clone().reshape(-1)
        off[1] = envelope.exact.high[1] + 1.5 * envelope.bound[1]
        wrong = {**right, name: off.reshape(right[name].shape)}
        assert verdicts(operation, tensors, given, options, wrong) == {name: ["mismatch"]}


def test_heads_of_a_group_may_be_added_before_they_are_scaled_and_overflow():
    tensors = made(QK, sizes=(4, 1, 1, 2, 4, 3))
    for name, number in (("q", 1e38), ("k", 0.0), ("cos", 1.0), ("sin", 0.0)):
        tensors[name] = torch.full_like(tensors[name], number).requires_grad_()
    options = {"scale": 0.5}
    expected, given = cotangents_of(QK, tensors, options)
    given = {"scores": torch.ones_like(given["scores"])}
    right = eager(tensors, expected, given)
    assert torch.equal(right["k"], torch.full_like(right["k"], 4 * 1e38 / 2))
    late = {**right, "k": torch.full_like(right["k"], torch.inf)}
    assert verdicts(QK, tensors, given, options, late) == {}
    with torch.no_grad():
        tensors["q"] /= 4  # four heads fit now, whether they are scaled or not
    assert verdicts(QK, tensors, given, options, late)["k"] == ["nonfinite"]


@pytest.mark.parametrize("scale", [0.0, 2.0**-80])
@pytest.mark.parametrize(("name", "other"), [("q", "k"), ("k", "q")])
def test_a_sum_may_overflow_before_it_is_scaled_to_next_to_nothing(scale, name, other):
    tensors = made(QK, sizes=(1, 1, 4, 4, 4, 3))
    for filled, number in (("q", 1.0), ("k", 1.0), (other, 1e38), ("cos", 1.0), ("sin", 0.0)):
        tensors[filled] = torch.full_like(tensors[filled], number).requires_grad_()
    options = {"scale": scale}
    expected, given = cotangents_of(QK, tensors, options)
    given = {"scores": torch.ones_like(given["scores"])}
    right = eager(tensors, expected, given)
    assert right[name].isfinite().all()
    late = {**right, name: torch.full_like(right[name], scale * math.inf)}  # 0 times an infinity is NaN
    assert name not in verdicts(QK, tensors, given, options, late)
    with torch.no_grad():
        tensors[other] /= 2  # four terms fit now
    assert verdicts(QK, tensors, given, options, late)[name] == ["nonfinite"]


@pytest.mark.parametrize(("value", "overflows"), [(9e37, True), (8e37, False)])
def test_an_output_that_overflowed_before_it_was_divided_shows_for_a_cotangent_of_zero(value, overflows):
    tensors = made(ATTENTION, sizes=(1, 1, 1, 4, 4, 3))
    for name, number in (("q", 1.0), ("k", 1.0), ("v", 1.0), ("cos", 1.0), ("sin", 0.0)):
        tensors[name] = torch.full_like(tensors[name], number)
    tensors["v"][..., 1] = value  # of four equal weights: 3.6e38 does not fit, 3.2e38 does
    tensors = {name: t.requires_grad_() for name, t in tensors.items()}
    expected, given = cotangents_of(ATTENTION, tensors, {})
    given = {"o": torch.zeros_like(given["o"])}
    right = eager(tensors, expected, given)
    assert bool(right["q"].any()) == overflows
    assert verdicts(ATTENTION, tensors, given, {}, right) == {}
    assert verdicts(ATTENTION, tensors, given, {}, {**right, "q": torch.zeros_like(right["q"])}) == {}
    odd = {**right, "q": torch.full_like(right["q"], math.nan)}
    assert ("q" not in verdicts(ATTENTION, tensors, given, {}, odd)) == overflows


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_that_see_no_key_have_a_gradient_of_zero_and_nothing_else(dtype):
    options = options_of(ATTENTION, "empty rows")
    tensors = made(ATTENTION, (dtype,) * 5)
    expected, given = cotangents_of(ATTENTION, tensors, options)
    right = eager(tensors, expected, given)
    assert not right["q"][:, :, 1:].any()
    assert verdicts(ATTENTION, tensors, given, options, right) == {}
    for wrong, kind in ((math.nan, "nonfinite"), (1e-3, "mismatch")):
        off = right["q"].clone()
        off[0, 1, 2, 0] = wrong
        assert verdicts(ATTENTION, tensors, given, options, {**right, "q": off}) == {"q": [kind]}


@BOTH
def test_no_keys_at_all_still_have_a_graph(operation):
    options = options_of(operation, "plain")
    tensors = made(operation, sizes=(2, 1, 3, 0, 4, 3))
    expected, given = cotangents_of(operation, tensors, options)
    assert all(expected[name].requires_grad for name in given)
    right = eager(tensors, expected, given)
    assert not right["q"].any()
    assert verdicts(operation, tensors, given, options, right) == {}


def test_a_masked_score_that_is_nan_shows_in_no_gradient_of_its_row():
    """With a softcap, whose gradient would multiply the zero of what is masked."""
    options = {"causal": True, "window": 1, "q_offset": 3, "softcap": 2.0}
    tensors = made(ATTENTION)
    tensors["q"].data[0, 0, 2, 0] = math.nan
    expected, given = cotangents_of(ATTENTION, tensors, options)
    right = eager(tensors, expected, given)
    assert not right["q"][0, 0, 2].any()
    assert verdicts(ATTENTION, tensors, given, options, right) == {}
    leaked = right["q"].clone()
    leaked[0, 0, 2, 1] = math.nan
    assert verdicts(ATTENTION, tensors, given, options, {**right, "q": leaked}) == {"q": ["nonfinite"]}


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "cos", "grad"])
@BOTH
def test_what_is_not_finite_must_show_and_must_not_spread(operation, where, special):
    if where == "v" and operation is QK:
        where = "grad"
    options = options_of(operation, "causal")
    tensors = made(operation, sizes=(4, 2, 3, 4, 4, 3))
    _, given = cotangents_of(operation, tensors, options)
    target = given[operation.results(options)[0]] if where == "grad" else tensors[where].data
    target[(0,) * target.dim()] = special
    expected = operation.reference(tensors, options)
    right = eager(tensors, expected, given)
    assert verdicts(operation, tensors, given, options, right) == {}
    swallowed = {name: torch.nan_to_num(t, 0.0, 0.0, 0.0) for name, t in right.items()}
    assert ["nonfinite"] in verdicts(operation, tensors, given, options, swallowed).values()
    if where != "cos":  # heads of the other group are none of its business
        spread = right["q"].clone()
        spread[0, 3, 0, 0] = math.nan
        assert verdicts(operation, tensors, given, options, {**right, "q": spread}) == {"q": ["nonfinite"]}


def test_what_no_used_output_depends_on_has_no_envelope():
    options = options_of(ATTENTION, "plain")
    tensors = made(ATTENTION)
    expected, given = cotangents_of(ATTENTION, tensors, options)
    only = {"lse": given["lse"]}
    assert eager(tensors, expected, only)["v"] is None
    assert set(ATTENTION.gradients(tensors, only, tuple(tensors), options)) == {"q", "k", "cos", "sin"}
    assert verdicts(ATTENTION, tensors, only, options, eager(tensors, expected, only)) == {}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("twins", [("q", "k"), ("k", "v")])
def test_one_tensor_as_two_inputs_has_the_sum_of_both(dtype, twins):
    options = options_of(ATTENTION, "plain")
    tensors = made(ATTENTION, (dtype,) * 5, sizes=(1, 1, 4, 4, 4, 4))
    tensors[twins[1]] = tensors[twins[0]]
    expected, given = cotangents_of(ATTENTION, tensors, options)
    right = eager(tensors, expected, given)
    assert verdicts(ATTENTION, tensors, given, options, right) == {}
    apart = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    expected = ATTENTION.reference(apart, options)
    wrong = {**right, **{twin: eager(apart, expected, given)[twins[0]] for twin in twins}}
    assert set(verdicts(ATTENTION, tensors, given, options, wrong)) == set(twins)
