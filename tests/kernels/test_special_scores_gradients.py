"""The kernel of gradients of scores: where it serves and pays, its units, and each flaw put into it is found."""

from dataclasses import replace

import pytest
import torch

from fuzzrope.case import TensorSpec, Values
from kernels.forms import Meta
from kernels.hopper import qk_backward
from kernels.pinned import pinned
from kernels.special import SPECIAL, Wish, special_for
from kernels.tiling import HOPPER, SHIPPED
from tests.kernels.changed import ANY, BY_SCORES, kinds_with, scores_gradient_wish
from tests.special import GRADIENTS, QK, case, differentiated


def test_they_are_taken_wherever_they_can_be_on_the_device_that_they_are_for():
    (gradients,) = SPECIAL["qk_gradients"]
    for asked in (scores_gradient_wish(heads=12), scores_gradient_wish(1, 8, table=8, heads=1)):
        for pins in (SHIPPED, ANY):
            assert special_for("qk_gradients", HOPPER, asked, pins) is gradients
            assert special_for("qk_gradients", 80, asked, pins) is None
    assert special_for("qk_gradients", HOPPER, scores_gradient_wish(width=96), SHIPPED) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": torch.float32},
        {"width": 96},
        {"keys": 500},
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
        {"cos": (0, 1)},
        {"ds": (0, 0, 0, 0)},
        {"ds": (524288, 262144, 0, 1)},
        {"ds": (524288, 262144, 516, 1)},
        {"ds": (524288, 262144, 1, 512)},
    ],
    ids=str,
)
def test_they_refuse_what_bulk_copies_cannot_bring(changes):
    assert qk_backward.serves(scores_gradient_wish(q=(131072, 128, 256, 1), ds=(524288, 512, 1024, 1)))
    for width in (64, 128, 256):
        assert qk_backward.serves(scores_gradient_wish(width=width, dtype=torch.float16))
    assert not qk_backward.serves(scores_gradient_wish(**changes))


def test_they_refuse_one_tensor_of_another_dtype():
    asked = scores_gradient_wish()
    for name in BY_SCORES:
        other = asked.forms[name]._replace(dtype=torch.float16)
        assert not qk_backward.serves(asked._replace(forms={**asked.forms, name: other})), name


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, 256),
        ({"rows": 128}, 128),
        ({"rows": 129}, 256),
        ({"width": 256}, 128),
        ({"causal": True}, 128),
        ({"causal": True, "rows": 520, "keys": 520, "table": 520}, 256),
    ],
    ids=str,
)
def test_units_are_as_large_as_registers_hold_where_they_are_full(changes, own):
    assert qk_backward.own_rows_of(scores_gradient_wish(**changes)) == own


