"""The envelopes of rope_attention against decimal arithmetic; correct ways inside, wrong ones outside."""

import math
from decimal import Decimal, getcontext

import pytest
import torch

from fuzzrope.case import FLOATS, Values
from fuzzrope.judge.values import compare
from fuzzrope.operations import OPERATIONS
from fuzzrope.operations.fused import visible
from fuzzrope.values import expand

ATTENTION = OPERATIONS["rope_attention"]
getcontext().prec = 60
getcontext().Emin, getcontext().Emax = -(10**9), 10**9
NAMES = ("q", "k", "v", "cos", "sin")
MIXES = [(name,) * 5 for name in FLOATS] + [
    ("bfloat16", "bfloat16", "bfloat16", "float32", "float32"),
    ("float16", "float16", "float64", "float16", "float16"),
    ("float64", "float32", "float16", "float32", "float32"),
]
OPTIONS = (
    {"return_lse": True},
    {"return_lse": True, "causal": True, "q_offset": 1, "window": 3},
    {"return_lse": True, "softcap": 2.0, "scale": 3.0},
    {"return_lse": True, "scale": -30.0, "causal": True},
)


def made(mix=("float32",) * 5, kinds=("normal",) * 5, rows=4, keys=5, width=4, width_v=3, seed=0):
    table = (max(rows + 3, keys), width // 2)
    shapes = (1, 2, rows, width), (1, 1, keys, width), (1, 1, keys, width_v), table, table
    return {
        name: expand(Values(kind, seed + i), getattr(torch, dtype), math.prod(shape)).view(shape)
        for i, (name, dtype, kind, shape) in enumerate(zip(NAMES, mix, kinds, shapes, strict=True))
    }


def decimals(x):
    return [Decimal(float(t)) for t in x]


def rotated(rows, cos, sin, first):
    half, found = rows.shape[1] // 2, []
    for i, row in enumerate(rows):
        a, b = decimals(row[:half]), decimals(row[half:])
        c, s = decimals(cos[first + i]), decimals(sin[first + i])
        upper = [a[d] * c[d] - b[d] * s[d] for d in range(half)]
        found.append(upper + [b[d] * c[d] + a[d] * s[d] for d in range(half)])
    return found


def tanh(x):
    e = (-2 * abs(x)).exp()
    return (1 - e) / (1 + e) * (-1 if x < 0 else 1)


def truths(tensors, options):
    """Exact o and lse, flat; None where a row has no key."""
    q, k, v, cos, sin = (tensors[name] for name in NAMES)
    keys = rotated(k[0, 0], cos, sin, 0)
    values = [decimals(row) for row in v[0, 0]]
    scale = Decimal(options.get("scale", 1 / math.sqrt(q.shape[3])))
    seen = visible(options, q.shape[2], k.shape[2])
    outputs, sums = [], []
    for head in q[0]:
        for i, row in enumerate(rotated(head, cos, sin, options.get("q_offset", 0))):
            chosen = [j for j in range(len(keys)) if seen[i, j]]
            s = [scale * sum(x * y for x, y in zip(row, keys[j], strict=True)) for j in chosen]
            if "softcap" in options:
                cap = Decimal(options["softcap"])
                s = [cap * tanh(x / cap) for x in s]
            weights = [(x - max(s)).exp() for x in s]
            total = sum(weights)
            for d in range(v.shape[3]):
                mean = sum(w * values[j][d] for w, j in zip(weights, chosen, strict=True))
                outputs.append(mean / total if s else None)
            sums.append(max(s) + total.ln() if s else None)
    return {"o": outputs, "lse": sums}


def judged(got, tensors, options):
    reference, envelopes = ATTENTION.reference(tensors, options), ATTENTION.envelopes(tensors, options)
    return {name: compare(name, got[name], reference[name], envelopes[name]) for name in got}


def findings(got, tensors, options):
    return [finding for comparison in judged(got, tensors, options).values() for finding in comparison.findings]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "window", "softcap", "large"])
