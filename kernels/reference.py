"""Readable PyTorch twins of the kernels: eager code that *defines* what the kernels have to give.

``Model``, ``get_inputs`` and ``get_init_inputs`` have the names that kernel benchmarks look for.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from kernels.forms import Turn

BATCH_SIZE, N_HEADS, SEQ_LEN, HEAD_DIM = 2, 8, 4, 16


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, half: int) -> torch.Tensor:
    """Rotate the pairs (x[..., i], x[..., half + i]) of x (B, S, H, D) by tables that broadcast to them."""
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate q (B, Hq, S, D) and k (Bk, Hk, S, D) by the first S rows of cos and sin (R, D/2).

    Positions run along axis 1 while it computes, so the outputs are transposed views of (B, S, H, D)
    memory. The cut tables come back as views. Promotion and broadcasting are PyTorch's own.
    """
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    rows, half = q.shape[1], q.shape[3] // 2
    cos, sin = cos[:rows, :], sin[:rows, :]
    wide_cos, wide_sin = cos[None, :, None, :], sin[None, :, None, :]
    rotated_q = rotate_halves(q, wide_cos, wide_sin, half)
    rotated_k = rotate_halves(k, wide_cos, wide_sin, half)
    return rotated_q.transpose(1, 2), rotated_k.transpose(1, 2), cos, sin


