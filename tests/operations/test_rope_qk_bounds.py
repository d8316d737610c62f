"""The envelope of rope_qk against exact rational arithmetic: what is correct lies inside, what is wrong does not."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fuzzrope.case import FLOATS, Values
from fuzzrope.judge.values import compare
from fuzzrope.operations import OPERATIONS
from fuzzrope.values import expand

QK = OPERATIONS["rope_qk"]
ADVERSARIAL = ("normal", "powers", "wide", "tiny", "subnormal")
MIXES = [(name,) * 4 for name in FLOATS]
MIXES += [("bfloat16", "bfloat16", "float32", "float32"), ("float16", "float64", "bfloat16", "float32")]


def made(mix, kinds=("normal",) * 4, rows=3, keys=4, width=6, seed=0):
    shapes = (1, 2, rows, width), (1, 1, keys, width), (max(rows, keys), width // 2), (max(rows, keys), width // 2)
    return {
        name: expand(Values(kind, seed + i), getattr(torch, dtype), math.prod(shape)).view(shape)
        for i, (name, dtype, kind, shape) in enumerate(zip(("q", "k", "cos", "sin"), mix, kinds, shapes, strict=True))
    }


def exact(value):
    return Fraction(float(value))


def rotated(x, cos, sin):
    """Rows of one head as exact fractions."""
    half = len(x[0]) // 2
    found = []
    for i, row in enumerate(x.tolist()):
        c, s = [exact(t) for t in cos[i]], [exact(t) for t in sin[i]]
        a, b = [exact(t) for t in row[:half]], [exact(t) for t in row[half:]]
        first = [a[d] * c[d] - b[d] * s[d] for d in range(half)]
        found.append(first + [b[d] * c[d] + a[d] * s[d] for d in range(half)])
    return found


def truths(tensors, scale):
    """Exact scores, flat."""
    k = rotated(tensors["k"][0, 0], tensors["cos"], tensors["sin"])
    return [
        exact(scale) * sum((x * y for x, y in zip(row, other, strict=True)), Fraction(0))
        for head in tensors["q"][0]
        for row in rotated(head, tensors["cos"], tensors["sin"])
        for other in k
    ]


def held(got, tensors, options=None):
    options = options or {}
    return compare("scores", got, QK.reference(tensors, options)["scores"], QK.envelopes(tensors, options)["scores"])


def rational(envelope, i, what):
    unit = Fraction(2) ** int(envelope.exact.exponent[i])
    if what == "bound":
        return Fraction(float(envelope.bound[i])) * unit
    return (Fraction(float(envelope.exact.high[i])) + Fraction(float(envelope.exact.low[i]))) * unit


@pytest.mark.parametrize("kind", ADVERSARIAL)
@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_the_oracle_is_exact_to_a_thousandth_of_the_bound(mix, kind):
    checked = 0
    for kinds in ((kind,) * 4, (kind, "normal", "normal", "normal"), (kind, kind, "normal", "normal")):
        tensors = made(mix, kinds)
        envelope = QK.envelopes(tensors, {"scale": 0.3})["scores"]
        for i, truth in enumerate(truths(tensors, 0.3)):
            if envelope.finite[i] and math.isfinite(envelope.bound[i]):
                assert abs(rational(envelope, i, "exact") - truth) * 1000 <= rational(envelope, i, "bound")
                checked += 1
    assert checked or kind == "wide"


@pytest.mark.parametrize("name", FLOATS)
def test_the_oracle_survives_cancellation(name):
    """Two terms cancel but for the last bit, which the bound covers and the oracle sees."""
    dtype = getattr(torch, name)
    eps = torch.finfo(dtype).eps
    q = torch.tensor([1 + eps, -1.0, 1.0, 1.0], dtype=dtype).view(1, 1, 1, 4)
    k = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=dtype).view(1, 1, 1, 4)
    one, zero = torch.ones(1, 2, dtype=dtype), torch.zeros(1, 2, dtype=dtype)
    envelope = QK.envelopes({"q": q, "k": k, "cos": one, "sin": zero}, {"scale": 1.0})["scores"]
    assert rational(envelope, 0, "exact") == exact(eps)
    assert 0 < rational(envelope, 0, "bound") < 20 * exact(eps)


def turn(x, cos, sin, inside):
    x1, x2 = x.to(inside).chunk(2, dim=-1)
    c, s = cos[: x.shape[2]].to(inside), sin[: x.shape[2]].to(inside)
    return torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], dim=-1)


def variant(tensors, scale, inside, folded=False, backwards=False):
    """Another correct way: rotated in ``inside``, rounded once, summed one by one in float32 or float64."""
    dtype = tensors["q"].dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    q, k = (turn(tensors[n], tensors["cos"], tensors["sin"], inside) for n in "qk")
    q = (q * scale if folded else q).to(dtype).to(work)
    k = k.to(dtype).to(work)
    total = torch.zeros((1, 2, q.shape[2], k.shape[2]), dtype=work)
    order = range(q.shape[3])
    for d in reversed(order) if backwards else order:
        total = total + q[..., d, None] * k[..., d][:, :, None, :]
    return (total if folded else total * scale).to(tensors["q"].dtype)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("kind", ["normal", "powers", "tiny", "subnormal"])
def test_every_correct_way_lies_inside(name, kind):
    for seed in range(4):
        tensors = made((name,) * 4, (kind, "normal", "normal", "normal"), rows=9, keys=12, width=64, seed=10 * seed)
        for scale in (0.3, 0.125):
            for inside in (torch.float64, torch.float64 if name == "float64" else torch.float32):
                for folded in (False, True) if scale == 0.125 or tensors["q"].itemsize > 2 else (False,):
                    for backwards in (False, True):
                        got = variant(tensors, scale, inside, folded, backwards)
                        assert not held(got, tensors, {"scale": scale}).findings


def test_tf32_is_inside_where_asked_for_and_outside_where_not():
    tensors = made(("float32",) * 4, rows=9, keys=12, width=64)
    q, k = (turn(tensors[n], tensors["cos"], tensors["sin"], torch.float32) for n in "qk")
    cut = [torch.from_numpy(np.asarray(x.numpy().view(np.uint32) & 0xFFFFE000).view(np.float32)) for x in (q, k)]
    got = torch.matmul(cut[0], cut[1].transpose(2, 3)) * 0.125
    assert not held(got, tensors, {"precision": "high"}).findings
    assert held(got, tensors).findings


def test_rounding_before_scaling_shows_where_the_low_type_overflows_and_scaled_scores_do_not():
    """Elsewhere a second rounding hides among the roundings of the factors: only its statistics tell."""
    tensors = {"q": torch.full((1, 1, 1, 2), 200.0), "k": torch.full((1, 1, 1, 2), 200.0)}
    tensors |= {"cos": torch.ones(1, 1), "sin": torch.zeros(1, 1)}
    tensors = {key: tensor.half() for key, tensor in tensors.items()}
    once, twice = (QK.reference(tensors, {"scale": scale})["scores"] for scale in (0.3, 1.0))
    assert not held(once, tensors, {"scale": 0.3}).findings
    (finding,) = held(twice * 0.3, tensors, {"scale": 0.3}).findings
    assert finding.kind == "nonfinite"


@pytest.mark.parametrize("name", FLOATS)
def test_a_number_past_the_bound_is_a_mismatch(name):
    tensors = made((name,) * 4)
    envelope = QK.envelopes(tensors)["scores"]
    got = QK.reference(tensors)["scores"].clone()
    size = float(rational(envelope, 5, "exact") + 2 * rational(envelope, 5, "bound"))
    got.view(-1)[5] = size
    (finding,) = held(got, tensors).findings
    assert finding.kind == "mismatch"


def test_masked_entries_are_minus_infinity_whatever_they_would_hold():
    tensors = made(("float32",) * 4)
    tensors["k"][0, 0, 3] = math.nan
    options = {"causal": True}
    got = QK.reference(tensors, options)["scores"]
    assert not held(got, tensors, options).findings
    assert (got[..., 3] == -math.inf).all()
    leaked = got.clone()
    leaked[0, 0, 0, 3] = math.nan
    (finding,) = held(leaked, tensors, options).findings
    assert finding.kind == "nonfinite"


def test_nan_and_infinities_come_out_by_ieee_and_nothing_else_is_allowed():
    tensors = made(("float32",) * 4)
    tensors["sin"].zero_()
    tensors["cos"].fill_(1.0)
    tensors["q"][0, 0, 0, 0] = math.inf
    tensors["q"][0, 0, 1, 0] = math.nan
    tensors["k"][0, 0, 2, 0] = math.inf
    envelope = QK.envelopes(tensors)["scores"]
    got = QK.reference(tensors)["scores"]
    assert not held(got, tensors).findings
    assert envelope.nan.reshape(2, 3, 4)[0, 1].all()
    assert not envelope.finite.reshape(2, 3, 4)[0, 1].any()
    assert held(torch.nan_to_num(got), tensors).findings


def test_a_partial_sum_beyond_float32_may_be_infinite_and_the_sum_may_not():
    big = 3e38
    q = torch.tensor([1.0, 1.0, 1.0, 1.0]).view(1, 1, 1, 4)
    k = torch.tensor([big, big, -big, -big]).view(1, 1, 1, 4)
    tensors = {"q": q, "k": k, "cos": torch.ones(1, 2), "sin": torch.zeros(1, 2)}
    envelope = QK.envelopes(tensors, {"scale": 1.0})["scores"]
    assert envelope.finite[0]
    assert envelope.positive[0]
    assert envelope.negative[0]
    small = {**tensors, "k": k / 4}
    envelope = QK.envelopes(small, {"scale": 1.0})["scores"]
    assert envelope.tame


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_rotation_by_nothing_leaves_nothing_to_round_and_a_cut_factor_shows(name):
    dtype = getattr(torch, name)
    tensors = made((name,) * 4, width=8)
    turned = QK.envelopes(tensors, {"scale": 1.0, "out_dtype": "float64"})["scores"]
    tensors |= {"cos": torch.full_like(tensors["cos"], 1.0), "sin": torch.zeros_like(tensors["sin"])}
    options = {"scale": 1.0, "out_dtype": "float64"}
    scores = QK.envelopes(tensors, options)["scores"]
    assert np.median(scores.bound) < np.median(turned.bound) / 20
    q, k = (tensors[x].double() for x in "qk")
    right = q @ k.transpose(2, 3)
    assert not held(right, tensors, options).findings
    cut = (q * (1 - 4 * torch.finfo(dtype).eps)) @ k.transpose(2, 3)
    assert held(cut, tensors, options).findings


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(("scale", "power"), [(0.3, False), (0.125, True)])
def test_scale_folded_into_16_bits_is_outside_unless_it_is_exact(name, scale, power):
    tensors = made((name,) * 4, rows=9, keys=12, width=64)
    tensors |= {"cos": torch.ones_like(tensors["cos"]), "sin": torch.zeros_like(tensors["sin"])}
    folded = (tensors["q"].double() * scale).to(tensors["q"].dtype).double()
    got = torch.matmul(folded, tensors["k"].double().transpose(2, 3))  # not rounded, which would hide more
    narrow = tensors["q"].itemsize == 2
    assert bool(held(got, tensors, {"scale": scale, "out_dtype": "float64"}).findings) == (narrow and not power)


def test_zeros_count_as_no_error_though_their_bound_underflows():
    tensors = made(("float64",) * 4, ("zeros", "zeros", "normal", "zeros"))
    tensors["cos"].fill_(1.0)  # nothing is turned, so nothing is rounded
    errors = held(torch.zeros(1, 2, 3, 4, dtype=torch.float64), tensors, {"scale": 1.0}).errors
    assert (errors.over_bound, errors.squares, errors.reference_squares) == (0.0, 0.0, 0.0)