@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_the_oracle_is_exact_to_a_hundredth_of_the_bound(mix, options):
    for kind in ("normal", "powers"):
        tensors = made(mix, (kind, kind, "normal", "normal", "normal"))
        for name, envelope in ATTENTION.envelopes(tensors, options).items():
            truth = truths(tensors, options)[name]
            for i, value in enumerate(truth):
                if value is None:
                    continue
                unit = Decimal(2) ** int(envelope.exact.exponent[i])
                found = (Decimal(float(envelope.exact.high[i])) + Decimal(float(envelope.exact.low[i]))) * unit
                assert abs(found - value) * 100 <= Decimal(float(envelope.bound[i])) * unit


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "window", "softcap", "large"])
@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_the_reference_lies_inside(mix, options):
    for kind in ("normal", "wide", "tiny", "subnormal", "powers", "infs", "nans"):
        for spoiled in range(3):
            kinds = tuple(kind if i == spoiled else "normal" for i in range(5))
            tensors = made(mix, kinds)
            assert not findings(ATTENTION.reference(tensors, options), tensors, options)


def online(tensors, tile, flaw="", backwards=False):
    """Online softmax in float32 over tiles of keys, all of them seen."""
    scores = float32_scores(tensors)
    v = tensors["v"].float().expand(1, 2, -1, -1)
    top = torch.full(scores.shape[:3], -math.inf)[..., None]
    total, mean = torch.zeros_like(top), torch.zeros(*scores.shape[:3], v.shape[3])
    starts = range(0, scores.shape[3], tile)
    for start in reversed(starts) if backwards else starts:
        s = scores[..., start : start + tile]
        best = torch.maximum(top, s.amax(dim=3, keepdim=True))
        p, alpha = torch.exp(s - best), torch.exp(top - best)
        if flaw == "rough exp":
            p = p * (1 + 1e-4 * torch.cos(s))
        total = total * alpha + p.sum(dim=3, keepdim=True)
        p = p.to(tensors["v"].dtype).float()
        mean = (mean if flaw == "no rescale" else mean * alpha) + p @ v[:, :, start : start + tile]
        top = best
    return {"o": (mean / total).to(tensors["v"].dtype), "lse": (top + total.log())[..., 0]}


def float32_scores(tensors):
    qk = OPERATIONS["rope_qk"]
    rest = {name: tensor for name, tensor in tensors.items() if name != "v"}
    return qk.reference(rest, {"out_dtype": "float32"})["scores"]


LONG = {"rows": 8, "keys": 70, "width": 32, "width_v": 16}


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_online_softmax_lies_inside_for_any_tile_and_order(name):
    for seed in range(3):
        tensors = made((name,) * 5, seed=seed * 10, **LONG)
        for tile in (16, 33, 70):
            for backwards in (False, True):
                assert not findings(online(tensors, tile, backwards=backwards), tensors, {})


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_a_missing_rescale_lies_outside(name):
    tensors = made((name,) * 5, **LONG)
    assert findings(online(tensors, 16, "no rescale"), tensors, {})


def test_an_exp_good_to_four_digits_lies_outside_in_float32():
    """In 16-bit types it hides among the rounding of weights, but for lse."""
    tensors = made(**LONG)
    found = findings(online(tensors, 16, "rough exp"), tensors, {})
    assert {finding.output for finding in found} >= {"o"}


@pytest.mark.parametrize("name", FLOATS)
def test_rows_without_keys_are_zero_and_minus_infinity_and_nothing_else(name):
    options = {"causal": True, "window": 1, "q_offset": 3, "return_lse": True}
    tensors = made((name,) * 5, rows=4, keys=4)
    got = ATTENTION.reference(tensors, options)
    assert not findings(got, tensors, options)
    assert (got["o"][0, :, 1:] == 0).all()
    assert (got["lse"][0, :, 1:] == -math.inf).all()
    for wrong in (math.nan, 1e-7):
        spoiled = got["o"].clone()
        spoiled[0, 0, 2, 0] = wrong
        assert findings({"o": spoiled}, tensors, options)
    spoiled = got["lse"].clone()
    spoiled[0, 0, 2] = 0.0
    assert findings({"lse": spoiled}, tensors, options)


def test_no_keys_at_all():
    tensors = made(keys=0)
    got = ATTENTION.reference(tensors, {"return_lse": True})
    assert not findings(got, tensors, {"return_lse": True})
    assert (got["o"] == 0).all()


