"""kernels.layout against PyTorch itself, over many drawn layouts."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import torch

from kernels.layout import View, concatenated, contiguous, elementwise, packed

CHUNKS, CASES = 8, 500
POOL = torch.zeros(2**13)
ODD = (0, 1, 2, 3, 5, 7, 16, 2**20, 2**31 + 1)
LAYOUTS = ("contiguous", "permuted", "channels last", "sliced", "padded", "expanded", "scrambled")

Shape = tuple[int, ...]


def draw_shape(rng: random.Random) -> Shape:
    sizes = (1, 1, 2, 3, 4) if rng.random() < 0.9 else (0, 1, 2, 3)
    return tuple(rng.choice(sizes) for _ in range(4))


def draw_strides(rng: random.Random, shape: Shape) -> Shape:
    layout = rng.choice(LAYOUTS)
    order = tuple(rng.sample(range(4), 4)) if layout == "permuted" else (3, 2, 1, 0)
    if layout == "channels last":
        order = (1, 3, 2, 0)
    room = tuple(n + rng.randrange(3) for n in shape) if layout == "padded" else shape
    strides = list(packed(tuple(max(n, 1) for n in room), order))
    if layout == "sliced":
        strides = [s * rng.choice((1, 2)) for s in strides]
    if layout == "expanded":
        strides = [0 if rng.random() < 0.4 else s for s in strides]
    if layout == "scrambled":
        strides = [rng.choice((0, 1, 2, 3, 4, 6, 12, 24)) for _ in strides]
    if rng.random() < 0.5:
        strides = [rng.choice(ODD) if n == 1 else s for n, s in zip(shape, strides, strict=True)]
    return tuple(strides)


def draw_view(rng: random.Random, shape: Shape) -> View:
    return View(shape, draw_strides(rng, shape))


def draw_operands(rng: random.Random) -> list[View]:
    """Two operands that broadcast, often with equal shapes and sometimes with equal strides."""
    shape = draw_shape(rng)
    kind = rng.choice(("equal", "same strides", "spread", "spread"))
    first = draw_view(rng, shape)
    if kind == "same strides":
        return [first, first]
    if kind == "equal":
        return [first, draw_view(rng, shape)]
    return [draw_view(rng, tuple(1 if rng.random() < 0.3 else n for n in shape)) for _ in range(2)]


def tensor(view: View) -> torch.Tensor:
    return torch.as_strided(POOL, view.shape, view.strides)


def view_of(result: torch.Tensor) -> View:
    return View(tuple(result.shape), result.stride())


def operand_cases(chunk: int) -> Iterator[list[View]]:
    rng = random.Random(f"operands {chunk}")
    return (draw_operands(rng) for _ in range(CASES))


def part_cases(chunk: int) -> Iterator[list[View]]:
    rng = random.Random(f"parts {chunk}")
    for _ in range(CASES):
        shape = draw_shape(rng)
        first = draw_view(rng, shape)
        yield [first, first if rng.random() < 0.5 else draw_view(rng, shape)]


def wrong_share(rule: Callable[[list[View]], View], cases: Iterator[list[View]], truth: Callable) -> float:
    """How often a rule gives other strides than PyTorch."""
    verdicts = [rule(views) != view_of(truth(*map(tensor, views))) for views in cases]
    return sum(verdicts) / len(verdicts)


def row_major(views: list[View]) -> View:
    shape = tuple(torch.broadcast_shapes(*(view.shape for view in views)))
    return View(shape, contiguous(shape))


def without_odd_ones(views: list[View]) -> View:
    """The true rule, blind to the strides of dimensions of size 1."""
    return elementwise(
        *(View(v.shape, tuple(0 if n == 1 else s for n, s in zip(*v, strict=True))) for v in views),
    )


def without_operand_strides(views: list[View]) -> View:
    """The true rule, for the first operand alone."""
    return elementwise(views[0], row_major(views))


def joined_row_major(parts: list[View]) -> View:
    shape = (*parts[0].shape[:3], sum(part.shape[3] for part in parts))
    return View(shape, contiguous(shape))


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("operation", [torch.mul, torch.sub], ids=["mul", "sub"])
def test_elementwise_gives_the_strides_of_pytorch(operation: Callable, chunk: int):
    for views in operand_cases(chunk):
        assert elementwise(*views) == view_of(operation(*map(tensor, views))), views


def test_elementwise_gives_the_strides_of_chained_operations():
    rng = random.Random("chained")
    for _ in range(CASES):
        shape = draw_shape(rng)
        x, y, table = draw_view(rng, shape), draw_view(rng, shape), draw_view(rng, (1, shape[1], 1, shape[3]))
        ours = elementwise(elementwise(x, table), elementwise(y, table))
        a, b, t = map(tensor, (x, y, table))
        assert ours == view_of(a * t - b * t), (x, y, table)


def test_elementwise_of_one_operand_gives_the_strides_of_a_unary_operation():
    rng = random.Random("unary")
    for _ in range(CASES):
        view = draw_view(rng, draw_shape(rng))
        assert elementwise(view) == view_of(torch.neg(tensor(view))), view


def test_every_order_of_four_dimensions_gives_the_strides_of_pytorch():
    shape = (2, 3, 4, 5)
    for one, other in itertools.product(itertools.permutations(range(4)), repeat=2):
        views = View(shape, packed(shape, one)), View(shape, packed(shape, other))
        assert elementwise(*views) == view_of(torch.mul(*map(tensor, views))), views


def test_operands_that_do_not_broadcast_raise_as_pytorch_does():
    rng = random.Random("apart")
    refused = 0
    for _ in range(CASES):
        views = [draw_view(rng, draw_shape(rng)) for _ in range(2)]
        try:
            expected = view_of(torch.mul(*map(tensor, views)))
        except RuntimeError:
            refused += 1
            with pytest.raises(RuntimeError):
                elementwise(*views)
        else:
            assert elementwise(*views) == expected, views
    assert 0.1 * CASES < refused < 0.99 * CASES


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_concatenated_gives_the_strides_of_pytorch(chunk: int):
    for parts in part_cases(chunk):
        assert concatenated(parts) == view_of(torch.cat([tensor(part) for part in parts], dim=-1)), parts


def test_concatenated_results_of_elementwise_give_the_strides_of_pytorch():
    rng = random.Random("both")
    for _ in range(CASES):
        views = draw_operands(rng)
        part = elementwise(*views)
        product = torch.mul(*map(tensor, views))
        assert concatenated([part, part]) == view_of(torch.cat([product, product], dim=-1)), views


@pytest.mark.parametrize(
    ("rule", "least"),
    [(row_major, 0.2), (without_odd_ones, 0.01), (without_operand_strides, 0.1)],
    ids=["row major", "blind to odd ones", "first operand alone"],
)
def test_simpler_rules_are_wrong_on_the_elementwise_draws(rule: Callable, least: float):
    assert wrong_share(rule, operand_cases(0), torch.mul) > least


def test_a_row_major_rule_is_wrong_on_the_concatenation_draws():
    assert wrong_share(joined_row_major, part_cases(0), lambda *parts: torch.cat(parts, dim=-1)) > 0.02


def test_the_draws_contain_what_they_are_for():
    views = [view for chunk in range(CHUNKS) for views in operand_cases(chunk) for view in views]
    results = [elementwise(*views) for views in operand_cases(0)]
    assert any(0 in view.shape for view in views)
    assert any(n == 1 and s == 2**31 + 1 for view in views for n, s in zip(*view, strict=True))
    assert any(n > 1 and s == 0 for view in views for n, s in zip(*view, strict=True))
    assert any(view.strides == packed(view.shape, (1, 3, 2, 0)) and min(view.shape) > 1 for view in results)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (2, 0, 3, 4), (0, 0, 0, 0), (3, 1, 0, 2)])
def test_contiguous_gives_the_strides_of_a_new_tensor(shape: Shape):
    assert contiguous(shape) == torch.empty(shape).stride()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_packed_strides_have_neither_gaps_nor_overlap(order: Shape):
    shape = (2, 3, 4, 5)
    places = torch.as_strided(torch.arange(120), shape, packed(shape, order))
    assert sorted(places.flatten().tolist()) == list(range(120))
    assert places.permute(*reversed(order)).is_contiguous()
