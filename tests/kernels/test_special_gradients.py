"""The kernel of gradients of attention: where it serves and pays, its units, and each flaw put into it is found."""

from dataclasses import replace

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fuzzrope.case import TensorSpec, Values
from fuzzrope.targets import find
from kernels.forms import Meta
from kernels.hopper import attention_backward
from kernels.hopper.streams import TILE, unit_of
from kernels.hopper.units import ROWS, turns_of
from kernels.launch import ceil_div
from kernels.pinned import pinned
from kernels.special import SPECIAL, Wish, special_for
from kernels.tiling import HOPPER, SHIPPED
from tests import special as command
from tests.kernels.changed import ANY, GIVEN, gradient_wish, kinds_with
from tests.special import ATTENTION, BY_HAND, GRADIENTS, case, differentiated, drawn


def test_gradients_that_went_another_way_are_told(runner, monkeypatch):
    asked = differentiated(case(ATTENTION, rows=3, keys=8, width=64))
    runner.turn_to(find("kernels.rope_attention@special"))
    assert command.said_of(runner, asked, "cpu") == "right"
    assert command.said_of(runner, asked, "cuda") == "right"
    monkeypatch.setattr(command, "gradient_launches", lambda asked: 1)
    assert command.said_of(runner, asked, "cpu") == "another kernel was taken for gradients"
    assert command.said_of(runner, asked, "cuda") == "right"


@pytest.mark.parametrize(
    ("name", "launches"),
    [
        ("gradients", 2),
        ("gradients of values alone", 2),
        ("gradients of queries alone", 1),
        ("gradients, lse used too", 2),
        ("gradients, values of another width", 0),
        ("gradients of wide heads", 0),
        ("gradients of scores", 1),
        ("gradients of scores of keys alone", 1),
        ("gradients of scores of other widths", 0),
        ("gradients of scores of tables", 0),
        ("gradients of tables", 0),
        ("gradients of lse alone", 0),
        ("attention", 0),
        ("scores", 0),
    ],
)
def test_which_cases_ought_to_end_with_the_kernel_of_gradients(name, launches):
    assert command.gradient_launches(BY_HAND[name]) == launches


def test_differentiated_cases_by_chance_mostly_take_the_kernel_of_gradients():
    cases = [drawn(ATTENTION, number, 1) for number in range(300)]
    asked = [one for one in cases if one.backward is not None]
    assert 80 <= len(asked) <= 120
    assert len(asked) / 2 < sum(map(bool, map(command.gradient_launches, asked))) < len(asked)
    assert {command.gradient_launches(one) for one in asked} == {0, 1, 2}
    assert {name for one in asked for name, _ in one.backward.cotangents} == {"o", "lse"}
    assert {one.backward.requires for one in asked} > {("q", "k", "v"), ("v",), ("q", "k", "v", "cos", "sin")}
    assert drawn(ATTENTION, 41, 1).backward is None


def test_gradients_are_taken_where_programs_of_both_kinds_pay():
    (gradients,) = SPECIAL["attention_gradients"]
    for many in (gradient_wish(heads=24), gradient_wish(heads=12, group=2, table=1024, keys=1024)):
        assert special_for("attention_gradients", HOPPER, many, SHIPPED) is gradients
        assert special_for("attention_gradients", 80, many, SHIPPED) is None
    for changes in ({"heads": 23}, {"heads": 24, "keys": 384}, {"heads": 24, "rows": 384}, {"heads": 12, "group": 2}):
        few = gradient_wish(**changes)
        assert special_for("attention_gradients", HOPPER, few, SHIPPED) is None
        assert special_for("attention_gradients", HOPPER, few, ANY) is gradients


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": torch.float32},
        {"width": 96, "width_v": 96},
        {"width_v": 64},
        {"width": 64},
        {"table": 511},
        {"table": 1},
        {"q_offset": 2**31 - 575, "table": 2**31 - 1},
        {"plain": False},
        {"rows": 0},
        {"keys": 0},
        {"heads": 0},
        {"q_offset": 1},
        {"k": (0, 0, 128, 1)},
        {"q": (131072, 65536, 129, 1)},
        {"v": (131072, 65536, 1, 512)},
        {"cos": (0, 1)},
        {"do": (0, 0, 0, 0)},
        {"do": (131072, 65536, 0, 1)},
        {"do": (0, 65536, 128, 1)},
        {"do": (131072, 65536, 129, 1)},
        {"do": (131080, 65540, 128, 1)},
        {"do": (131072, 65536, 1, 512)},
    ],
    ids=str,
)
def test_gradients_of_attention_refuse_what_bulk_copies_cannot_bring(changes):
    assert attention_backward.serves(gradient_wish(q=(131072, 128, 256, 1), do=(131072, 128, 256, 1), dlse=(0, 0, 0)))
    assert attention_backward.serves(gradient_wish(width=64, width_v=64, dtype=torch.float16, dlse=(7, 3, 2)))
    assert not attention_backward.serves(gradient_wish(**changes))


