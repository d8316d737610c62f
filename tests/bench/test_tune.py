"""The table that tuning makes: legal tiles, the best of those that are right, and text that is read back the same."""

import ast
import importlib
import math
from pathlib import Path

import pytest
import torch

from fuzzrope.bench import tune
from fuzzrope.bench.compiling import compile_all, compile_one, jobs_of, small
from fuzzrope.bench.rows import ROWS, Row
from fuzzrope.bench.tune import Tried, choose, kernels_of, key_of, legal, length_of, updated, written
from kernels import pinned
from kernels.tile_table import TABLE
from kernels.tiling import HOPPER, KERNELS, Tiles
from tests.bench.simulated import CEILINGS, SMALL, machine

A, B, C = (Tiles(n, 32, 4, 2) for n in (16, 32, 64))
PAIRS = [(kernel, row) for row in ROWS for kernel in kernels_of(row)]
ROW = Row("scores", 1, 2, 1, 64, 64, 16)


def test_rows_tune_every_kernel():
    assert {kernel for kernel, _ in PAIRS} == set(KERNELS)


def test_rows_of_ragged_lengths_and_launches_tune_none():
    assert kernels_of(Row("scores", 4, 32, 32, 1000, 1000, 128)) == ()
    assert kernels_of(ROWS[0]) == ()


@pytest.mark.parametrize(("kernel", "row"), PAIRS[::5], ids=str)
def test_legal_tiles_are_read_back_and_are_powers_of_two_within_the_space(kernel, row):
    found = legal(kernel, row)
    assert len(found) == len(set(found)) > 20
    for tiles in found:
        assert pinned.parse(f"{kernel}={tune.text_of(tiles)}").named == ((kernel, tiles),)
        assert all(n & (n - 1) == 0 for n in tiles[:3])
        assert kernel == "rope" or 16 <= min(tiles[:2]) <= max(tiles[:2]) <= 256


def test_tiles_cover_the_space_as_far_as_registers_and_memory_go():
    found = legal("attention", Row("attention", 1, 32, 32, 4096, 4096, 64))
    for place, sizes in enumerate((tune.SIZES, tune.SIZES, tune.WARPS, tune.STAGES)):
        assert {tiles[place] for tiles in found} == set(sizes)
    assert max(t.rows for t in legal("attention", Row("attention", 1, 8, 2, 1, 4096, 128))) == 16


def test_what_cannot_fit_is_not_tried():
    wide = Row("attention", 1, 32, 32, 4096, 4096, 256)
    assert Tiles(256, 256, 8, 1) not in legal("attention", wide)
    assert all(
        tune.sums("attention_dk", t, 256) <= tune.MOST_REGISTERS * 32 * t.warps for t in legal("attention_dk", wide)
    )


@pytest.mark.parametrize(("kernel", "row"), [(k, r) for k, r in PAIRS if not r.decodes][::4], ids=str)
def test_lengths_and_keys_are_those_by_which_a_launch_looks_its_tiles_up(monkeypatch, launching, kernel, row):
    seen, asked = [], small(row)

    def spying(name, device, size, width, length, rule, pins):
        seen.append((name, HOPPER, size, width, length))
        return rule

    for module in ("kernels.fused", "kernels.rope"):
        monkeypatch.setattr(importlib.import_module(module), "pick", spying)
    for module in ("kernels.rope", "kernels.rope_qk", "kernels.attention_launch"):
        importlib.import_module(module).make_plan.cache_clear()
    importlib.import_module("kernels.rope").plan_by_facts.cache_clear()
    assert compile_one((kernel, asked, legal(kernel, row)[0]), "cpu") == ""
    assert (*key_of(kernel, asked, HOPPER), length_of(kernel, asked)) in seen


def test_the_lowest_mean_over_rows_is_chosen():
    tried = [Tried("qk", ROW, {A: 1.0, B: 1.1, C: 3.0}, 3), Tried("qk", ROW, {A: 1.5, B: 1.0, C: 1.0}, 3)]
    assert choose(tried) == B
    assert choose(tried[:1]) == A


def test_a_tile_that_is_not_right_at_one_row_counts_as_slow_there():
    tried = [Tried("qk", ROW, {A: 1.0, B: 1.2}, 3), Tried("qk", ROW, {B: 1.0}, 3)]
    assert choose(tried) == B
    assert choose([]) is None
    assert choose([Tried("qk", ROW, {}, 3)]) is None


