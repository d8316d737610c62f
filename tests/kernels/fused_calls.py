"""Calls of the fused kernels that several tests make: inputs of many layouts, and the options that go with them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from kernels import reference, rope_attention, rope_qk

LAYOUTS = ("contiguous", "transposed", "sliced", "expanded", "offset", "columns apart")


@dataclass
class Call:
    """One call by name of an operation: sizes, layouts and options; ``inputs`` makes its tensors anew each time."""

    name: str
    batch: int = 2
    heads: int = 2
    group: int = 1
    rows: int = 5
    keys: int = 7
    width: int = 6
    width_v: int = 5
    table: tuple[int, int] | None = None
    dtype: torch.dtype = torch.float32
    layouts: tuple[str, ...] = ("contiguous",)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return ("q", "k", "cos", "sin") if self.name == "rope_qk" else ("q", "k", "v", "cos", "sin")

    @property
    def ours(self) -> Callable:
        return rope_qk if self.name == "rope_qk" else rope_attention

    @property
    def twin(self) -> Callable:
        return reference.qk_reference if self.name == "rope_qk" else reference.attention_reference

    def inputs(self, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        needed = max(self.options.get("q_offset", 0) + self.rows, self.keys)
        table = self.table or (needed, self.width // 2)
        shapes = {"q": (self.batch, self.heads * self.group, self.rows, self.width), "cos": table, "sin": table}
        shapes |= {"k": (self.batch, self.heads, self.keys, self.width)}
        shapes |= {"v": (self.batch, self.heads, self.keys, self.width_v)}
        generator = torch.Generator().manual_seed(5)
        found = []
        for i, name in enumerate(self.names):
            x = torch.randn(shapes[name], generator=generator, dtype=torch.float64).to(self.dtype)
            found.append(laid_out(x.to(dtype or self.dtype), self.layouts[i % len(self.layouts)]))
        return found


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """x, or for ``expanded`` its first part spread, in memory of another form."""
    if layout == "transposed":
        return x.transpose(-2, -1).contiguous().transpose(-2, -1)
    if layout == "sliced":
        return torch.stack([x, x + 1], dim=-2).flatten(-3, -2)[..., ::2, :]
    if layout == "expanded":
        return x[:1].expand(x.shape) if x.shape[0] else x
    if layout == "offset":
        return torch.cat([torch.ones(3, dtype=x.dtype), x.flatten()])[3:].view(x.shape)
    if layout == "columns apart":
        return torch.stack([x, x - 1], dim=-1).flatten(-2)[..., ::2]
    return x


def tensors_of(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def drawn(name: str, count: int, seed: str) -> Iterator[Call]:
    """Calls that differ in everything."""
    rng = random.Random(f"{name} {seed}")
    for _ in range(count):
        options: dict[str, Any] = {}
        if rng.random() < 0.6:
            options["causal"] = True
        if rng.random() < 0.5:
            options["q_offset"] = rng.choice((1, 3, 9, 40))
        if rng.random() < 0.3:
            options["scale"] = rng.choice((0.3, -0.5, 1.0))
        if name == "rope_attention":
            options["return_lse"] = rng.random() < 0.7
            if options.get("causal") and rng.random() < 0.5:
                options["window"] = rng.choice((1, 2, 5, 30))
            if rng.random() < 0.4:
                options["softcap"] = rng.choice((0.7, 4.0))
        rows, keys, width = (
            rng.choice((1, 5, 17, 33)),
            rng.choice((0, 1, 7, 16, 40, 65)),
            rng.choice((2, 6, 16, 34, 66)),
        )
        needed = max(options.get("q_offset", 0) + rows, keys)
        table = rng.choice((None, None, (needed + 3, width // 2), (1, width // 2), (needed, 1), (1, 1)))
        yield Call(
            name, rng.choice((1, 2)), rng.choice((1, 2)), rng.choice((1, 1, 2, 3)), rows, keys, width,
            rng.choice((1, 5, 16, 34)), table, layouts=tuple(rng.choice(LAYOUTS) for _ in range(5)), options=options,
        )  # fmt: skip