def test_nan_in_a_masked_key_must_not_leak_from_k_and_may_from_v():
    options = {"causal": True, "return_lse": True}
    clean = made(rows=4, keys=4)
    usual = ATTENTION.reference(clean, options)
    for name, allowed in (("k", False), ("v", True)):
        tensors = {**clean, name: clean[name].clone()}
        tensors[name][0, 0, 3, 0] = math.nan  # hidden from rows 0 to 2
        right = {key: tensor.clone() for key, tensor in usual.items()}
        right["o"][0, :, 3] = ATTENTION.reference(tensors, options)["o"][0, :, 3]
        right["lse"][0, :, 3] = ATTENTION.reference(tensors, options)["lse"][0, :, 3]
        assert not findings(right, tensors, options)
        leaked = {key: tensor.clone() for key, tensor in right.items()}
        leaked["o"][0, 0, 1, 0] = math.nan
        assert bool(findings(leaked, tensors, options)) != allowed
        other = {key: tensor.clone() for key, tensor in right.items()}
        other["o"][0, 0, 1, 1] = math.nan  # another column of v
        assert findings(other, tensors, options)


@pytest.mark.parametrize("weight", ["sure", "faint"])
def test_infinity_in_v_is_infinite_and_nan_only_where_its_weight_may_vanish(weight):
    tensors = made(rows=1, keys=2)
    tensors["cos"].fill_(1.0)
    tensors["sin"].zero_()
    tensors["q"].fill_(1.0)
    tensors["k"][0, 0, 0], tensors["k"][0, 0, 1] = 0.0, (0.0 if weight == "sure" else -100.0)
    tensors["v"][0, 0, 1, 0] = math.inf
    envelope = ATTENTION.envelopes(tensors, {})["o"]
    assert envelope.positive[0]
    assert not envelope.finite[0]
    assert not envelope.negative[0]
    assert bool(envelope.nan[0]) == (weight == "faint")


@pytest.mark.parametrize(("precision", "vanishes"), [("high", True), ("highest", False)])
def test_a_weight_below_what_tf32_holds_may_vanish_and_only_where_that_is_asked_for(precision, vanishes):
    """Scores of float64 make weights of float32 that are subnormal."""
    wide = "float64"
    tensors = made((wide, wide, "float32", wide, wide), rows=1, keys=2)
    tensors["cos"].fill_(1.0)
    tensors["sin"].zero_()
    tensors["q"].fill_(1.0)
    tensors["k"][0, 0, 0], tensors["k"][0, 0, 1] = 0.0, -138 * math.log(2) / 4
    tensors["v"][0, 0, 1, 0] = math.inf
    envelope = ATTENTION.envelopes(tensors, {"scale": 1.0, "precision": precision})["o"]
    assert envelope.positive[0]
    assert bool(envelope.nan[0]) == vanishes


def test_an_infinite_score_makes_nan():
    tensors = made()
    tensors["q"].fill_(1.0)
    tensors["k"].fill_(1.0)
    tensors["cos"].fill_(1.0)
    tensors["sin"].zero_()
    tensors["k"][0, 0, 1, 0] = math.inf
    got = ATTENTION.reference(tensors, {"return_lse": True})
    assert got["o"].isnan().all()
    assert not findings(got, tensors, {"return_lse": True})
    assert findings({"o": torch.nan_to_num(got["o"])}, tensors, {"return_lse": True})


def test_a_result_is_never_further_than_the_values_allow():
    """However wrong scores may be, weights are not negative: float16 with large scores."""
    tensors = made(("float16",) * 5, width=64)
    envelope = ATTENTION.envelopes(tensors, {"scale": 30.0})["o"]
    spread = float((tensors["v"].max() - tensors["v"].min()).item())
    assert envelope.bound.max() <= spread * 1.01


def test_tf32_may_cut_a_subnormal_value_to_zero_and_only_where_asked_for():
    tensors = made(rows=1, keys=1)
    tensors["v"].fill_(1.3e-43)
    for precision, allowed in (("high", True), ("highest", False)):
        assert bool(findings({"o": torch.zeros(1, 2, 1, 3)}, tensors, {"precision": precision})) != allowed
