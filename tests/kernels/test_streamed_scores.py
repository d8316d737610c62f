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
        {"width": 64},
        {"width": 96},
        {"width": 256},
        {"dtype": torch.float32},
        {"keys": 510},
        {"table": 511},
        {"heads": 0},
        {"cos": (0, 1)},
        {"q": (131072, 0, 128, 1)},
        {"q": (131072, 65536, 129, 1)},
        {"k": (0, 65536, 128, 1)},
        {"q_offset": 2**31 - 575, "table": 2**31 - 1, "cos": (0, 1), "sin": (0, 1)},
    ],
    ids=str,
)
def test_they_refuse_what_bulk_copies_cannot_bring(changes):
    assert streamed_qk.serves(asked_of())
    assert not streamed_qk.serves(asked_of(**changes))


@pytest.mark.parametrize(
    ("units", "pays"), [(92, False), (93, True), (132, True), (133, False), (184, False), (185, True), (512, True)]
)
def test_they_pay_where_the_last_round_leaves_few_multiprocessors_without_work(units, pays):
    assert streamed_qk.pays(asked_of(keys=256, heads=units)) is pays
    assert streamed_qk.pays(asked_of(keys=256, heads=units, causal=True)) is pays
    for changes in ({"keys": 128}, {"rows": 128}):
        assert not streamed_qk.pays(asked_of(**{"keys": 256, "heads": units, **changes}))


def test_queries_of_all_heads_that_meet_a_key_count():
    assert streamed_qk.pays(asked_of(keys=256, heads=256, rows=64, group=3))
    assert not streamed_qk.pays(asked_of(keys=256, heads=256, rows=64, group=2))


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("rows", "keys"), [(1, 264), (65, 256), (200, 520), (330, 8)])
def test_every_score_is_made_by_one_program(engine, heads, rows, keys):
    q, k = torch.randn(1, 2 * heads, rows, 128).bfloat16(), torch.randn(1, heads, keys, 128).bfloat16()
    tables = [torch.randn(max(rows, keys), 64).bfloat16() for _ in range(2)]
    forms = dict(zip(("q", "k", "cos", "sin"), map(Meta.of, (q, k, *tables)), strict=True))
    out = torch.full((1, 2 * heads, rows, keys), 1e9).bfloat16()
    streamed_qk.prepare(Wish(forms, q.dtype, 1.0, False, 0, True, 3))(q, k, *tables, out)
    assert out.abs().max() < 1e6
    assert not engine.accesses


