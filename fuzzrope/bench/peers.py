"""Who is measured: one entry a peer. Adding one is adding an entry to ``PEERS``.

A peer makes a call for a row, which takes inputs and returns a tuple of results: rotated q and k; scores
(B, Hq, Sq, Sk) without a scale; or attention's o (B, Hq, Sq, D). In rows of ``backward`` autograd's pass through that
call is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from fuzzrope.bench.inputs import Inputs, hidden
from fuzzrope.bench.rows import COMPILED, FLEX, Row
from kernels import reference, rope, rope_attention, rope_qk
from kernels.early import can_be_early
from kernels.forms import Meta
from kernels.launch import TL_DTYPES
from kernels.layout import View
from kernels.outputs import promoted
from kernels.rope import tiles_of
from kernels.rope_launch import Launch, plan_launch

Tensor = torch.Tensor
Call = Callable[[Inputs], tuple[Tensor, ...]]
Make = Callable[[Row], Call]
Rotation = Callable[[Inputs], tuple[Tensor, Tensor]]
Finish = Callable[[Row], Callable[[Tensor, Tensor, Tensor], Tensor]]


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Attributes:
        name: unique within an operation.
        operation: the one it computes.
        make: imports, compiles and returns the call; what it or the call raises is a cell of its own.
        ours: it is the kernel whose speed is in question.
        rotates: it computes the whole row; else rotation is left out, for comparison.
        costly: it is for rows that ask for it by this word.
        decodes: it is for rows in which q has other rows than k.
        backward: it is for rows of ``backward``.
        forward: it is for the other rows.
    """

    name: str
    operation: str
    make: Make
    ours: bool = False
    rotates: bool = True
    costly: str = ""
    decodes: bool = False
    backward: bool = False
    forward: bool = True

    def serves(self, row: Row) -> bool:
        """Whether a row is for it."""
        direction = self.backward if row.group == "backward" else self.forward
        asked = not self.costly or self.costly in row.costly
        return self.operation == row.operation and direction and asked and (self.decodes or not row.decodes)


# Rotations


def eager(x: Inputs) -> tuple[Tensor, Tensor]:
    """Plain PyTorch."""
    q, k, *_ = reference.rope(x.q, x.k, x.cos, x.sin)
    return q, k


def ours(x: Inputs) -> tuple[Tensor, Tensor]:
    """``kernels.rope``, whose results lie in memory as eager PyTorch's."""
    q, k, *_ = rope(x.q, x.k, x.cos, x.sin)
    return q, k


