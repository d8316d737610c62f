"""``torch.compile`` of the contract in eager PyTorch, by Inductor: C++ on a CPU, Triton on a GPU.

Declared departure: none. It compiles anew for each kind of sizes, strides and dtypes, which takes seconds.
"""

from __future__ import annotations

import torch

torch._dynamo.config.recompile_limit = 100_000  # beyond it Dynamo runs what it was given as it is, and says nothing
torch._dynamo.config.accumulated_recompile_limit = 100_000


def eager(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The contract in PyTorch: x (B, H, S, D) turned by tables (S, D/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


@torch.compile(fullgraph=True)
def ModelNew(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (B, Hq, S, D) and k (Bk, Hk, Sk, D) rotated, and the S rows of the tables (R, D/2)."""
    cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
    return eager(q, cos, sin), eager(k, cos, sin), cos, sin