FLAWS = {
    "nothing": ("Two groups of four warps", "Both groups of four warps", ""),
    "keys rotated by the first row": ("load_half(cos_ptr, n * cos_s", "load_half(cos_ptr, n * 0", "mismatch"),
    "keys beyond the last": ("n = gl.minimum(n, keys - 1).to(gl.int64)", "n = n.to(gl.int64)", "out_of_bounds"),
    "keys rotated before they are there": (
        "                    mbarrier.wait(raw.index(place), turn // 2 & 1)\n", "                    pass\n", "race",
    ),
    "keys brought while the unit before the last is multiplied": (
        "    mbarrier.wait(free.index(side), (turn // 2 & 1) ^ 1)\n", "", "race",
    ),
    "keys multiplied before the first part is turned": (
        "            mbarrier.wait(ready.index(2 * side), turn // 2 & 1)\n", "", "race",
    ),
    "keys multiplied before the second part is turned": (
        "            mbarrier.wait(ready.index(2 * side + 1), turn // 2 & 1)\n", "", "race",
    ),
    "keys given back by one group for both": (
        "mbarrier.init(free.index(side), count=2)", "mbarrier.init(free.index(side), count=1)", "exception",
    ),
    "keys of the next unit never brought": ("(turn + 1 < mine) &", "(turn + 1 < 0) &", "exception"),
    "one place for all units": ("heads, side = work[2], turn % 2", "heads, side = work[2], turn % 1", "exception"),
    "queries that are not there yet": ("            mbarrier.wait(full.index(place), parity)\n", "", "race"),
    "queries given back before they are loaded": (
        "            x1 = ring.index",
        "            mbarrier.arrive(room.index(place), count=1)\n            x1 = ring.index",
        "race",
    ),
    "queries never given back": (
        "            mbarrier.arrive(room.index(place), count=1)  # not", "            # not", "exception",
    ),
    "both groups take one tile": ("range((at & 1) ^ WHICH, steps, 2)", "range(at & 1, steps, 2)", "exception"),
    "the second half by the first keys": ("turned.index(4 * side + 2)", "turned.index(4 * side)", "mismatch"),
    "a product that is not waited for": (
        "warpgroup_mma_wait(0, deps=[s, t, q1, q2])", "warpgroup_mma_wait(1, deps=[s, t, q1, q2])", "nonfinite",
    ),
    "a first half stored before the one before is read": (
        "    tma.store_wait(1)\n    buffers.index(2 * WHICH).store", "    buffers.index(2 * WHICH).store", "race",
    ),
    "a second half stored before the one before is read": (
        "    tma.store_wait(1)\n    buffers.index(2 * WHICH + 1)", "    buffers.index(2 * WHICH + 1)", "race",
    ),
    "both halves at one place": ("start_n + BULK]", "start_n]", "mismatch"),
    "heads of k not told apart": ("h, row = head // heads, head % heads,", "h, row = 0, 0,", "mismatch"),
    "heads of q not told apart": (
        "in_all = b * heads * group + h", "in_all = b * heads * group", "uninitialized",
    ),
    "positions without the offset": ("(row + offset).to(gl.int32)\n", "row.to(gl.int32)\n", "mismatch"),
    "the diagonal of the first half for both": ("visible - PART", "visible", "nonfinite"),
    "the diagonal one key late": ("start + offset + 1 - start_n", "start + offset + 2 - start_n", "nonfinite"),
    "loads before the launch in front has ended": ("    wait_for_launch(True)\n", "", "race"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_found(runner, tmp_path, flaw):
    right, wrong, kind = FLAWS[flaw]
    # Two steps a unit, so that queries alone do not hold the next keys back.
    asked = case(QK, rows=50, keys=520, heads=(8, 4), causal=True, q_offset=320)
    kinds = kinds_with(tmp_path, runner, "streamed scores", (right, wrong), asked)
    assert kind in kinds if kind else not kinds, kinds


OF_THREADS = {
    "nothing": ("Two groups of four warps", "Both groups of four warps", ""),
    "rows beyond the last": ("(i < rows)[:, None] & (j < keys)", "(i >= 0)[:, None] & (j < keys)", "out_of_bounds"),
    "scores beyond the last key": (
        "(i < rows)[:, None] & (j < keys)", "(i < rows)[:, None] & (j >= 0)", "out_of_bounds",
    ),
    "all heads in one": ("in_all.to(gl.int64) * rows * keys", "(in_all * 0)", "uninitialized"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_THREADS)
def test_a_flaw_of_stores_that_threads_make_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_THREADS[flaw]
    kinds = kinds_with(tmp_path, runner, "streamed scores", (right, wrong), case(QK, rows=50, keys=520, heads=(8, 4)))
    assert kind in kinds if kind else not kinds, kinds


@pytest.mark.parametrize(
    ("keys", "causal", "bulk"),
    [(256, False, True), (264, False, False), (2040, False, False), (2048, False, True), (264, True, True)],
)
def test_bulk_copies_store_where_they_are_faster(monkeypatch, keys, causal, bulk):
    made = []
    monkeypatch.setattr(streamed_qk, "Prepared", lambda *asked: made.append(asked[3]["BULK"]))
    streamed_qk.prepare(asked_of(keys=keys, table=2048, causal=causal))
    assert made == [bulk]


def test_a_group_without_a_step_of_a_unit_that_does_not_wait_for_its_keys_is_found(runner, tmp_path):
    asked = case(QK, rows=50, keys=520, heads=(8, 8))  # one step a unit; whoever falls behind, all units are made
    wait = "        mbarrier.wait(ready.index(2 * side + 1), turn // 2 & 1)  # without"
    assert not kinds_with(tmp_path, runner, "streamed scores", (wait, wait), asked)
    assert "exception" in kinds_with(tmp_path, runner, "streamed scores", (wait, "        # without"), asked)
