"""Kernels for one device alone: taken where they serve and pay, right, and each flaw put into them is found.

The module is long: flaws are read beside each other, by kernel.
"""

import math
import weakref

import pytest
import torch

import kernels
from fuzzrope.judge import judge
from fuzzrope.run import Runner
from fuzzrope.targets import find
from kernels import pinned, special
from kernels.forms import Meta
from kernels.hopper import attention, qk, wide_qk
from kernels.hopper.forms import Blocks, described
from kernels.special import SPECIAL, Wish, special_for
from kernels.tiling import HOPPER, SHIPPED, Pins
from tests.kernels.changed import ANY, BY_SCORES, GIVEN, KERNEL, attention_wish, kinds_with, loaded, wish
from tests.kernels.stores import stored_through
from tests.special import (
    ATTENTION,
    BY_HAND,
    GRADIENTS,
    KERNELS,
    QK,
    case,
    drawn,
    gradient_launches,
    said_of,
)


@pytest.mark.parametrize("name", BY_HAND)
def test_they_are_taken_and_right(runner, name):
    asked = BY_HAND[name]
    target = find(f"kernels.{asked.operation}@special")
    runner.turn_to(target)
    outcome = runner.run(asked)
    verdict = judge(asked, outcome, target)
    assert not verdict.skipped
    assert not verdict.findings
    launched, gradients = [launch.kernel for launch in outcome.launches], gradient_launches(asked)
    *narrow, wide = KERNELS[asked.operation]
    assert launched[0] in ([wide] if not narrow or asked["q"].shape[3] > 128 else narrow)
    if gradients or asked.backward is None:
        assert launched[1:] == [GRADIENTS[asked.operation]] * gradients
    else:
        assert launched[1:]
        assert GRADIENTS[asked.operation] not in launched


@pytest.mark.parametrize("operation", KERNELS)
def test_cases_by_chance_are_taken_and_right(runner, operation):
    runner.turn_to(find(f"kernels.{operation}@special"))
    cases = [drawn(operation, number, 3) for number in range(8)]
    assert any(asked.backward for asked in cases)
    assert any(map(gradient_launches, cases))
    assert {said_of(runner, asked, "cpu") for asked in cases} == {"right"}


def test_without_pins_they_are_taken_where_they_pay():
    assert special_for("attention", HOPPER, attention_wish(heads=24), SHIPPED) is SPECIAL["attention"][0]
    for small in (attention_wish(heads=23), attention_wish(heads=512, rows=127), attention_wish(heads=24, keys=127)):
        assert special_for("attention", HOPPER, small, SHIPPED) is None
        assert special_for("attention", HOPPER, small, ANY) is SPECIAL["attention"][0]
    many = wish((4, 32, 1024, 128), (4, 32, 1024, 128), (1024, 64), (1024, 64))
    few = wish((1, 2, 1024, 128), (1, 2, 1024, 128), (1024, 64), (1024, 64))
    streamed, narrow, for_wide = SPECIAL["qk"]
    assert special_for("qk", HOPPER, many, SHIPPED) is streamed
    assert special_for("qk", HOPPER, few, SHIPPED) is None
    chosen = [special_for("qk", HOPPER, few, Pins(special=True, number=number)) for number in range(-1, 4)]
    assert chosen == [streamed, streamed, narrow, streamed, narrow]
    wide = wish((4, 32, 1024, 256), (4, 32, 1024, 256), (1024, 128), (1024, 128))
    assert special_for("qk", HOPPER, wide, SHIPPED) is for_wide


