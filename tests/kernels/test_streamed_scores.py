"""Scores with queries that stream by: where they serve and pay, all tiles made once, and each flaw is found."""

import pytest
import torch

from kernels.forms import Meta
from kernels.hopper import streamed_qk
from kernels.special import Wish
from tests.kernels.changed import kinds_with, wish
from tests.special import QK, case


def asked_of(rows=512, keys=512, width=128, heads=2, group=1, table=512, batch=1, **changes) -> Wish:
    shapes = (batch, heads * group, rows, width), (batch, heads, keys, width), (table, width // 2), (table, width // 2)
    return wish(*shapes, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 96},
        {"width": 256},
        {"dtype": torch.float32},
        {"keys": 510},
        {"table": 511},
        {"heads": 0},
        {"cos": (0, 1)},
        {"q": (131072, 0, 128, 1)},
        {"q": (131072, 65536, 129, 1)},
    ],
    ids=str,
)
def test_they_refuse_what_bulk_copies_cannot_bring(changes):
    assert streamed_qk.serves(asked_of())
    assert not streamed_qk.serves(asked_of(**changes))


@pytest.mark.parametrize(
    ("units", "pays"), [(98, False), (99, True), (132, True), (133, False), (197, False), (198, True), (512, True)]
)
def test_they_pay_where_the_last_round_leaves_few_multiprocessors_without_work(units, pays):
    assert streamed_qk.pays(asked_of(keys=256, heads=units)) is pays
    for changes in ({"keys": 128}, {"width": 64}, {"causal": True}, {"rows": 192}):
        assert not streamed_qk.pays(asked_of(**{"keys": 256, "heads": units, **changes}))


def test_one_round_pays_with_fewer_queries_than_several():
    assert streamed_qk.pays(asked_of(keys=256, heads=128, rows=256))
    assert streamed_qk.pays(asked_of(keys=256, heads=128, rows=128, group=2))
    assert not streamed_qk.pays(asked_of(keys=256, heads=256, rows=256))


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("rows", "keys"), [(1, 264), (65, 256), (200, 520), (330, 8)])
def test_every_score_is_made_by_one_program(engine, heads, rows, keys):
    q, k = torch.randn(1, 2 * heads, rows, 64).bfloat16(), torch.randn(1, heads, keys, 64).bfloat16()
    tables = [torch.randn(max(rows, keys), 32).bfloat16() for _ in range(2)]
    forms = dict(zip(("q", "k", "cos", "sin"), map(Meta.of, (q, k, *tables)), strict=True))
    out = torch.full((1, 2 * heads, rows, keys), 1e9).bfloat16()
    streamed_qk.prepare(Wish(forms, q.dtype, 1.0, False, 0, True, 3))(q, k, *tables, out)
    assert out.abs().max() < 1e6
    assert not engine.accesses


FLAWS = {
    "nothing": ("Two groups of four warps", "Both groups of four warps", ""),
    "keys rotated by the first row": (
        "rotate(x1, x2, load_half(cos_ptr, i * cos_s", "rotate(x1, x2, load_half(cos_ptr, i * 0", "mismatch",
    ),
    "keys beyond the last": ("i = gl.minimum(n, keys - 1).to(gl.int64)", "i = n.to(gl.int64)", "out_of_bounds"),
    "keys written while the other group multiplies": (
        "        mbarrier.wait(k_free, (turn & 1) ^ 1)\n", "", "race",
    ),
    "keys multiplied before all are there": ("        mbarrier.wait(k_ready, turn & 1)\n", "", "race"),
    "keys given back by one group for both": (
        "mbarrier.init(k_free, count=2)", "mbarrier.init(k_free, count=1)", "exception",
    ),
    "queries that are not turned yet": ("            mbarrier.wait(full.index(place), parity)\n", "", "race"),
    "queries given back before they are multiplied": (
        "            t = warpgroup_mma_wait(0, deps=[t])\n            mbarrier.arrive(room.index(place), count=1)\n",
        "            mbarrier.arrive(room.index(place), count=1)\n            t = warpgroup_mma_wait(0, deps=[t])\n",
        "race",
    ),
    "queries never given back": (
        "            mbarrier.arrive(room.index(place), count=1)\n            put(t,",
        "            put(t,",
        "exception",
    ),
    "both groups take one tile": ("range((at & 1) ^ WHICH, steps, 2)", "range(at & 1, steps, 2)", "exception"),
    "the second half by the first keys": ("k1.slice(PART, PART, 0)", "k1.slice(0, PART, 0)", "mismatch"),
    "a product that is not waited for": (
        "warpgroup_mma_wait(2, deps=[s])", "warpgroup_mma_wait(3, deps=[s])", "nonfinite",
    ),
    "rows beyond the last": ("(i < rows)[:, None] & (j < keys)", "(i >= 0)[:, None] & (j < keys)", "out_of_bounds"),
    "scores beyond the last key": (
        "(i < rows)[:, None] & (j < keys)", "(i < rows)[:, None] & (j >= 0)", "out_of_bounds",
    ),
    "heads of k not told apart": ("head, heads, k_b, k_h)", "head, heads, k_b, k_h * 0)", "mismatch"),
    "heads of q not told apart": (
        "(b * heads * group + h).to(gl.int64) * rows", "(b * heads * group).to(gl.int64) * rows", "uninitialized",
    ),
    "positions without the offset": ("(row + offset).to(gl.int32) if OF_KEYS", "row if OF_KEYS", "mismatch"),
    "the diagonal of the first half for both": (
        "put(t, second, of_head, scale, start, rows, offset, start_n + PART,",
        "put(t, second, of_head, scale, start, rows, offset + PART, start_n + PART,",
        "nonfinite",
    ),
    "loads before the launch in front has ended": ("    wait_for_launch(True)\n", "", "race"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_found(runner, tmp_path, flaw):
    right, wrong, kind = FLAWS[flaw]
    asked = case(QK, rows=330, keys=520, heads=(4, 2), width=64, causal=True, q_offset=190)
    kinds = kinds_with(tmp_path, runner, "streamed scores", (right, wrong), asked)
    assert kind in kinds if kind else not kinds, kinds
