"""The contract of ``rope_attention``: softmax attention over the scores of ``rope_qk``, rotation inside.

q (B, Hq, Sq, D), k (B, Hk, Sk, D), v (B, Hk, Sk, Dv): o = softmax(scores) v, (B, Hq, Sq, Dv), contiguous, in the
promoted dtype of all five inputs. ``softcap`` c makes a score s into c tanh(s / c) before it is masked; masks are
those of :func:`.fused.visible`. A row that sees no key has o = 0 and lse = -inf. ``return_lse`` adds the natural
logarithm of the sum of exponentials (B, Hq, Sq), float32, or float64 where scores are float64.

What a masked key holds counts for nothing, but for one thing: where v of a masked key is NaN or infinite, a
product of tiles multiplies it by zero, so NaN is allowed there too.
"""

from __future__ import annotations

import torch

from fuzzrope.case import Case
from fuzzrope.operations import attention_envelopes, attention_gradients, fused
from fuzzrope.operations.base import NO_OPTIONS, Envelope, Options, Tensors
from fuzzrope.operations.fused_operation import FusedOperation

OPTIONS = ("scale", "causal", "q_offset", "window", "softcap", "return_lse", "precision")
MAX_CAP = 2.0**20


class RopeAttention(FusedOperation):
    """Softmax attention with rotated queries and keys."""

    name = "rope_attention"
    inputs: tuple[str, ...] = ("q", "k", "v", "cos", "sin")

    def results(self, options: Options) -> tuple[str, ...]:
        """o, and lse where it is asked for."""
        return ("o", "lse") if options.get("return_lse", False) else ("o",)

    def rejects(self, case: Case) -> str | None:
        """What :func:`.fused.rejects` says, and what v, window and softcap have to be."""
        options = dict(case.options)
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            return f"{unknown[0]} is no option"
        reason = fused.rejects(case)
        if reason is None and case["v"].shape[:3] != case["k"].shape[:3]:
            reason = "v and k differ in batch, heads or length"
        window, cap = options.get("window"), options.get("softcap")
        if reason is None and window is not None:
            whole = isinstance(window, int) and not isinstance(window, bool) and window > 0
            reason = f"window {window!r} is no positive integer" if not whole else None
            if whole and not options.get("causal", False):
                reason = "window needs causal"
        if reason is None and cap is not None and not (isinstance(cap, (int, float)) and 0 < cap <= MAX_CAP):
            reason = f"softcap {cap!r} is not positive and of reasonable size"
        if reason is None and not isinstance(options.get("return_lse", False), bool):
            reason = "return_lse is no bool"
        return reason

    def reference(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, torch.Tensor]:
        """Eager PyTorch: explicit scores, softmax in their working type, weights rounded to v's type."""
        q, v = tensors["q"], tensors["v"]
        s = fused.reference_scores(tensors, options)
        cap = options.get("softcap")
        seen = torch.from_numpy(fused.visible(options, s.shape[2], s.shape[3]))
        if cap is not None:  # masked before, or the gradient of tanh would multiply its zero by what is masked
            s = cap * torch.tanh(s.masked_fill(~seen, 0.0) / cap)
        s = s.masked_fill(~seen, -torch.inf)
        dtype = torch.promote_types(fused.dot_dtype(tensors), v.dtype)
        if v.shape[1]:
            v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        if not s.shape[3]:  # sums of nothing, so that there is a graph
            o = torch.matmul(s.to(v.dtype), v).to(dtype)
            return {"o": o, "lse": s.sum(dim=3) - torch.inf}
        any_key = seen.any(dim=1)[:, None]
        # Whatever is subtracted cancels, and so does its gradient; where nothing is seen, -inf - -inf would be NaN.
        top = s.detach().amax(dim=3, keepdim=True).masked_fill(~any_key, 0.0)
        weights = torch.exp(s - top)
        total = torch.where(any_key, weights.sum(dim=3, keepdim=True), 1.0)
        work = fused.work_dtype(v.dtype)
        o = torch.matmul(weights.to(v.dtype).to(work), v.to(work)) / total
        o = torch.where(any_key, o, 0.0)
        lse = (top + torch.log(total)).squeeze(3)
        return {"o": o.to(dtype), "lse": torch.where(any_key[:, 0], lse, -torch.inf)}

    def envelopes(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, Envelope]:
        """See :mod:`.attention_envelopes`."""
        return attention_envelopes.envelopes(tensors, options)

    def gradients(
        self, tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], options: Options = NO_OPTIONS
    ) -> dict[str, Envelope]:
        """See :mod:`.attention_gradients`."""
        return attention_gradients.gradients(tensors, cotangents, requires, options)