def test_another_device_and_pinned_tiles_have_none():
    for other in (80, 100):
        assert special_for("attention", other, attention_wish(), ANY) is None
    for pins in (Pins(number=3), pinned.parse("attention=64x64x4x2")):
        assert special_for("attention", HOPPER, attention_wish(), pins) is None
    assert special_for("rope", HOPPER, attention_wish(), ANY) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": torch.float32},
        {"width": 96},
        {"width": 256},
        {"width_v": 32},
        {"width_v": 256},
        {"table": 511},
        {"table": 1},
        {"plain": False},
        {"rows": 0},
        {"keys": 0},
        {"q_offset": 1},
        {"k": (0, 0, 128, 1)},
        {"k": (131072, 65536, 129, 1)},
        {"v": (131072, 65536, 1, 512)},
        {"cos": (0, 1)},
    ],
    ids=str,
)
def test_attention_refuses_what_bulk_copies_cannot_bring(changes):
    assert attention.serves(attention_wish())
    assert attention.serves(attention_wish(width=256, width_v=256))
    assert not attention.serves(attention_wish(**changes))


def test_scores_refuse_what_they_cannot_send():
    def serves(keys=136, width=64, table=136, heads=2, **changes):
        shapes = (1, heads, 64, width), (1, heads, keys, width), (table, width // 2), (table, width // 2)
        return qk.serves(wish(*shapes, **changes))

    assert serves()
    assert serves(q=(8192, 4096, 64, 1), cos=(0, 1))
    assert not serves(keys=130)
    assert not serves(keys=0)
    assert not serves(heads=0)
    assert not serves(width=24)
    assert not serves(width=144)
    assert not serves(table=135)
    assert not serves(dtype=torch.float64)
    assert not serves(q=(8192, 4096, 1, 64))
    for far in ("q", "k"):
        assert not serves(**{far: (2**33, 2**32, 2**26, 1)})
    assert not serves(cos=(2**26, 1))


@pytest.mark.parametrize(("width", "served"), [(112, False), (128, False), (144, True), (256, True), (272, False)])
def test_scores_of_wide_heads_are_for_a_kernel_of_their_own(width, served):
    asked = wish((1, 2, 64, width), (1, 2, 136, width), (136, width // 2), (136, width // 2))
    assert wide_qk.serves(asked) is served
    assert qk.serves(asked) is (width <= 128)


@pytest.mark.parametrize(
    ("turns", "others", "steps"),
    [(16, 512, 16), (64, 512, 64), (64, 128, 16), (4, 256, 4), (4, 128, 2), (1000, 1000, 64), (4, 32, 1), (1, 1, 1)],
)
def test_programs_of_scores_are_about_as_many_as_share_work_out_well(turns, others, steps):
    assert qk.steps_of(turns, others, 132) == steps


@pytest.mark.parametrize(
    ("heads", "rows", "paired"),
    [(32, 512, False), (32, 1152, False), (256, 256, True), (256, 512, True), (128, 1024, True), (32, 16384, True)],
)
def test_causal_units_go_in_pairs_where_programs_end_earlier(heads, rows, paired):
    counts = attention.tiles_seen(attention_wish(rows=rows, keys=rows, heads=heads, causal=True), rows // 128, 128)
    assert counts == list(range(1, rows // 128 + 1))
    assert attention.pairs_are_quicker(heads * len(counts), counts, 132) is paired


@pytest.mark.parametrize(
    ("q_offset", "causal", "counts"), [(0, True, [1, 2, 3]), (200, True, [3, 4, 4]), (0, False, [4] * 3)]
)
def test_blocks_of_rows_see_as_many_tiles_of_keys_as_the_kernel_counts(q_offset, causal, counts):
    asked = attention_wish(rows=300, keys=500, table=500, causal=causal, q_offset=q_offset)
    assert attention.tiles_seen(asked, 3, 128) == counts


@pytest.mark.parametrize("units", [1, 2, 3, 5, 6, 7, 12])
@pytest.mark.parametrize("causal", [False, True])
def test_programs_of_attention_share_out_every_unit_once(engine, units, causal):
    q, k, v = (torch.randn(1, units, rows, 64).bfloat16() for rows in (130, 128, 128))
    tables = [torch.randn(130, 32).bfloat16() for _ in range(2)]
    forms = dict(zip(("q", "k", "v", "cos", "sin"), map(Meta.of, (q, k, v, *tables)), strict=True))
    o, lse = torch.full((1, units, 130, 64), 1e9).bfloat16(), torch.empty(1, units, 130)
    attention.prepare(Wish(forms, q.dtype, 0.1, causal, 0, True, 3))(q, k, v, *tables, o, lse)
    assert o.abs().max() < 1e6  # all is written, by one program each
    assert not engine.accesses


def test_a_file_that_was_exported_has_none():
    from kernels.export import exported

    assert "SPECIAL" in exported()
    assert "gluon" not in exported()
    assert special.SPECIAL.keys() == {"attention", "attention_gradients", "qk", "qk_gradients"}
    assert kernels.hopper


def test_descriptors_of_one_form_are_what_triton_makes_and_keep_no_tensor():
    blocks = Blocks(1, 8, 32)
    for number in range(3):
        x = torch.randn(4, 24, 64, dtype=torch.float16)[:, :, :48]
        made = blocks.of(x)
        assert type(made) is type(described(x, [1, 8, 32]))
        assert made.base is x
        assert vars(made) == vars(described(x, [1, 8, 32]))
        seen = weakref.ref(x)
        del x, made
        assert seen() is None, number
    with pytest.raises(AssertionError, match="16-byte aligned"):
        Blocks(1, 8, 32).of(torch.randn(4, 24, 60, dtype=torch.float16)[:, :, :48])


def test_the_stride_of_a_single_element_is_not_told_to_hardware():
    x = torch.randn(1, 24, 48, dtype=torch.float16)
    far = x.as_strided(x.shape, (2**40, 48, 1))
    assert described(far, [1, 8, 32]).strides == [8, 48, 1]
    assert described(far.expand(1, 24, 48)[:, :1], [1, 8, 32]).strides == [8, 8, 1]
    assert described(torch.randn(2, 24, 48, dtype=torch.float16), [1, 8, 32]).strides == [1152, 48, 1]


def launched(which: str, module, causal: bool, width: int) -> set[str]:
    """What a module's kernel stores through, by the IR of what one launch on the engine, or two, have compiled."""
    q, k, v = (torch.randn(1, heads, rows, width).bfloat16() for heads, rows in ((2, 70), (2, 72), (2, 72)))
    tables = [torch.randn(80, width // 2).bfloat16() for _ in range(2)]
    o, lse = torch.empty(1, 2, 70, width, dtype=q.dtype), torch.zeros(1, 2, 70)
    names, inputs, outputs = ("q", "k", "cos", "sin"), (q, k, *tables), [torch.empty(1, 2, 70, 72, dtype=q.dtype)]
    if which == "gradients of scores":
        names, inputs = BY_SCORES, (*inputs, outputs[0].normal_())
        outputs = [torch.empty_like(q), torch.empty_like(k)]
    if which in ("attention", "gradients"):
        names, inputs, outputs = GIVEN[:5], (q, k, v, *tables), [o, lse]
    if which == "gradients":
        names, inputs = GIVEN, (*inputs, q.clone(), lse.clone())
        outputs = [o.normal_(), lse, *inputs[5:], *map(torch.empty_like, (q, k, v)), True]
    asked = Wish(dict(zip(names, map(Meta.of, inputs), strict=True)), q.dtype, 1.0, causal, 0, True, 1)
    assert module.serves(asked)
    module.prepare(asked)(*inputs[:5], *outputs)
    caches = getattr(module, KERNEL[which]).device_caches.values()
    return {name for cache in caches for made in cache[0].values() for name in stored_through(made.asm["ttgir"])}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("which", "width", "through"),
    [
        ("scores", 64, {"out_ptr"}),
        ("scores", 128, {"out_desc"}),
        ("wide scores", 256, {"out_ptr"}),
        ("attention", 64, {"lse_ptr", "o_ptr"}),
        ("attention", 256, {"lse_ptr", "o_ptr"}),
        ("gradients", 64, {"dx_ptr", "dy_ptr", "sums_ptr"}),
        ("gradients of scores", 128, {"dq_ptr", "dk_ptr"}),
    ],
)
def test_they_store_outputs_and_nothing_else(launching, tmp_path, which, width, through, causal):
    assert launched(which, loaded(tmp_path / f"as_{width}.py", which), causal, width) == through


STORES_TURNED_KEY = "    gl.store(k_ptr + 0 * at[:, None] + 0 * x1.to(gl.int32), x1)\n"


@pytest.mark.parametrize(
    ("which", "line", "more", "through"),
    [
        ("attention", "        q1.store(y1)\n", "        gl.store(q + 0 * y1.to(gl.int32), y1)\n", "q_ptr"),
        ("gradients", "        x1.store(a1)\n", "        gl.store(tensors[0] + 0 * a1.to(gl.int32), a1)\n", "x_ptr"),
        ("gradients", "        y1.store(b1)\n", "        gl.store(tensors[1] + 0 * a1.to(gl.int32), a1)\n", "y_ptr"),
        ("scores", "    k1.store(first_half)\n", STORES_TURNED_KEY.replace("at[", "n["), "k_ptr"),
        ("wide scores", "    k1.store(first_half)\n", STORES_TURNED_KEY, "k_ptr"),
    ],
)
def test_one_that_stores_what_it_rotated_is_seen(launching, tmp_path, which, line, more, through):
    module = loaded(tmp_path / "storing.py", which, (line, line + more))
    assert through in launched(which, module, False, 256 if which == "wide scores" else 64)


#: What is right in the text of scores, what is wrong instead, what that has to be called; "" for what changes nothing.
OF_SCORES = {
    "columns of both factors in another order": ("((0, 1, 4, 5, 2, 3, 6))", "((0, 1, 2, 3, 4, 5, 6))", ""),
    "keys rotated by the first row": ("sin_ptr, n, n < keys,", "sin_ptr, n * 0, n < keys,", "mismatch"),
    "keys beyond the last": ("n, n < keys, k_s", "n, n >= 0, k_s", "out_of_bounds"),
    "a store that is not waited for": ("tma.store_wait(1)", "tma.store_wait(2)", "race"),
    "one buffer": ("buffers.index(1)", "buffers.index(0)", "race"),
    "a product that is not waited for": ("warpgroup_mma_wait(2,", "warpgroup_mma_wait(3,", "nonfinite"),
    "the diagonal hidden": ("j[None, :] <= ", "j[None, :] < ", "nonfinite"),
    "heads of k not told apart": ("k_ptr += b * k_b + h * k_h", "k_ptr += b * k_b", "mismatch"),
    "loads before the launch in front has ended": ("    wait_for_launch(True)\n", "", "race"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_SCORES)
def test_a_flaw_put_into_scores_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_SCORES[flaw]
    asked = case(QK, rows=700, keys=136, heads=(4, 2), causal=True, q_offset=3)
    kinds = kinds_with(tmp_path, runner, "scores", (right, wrong), asked)
    assert kind in kinds if kind else not kinds, kinds


OF_NARROW_SCORES = {
    "nothing": ("sixteen\nbytes", "16\nbytes", ""),
    "scores beyond the last": ("(j < keys - start_n)", "(j < keys)", "out_of_bounds"),
    "rows beyond the last": ("(i < rows - start)[:, None]", "(i >= 0)[:, None]", "out_of_bounds"),
    "heads of q not told apart": (
        "q_ptr + g.to(gl.int64) * q_h, cos_of_q, sin_of_q, row, (row",
        "q_ptr, cos_of_q, sin_of_q, row, (row",
        "mismatch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_NARROW_SCORES)
def test_a_flaw_put_into_scores_of_narrow_heads_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_NARROW_SCORES[flaw]
    asked = case(QK, rows=300, keys=136, heads=(4, 2), width=64)
    kinds = kinds_with(tmp_path, runner, "scores", (right, wrong), asked)
    assert kind in kinds if kind else not kinds, kinds


OF_WIDE_SCORES = {
    "nothing": ("a thread has eight neighbours of a row of scores, which", "a thread has eight, which", ""),
    "keys where they are not looked for": ("(place & 97) |", "(place & 96) |", "mismatch"),
    "a thread's neighbours apart": ("permute((0, 1, 3, 2, 4))", "permute((0, 1, 2, 3, 4))", "mismatch"),
    "rows beyond the last of q": ("i, rows - 1)\n        q", "i, rows)\n        q", "out_of_bounds"),
    "keys beyond the last": ("at = gl.minimum(n, keys - 1)", "at = n", "out_of_bounds"),
    "scores beyond the last": ("(j < keys - start_n)", "(j < keys)", "out_of_bounds"),
    "a product that is not waited for": (
        "wait(0, deps=[s, q1, q2])\n        row", "wait(1, deps=[s, q1, q2])\n        row", "nonfinite",
    ),
    "the diagonal hidden": ("j[None, :] <= ", "j[None, :] < ", "nonfinite"),
    "loads before the launch in front has ended": ("    wait_for_launch(True)\n", "", "race"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_WIDE_SCORES)
def test_a_flaw_put_into_wide_scores_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_WIDE_SCORES[flaw]
    asked = case(QK, rows=700, keys=1000, heads=(4, 2), width=160, causal=True, q_offset=3)
    kinds = kinds_with(tmp_path, runner, "wide scores", (right, wrong), asked)
    assert kind in kinds if kind else not kinds, kinds


LARGE = "LIMIT = gl.constexpr(2.0**24)"
DONE = "            o, left, p = warpgroup_mma_wait(0, deps=[o, left, p])\n"
ROOM = "            mbarrier.arrive(v_room.index(v_place), count=1)\n"
LAST = "        mbarrier.arrive(v_room.index(place), count=1)\n"
OF_ATTENTION = {
    "nothing": ("Warps of a block", "The warps of a block", ""),
    "room for values that are still multiplied": (DONE + ROOM, ROOM + DONE, "race"),
    "no room made at the end of a unit": (LAST, "", "exception"),
    "keys that are not turned yet": (
        "            mbarrier.wait(full.index(place), parity)\n            mbarrier.wait(v_full",
        "            mbarrier.wait(v_full",
        "race",
    ),
    "keys turned before they are there": ("            mbarrier.wait(raw.index(place), parity)\n", "", "race"),
    "tables read before they are there": ("                mbarrier.wait(t_full.index(slot), phase)\n", "", "race"),
    "room that one group makes for both": (
        "mbarrier.init(k_room.index(place), count=2)", "mbarrier.init(k_room.index(place), count=1)", "exception",
    ),
    "values that nobody made room for": ("            mbarrier.wait(v_room.index(place), parity ^ 1)\n", "", "race"),
    "half of the keys announced": ("2 * k_desc.block_type.nbytes", "k_desc.block_type.nbytes", "exception"),
    "sums of weights by old scores": ("total * of_parts + gl.sum", "total + gl.sum", "mismatch"),
    "the edge seen a tile late": ("gl.minimum(seen // KEYS, count)", "gl.minimum(seen // KEYS + 1, count)", "mismatch"),
    "keys turned by the slice after": ("part * (KEYS // SLICES)", "1 * (KEYS // SLICES)", "mismatch"),
    "an lse without what was subtracted": ("scaled + gl.log2(whole)", "gl.log2(whole)", "mismatch"),
    "rows of the unit before": ("        head, start, count = next_head, next_start, next_count\n", "", "exception"),
    "queries of the unit before": ("gl.minimum(turn + 1, mine - 1), rows", "turn, rows", "exception"),
    "units that nobody takes": ("(spans - 1 - pid) // programs", "(spans - 2 - pid) // programs", "uninitialized"),
    "halves of o the wrong way round": ("gl.store(at + HALF, second,", "gl.store(at + HALF, first,", "mismatch"),
    "scores scaled by less where they are known apart": (LARGE, "LIMIT = gl.constexpr(2.0**2)", "mismatch"),
    "loads before the launch in front has ended": ("    wait_for_launch(True)\n", "", "race"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_ATTENTION)
def test_a_flaw_put_into_attention_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_ATTENTION[flaw]
    asked = case(ATTENTION, rows=300, keys=700, heads=(4, 1), causal=True, q_offset=250, return_lse=True)
    kinds = kinds_with(tmp_path, runner, "attention", (right, wrong), asked)
    assert kind in kinds if kind else not kinds, kinds


@pytest.mark.parametrize(
    ("engine", "limit", "kinds"),
    [
        ("ttir", LARGE, set()),
        ("ttir", "LIMIT = gl.constexpr(2.0**100)", set()),
        ("ttir-fma", LARGE, set()),
        ("ttir-fma", "LIMIT = gl.constexpr(2.0**100)", {"nonfinite"}),
    ],
)
def test_weights_that_contraction_takes_from_huge_scores_are_found_where_it_is_done(tmp_path, engine, limit, kinds):
    asked = drawn(ATTENTION, 41, 1)  # a GPU found it
    assert dict(asked.tensors)["q"].values.kind == "wide"
    with Runner(find("kernels.rope_attention@special"), engine=engine) as runner:
        assert kinds_with(tmp_path, runner, "attention", (LARGE, limit), asked) == kinds


INF, NAN = float("inf"), float("nan")


def attended(scores: tuple[float, float], scale: float) -> tuple[float, float]:
    """(o, lse) of a row for which keys of two tiles have these scores, and values 8 and 2."""
    q, k, v = (torch.zeros(1, 1, rows, 128).bfloat16() for rows in (128, 256, 256))
    q[..., 0] = 1
    k[..., :128, 0], k[..., 128:, 0] = scores
    v[..., :128, :], v[..., 128:, :] = 8, 2
    cos, sin = torch.ones(256, 64).bfloat16(), torch.zeros(256, 64).bfloat16()
    forms = dict(zip(("q", "k", "v", "cos", "sin"), map(Meta.of, (q, k, v, cos, sin)), strict=True))
    o, lse = torch.empty(1, 1, 128, 128).bfloat16(), torch.empty(1, 1, 128)
    attention.prepare(Wish(forms, q.dtype, scale, False, 0, True, 132))(q, k, v, cos, sin, o, lse)
    assert all(x.isnan().all() or (x == x[0, 0, 0].flatten()[0]).all() for x in (o, lse))
    return o[0, 0, 0, 0].item(), lse[0, 0, 0].item()


@pytest.mark.parametrize(
    ("scores", "scale", "true"),
    [
        ((2.0**28, 2.0**28), 1.0, (5, 2.0**28)),
        ((-(2.0**28), -(2.0**28)), 1.0, (5, -(2.0**28))),
        ((2.0**100, 2.0**100), -1.0, (5, -(2.0**100))),
        ((2.0**28, 2.0**27), 1.0, (8, 2.0**28)),
        ((2.0**27, 2.0**28), 1.0, (2, 2.0**28)),
        ((-(2.0**126), 2.0**126), 1.0, (2, 2.0**126)),
        ((-(2.0**126), 0.0), 8.0, (2, math.log(128))),  # scaled it overflows, but has no weight
        ((0.0, -(2.0**126)), 8.0, (8, math.log(128))),
        ((-(2.0**126), -(2.0**126)), 8.0, (NAN, NAN)),
        ((0.0, 2.0**126), 8.0, (NAN, NAN)),
        ((2.0**126, 0.0), 8.0, (NAN, NAN)),
        ((INF, 0.0), 1.0, (NAN, NAN)),
        ((0.0, 1.0), 0.0, (5, math.log(256))),
    ],
)
def test_attention_is_right_of_huge_scores_and_of_such_as_overflow(engine, scores, scale, true):
    o, lse = attended(scores, scale)
    assert o == pytest.approx(true[0], rel=torch.finfo(torch.bfloat16).eps, nan_ok=True)  # as weights are rounded
    assert lse == pytest.approx(
        true[1], rel=4 * torch.finfo(torch.float32).eps, nan_ok=True
    )  # as often as it is rounded
    assert not engine.accesses


def test_the_interpreter_of_triton_runs_none(monkeypatch):
    monkeypatch.setattr(special, "INTERPRETED", True)
    assert special_for("attention", HOPPER, attention_wish(heads=24), SHIPPED) is None
    assert special_for("attention", HOPPER, attention_wish(), ANY) is None