def test_the_table_keeps_what_was_not_tried():
    table = {("qk", 90, 2, 16): ((64, (1, 2, 3, 4, 5)), (512, (2, 2, 2, 2, 2))), ("rope", 80, 4, 64): ((9, (1,) * 5),)}
    found = updated(table, [Tried("qk", ROW, {A: 1.0}, 1)], 90)
    assert found[("qk", 90, 2, 16)] == ((64, (1, 2, 3, 4, 5)), (128, (16, 32, 4, 2, 0)), (512, (2, 2, 2, 2, 2)))
    assert found[("rope", 80, 4, 64)] == table[("rope", 80, 4, 64)]
    assert updated(table, [Tried("qk", ROW, {}, 1)], 90) == dict(sorted(table.items()))


def read(text):
    (assigned,) = [node for node in ast.parse(text).body if isinstance(node, ast.AnnAssign)]
    return ast.literal_eval(assigned.value)


def test_a_table_is_written_as_a_module_that_says_the_same():
    for table in (TABLE, updated({}, [Tried("qk", ROW, {A: 1.0}, 1)], 90), {}):
        assert read(written(table)) == dict(table)


def test_the_shipped_table_is_what_tuning_writes():
    module = importlib.import_module("kernels.tile_table")
    assert Path(module.__file__).read_text() == written(dict(sorted(TABLE.items())))


def test_tuning_tries_every_tile_and_then_the_best_with_every_number_of_steps():
    said, saved, tiles_of = [], [], lambda kernel, row: [A, B, C]
    found = tune.tune([("qk", ROW)], machine(), CEILINGS, HOPPER, {}, said.append, saved.append, 2, tiles_of)
    assert len(said) == len(saved) == 1
    assert said[0].startswith("[1/1] qk at scores (1,2/1,64,16) bfloat16: of 3, in µs: ")
    assert read(saved[0]) == found
    ((length, tiles),) = found[("qk", HOPPER, 2, 16)]
    assert length == 128
    assert Tiles(*tiles)._replace(steps=0) in (A, B, C)


def test_a_tile_that_is_wrong_is_never_chosen(monkeypatch):
    real = tune.pinned_call

    def broken(row, pins):
        call = real(row, pins)
        ((_, tiles),) = pins.named
        return call if tiles == C else lambda x: tuple(y * math.pi for y in call(x))

    monkeypatch.setattr(tune, "pinned_call", broken)
    for kernel, row in (
        ("attention", SMALL["attention"]),
        ("attention_dk", SMALL["backward"]),
        ("qk_dq", SMALL["backward of scores"]),
    ):
        tried = tune.try_row(kernel, row, [A, B, C], machine(), CEILINGS, 2)
        assert set(tried.times) == {C}


# Compiling beforehand


def test_small_rows_have_the_form_of_their_row():
    for kernel, row in PAIRS:
        made = small(row)
        assert (made.group_size, made.width, made.dtype, made.operation) == (
            row.group_size,
            row.width,
            row.dtype,
            row.operation,
        )
        assert made.decodes == row.decodes
        assert legal(kernel, row)


def test_each_variant_is_compiled_once():
    both = [
        (k, r) for k, r in PAIRS if r.group == "attention" and r.keys == 1024 and r.width == 128 and r.group_size == 1
    ]
    assert len(both) == 2
    assert len(jobs_of(both)) == len(legal(*both[0]))


def test_workers_tell_what_they_cannot_compile():
    good, bad = ("rope", small(SMALL["rope"]), Tiles(8, 16, 4, 1)), ("rope", small(SMALL["rope"]), "no tile")
    refused = compile_all([good, bad], workers=1)  # without a GPU, each is refused
    assert set(refused) == {good, bad} - ({good} if torch.cuda.is_available() else set())


def test_what_a_compiler_refuses_is_told_in_a_line(launching):
    row = small(Row("scores", 1, 1, 1, 64, 64, 16))
    assert compile_one(("qk", row, A), "cpu") == ""
    assert "CompilationError" in compile_one(("qk", row, Tiles(24, 32, 4, 1)), "cpu")
    assert torch.is_grad_enabled()