def test_gradients_refuse_one_tensor_of_another_dtype():
    asked = gradient_wish()
    for name in ("q", "k", "v", "cos", "sin", "do"):
        other = asked.forms[name]._replace(dtype=torch.float16)
        assert not attention_backward.serves(asked._replace(forms={**asked.forms, name: other})), name


@pytest.mark.parametrize("units", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("causal", [False, True])
def test_programs_of_gradients_share_out_every_unit_once(engine, units, causal):
    q, k, v, do, dq, dk, dv = (
        torch.randn(1, units, rows, 64).bfloat16() for rows in (130, 140, 140, 130, 130, 140, 140)
    )
    tables = [torch.randn(140, 32).bfloat16() for _ in range(2)]
    o, lse, dlse = torch.randn(1, units, 130, 64).bfloat16(), *(torch.zeros(1, units, 130) for _ in range(2))
    forms = dict(zip(GIVEN, map(Meta.of, (q, k, v, *tables, do, dlse)), strict=True))
    made = [x.fill_(1e9) for x in (dq, dk, dv)]
    run = attention_backward.prepare(Wish(forms, q.dtype, 0.1, causal, 0, True, 3))
    run(q, k, v, *tables, o, lse, do, dlse, *made, True)
    assert all(x.abs().max() < 1e8 for x in made)  # all is written, by one program each
    assert not engine.accesses
    assert [launch["kernel"] for launch in engine.launches] == [GRADIENTS[ATTENTION]] * 2


def test_gradients_know_zero_from_minus_zero_as_a_scale(launching):
    call = pinned(ATTENTION, "special")
    q, k, v = (torch.randn(1, 1, 3, 64).bfloat16() for _ in range(3))
    tables = [torch.randn(3, 32).bfloat16() for _ in range(2)]
    q.requires_grad_()
    signs = []
    for scale in (-0.0, 0.0, -0.0):
        o = call(q, k, v, *tables, scale=scale)
        (gradient,) = torch.autograd.grad(o, q, torch.ones_like(o) + v)
        assert not gradient.any()
        signs.append(gradient.signbit())
    assert torch.equal(signs[0], signs[2])
    assert not torch.equal(signs[0], signs[1])


@gluon.jit
def units_kernel(
    out_ptr, units, heads, group, rows, others, offset, CAUSAL: gl.constexpr, OF_KEYS: gl.constexpr, SPAN: gl.constexpr
):
    """What each unit is said to be, at its number."""
    pid, programs = gl.program_id(0), gl.num_programs(0)
    work = (turns_of(units, pid, programs, SPAN), heads, group, rows, others, offset.to(gl.int64), pid, programs)
    for turn in range(work[0]):
        head, start, first, each = unit_of(turn, work, 2 * ROWS, CAUSAL, OF_KEYS, SPAN)
        at = out_ptr + ((turn // SPAN * gl.num_programs(0) + gl.program_id(0)) * SPAN + turn % SPAN) * 4
        gl.store(at, head)
        gl.store(at + 1, start)
        gl.store(at + 2, first)
        gl.store(at + 3, each)


def tiles_that_meet(own: range, others: int, offset: int, causal: bool, of_keys: bool) -> list[int]:
    """Tiles of the other side with a row that one of these own rows meets: pair by pair."""
    return [
        tile
        for tile in range(ceil_div(others, TILE.value))
        for row in (range(tile * TILE.value, (tile + 1) * TILE.value),)
        if not causal or (row[-1] + offset >= own[0] if of_keys else row[0] <= own[-1] + offset)
    ]


@pytest.mark.parametrize("of_keys", [False, True], ids=["rows", "keys"])
@pytest.mark.parametrize(
    ("rows", "keys", "offset"),
    [(300, 300, 0), (300, 700, 250), (70, 900, 3), (513, 64, 0), (200, 130, 200), (1, 1, 0), (640, 640, 63)],
)
@pytest.mark.parametrize(("causal", "span"), [(False, 1), (True, 1), (True, 2)])
def test_units_of_gradients_are_all_there_and_meet_the_tiles_that_they_have_to(
    engine, rows, keys, offset, of_keys, causal, span
):
    heads, group, programs = 3, 2, 4
    own, others, side = 2 * ROWS.value, *((rows, heads) if of_keys else (keys, heads * group))
    count = keys if of_keys else rows
    blocks = ceil_div(count, own)
    units = blocks * side
    found = torch.full((units, 4), -1, dtype=torch.int64)
    sizes = units, side, group, count, others, offset
    units_kernel[(min(ceil_div(units, span), programs),)](found, *sizes, causal, of_keys, span, num_warps=1)
    assert not engine.accesses  # no unit twice
    met = {
        start: tiles_that_meet(range(start, start + own), others, offset, causal, of_keys)
        for start in range(0, count, own)
    }
    assert sorted(map(tuple, found[:, :2].tolist())) == [(head, start) for head in range(side) for start in met]
    for _, start, first, each in found.tolist():
        assert list(range(first, first + each)) == met[start]
    asked = gradient_wish(rows, keys, table=1000, heads=heads, group=group, causal=causal, q_offset=offset)
    times = group if of_keys else 1
    if causal:  # else nobody asks
        assert attention_backward.tiles_met(asked, of_keys, own) == sorted(
            len(tiles) * times / 2 for tiles in met.values()
        )


def of_gradients():
    """A case of which both sides have several units a program, in pairs or not, and tables are NaN beyond the last."""
    options = {"causal": True, "q_offset": 20, "return_lse": True}
    asked = case(ATTENTION, "float16", rows=180, keys=300, heads=(4, 2), width=64, **options)
    tables = {}
    for seed, name in enumerate(("cos", "sin")):
        numbers = torch.randn(330, 32, generator=torch.Generator().manual_seed(seed)).half()
        numbers[300:] = float("nan")
        values = Values("listed", data=tuple(numbers.flatten().tolist()))
        tables[name] = TensorSpec("float16", (330, 32), (32, 1), storage=name, values=values)
    return differentiated(replace(asked, tensors=tuple((dict(asked.tensors) | tables).items())), used=("o", "lse"))


GIVEN_BACK = """\
            mbarrier.arrive(y_room.index(y_place), count=1)
            mbarrier.arrive(room.index(place), count=1)
"""
GAINED = """\
            if OF_KEYS:
                g1, g2, h1, h2, left, left_y = warpgroup_mma_wait(0, deps=[g1, g2, h1, h2, left, left_y])
            else:
                g1, g2, left = warpgroup_mma_wait(0, deps=[g1, g2, left])
"""
ROOM_OF_X, ROOM_OF_Y = "mbarrier.arrive(room.index(place), count=1)", "mbarrier.arrive(y_room.index(y_place), count=1)"
UNIT = "head, start, front, each = unit_of(turn, work, 2 * ROWS, CAUSAL, OF_KEYS, SPAN)"
OF_GRADIENTS = {
    "nothing": ("Both halves of gradients of rotated rows.", "The halves of gradients of rotated rows.", ""),
    "room for x that is still multiplied": (
        GAINED + GIVEN_BACK, f"            {ROOM_OF_X}\n{GAINED}            {ROOM_OF_Y}\n", "race",
    ),
    "room for y that is still multiplied": (
        GAINED + GIVEN_BACK, f"            {ROOM_OF_Y}\n{GAINED}            {ROOM_OF_X}\n", "race",
    ),
    "x that is not turned yet": ("            mbarrier.wait(full.index(place), parity)\n", "", "race"),
    "y that is not there yet": ("            mbarrier.wait(y_full.index(y_place), y_parity)\n", "", "race"),
    "lse and delta that were not announced": (
        "2 * y_desc.block_type.nbytes + more", "2 * y_desc.block_type.nbytes", "gradient",
    ),
    "x turned before it is there": ("            mbarrier.wait(raw.index(place), parity)\n", "", "race"),
    "tables read before they are there": ("            mbarrier.wait(t_full.index(slot), phase)\n", "", "race"),
    "x that nobody made room for": (
        "            mbarrier.wait(room.index(place), parity ^ 1)\n            mbarrier.expect(raw",
        "            mbarrier.expect(raw", "race",
    ),
    "y that nobody made room for": (
        "            mbarrier.wait(room.index(place), parity ^ 1)\n            more:", "            more:", "race",
    ),
    "tables that nobody made room for": ("            mbarrier.wait(t_room.index(slot), phase ^ 1)\n", "", "race"),
    "room that one group makes for both": (
        "mbarrier.init(room.index(place), count=2)", "mbarrier.init(room.index(place), count=1)", "gradient",
    ),
    "room for y that one group makes for both": (
        "mbarrier.init(y_room.index(place), count=2)", "mbarrier.init(y_room.index(place), count=1)", "gradient",
    ),
    "room for tables that nobody makes": ("            mbarrier.arrive(t_room.index(slot), count=1)\n", "", "gradient"),
    "half of x announced": ("2 * x_desc.block_type.nbytes", "x_desc.block_type.nbytes", "gradient"),
    "half of y announced": ("2 * y_desc.block_type.nbytes", "y_desc.block_type.nbytes", "gradient"),
    "delta without the gradient of lse": ("o2.to(gl.float32), 1) - dlse", "o2.to(gl.float32), 1)", "gradient"),
    "delta of one half": ("b1.to(gl.float32) * o1.to(gl.float32) + b2", "b2", "gradient"),
    "lse not in units of log 2": ("finite_or_zero(lse) * LOG2_E", "finite_or_zero(lse)", "gradient"),
    "scores not in units of log 2": ("(scale * LOG2_E)", "(scale * 1.0)", "gradient"),
    "a row that does not see the last of its keys": (
        "minimum(r + offset + 1, others)", "minimum(r + offset, others)", "gradient",
    ),
    "a key that its first row does not see": ("maximum(r - offset, 0)", "maximum(r - offset + 1, 0)", "gradient"),
    "a key that a row before sees": ("maximum(r - offset, 0)", "maximum(r - offset - 1, 0)", "gradient"),
    "the edge of rows seen late": (
        "minimum(start + offset + 1, others)", "minimum(start + ROWS + offset, others)", "gradient",
    ),
    "the edge of keys seen late": ("maximum(start + ROWS - 1 - offset, 0)", "maximum(start - offset, 0)", "gradient"),
    "weights that are not masked": ("CAUSAL, OF_KEYS), p, 0.0)", "CAUSAL, OF_KEYS), p, p)", "gradient"),
    "gradients that are not scaled": (
        "factor = scale.to(gl.float32)", "factor = scale.to(gl.float32) * 0.0 + 1.0", "gradient",
    ),
    "turned back the wrong way": (
        "g1 * cos + g2 * sin, g2 * cos - g1 * sin", "g1 * cos - g2 * sin, g2 * cos + g1 * sin", "gradient",
    ),
    "turned back by sines alone": ("cos, sin = cos_room.load", "cos, sin = sin_room.load", "gradient"),
    "rows that are not there turned by what tables have": ("if row + TILE > others:", "if row > others:", "gradient"),
    "the first of them not turned to zero": ("part * SLICE + r < others)", "part * SLICE + r <= others)", "gradient"),
    "heads of another group of q": ("h * group + step // each", "h + step // each * heads", "gradient"),
    "a head of another group": ("met, row = h // group", "met, row = h % group", "gradient"),
    "tiles of a head after the other": ("(first + step % each) * TILE", "(first + step // group) * TILE", "gradient"),
    "tiles of keys that begin a tile late": (
        "- offset, 0) // TILE, each)", "- offset, 0) // TILE + 1, each)", "gradient",
    ),
    "tiles of rows that end a block early": ("gl.cdiv((block + 1) *", "gl.cdiv(block *", "gradient"),
    "a front that is not counted": ("row = (front + tile) * TILE", "row = tile * TILE", "gradient"),
    "rows of tables without the offset": ("(row + offset).to(gl.int32) if OF_KEYS else row", "row", "gradient"),
    "keys turned as if they were rows of q": ("offset * 0 if OF_KEYS else offset", "offset", "gradient"),
    "the first unit once more": (UNIT, UNIT.replace("turn,", "turn * 0,"), "gradient"),
    "gradients of both groups in one place": (
        "dx_ptr + before, start,", "dx_ptr + before, start - WHICH * ROWS,", "gradient",
    ),
    "units that nobody takes": ("(spans - 1 - pid) // programs", "(spans - 2 - pid) // programs", "uninitialized"),
    "a ring that begins anew": ("        at += steps_of(each, work, OF_KEYS)\n", "", "gradient"),
    "rows beyond the last stored": (
        "there = gl.max_constancy((i < rows)[:, None]", "there = gl.max_constancy((i >= 0)[:, None]", "out_of_bounds",
    ),
    "rows beyond the last loaded": (
        "rows - 1).to(gl.int64)\n    x1, x2 =", "rows).to(gl.int64)\n    x1, x2 =", "out_of_bounds",
    ),
    "lse beyond the last": ("rows - 1).to(gl.int64)\n    before", "rows).to(gl.int64)\n    before", "out_of_bounds"),
    "sums where keys do not look": (
        "padded = gl.cdiv(rows, 2 * ROWS) * (2 * ROWS)", "padded = gl.cdiv(rows, ROWS) * ROWS", "gradient",
    ),
    "sums of the first head of a group": (
        "pair = 2 * (b * heads * group + h)", "pair = 2 * (b * heads * group + h // group)", "gradient",
    ),
    "halves of dv the wrong way round": (
        "h1.to(DOT), h2.to(DOT), dy_ptr", "h2.to(DOT), h1.to(DOT), dy_ptr", "gradient",
    ),
    "scores of keys that are not waited for": (
        "s = warpgroup_mma_wait(2, deps=[s])", "s = warpgroup_mma_wait(3, deps=[s])", "gradient",
    ),
    "scores of rows that are not waited for": (
        "warpgroup_mma_wait(2, deps=[s, a1, a2])", "warpgroup_mma_wait(3, deps=[s, a1, a2])", "gradient",
    ),
    "products of y that keys do not wait for": (
        "dp = warpgroup_mma_wait(2,", "dp = warpgroup_mma_wait(3,", "gradient",
    ),
    "products of y that rows do not wait for": (
        "dp = warpgroup_mma_wait(0,", "dp = warpgroup_mma_wait(1,", "gradient",
    ),
    "gradients that are not waited for": (
        "warpgroup_mma_wait(0, deps=[g1, g2, left])", "warpgroup_mma_wait(1, deps=[g1, g2, left])", "race",
    ),
    "gradients of keys that are not waited for": (
        "wait(0, deps=[g1, g2, h1, h2, left, left_y])", "wait(1, deps=[g1, g2, h1, h2, left, left_y])", "race",
    ),
    "loads before the launch in front has ended": ("    wait_for_launch(True)\n", "", "race"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_GRADIENTS)
def test_a_flaw_put_into_gradients_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_GRADIENTS[flaw]
    kinds = kinds_with(tmp_path, runner, "gradients", (right, wrong), of_gradients())
    assert kind in kinds if kind else not kinds, kinds