def ran(heads: int, kv_heads: int, causal: bool, places: int, wanted: tuple[bool, bool], width: int = 64):
    """Gradients of problems with several blocks to either side, those of them that are wanted, and of float64."""
    generator = torch.Generator().manual_seed(1)
    shapes = (
        (1, heads, 600, width),
        (1, kv_heads, 520, width),
        (600, width // 2),
        (600, width // 2),
        (1, heads, 600, 520),
    )
    tensors = q, k, cos, sin, ds = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    made = [torch.full_like(x, 1e9) if want else None for x, want in zip((q, k), wanted, strict=True)]
    forms = dict(zip(BY_SCORES, map(Meta.of, tensors), strict=True))
    qk_backward.prepare(Wish(forms, q.dtype, 0.5, causal, 0, True, places))(*tensors, *made)
    q, k, cos, sin, ds = (x.double() for x in tensors)
    ds = ds.tril() if causal else ds

    def turned(x, sign):
        half, c, s = x.shape[-1] // 2, cos[: x.shape[2]], sign * sin[: x.shape[2]]
        return torch.cat((x[..., :half] * c - x[..., half:] * s, x[..., half:] * c + x[..., :half] * s), -1)

    group = heads // kv_heads
    dq = turned(0.5 * ds @ turned(k, 1).repeat_interleave(group, 1), -1)
    dk = turned((0.5 * ds.mT @ turned(q, 1)).unflatten(1, (kv_heads, group)).sum(2), -1)
    return made, (dq, dk)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=["both", "rows", "keys"])
@pytest.mark.parametrize("places", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("causal", [False, True])
def test_programs_share_out_every_unit_once_whichever_gradients_are_wanted(engine, causal, places, wanted):
    made, true = ran(4, 2, causal, places, wanted)
    for found, expected, want in zip(made, true, wanted, strict=True):
        assert (found is not None) == want
        if want:  # what is not written is 1e9
            assert (found.double() - expected).abs().max() < 0.02 * expected.abs().max()
    assert not engine.accesses
    (launch,) = engine.launches
    assert launch["kernel"] == GRADIENTS[QK]


def test_nothing_is_launched_where_nothing_is_wanted(engine):
    assert ran(2, 2, False, 4, (False, False))[0] == [None, None]
    assert not engine.launches


@pytest.mark.parametrize(("wanted", "most"), [((True, True), 8), ((True, False), 8), ((False, True), 8)])
def test_no_more_programs_are_launched_than_there_are_multiprocessors(monkeypatch, wanted, most):
    plans = []
    monkeypatch.setattr(
        qk_backward, "Prepared", lambda kernel, programs, numbers, *_: plans.append((programs, numbers))
    )
    for heads, group in ((1, 1), (3, 1), (40, 1), (1, 40), (7, 3)):
        for rows, keys in ((64, 64), (64, 2000), (2000, 64)):
            plans.clear()
            qk_backward.prepare(
                scores_gradient_wish(rows, keys, heads=heads, group=group, table=2000)._replace(places=most)
            )
            assert len(plans) == 3
            for programs, (units, units_k, of_q, *_) in plans:
                assert 1 <= programs <= most
                assert 0 <= of_q <= min(programs, units)
                assert programs - of_q <= units_k
            both, of_rows, of_keys = plans
            assert 1 <= both[1][2] < both[0]
            assert of_rows[0] == of_rows[1][2]
            assert of_keys[1][2] == 0


def test_gradients_of_scores_know_zero_from_minus_zero_as_a_scale(launching):
    call = pinned(QK, "special")
    q, k = (torch.randn(1, 1, 8, 64).bfloat16() for _ in range(2))
    tables = [torch.randn(8, 32).bfloat16() for _ in range(2)]
    q.requires_grad_()
    signs = []
    for scale in (-0.0, 0.0, -0.0):
        (gradient,) = torch.autograd.grad(call(q, k, *tables, scale=scale), q, torch.ones(1, 1, 8, 8).bfloat16())
        assert not gradient.any()
        signs.append(gradient.signbit())
    assert torch.equal(signs[0], signs[2])
    assert not torch.equal(signs[0], signs[1])


def test_a_gradient_that_spreads_one_number_is_left_to_the_portable_kernels(launching):
    q, k = (torch.randn(1, 2, 24, 64).bfloat16().requires_grad_() for _ in range(2))
    tables = [torch.randn(24, 32).bfloat16() for _ in range(2)]
    found = torch.autograd.grad(pinned(QK, "special")(q, k, *tables).sum(), (q, k))
    assert GRADIENTS[QK] not in {launch["kernel"] for launch in launching.launches}
    given = torch.ones(1, 2, 24, 24).bfloat16()
    same = torch.autograd.grad(pinned(QK, "special")(q, k, *tables), (q, k), given)
    assert GRADIENTS[QK] in {launch["kernel"] for launch in launching.launches}
    for one, other in zip(found, same, strict=True):
        assert (one - other).abs().max() <= 0.02 * one.abs().max()


def of_scores(rows: int = 600, keys: int = 528, heads: tuple[int, int] = (4, 2)):
    """A case of which both sides have several units a program, in pairs or not, and tables are NaN beyond the last."""
    asked = case(QK, "float16", rows=rows, keys=keys, heads=heads, width=64, causal=True, q_offset=20)
    needed, tables = rows + 20, {}
    for seed, name in enumerate(("cos", "sin")):
        numbers = torch.randn(needed + 30, 32, generator=torch.Generator().manual_seed(seed)).half()
        numbers[needed:] = float("nan")
        values = Values("listed", data=tuple(numbers.flatten().tolist()))
        tables[name] = TensorSpec("float16", (needed + 30, 32), (32, 1), storage=name, values=values)
    return differentiated(replace(asked, tensors=tuple((dict(asked.tensors) | tables).items())))


PRODUCTS = """\
            if EACH == 2:
                h2 = warpgroup_mma(below, second, h2, is_async=True)
                h1 = warpgroup_mma(below, first, h1, is_async=True)
                g1, g2, h1, h2, left, below = warpgroup_mma_wait(0, deps=[g1, g2, h1, h2, left, below])
            else:
                g1, g2, left = warpgroup_mma_wait(0, deps=[g1, g2, left])
"""
ROOM_OF_X = "            mbarrier.arrive(room.index(place), count=1)\n"
ROOM_OF_DS = "            mbarrier.arrive(ds_room.index(ds_place), count=1)\n"
OF_GRADIENTS = {
    "nothing": ("whose ds they hold in", "whose ds are in", ""),
    "room for x that is still multiplied": (
        PRODUCTS + ROOM_OF_DS + ROOM_OF_X, ROOM_OF_X + PRODUCTS + ROOM_OF_DS, "race",
    ),
    "x that is not turned yet": ("            mbarrier.wait(full.index(place), parity)\n", "", "race"),
    "ds that is not there yet": ("            mbarrier.wait(ds_full.index(ds_place), ds_parity)\n", "", "race"),
    "ds that nobody made room for": (
        "            mbarrier.wait(room.index(place), parity ^ 1)\n            mbarrier.expect(full",
        "            mbarrier.expect(full", "race",
    ),
    "x that nobody made room for": (
        "            mbarrier.wait(room.index(place), parity ^ 1)\n            mbarrier.expect(raw",
        "            mbarrier.expect(raw", "race",
    ),
    "room that one group makes for both": (
        "mbarrier.init(room.index(place), count=2)", "mbarrier.init(room.index(place), count=1)", "gradient",
    ),
    "room for ds that one group makes for both": (
        "mbarrier.init(ds_room.index(place), count=2)", "mbarrier.init(ds_room.index(place), count=1)", "gradient",
    ),
    "part of ds announced": ("PARTS * ds_desc.block_type.nbytes", "ds_desc.block_type.nbytes", "gradient"),
    "ds of the part above": ("own = start + part * ROWS", "own = start", "gradient"),
    "ds of another head": ("h = h if OF_KEYS else head % work[1]", "h = h", "gradient"),
    "ds not transposed for keys": ("ds.permute((1, 0)) if OF_KEYS else ds", "ds", "gradient"),
    "ds of the other group": ("EACH * (2 * ds_place + WHICH)", "EACH * (2 * ds_place + 1 - WHICH)", "gradient"),
    "the first part twice": (
        "load_ds(ds_ring.index(part + 1), later", "load_ds(ds_ring.index(part), later", "gradient",
    ),
    "the first part's limits twice": ("ds_ring.index(part + 1), later", "ds_ring.index(part + 1), limits", "gradient"),
    "groups that own the same rows": ("start += WHICH * (EACH * ROWS)", "start += WHICH * 0", "gradient"),
    "parts that are stored over each other": (
        "head, start + ROWS, rows, placed", "head, start, rows, placed", "gradient",
    ),
    "hidden scores that count": ("CAUSAL, OF_KEYS), left, 0.0)", "CAUSAL, OF_KEYS), left, left)", "gradient"),
    "a row that does not see the last of its keys": (
        "minimum(r + offset + 1, others)", "minimum(r + offset, others)", "gradient",
    ),
    "a key that its first row does not see": ("maximum(r - offset, 0)", "maximum(r - offset + 1, 0)", "gradient"),
    "the edge of rows seen late": (
        "minimum(start + offset + 1, others)", "minimum(start + ROWS + offset, others)", "gradient",
    ),
    "the edge of keys seen late": ("maximum(start + ROWS - 1 - offset, 0)", "maximum(start - offset, 0)", "gradient"),
    "gradients that are not scaled": (
        "factor = scale.to(gl.float32)", "factor = scale.to(gl.float32) * 0.0 + 1.0", "gradient",
    ),
    "turned back by sines alone": ("cos, sin = room1.load", "cos, sin = room2.load", "gradient"),
    "rows turned back as if they were the first": (
        "placed = offset * 0 if OF_KEYS else offset", "placed = offset * 0", "gradient",
    ),
    "gradients of keys that read keys": (
        "bring_x(q_desc, cos_desc,", "bring_x(k_desc, cos_desc, ", "gradient",
    ),
    "gradients of keys among those of rows": (
        "tensors = (cos_ptr, sin_ptr, dk_ptr)", "tensors = (cos_ptr, sin_ptr, dq_ptr)", "gradient",
    ),
    "programs of keys numbered on": ("gl.where(own_rows, pid, pid - split)", "pid", "gradient"),
    "units shared among all programs": ("gl.where(own_rows, split, programs - split)", "programs", "gradient"),
    "keys in as many units as rows": ("turns_of(units_k, pid", "turns_of(units, pid", "out_of_bounds"),
    "a launch that does not wait until the one in front has ended": ("    wait_for_launch(True)\n", "", "race"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", OF_GRADIENTS)
def test_a_flaw_put_into_gradients_of_scores_is_found(runner, tmp_path, flaw):
    right, wrong, kind = OF_GRADIENTS[flaw]
    kinds = kinds_with(tmp_path, runner, "gradients of scores", (right, wrong), of_scores())
    assert kind in kinds if kind else not kinds, kinds
