"""The contracts in eager PyTorch, short enough to be read in a script; a test holds them against ``operations``.

Tables cos and sin are (R, D/2); where rows are not chosen by ``positions``, row i of x (B, H, S, D) is turned by row i.
"""

import math
from functools import reduce

import torch
from torch import Tensor


def turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, rotary_dim: int | None = None) -> Tensor:
    """x (B, H, S, D) with its pairs of columns turned; tables broadcast against (B, H, S, D/2)."""
    width = x.shape[3] if rotary_dim is None else rotary_dim
    x, rest = x[..., :width], x[..., width:]
    x1, x2 = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., : width // 2], x[..., width // 2 :])
    pair = [x1 * cos - x2 * sin, x2 * cos + x1 * sin]
    whole = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat([whole, rest], dim=-1) if rest.shape[3] else whole


def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, rotary_dim: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q and k turned by the first S rows of the tables, S being q's, and those rows."""
    cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
    return turned(q, cos, sin, interleaved, rotary_dim), turned(k, cos, sin, interleaved, rotary_dim), cos, sin


def chosen(table: Tensor, positions: Tensor) -> Tensor:
    """The rows of a table that positions (S,) or (B, S) choose, (S, W) or (B, 1, S, W); NaN where it has none."""
    rows = torch.full((*positions.shape, table.shape[1]), float("nan"), dtype=table.dtype, device=table.device)
    inside = (positions >= 0) & (positions < table.shape[0])
    rows[inside] = table[positions[inside].long()]
    return rows[:, None] if positions.dim() == 2 else rows


def rope_placed(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q and k turned by the rows that positions choose, and the tables."""
    c, s = chosen(cos, positions), chosen(sin, positions)
    return turned(q, c, s), turned(k, c, s), cos, sin


def rope_batched(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q and k turned by the first S rows of the tables of their batch, (1 or B, R, W), and those rows."""
    cos, sin = cos[:, : q.shape[2]], sin[:, : q.shape[2]]
    c, s = cos[:, None], sin[:, None]
    return turned(q, c, s), turned(k, c, s), cos, sin


def promoted(*tensors: Tensor) -> torch.dtype:
    """The promoted dtype of them all."""
    return reduce(torch.promote_types, (x.dtype for x in tensors))


def scores(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float | None, q_offset: int) -> Tensor:
    """scale * rope(q) @ rope(k)^T, (B, Hq, Sq, Sk): factors rounded to their type, summed in float32 or float64.

    Row i of q has position q_offset + i, row j of k position j; one row of a table serves all.
    """
    cos_q, sin_q = (t if t.shape[0] == 1 else t[q_offset : q_offset + q.shape[2]] for t in (cos, sin))
    cos_k, sin_k = (t if t.shape[0] == 1 else t[: k.shape[2]] for t in (cos, sin))
    work = torch.promote_types(promoted(q, k, cos, sin), torch.float32)
    a, b = turned(q, cos_q, sin_q).to(work), turned(k, cos_k, sin_k).to(work)
    b = b.repeat_interleave(q.shape[1] // max(k.shape[1], 1), dim=1)
    return torch.matmul(a, b.transpose(2, 3)) * (1 / math.sqrt(q.shape[3]) if scale is None else float(scale))


def hidden(s: Tensor, causal: bool, q_offset: int, window: int | None = None) -> Tensor:
    """Which of the scores (B, H, Sq, Sk) are masked, as (Sq, Sk)."""
    rows, keys = (torch.arange(n, device=s.device) for n in s.shape[2:])
    at, j = rows[:, None] + q_offset, keys[None, :]
    masked = (j > at) if causal else torch.zeros(s.shape[2:], dtype=torch.bool, device=s.device)
    return masked if window is None else masked | (j <= at - window)


def rope_qk(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float | None = None,
    causal: bool = False,
    q_offset: int = 0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The scores; what is masked is -inf."""
    s = scores(q, k, cos, sin, scale, q_offset)
    s = s.masked_fill(hidden(s, causal, q_offset), -float("inf")) if causal else s
    return s.to(out_dtype or promoted(q, k, cos, sin))


def rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float | None = None,
    causal: bool = False,
    q_offset: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scores) @ v; a row that sees no key is 0, and the logarithm of its sum -inf."""
    s = scores(q, k, cos, sin, scale, q_offset)
    masked, kind = hidden(s, causal, q_offset, window), promoted(q, k, cos, sin, v)
    s = s if softcap is None else softcap * torch.tanh(s.masked_fill(masked, 0.0) / softcap)
    s = s.masked_fill(masked, -float("inf"))
    v = v.repeat_interleave(q.shape[1] // max(v.shape[1], 1), dim=1)
    if s.shape[3]:
        empty = masked.all(dim=1)[:, None]
        top = s.detach().amax(dim=3, keepdim=True).masked_fill(empty, 0.0)
        weights = torch.exp(s - top)
        total = torch.where(empty, 1.0, weights.sum(dim=3, keepdim=True))
        work = torch.promote_types(v.dtype, torch.float32)
        o = torch.where(empty, 0.0, torch.matmul(weights.to(v.dtype).to(work), v.to(work)) / total)
        lse = torch.where(empty[:, 0], -float("inf"), (top + torch.log(total)).squeeze(3))
    else:
        o, lse = torch.matmul(s.to(v.dtype), v), s.sum(dim=3) - float("inf")
    return (o.to(kind), lse) if return_lse else o.to(kind)
