"""Positions and tables of each batch: against plain rope of gathered rows, and the kernel against its twin."""

import itertools
from typing import Any

import pytest
import torch

from fuzzrope.interpreter.engine import Engine
from kernels import reference, rope
from kernels.launch import TL_DTYPES
from tests.kernels.test_operators import forget_compiled, launching, same
from tests.kernels.test_rope import raw

__all__ = ["forget_compiled", "launching"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

ROWS = 7
PLACES: dict[str, Any] = {
    "repeated": [3, 3, 0, 3],
    "reversed, up to the last row": [6, 5, 4, 3],
    "of each batch": [[0, 1, 2, 3], [6, 2, 2, 0]],
    "of one batch": [[4, 5, 6, 0]],
}
CHOICES = [(False, 6), (False, 4), (True, 6), (True, 2)]


def tensors(
    columns: int, dtypes: tuple[torch.dtype, ...] = (torch.float32,) * 4, table: tuple[int, ...] = (ROWS,)
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    shapes = (2, 3, 4, 6), (2, 1, 4, 6), (*table, columns // 2), (*table, columns // 2)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(d) for s, d in zip(shapes, dtypes, strict=True)]


def placed(name: str, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Positions as a view with gaps."""
    made = torch.tensor(PLACES[name], dtype=dtype)
    return torch.stack([made, torch.full_like(made, 99)], dim=-1)[..., 0]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(("interleaved", "columns"), CHOICES)
def test_a_row_is_turned_by_the_table_row_at_its_position(name: str, interleaved: bool, columns: int):
    q, k, cos, sin = tensors(columns)
    positions = placed(name)
    outputs = rope(q, k, cos, sin, interleaved=interleaved, rotary_dim=columns, positions=positions)
    for b in range(2):
        own = positions.expand(2, 4)[b]
        one = [x[b : b + 1] for x in (q, k)]
        expected = rope(*one, cos[own], sin[own], interleaved=interleaved, rotary_dim=columns)
        assert all(torch.equal(out[b : b + 1], x) for out, x in zip(outputs[:2], expected[:2], strict=True))
    assert [x.data_ptr() for x in outputs[2:]] == [cos.data_ptr(), sin.data_ptr()]
    assert [x.shape for x in outputs[2:]] == [cos.shape, sin.shape]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", PLACES)
def test_the_kernel_gives_the_bits_and_strides_of_its_twin_at_positions(
    launching: Engine, name: str, dtype: torch.dtype
):
    mixes = [(d,) * 4 for d in TL_DTYPES] + [(torch.bfloat16, torch.float32, torch.float16, torch.float32)]
    for mix, (interleaved, columns) in itertools.product(mixes, CHOICES):
        given, positions = tensors(columns, mix), placed(name, dtype)
        ours = rope(*given, interleaved=interleaved, rotary_dim=columns, positions=positions)
        assert same(ours, reference.rope_placed(*given, interleaved, columns, positions))
    assert not launching.accesses
    assert len(launching.launches) == len(mixes) * len(CHOICES)


@pytest.mark.parametrize("table", [(2, ROWS), (1, ROWS), (2, 4), (2, 1)])
@pytest.mark.parametrize(("interleaved", "columns"), CHOICES)
def test_tables_of_each_batch_turn_their_batch_alone(
    launching: Engine, table: tuple[int, ...], interleaved: bool, columns: int
):
    q, k, cos, sin = tensors(columns, table=table)
    outputs = rope(q, k, cos, sin, interleaved=interleaved, rotary_dim=columns)
    assert same(outputs, reference.rope_placed(q, k, cos, sin, interleaved, columns, None))
    for b in range(2):
        c, s = (t[b % table[0]] for t in (cos, sin))
        expected = rope(q[b : b + 1], k[b : b + 1], c, s, interleaved=interleaved, rotary_dim=columns)
        assert all(torch.equal(out[b : b + 1], x) for out, x in zip(outputs[:2], expected[:2], strict=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_position_that_a_table_lacks_is_not_read_and_gives_nan(launching: Engine, dtype: torch.dtype):
    q, k, cos, sin = tensors(6)
    for wrong in (-1, ROWS, torch.iinfo(dtype).max, torch.iinfo(dtype).min):
        positions = torch.tensor([0, wrong, 1, 2], dtype=dtype)
        ours = rope(q, k, cos, sin, positions=positions)
        assert bool(ours[0][:, :, 1].isnan().all())
        assert not bool(ours[0][:, :, [0, 2, 3]].isnan().any())
        assert same(ours, reference.rope_placed(q, k, cos, sin, False, 6, positions))
    assert not launching.accesses


def gradients(function: Any, given: list[torch.Tensor], cotangents: list[torch.Tensor]) -> Any:
    leaves = [x.detach().requires_grad_() for x in given]
    return torch.autograd.grad(function(*leaves)[:2], leaves, cotangents)


@pytest.mark.parametrize("case", [*PLACES, "no row of the table", (2, ROWS), (1, ROWS), (2, 1), (2, 4)], ids=str)
@pytest.mark.parametrize(("interleaved", "columns"), CHOICES)
def test_gradients_are_the_twins_and_the_same_bits_each_time(
    launching: Engine, case: Any, interleaved: bool, columns: int
):
    given = tensors(columns, (torch.float64,) * 4, (ROWS,) if isinstance(case, str) else case)
    positions = None
    if isinstance(case, str):
        positions = placed(case) if case in PLACES else torch.tensor([0, -1, 99, 6])
    cotangents = [torch.randn_like(x) for x in given[:2]]

    def ours(*x: torch.Tensor) -> Any:
        return rope(*x, interleaved=interleaved, rotary_dim=columns, positions=positions)

    truth = gradients(lambda *x: reference.rope_placed(*x, interleaved, columns, positions), given, cotangents)
    found = gradients(ours, given, cotangents)
    for mine, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)
    assert [raw(x) for x in found] == [raw(x) for x in gradients(ours, given, cotangents)]
    assert not launching.accesses


BAD: dict[str, tuple[Any, tuple[int, ...], type[Exception], str]] = {
    "floats": (torch.zeros(4), (ROWS,), TypeError, "int32 or int64, not torch.float32"),
    "a list": ([0, 1, 2, 3], (ROWS,), TypeError, "positions must be a strided torch.Tensor or None, not list"),
    "too few": (torch.zeros(3, dtype=torch.int32), (ROWS,), ValueError, r"positions must be \(4,\) or \(B, 4\)"),
    "a scalar": (torch.tensor(1), (ROWS,), ValueError, "positions must be"),
    "three batches": (torch.zeros(3, 4, dtype=torch.int32), (ROWS,), ValueError, "positions of 3 batches"),
    "both": (torch.zeros(4, dtype=torch.int32), (2, ROWS), ValueError, "tables of 2 dimensions, not of 3"),
    "tables of three batches": (None, (3, ROWS), ValueError, "cos of 3 batches"),
    "tables of too few rows": (None, (2, 3), ValueError, "too few rows"),
    "tables of four dimensions": (None, (1, 2, ROWS), ValueError, "must have 2 dimensions"),
}


@pytest.mark.parametrize(("positions", "table", "error", "message"), BAD.values(), ids=BAD)
def test_bad_positions_and_tables_raise(
    launching: Engine, positions: Any, table: tuple[int, ...], error: Any, message: str
):
    with pytest.raises(error, match=f"^rope: .*{message}"):
        rope(*tensors(6, table=table), positions=positions)
    assert not launching.launches


def test_compiled_calls_with_positions_give_the_twins_answers(launching: Engine):
    compiled = torch.compile(lambda *x, p: rope(*x, positions=p), fullgraph=True, backend="aot_eager", dynamic=True)
    for name in ("repeated", "of each batch"):
        given, positions = tensors(6), placed(name)
        assert same(compiled(*given, p=positions), reference.rope_placed(*given, False, 6, positions))
