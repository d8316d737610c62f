"""Two layers as Llama has them, trained for a step: with eager rotation and attention, and with the fused kernel."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kernels import ModelNew, reference

# Importing PyTorch's compiler and tracing with it warns of its own parts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

VOCABULARY, HIDDEN, INNER, HEADS, HEADS_K, WIDTH, LAYERS, BATCH, LENGTH = 11, 24, 40, 4, 2, 6, 2, 2, 21

Attention = Callable[..., torch.Tensor]


def eager_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
    """Causal attention of rotated queries and keys, step by step."""
    q, k, *_ = reference.Model()(q, k, cos, sin)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    scores = (q @ k.mT / q.shape[3] ** 0.5).masked_fill(hidden, -torch.inf)
    return scores.softmax(dim=3) @ v


def fused_attention(*tensors: torch.Tensor) -> Any:
    return ModelNew().attention(*tensors, causal=True)


def scores_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
    """Rotation and product fused, softmax not."""
    scores = ModelNew().scores(q, k, cos, sin, causal=True)
    return scores.softmax(dim=3) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def with_other_groups(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *tables: torch.Tensor) -> Any:
    k, v = (x.repeat(1, HEADS // HEADS_K, 1, 1) for x in (k, v))
    return ModelNew().attention(q, k, v, *tables, causal=True)


WRONG: dict[str, Attention] = {
    "all keys are seen": lambda *x: ModelNew().attention(*x),
    "what comes out is scaled, not scores": lambda *x: ModelNew().attention(*x, scale=1.0, causal=True) / WIDTH**0.5,
    "scores are scaled twice": lambda *x: ModelNew().attention(*x, scale=1 / WIDTH, causal=True),
    "queries stand one position later": lambda *x: ModelNew().attention(*x, causal=True, q_offset=1),
    "the sine has the other sign": lambda q, k, v, c, s: ModelNew().attention(q, k, v, c, -s, causal=True),
    "rotated before, and once more": lambda q, k, v, c, s: ModelNew().attention(
        *ModelNew()(q, k, c, s)[:2], v, c, s, causal=True
    ),
    "heads of q and k are paired otherwise": with_other_groups,
    "of all keys the last 20 are seen": lambda *x: ModelNew().attention(*x, causal=True, window=LENGTH - 1),
}


class Layer(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.before, self.between = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
        self.q = nn.Linear(HIDDEN, HEADS * WIDTH, bias=False)
        self.k, self.v = (nn.Linear(HIDDEN, HEADS_K * WIDTH, bias=False) for _ in "kv")
        self.o = nn.Linear(HEADS * WIDTH, HIDDEN, bias=False)
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in "gu")
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        q, k, v = (project(y).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for project in (self.q, self.k, self.v))
        x = x + self.o(self.attention(q, k, v, cos, sin).transpose(1, 2).flatten(2))
        y = self.between(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Its tables of cosines and sines are learned, so that they have gradients too."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer(attention) for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)
        angles = torch.arange(LENGTH + 3.0)[:, None] / 10 ** torch.linspace(0, 2, WIDTH // 2)
        self.cos, self.sin = nn.Parameter(angles.cos()), nn.Parameter(angles.sin())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.head(self.norm(x))


def step(attention: Attention, dtype: torch.dtype, compiled: bool = False) -> dict[str, torch.Tensor]:
    """Logits, and the gradients of all parameters for guessing the next token; the weights are always the same."""
    torch.manual_seed(3)
    model = Llama(attention).to(dtype)
    with torch.no_grad():
        for layer in model.layers:
            layer.q.weight *= 4  # else attention is all but even, and a wrong one does not show
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    logits = run(tokens[:, :-1])
    functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {"logits": logits.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def worst(found: dict[str, torch.Tensor], allowed: Callable[[str], float], truth: dict[str, torch.Tensor]) -> float:
    """The largest root mean square error of anything, in units of what is allowed."""
    assert found.keys() == truth.keys()
    assert len(found) == 1 + 1 + LAYERS * 9 + 2 + 2
    return max(rms(found[name].double() - truth[name]) / allowed(name) for name in truth)


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def error_in_float32(attention: Attention, compiled: bool = False) -> float:
    """In units of eager float32's own error: another order of sums may err as much, not twice as much.

    Both are held against eager float64. Where eager errs by less than half an ulp, that is allowed.
    """
    truth, eager = (step(eager_attention, dtype) for dtype in (torch.float64, torch.float32))
    least = torch.finfo(torch.float32).eps / 2

    def allowed(name: str) -> float:
        return max(rms(eager[name].double() - truth[name]), least * rms(truth[name]))

    return worst(step(attention, torch.float32, compiled), allowed, truth)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("attention", [fused_attention, scores_attention])
def test_a_step_in_float32_errs_less_than_twice_as_much_as_the_eager_one(launching, attention, compiled):
    assert error_in_float32(attention, compiled) < 2
    kernels = {launch["kernel"] for launch in launching.launches}
    assert kernels >= {"query_gradient_kernel", "key_gradient_kernel"}
    assert kernels & {"attention_kernel", "qk_kernel"}


@pytest.mark.parametrize("attention", [fused_attention, scores_attention])
def test_a_step_in_float64_is_the_eager_one_but_for_roundings(launching, attention):
    truth = step(eager_attention, torch.float64)
    assert worst(step(attention, torch.float64), lambda name: 16 * 2.0**-52 * rms(truth[name]), truth) < 1
    assert launching.launches


@pytest.mark.parametrize("attention", WRONG.values(), ids=WRONG)
def test_a_step_with_wrong_attention_is_seen(launching, attention):
    assert error_in_float32(attention) > 100
