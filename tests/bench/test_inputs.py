"""Rows, their inputs, and the least work that they are."""

import torch

from fuzzrope.bench import inputs
from fuzzrope.bench.inputs import Work, copies, make, pieces, seen, work_of
from fuzzrope.bench.peers import PEERS
from fuzzrope.bench.rows import GROUPS, ROWS, Row
from tests.bench.simulated import SMALL

L2 = 60 * 2**20


def row_of(group: str, name: str) -> Row:
    return next(row for row in ROWS if (row.group, row.name) == (group, name))


def test_no_two_rows_share_a_name_and_every_group_has_rows_that_ours_serves():
    assert len({(row.group, row.name) for row in ROWS}) == len(ROWS)
    assert {row.group for row in ROWS} == set(GROUPS)
    for row in ROWS:
        served = [peer for peer in PEERS if peer.serves(row)]
        assert sum(peer.ours for peer in served) == 1, row.name
        assert len(served) > 1
        assert len({peer.name for peer in served}) == len(served)


def test_every_peer_serves_a_row():
    assert all(any(peer.serves(row) for row in ROWS) for peer in PEERS)


def test_floors_are_those_of_bytes_and_operations_counted_by_hand():
    copied, multiplied = 4257e9, 716e12
    expected = {
        ("rope", "(4,32,4096,128) bfloat16"): (126.4, "bytes"),
        ("rope", "(4,32,4096,128) float32"): (252.7, "bytes"),
        ("rope", "(4,32,4096,64) float16"): (63.2, "bytes"),
        ("scores", "(8,32,256,128) bfloat16"): (15.7, "bytes"),
        ("scores", "(1,32,4096,128) bfloat16"): (267, "bytes"),
        ("attention", "(8,32,512,128) bfloat16"): (48, "products"),
        ("attention", "(8,32,512,128) bfloat16 causal"): (31.6, "bytes"),
        ("attention", "(1,32,16384,128) bfloat16"): (6142, "products"),
        ("attention", "(1,32,16384,128) bfloat16 causal"): (3071, "products"),
        ("backward", "attention (2,32,4096,128) bfloat16"): (1920, "products"),
    }
    for (group, name), (microseconds, bound) in expected.items():
        floor, by = work_of(row_of(group, name)).floor(copied, multiplied)
        assert by == bound
        assert abs(floor * 1e6 - microseconds) < 0.012 * microseconds, name


def test_the_larger_of_both_times_is_the_floor():
    assert Work(60, 40, 0).floor(10, 1) == (10, "bytes")
    assert Work(60, 40, 11).floor(10, 1) == (11, "products")


def test_pairs_that_are_seen_are_counted_exactly():
    for rows, keys, offset in ((5, 5, 0), (1, 9, 8), (4, 9, 2), (6, 3, 0)):
        row = Row("attention", 1, 1, 1, rows, keys, 8, causal=True, offset=offset)
        assert seen(row) == sum(j <= offset + i for i in range(rows) for j in range(keys))


def test_sets_together_exceed_the_cache_and_stay_within_memory():
    for row in ROWS:
        count, size = copies(row, L2), work_of(row).read
        enough = count * size > inputs.CACHES * L2 or count == inputs.MOST_COPIES
        assert enough, row.name
        assert count == 1 or count * size <= inputs.MOST_BYTES
    assert copies(row_of("rope", "(2,8,4,16) float32"), L2) == inputs.MOST_COPIES
    assert copies(row_of("rope", "(4,32,512,128) bfloat16"), L2) >= 8


def test_inputs_are_laid_out_and_sized_as_the_row_says():
    for row in SMALL.values():
        made = make(row, "cpu", 3)
        assert made.q.shape == (row.batch, row.heads, row.rows, row.width)
        assert made.k.shape == (row.batch, row.kv_heads, row.keys, row.width)
        assert made.v.numel() == (made.k.numel() if row.operation == "attention" else 0)
        assert made.cos.shape == (max(row.keys, row.offset + row.rows), row.width // 2)
        assert made.q.is_contiguous() is not row.strided
        assert {x.dtype for x in (made.q, made.k, made.cos, made.sin)} == {getattr(torch, row.dtype)}
        assert bool(made.given) is (row.group == "backward")
        assert torch.equal(made.q, make(row, "cpu", 3).q)
        assert not torch.equal(made.q, make(row, "cpu", 4).q)


def test_tables_are_those_of_angles_that_fall_with_the_column():
    made = make(SMALL["rope in float32"], "cpu", 0)
    angle = 3 * 10000.0 ** -(2 / 8)
    assert abs(float(made.cos[3, 1]) - torch.tensor(angle).cos()) < 1e-6
    assert torch.equal(made.wide_sin[0, :, 4:], made.sin)


def test_a_copy_has_the_same_numbers_and_strides_in_other_memory():
    made = make(SMALL["rope in float32"], "cpu", 0)
    other = made.copy()
    assert torch.equal(made.q, other.q)
    assert made.q.stride() == other.q.stride()
    other.q.zero_()
    assert made.q.any()


def test_pieces_cover_all_heads_once_within_their_size():
    row = Row("attention", 3, 4, 2, 10, 10, 8)
    for most in (1, 400, 1000, 10**6):
        covered = [i for piece in pieces(row, most) for i in range(piece.start, piece.stop)]
        assert covered == list(range(6))
    assert len(list(pieces(row, 1))) == 6
    assert len(list(pieces(row, 400))) == 3