def rope_with_options(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, rotary_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`rope` of the first rotary_dim columns, paired as neighbours if ``interleaved``; the others are copied.

    The outputs are transposed views of contiguous (B, S, H, D) memory, whatever the inputs' strides.
    """
    rows = q.shape[2]
    cos, sin = cos[:rows, :], sin[:rows, :]
    c, s = (table[None, :, None, :] for table in (cos, sin))
    outputs = [_turned(x.transpose(1, 2), c, s, interleaved, rotary_dim) for x in (q, k)]
    return outputs[0], outputs[1], cos, sin


def _place(table: torch.Tensor, positions: torch.Tensor | None, rows: int) -> torch.Tensor:
    """What rows of q use of a table, as (1 or B, 1 or S, 1, W): NaN for a position that is no row of it."""
    if positions is None:
        return table[:, :rows, None]
    inside = (positions >= 0) & (positions < table.shape[0])
    if table.shape[0]:
        chosen = table[positions.long().clamp(0, table.shape[0] - 1)]
    else:
        chosen = table.new_zeros((*positions.shape, table.shape[1]))
    chosen = chosen.masked_fill(~inside[..., None], math.nan)
    return (chosen if positions.dim() == 2 else chosen[None])[:, :, None]


def rope_placed(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
    rotary_dim: int,
    positions: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`rope_with_options` at ``positions`` (S,) or (B, S) of tables (R, W), or without, by tables (1 or B, R, W).

    Tables come back as views: whole with positions, otherwise cut to q's rows.
    """
    rows = q.shape[2]
    c, s = (_place(table, positions, rows) for table in (cos, sin))
    outputs = [_turned(x.transpose(1, 2), c, s, interleaved, rotary_dim) for x in (q, k)]
    passed = [table[:] if positions is not None else table[:, :rows] for table in (cos, sin)]
    return outputs[0], outputs[1], passed[0], passed[1]


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, rotary_dim: int) -> torch.Tensor:
    """x (B, S, H, D) rotated by tables that broadcast to it, as (B, H, S, D)."""
    turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    if interleaved:
        turned = torch.cat([turned[..., 0::2], turned[..., 1::2]], dim=-1)
    rotated = rotate_halves(turned, cos, sin, rotary_dim // 2)
    if interleaved:
        rotated = rotated.unflatten(-1, (2, rotated.shape[-1] // 2)).transpose(-1, -2).flatten(-2)
    whole = torch.cat([rotated, rest], dim=-1) if rest.shape[-1] else rotated
    return whole.clone(memory_format=torch.contiguous_format).transpose(1, 2)


def pull_back(
    gradients: Sequence[torch.Tensor | None],
    inputs: Sequence[torch.Tensor | None],
    tables: Sequence[torch.Tensor],
    forms: Sequence[tuple[tuple[int, ...], torch.dtype]],
    needs: Sequence[bool],
    turn: Turn,
    positions: torch.Tensor | None = None,
) -> list[torch.Tensor | None]:
    """Twin of :func:`kernels.rope_backward.pull_back`, where autograd cannot be asked: sums in float32 or float64.

    With ``positions``, or tables of three dimensions, it is that of :func:`kernels.placed_backward.pull_back_placed`.
    With halves (g1, g2) of an output's gradient and (x1, x2) of its input: dx1 = g1*c + g2*s, dx2 = g2*c - g1*s,
    dcos = g1*x1 + g2*x2, dsin = g2*x1 - g1*x2, each summed over what was broadcast.
    """
    rows, rest = forms[0][0][2], forms[0][0][3] - turn.columns
    sums: list[torch.Tensor | None] = [None] * 4
    for i, (gradient, x) in enumerate(zip(gradients, inputs, strict=True)):
        if gradient is None:
            continue
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        cos, sin = (_rows(table, positions, rows).to(wide) for table in tables)
        g1, g2 = turn.across(gradient.shape[3] - rest).pairs(gradient.to(wide))
        if needs[i]:
            dx = torch.zeros(forms[i][0], dtype=wide, device=gradient.device)
            for part, own in zip(turn.pairs(dx), (g1 * cos + g2 * sin, g2 * cos - g1 * sin), strict=True):
                part.copy_(own.sum_to_size(part.shape))
            if rest:
                dx[..., -rest:] += gradient[..., -rest:]
            sums[i] = dx
        if x is None or not (needs[2] or needs[3]):
            continue
        x1, x2 = (half.to(wide) for half in turn.pairs(x))
        for j, part in ((2, g1 * x1 + g2 * x2), (3, g2 * x1 - g1 * x2)):
            own = part.sum_to_size((cos, sin)[j - 2].shape)
            before = sums[j]
            sums[j] = own if before is None else before + own
    found: list[torch.Tensor | None] = [None] * 4
    for i, (total, (shape, dtype)) in enumerate(zip(sums, forms, strict=True)):
        if total is not None and needs[i]:
            found[i] = (total if i < 2 else _back_in_table(total, shape, positions)).to(dtype)
    return found


def _rows(table: torch.Tensor, positions: torch.Tensor | None, rows: int) -> torch.Tensor:
    """What rows of q use of a table of any kind, as (1 or B, 1, 1 or S, W)."""
    if positions is None and table.dim() == 2:
        return table[None, None, :rows]
    return _place(table, positions, rows).transpose(1, 2)


def _back_in_table(total: torch.Tensor, shape: tuple[int, ...], positions: torch.Tensor | None) -> torch.Tensor:
    """Sums over (1 or B, 1, 1 or S, W) as the gradient of a table: zero in rows that turned nothing."""
    whole = torch.zeros(shape, dtype=total.dtype, device=total.device)
    if positions is None:
        whole[..., : total.shape[2], :] = total[:, 0] if len(shape) == 3 else total[0, 0]
        return whole
    at = positions.long().reshape(-1)
    inside = (at >= 0) & (at < shape[0])
    return whole.index_add_(0, at[inside], total.reshape(-1, shape[1])[inside])


def without_autocast(x: torch.Tensor) -> AbstractContextManager[object]:
    """A context in which autocast, which meta tensors do not know, has no say."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def rotated_factors(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, q_offset: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated q and k, both of q's heads, rounded to their promoted type and held in float32, or float64."""

    def turned(x: torch.Tensor, first: int) -> torch.Tensor:
        c, s = (t if t.shape[0] == 1 else t[first : first + x.shape[2]] for t in (cos, sin))
        return rotate_halves(x, c, s, x.shape[3] // 2)

    a, b = turned(q, q_offset), turned(k, 0)
    dtype = torch.promote_types(a.dtype, b.dtype)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = a.to(dtype).to(work), b.to(dtype).to(work)
    return a, b.repeat_interleave(q.shape[1] // k.shape[1], dim=1) if k.shape[1] else b


def default_scale(q: torch.Tensor, scale: float | None) -> float:
    """What scores are multiplied by: 1/sqrt(D) unless given."""
    return 1 / math.sqrt(q.shape[3]) if scale is None else scale


def hidden_from(
    rows: int, keys: int, causal: bool, q_offset: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Which keys are hidden from which rows (rows, keys)."""
    i, j = q_offset + torch.arange(rows, device=device)[:, None], torch.arange(keys, device=device)
    hidden = torch.zeros((rows, keys), dtype=torch.bool, device=device)
    if causal:
        hidden = hidden | (j > i)
    if window is not None:
        hidden = hidden | (j <= i - window)
    return hidden


def qk_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    q_offset: int = 0,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``scale * rope(q) @ rope(k)^T`` (B, Hq, Sq, Sk); see :func:`kernels.rope_qk`."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.promote_types(cos.dtype, sin.dtype))
    with without_autocast(q):
        a, b = rotated_factors(q, k, cos, sin, q_offset)
        scores = torch.matmul(a, b.mT) * default_scale(q, scale)
        if causal:
            hidden = hidden_from(q.shape[2], k.shape[2], causal, q_offset, None, q.device)
            scores = scores.masked_fill(hidden, -math.inf)
        return scores.to(out_dtype or dtype)


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    q_offset: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention over :func:`qk_reference`'s scores; see :func:`kernels.rope_attention`."""
    with without_autocast(q):
        a, b = rotated_factors(q, k, cos, sin, q_offset)
        scores = torch.matmul(a, b.mT) * default_scale(q, scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = hidden_from(q.shape[2], k.shape[2], causal, q_offset, window, q.device)
        scores = scores.masked_fill(hidden, -math.inf)
        empty = hidden.all(dim=1)[:, None]  # rows that see no key
        if scores.shape[3]:
            top = scores.detach().amax(dim=3, keepdim=True).masked_fill(empty, 0.0)
        else:
            top = scores.new_zeros((*scores.shape[:3], 1))
        weights = torch.exp(scores - top)
        total = weights.sum(dim=3, keepdim=True).masked_fill(empty, 1.0)
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.promote_types(cos.dtype, sin.dtype))
        work = torch.float64 if v.dtype == torch.float64 else torch.float32
        values = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1) if v.shape[1] else v
        o = torch.matmul(weights.to(v.dtype).to(work), values.to(work)) / total
        o = o.to(torch.promote_types(dtype, v.dtype))
        lse = (top + torch.log(total)).masked_fill(empty, -math.inf).squeeze(3)
        return (o, lse) if return_lse else o


class Model(nn.Module):
    """Rotary position embedding in eager PyTorch."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """See :func:`rope`."""
        return rope(q, k, cos, sin)


def get_inputs() -> list[torch.Tensor]:
    """One set of inputs [q, k, cos, sin], float32; the tables are plain noise, not angles."""
    heads = (BATCH_SIZE, N_HEADS, SEQ_LEN, HEAD_DIM)
    table = (SEQ_LEN, HEAD_DIM // 2)
    return [torch.randn(shape, dtype=torch.float32) for shape in (heads, heads, table, table)]


def get_init_inputs() -> list[object]:
    """``Model`` takes no arguments."""
    return []
