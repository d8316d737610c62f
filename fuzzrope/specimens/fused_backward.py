"""Backward passes of ``rope_qk`` and ``rope_attention`` in plain PyTorch, in the manner of FlashAttention.

Weights are worked out anew from lse, nothing of size rows x keys is kept from the forward pass. A :class:`Manner`
says where it rounds; all of them are correct. FLAW names the one place where a specimen or a test is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a correct backward pass computes.

    Attributes:
        narrow: factors are rounded to the dtype of their product, as tensor cores want them.
        tf32: float32 factors are cut to 10 bits.
        double: everything is computed in float64.
        fresh: weights come from a softmax of their own, not from lse.
        summed: δ is the sum of weights times their gradients, not do · o.
        by_head: gradients of k and v are rounded for each head of q before those of a group are added.
        early: gradients of rotated rows are rounded before they are rotated back.
        reversed: sums over rows and keys run backwards, in two parts.
    """

    narrow: bool = True
    tf32: bool = False
    double: bool = False
    fresh: bool = False
    summed: bool = False
    by_head: bool = False
    early: bool = False
    reversed: bool = False


class Backward:
    """The backward pass for these inputs and options.

    Args:
        tensors: q, k, cos, sin, and v for attention; shapes and dtypes of the contract.
        options: those of the operation that differ from their defaults.
        manner: how it rounds.
        flaw: what is wrong with it.
    """

    def __init__(self, tensors: Tensors, options: Mapping[str, Any], manner: Manner, flaw: str = "") -> None:
        self.tensors, self.options, self.manner, self.flaw = tensors, options, manner, flaw
        q, k = tensors["q"], tensors["k"]
        self.dot = q.dtype
        for name in ("k", "cos", "sin"):
            self.dot = torch.promote_types(self.dot, tensors[name].dtype)
        self.work = self.wide(self.dot)
        self.offset = options.get("q_offset", 0)
        scale = options.get("scale")
        self.scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
        self.group = q.shape[1] // k.shape[1] if k.shape[1] else 1
        self.x = self.fed(self.rotated("q", self.offset), self.dot)
        self.y = self.fed(self.rotated("k", 0), self.dot).repeat_interleave(self.group, dim=1)
        self.seen = self.visible(1 if flaw == "causal off by one" else 0)

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """What products of this dtype are summed in."""
        return torch.float64 if self.manner.double or dtype == torch.float64 else torch.float32

    def fed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x as a factor of products of this dtype, in what they are summed in."""
        if self.manner.double:
            return x.double()
        x = (x.to(dtype) if self.manner.narrow else x).to(self.wide(dtype))
        cut = self.manner.tf32 and dtype == torch.float32
        return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32) if cut else x

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b."""
        if not self.manner.reversed:
            return a @ b
        half = a.shape[-1] // 2
        a, b = a.flip(-1), b.flip(-2)
        return a[..., half:] @ b[..., half:, :] + a[..., :half] @ b[..., :half, :]

    def visible(self, more: int) -> Tensor:
        """Which keys each row sees, bool (rows, keys)."""
        rows, keys = self.tensors["q"].shape[2], self.tensors["k"].shape[2]
        i = self.offset + torch.arange(rows, device=self.x.device)[:, None]
        j = torch.arange(keys, device=self.x.device)[None, :]
        seen = (j <= i + more) | torch.full_like(j > i, not self.options.get("causal", False))
        window = self.options.get("window")
        return seen if window is None else seen & (j > i - window)

    def table(self, name: str, first: int, rows: int) -> Tensor:
        """The rows of a table that serve positions from ``first`` on, (1 or rows, 1 or D/2), to compute with."""
        table = self.tensors[name]
        return (table if table.shape[0] == 1 else table[first : first + rows]).to(self.work)

    def rotated(self, name: str, first: int) -> Tensor:
        """q or k rotated, in the type that is computed in."""
        x = self.tensors[name].to(self.work)
        cos, sin = (self.table(table, first, x.shape[2]) for table in ("cos", "sin"))
        x1, x2 = x.chunk(2, dim=3)
        return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=3)

    def from_scores(self, ds: Tensor) -> dict[str, Tensor]:
        """Gradients of q, k, cos and sin from that of scaled scores (B, Hq, Sq, Sk)."""
        ds = self.fed(ds, self.dot)
        dx = self.product(ds, self.y) * (1.0 if self.flaw == "dq without scale" else self.scale)
        dy = self.grouped(self.product(ds.transpose(2, 3), self.x) * self.scale, self.dot)
        found: dict[str, Tensor] = {}
        tables = {name: torch.zeros_like(self.tensors[name], dtype=self.work) for name in ("cos", "sin")}
        for name, g, first in (("q", dx, self.offset), ("k", dy, 0)):
            if self.manner.early:
                g = g.to(self.dot).to(self.work)
            found[name] = self.rotated_back(name, g, first, tables)
        return found | {name: table.to(self.tensors[name].dtype) for name, table in tables.items()}

    def grouped(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Gradients of each head of q summed over those that use one of k."""
        x = x.to(dtype).to(x.dtype) if self.manner.by_head and not self.manner.double else x
        apart = x.reshape(x.shape[0], self.tensors["k"].shape[1], self.group, *x.shape[2:])
        return apart[:, :, 0] if self.flaw == "first head of a group" else apart.sum(dim=2)

    def rotated_back(self, name: str, g: Tensor, first: int, tables: dict[str, Tensor]) -> Tensor:
        """The gradient of q or k from that of its rotated rows, which adds to those of the tables."""
        x = self.tensors[name].to(self.work)
        cos, sin = (self.table(table, first, x.shape[2]) for table in ("cos", "sin"))
        (g1, g2), (x1, x2) = g.chunk(2, dim=3), x.chunk(2, dim=3)
        dsin = g1 * x2 - g2 * x1 if self.flaw == "sign of dsin" else g2 * x1 - g1 * x2
        for table, terms in (("cos", g1 * x1 + g2 * x2), ("sin", dsin)):
            whole = tables[table]
            part = whole if whole.shape[0] == 1 else whole[first : first + x.shape[2]]
            part += terms.sum_to_size(part.shape)
        return torch.cat([g1 * cos + g2 * sin, g2 * cos - g1 * sin], dim=3).to(self.tensors[name].dtype)

    def qk(self, g: Tensor) -> dict[str, Tensor]:
        """Gradients of ``rope_qk`` from the cotangent of its scores."""
        if self.flaw == "as if contiguous":
            g = torch.as_strided(g, g.shape, torch.empty(g.shape).stride(), g.storage_offset())
        return self.from_scores(g.to(self.work).masked_fill(~self.seen, 0.0))

    def attention(self, do: Tensor | None, dl: Tensor | None, o: Tensor, lse: Tensor) -> dict[str, Tensor]:
        """Gradients of ``rope_attention`` from the cotangents of o and lse, None where it is not used, and both."""
        v = self.tensors["v"]
        s, slope = self.product(self.x, self.y.transpose(2, 3)) * self.scale, None
        cap = self.options.get("softcap")
        if cap is not None:
            t = torch.tanh(s / cap)
            s, slope = cap * t, 1 - t * t
        weights = self.weights(s, lse.to(self.work))
        ds, found = torch.zeros_like(weights), {}
        if do is not None:
            values = self.fed(v, v.dtype).repeat_interleave(self.group, dim=1)
            given = self.fed(do, v.dtype)
            dp = self.product(given, values.transpose(2, 3)).to(self.work)
            kept = torch.exp(s - lse[..., None]).to(self.work) if self.flaw == "dv unmasked" else weights
            dv = self.product(self.fed(kept, v.dtype).transpose(2, 3), given)
            found["v"] = self.grouped(dv, v.dtype).to(v.dtype)
            delta = (weights * dp).sum(3) if self.manner.summed else (do.to(self.work) * o.to(self.work)).sum(3)
            ds = weights * (dp - (0.0 if self.flaw == "no delta" else delta[..., None]))
        if dl is not None:
            ds = ds + weights * dl.to(self.work)[..., None]
        if slope is not None and self.flaw != "softcap forgotten":
            ds = ds * slope
        return found | self.from_scores(ds.masked_fill(~self.seen, 0.0))

    def weights(self, s: Tensor, lse: Tensor) -> Tensor:
        """Softmax of scores, by lse or anew; zero where nothing is seen."""
        if not self.manner.fresh:
            return torch.exp(s - lse[..., None]).masked_fill(~self.seen, 0.0)
        masked = s.masked_fill(~self.seen, -math.inf)
        return torch.softmax(masked, dim=3).masked_fill(~self.seen.any(dim=1)[:, None], 0.0)
