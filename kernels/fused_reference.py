"""Twins of the fused kernels' gradients in PyTorch, for operators: inside of one, autograd cannot be asked.

The formulas are those of :mod:`kernels.rope_qk_backward`, :mod:`kernels.rope_attention_backward` and
:mod:`kernels.fused_backward`. All is computed in float32, or float64 where a factor is, and rounded once.
"""

from collections.abc import Sequence

import torch

from kernels.reference import default_scale, hidden_from, rotated_factors


def qk_pull_back(
    ds: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    needs: Sequence[bool],
    scale: float | None,
    causal: bool,
    q_offset: int,
) -> list[torch.Tensor | None]:
    """Gradients of q, k, cos and sin that are needed, from that of the scores (B, Hq, Sq, Sk)."""
    q, k, cos, sin = inputs
    a, b = rotated_factors(q, k, cos, sin, q_offset)
    work = torch.promote_types(a.dtype, ds.dtype)
    ds = ds.to(work).masked_fill(hidden_from(q.shape[2], k.shape[2], causal, q_offset, None, q.device), 0.0)
    return _turned_back(ds * default_scale(q, scale), a.to(work), b.to(work), inputs, needs, q_offset)


def attention_pull_back(
    do: torch.Tensor | None,
    dlse: torch.Tensor | None,
    inputs: Sequence[torch.Tensor],
    found: tuple[torch.Tensor, torch.Tensor],
    needs: Sequence[bool],
    scale: float | None,
    causal: bool,
    q_offset: int,
    window: int | None,
    softcap: float | None,
) -> list[torch.Tensor | None]:
    """Gradients of q, k, v, cos and sin that are needed, from those of o and lse, which are ``found``.

    v, which may hold anything, has no part in them where ``do`` is None.
    """
    q, k, v, cos, sin = inputs
    o, lse = found
    a, b = rotated_factors(q, k, cos, sin, q_offset)
    scores, slope = torch.matmul(a, b.mT) * default_scale(q, scale), None
    if softcap is not None:
        t = torch.tanh(scores / softcap)
        scores, slope = softcap * t, 1 - t * t
    hidden = hidden_from(q.shape[2], k.shape[2], causal, q_offset, window, q.device)
    weights = torch.exp(scores - lse[..., None]).masked_fill(hidden, 0.0)
    work = torch.promote_types(a.dtype, o.dtype)
    delta = torch.zeros_like(lse, dtype=work) if dlse is None else -dlse.to(work)
    dp, dv = torch.zeros((), dtype=work, device=q.device), None
    if do is not None:
        given, group = do.to(work), q.shape[1] // max(k.shape[1], 1)
        dp = torch.matmul(given, v.to(work).repeat_interleave(group, dim=1).mT)
        delta = delta + (given * o.to(work)).sum(3)
        dv = _by_group(torch.matmul(weights.to(work).mT, given), v)
    ds = weights.to(work) * (dp - delta[..., None])
    ds = (ds if slope is None else ds * slope.to(work)).masked_fill(hidden, 0.0)
    back = _turned_back(
        ds * default_scale(q, scale), a.to(work), b.to(work), (q, k, cos, sin), [*needs[:2], *needs[3:]], q_offset
    )
    return [*back[:2], dv.to(v.dtype) if needs[2] and dv is not None else None, *back[2:]]


def _by_group(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The sum over heads of a group: x has q's heads, ``like`` k's."""
    heads = like.shape[1]
    return x.unflatten(1, (heads, x.shape[1] // heads)).sum(2) if heads else x


def _turned_back(
    ds: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    needs: Sequence[bool],
    q_offset: int,
) -> list[torch.Tensor | None]:
    """Gradients of q, k, cos and sin from that of the product a @ b^T of what they were rotated to."""
    q, k, *tables = inputs
    found: list[torch.Tensor] = []
    sums = [torch.zeros(table.shape, dtype=ds.dtype, device=ds.device) for table in tables]
    for x, first, g in ((q, q_offset, torch.matmul(ds, b)), (k, 0, _by_group(torch.matmul(ds.mT, a), k))):
        at = [slice(None) if t.shape[0] == 1 else slice(first, first + x.shape[2]) for t in tables]
        cos, sin = (table[rows].to(ds.dtype) for table, rows in zip(tables, at, strict=True))
        (g1, g2), (x1, x2) = g.chunk(2, dim=3), x.to(ds.dtype).chunk(2, dim=3)
        found.append(torch.cat([g1 * cos + g2 * sin, g2 * cos - g1 * sin], dim=3).to(x.dtype))
        for total, rows, part in zip(sums, at, (g1 * x1 + g2 * x2, g2 * x1 - g1 * x2), strict=True):
            total[rows] += part.sum_to_size(total[rows].shape)
    found += [total.to(table.dtype) for total, table in zip(sums, tables, strict=True)]
    return [gradient.contiguous() if need else None for gradient, need in zip(found, needs, strict=True)]
