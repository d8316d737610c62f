"""Peers that a CPU can run, held to the gate on small rows; our kernels on the engine."""

from dataclasses import replace

import pytest
import torch

from fuzzrope.bench.gate import error_of, passes, truth
from fuzzrope.bench.inputs import make
from fuzzrope.bench.peers import PEERS, Peer, best, by_sdpa, plain, then, written
from fuzzrope.bench.peers import eager as eager_rotation
from fuzzrope.bench.rows import COMPILED, FLEX, ROWS, Row
from fuzzrope.bench.session import run_of
from tests.bench.simulated import SMALL

ON_CPU = {"eager", "eager + matmul", "eager + SDPA", "matmul, no RoPE", "kernels.rope", "kernels.rope_qk"}
ON_CPU |= {"kernels.rope_attention", "flash, no RoPE"}
LAUNCHING = {"kernels.rope + matmul", "Liger", "Liger + matmul"}


def check(peer: Peer, row: Row) -> None:
    inputs = make(row, "cpu", 0)
    results = run_of(peer.make(row), row, inputs.copy())()
    error = error_of(results, truth(row, inputs, peer.rotates), getattr(torch, row.dtype))
    assert passes(error, row), (peer.name, row.name, error)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("peer", [p for p in PEERS if p.name in ON_CPU], ids=lambda p: f"{p.operation} {p.name}")
def test_peers_of_plain_pytorch_are_right_wherever_they_serve(peer, name):
    if peer.serves(SMALL[name]):
        check(peer, SMALL[name])


@pytest.mark.parametrize("name", ["rope", "rope in float32", "scores", "causal scores", "rope of groups"])
@pytest.mark.parametrize("peer", [p for p in PEERS if p.name in LAUNCHING], ids=lambda p: p.name)
def test_peers_that_launch_kernels_are_right_on_the_engine(engine, peer, name):
    row = SMALL[name]
    if peer.serves(row):
        check(peer, row)


def test_the_best_separate_rotation_is_contiguous_and_bit_for_bit_eager(engine):
    for name in ("rope", "rope of groups", "rope in float32", "one row"):
        row = SMALL[name]
        inputs = make(row, "cpu", 0)
        found = best(row)(inputs)
        assert all(x.is_contiguous() for x in found)
        if name == "one row":
            q, _ = eager_rotation(replace(inputs, k=inputs.q, cos=inputs.cos[8:], sin=inputs.sin[8:]))
            k, _ = eager_rotation(replace(inputs, q=inputs.k))
        else:
            q, k = eager_rotation(inputs)
        assert torch.equal(found[0], q)
        assert torch.equal(found[1], k)


def test_a_separate_rotation_before_attention_of_one_row_is_the_whole_row(engine):
    row = SMALL["one row"]
    check(Peer("best + SDPA", "attention", then(best, by_sdpa("")), decodes=True), row)


def test_peers_that_compile_for_seconds_come_where_a_row_asks_for_them():
    for word in (COMPILED, FLEX):
        serving = [row for row in ROWS if any(peer.costly == word and peer.serves(row) for peer in PEERS)]
        assert serving
        assert all(word in row.costly for row in serving)


def test_a_decoding_row_is_for_peers_that_take_other_lengths():
    peer = Peer("x", "attention", then(plain(eager_rotation), by_sdpa("")))
    assert peer.serves(SMALL["attention"])
    assert not peer.serves(SMALL["one row"])
    assert replace(peer, decodes=True).serves(SMALL["one row"])
    assert not peer.serves(SMALL["backward"])
    assert replace(peer, backward=True).serves(SMALL["backward"])
    assert not replace(peer, forward=False).serves(SMALL["attention"])


def test_written_takes_an_empty_partner(engine):
    inputs = make(SMALL["rope"], "cpu", 0)
    q, k = written(inputs.q, inputs.k[:0], inputs.cos, inputs.sin)
    assert torch.equal(q, eager_rotation(inputs)[0])
    assert not k.numel()