def written(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel of ``kernels.rope`` with contiguous results, which products of matrices read without a copy.

    q and k (B, H, S, D) have one dtype, and tables (S, D/2) too. Without gradients.
    """
    out_q, out_k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    forms = [Meta.of(x) for x in (q, k, cos, sin, out_q, out_k)]
    _planned(q.device, *forms).run(q, k, cos, sin, out_q, out_k)
    return out_q, out_k


@lru_cache
def _planned(device: torch.device, q: Meta, k: Meta, cos: Meta, sin: Meta, *outs: Meta) -> Launch:
    c, s = View(cos.shape, cos.strides), View(sin.shape, sin.strides)
    launch = plan_launch([q, k], outs, c, s, tiles_of(outs, device), can_be_early(device))
    types = promoted(q.dtype, k.dtype, cos.dtype, sin.dtype)
    launch.constants.update({name: TL_DTYPES[dtype] for name, dtype in types.items()})
    return launch


def best(row: Row) -> Rotation:
    """:func:`written` for the whole row, in one launch, or two where q has other rows than k."""

    def together(x: Inputs) -> tuple[Tensor, Tensor]:
        return written(x.q, x.k, x.cos, x.sin)

    def apart(x: Inputs) -> tuple[Tensor, Tensor]:
        last = slice(row.offset, row.offset + row.rows)
        q, _ = written(x.q, x.k[:0, :, : row.rows], x.cos[last], x.sin[last])
        k, _ = written(x.k, x.q[:0], x.cos[: row.keys], x.sin[: row.keys])
        return q, k

    return apart if row.decodes else together


def compiled(row: Row) -> Rotation:
    """Eager code through ``torch.compile``, once for the row's shape."""

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        turned_q, turned_k, *_ = reference.rope(q, k, cos, sin)
        return turned_q, turned_k

    made = torch.compile(rotate, fullgraph=True, dynamic=False)
    return lambda x: made(x.q, x.k, x.cos, x.sin)


def unfused(row: Row) -> Rotation:
    """One program a row, the design that many generated kernels share."""
    from fuzzrope.specimens.unfused_baseline import ModelNew

    model = ModelNew()

    def rotate(x: Inputs) -> tuple[Tensor, Tensor]:
        q, k, *_ = model(x.q, x.k, x.cos, x.sin)
        return q, k

    return rotate


def liger(row: Row) -> Rotation:
    """Liger-Kernel's RoPE; its tables are made wide beforehand."""
    from liger_kernel.ops.rope import LigerRopeFunction

    def rotate(x: Inputs) -> tuple[Tensor, Tensor]:
        q, k = LigerRopeFunction.apply(x.q, x.k, x.wide_cos, x.wide_sin)
        return q, k

    return rotate


def none(x: Inputs) -> tuple[Tensor, Tensor]:
    """q and k as they are."""
    return x.q, x.k


# What follows a rotation


def by_matmul(row: Row) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """cuBLAS: one batched product for each head of k, rows of its group side by side; copies what lies otherwise.

    What a causal row hides is written over afterwards.
    """
    masks: dict[torch.device, Tensor] = {}

    def scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = row.batch * row.kv_heads
        found = torch.bmm(q.reshape(heads, -1, row.width), k.reshape(heads, -1, row.width).mT)
        found = found.view(row.batch, row.heads, row.rows, row.keys)
        if not row.causal:
            return found
        if q.device not in masks:
            masks[q.device] = hidden(row, q.device)
        return found.masked_fill_(masks[q.device], -math.inf)

    return scores


def by_sdpa(backend: str) -> Finish:
    """PyTorch's attention with one of its backends, or with what it chooses itself ("")."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def finish(row: Row) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        # Its mask is that of a square: one row that comes last sees every key.
        options: dict[str, Any] = {"is_causal": row.causal and not row.decodes, "enable_gqa": row.group_size > 1}

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if not backend:
                return functional.scaled_dot_product_attention(q, k, v, **options)
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return functional.scaled_dot_product_attention(q, k, v, **options)

        return attention

    return finish


def by_flex(row: Row) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention, compiled for the row, with a mask of blocks where it is causal."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    made = torch.compile(flex_attention, dynamic=False)
    mask = create_block_mask(_sees, None, None, row.rows, row.keys, device="cuda") if row.causal else None

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Tensor = made(q, k, v, block_mask=mask, enable_gqa=row.group_size > 1)
        return found

    return attention


def _sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


# Peers


def then(rotation: Callable[[Row], Rotation], finish: Finish) -> Make:
    """A rotation, and what follows it, as two steps."""

    def make(row: Row) -> Call:
        rotate, end = rotation(row), finish(row)

        def call(x: Inputs) -> tuple[Tensor, ...]:
            q, k = rotate(x)
            return (end(q, k, x.v),)

        return call

    return make


def plain(rotation: Rotation) -> Callable[[Row], Rotation]:
    """A rotation that is the same for every row."""
    return lambda row: rotation


def _whole_scores(row: Row) -> Call:
    end = by_matmul(row)

    def scores(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned_q, turned_k, *_ = reference.rope(q, k, cos, sin)
        return end(turned_q, turned_k, turned_k)

    made = torch.compile(scores, fullgraph=True, dynamic=False)
    return lambda x: (made(x.q, x.k, x.cos, x.sin),)


def _our_scores(row: Row) -> Call:
    return lambda x: (rope_qk(x.q, x.k, x.cos, x.sin, scale=1.0, causal=row.causal, q_offset=row.offset),)


def _our_attention(row: Row) -> Call:
    def call(x: Inputs) -> tuple[Tensor, ...]:
        o = rope_attention(x.q, x.k, x.v, x.cos, x.sin, causal=row.causal, q_offset=row.offset)
        assert isinstance(o, Tensor)
        return (o,)

    return call


_CUDNN, _FLASH, _ANY = by_sdpa("CUDNN_ATTENTION"), by_sdpa("FLASH_ATTENTION"), by_sdpa("")

PEERS: tuple[Peer, ...] = (
    Peer("kernels.rope", "rope", plain(ours), ours=True, backward=True),
    Peer("eager", "rope", plain(eager), backward=True),
    Peer("torch.compile", "rope", compiled, costly=COMPILED, backward=True),
    Peer("unfused", "rope", unfused),
    Peer("Liger", "rope", liger, backward=True),
    Peer("kernels.rope_qk", "scores", _our_scores, ours=True, backward=True),
    Peer("kernels.rope + matmul", "scores", then(best, by_matmul)),
    Peer("kernels.rope + matmul", "scores", then(plain(ours), by_matmul), backward=True, forward=False),
    Peer("eager + matmul", "scores", then(plain(eager), by_matmul), backward=True),
    Peer("torch.compile", "scores", _whole_scores, costly=COMPILED),
    Peer("unfused + matmul", "scores", then(unfused, by_matmul)),
    Peer("Liger + matmul", "scores", then(liger, by_matmul)),
    Peer("matmul, no RoPE", "scores", then(plain(none), by_matmul), rotates=False, backward=True),
    Peer("kernels.rope_attention", "attention", _our_attention, ours=True, decodes=True, backward=True),
    Peer("kernels.rope + cuDNN", "attention", then(best, _CUDNN), decodes=True),
    Peer("kernels.rope + flash", "attention", then(best, _FLASH), decodes=True),
    Peer("kernels.rope + cuDNN", "attention", then(plain(ours), _CUDNN), backward=True, forward=False),
    Peer("kernels.rope + flash", "attention", then(plain(ours), _FLASH), backward=True, forward=False),
    Peer("kernels.rope + Flex", "attention", then(best, by_flex), costly=FLEX),
    Peer("eager + SDPA", "attention", then(plain(eager), _ANY), backward=True),
    Peer("compiled + cuDNN", "attention", then(compiled, _CUDNN), costly=COMPILED),
    Peer("unfused + cuDNN", "attention", then(unfused, _CUDNN)),
    Peer("Liger + cuDNN", "attention", then(liger, _CUDNN)),
    Peer("cuDNN, no RoPE", "attention", then(plain(none), _CUDNN), rotates=False, decodes=True, backward=True),
    Peer("flash, no RoPE", "attention", then(plain(none), _FLASH), rotates=False, decodes=True, backward=True),
)
