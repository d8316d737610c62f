"""The contract of ``rope_qk``: ``scale * rope(q) @ rope(k)^T``, neither factor ever stored.

q (B, Hq, Sq, D), k (B, Hk, Sk, D), Hq a multiple of Hk: head h of q meets head h // (Hq / Hk) of k. Positions,
tables and masks are those of :mod:`.fused`. The output (B, Hq, Sq, Sk) is contiguous; an entry that ``causal``
hides is -inf. Its dtype is ``out_dtype``, or the promoted one of the four inputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fuzzrope.build import DTYPES
from fuzzrope.case import FLOATS, Case
from fuzzrope.numbers import format_of
from fuzzrope.operations import fused, fused_gradients
from fuzzrope.operations.base import NO_OPTIONS, Envelope, Options, Tensors
from fuzzrope.operations.fused_operation import FusedOperation
from fuzzrope.operations.scores import scores

OPTIONS = ("scale", "causal", "q_offset", "out_dtype", "precision")


class RopeQK(FusedOperation):
    """Scores of rotated queries against rotated keys."""

    name = "rope_qk"
    inputs: tuple[str, ...] = ("q", "k", "cos", "sin")

    def results(self, options: Options) -> tuple[str, ...]:
        """The scores."""
        return ("scores",)

    def rejects(self, case: Case) -> str | None:
        """What :func:`.fused.rejects` says, options that are not the contract's, a strange ``out_dtype``."""
        options = dict(case.options)
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            return f"{unknown[0]} is no option"
        if options.get("out_dtype") is not None and options["out_dtype"] not in FLOATS:
            return f"out_dtype {options['out_dtype']} is no floating-point type"
        return fused.rejects(case)

    def reference(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, torch.Tensor]:
        """Eager PyTorch: rotate, multiply, scale, mask, round once."""
        found = fused.reference_scores(tensors, options)
        if options.get("causal", False):
            seen = torch.from_numpy(fused.visible(options, found.shape[2], found.shape[3]))
            found = found.masked_fill(~seen, -torch.inf)
        return {"scores": found.to(self.out_dtype(tensors, options))}

    def out_dtype(self, tensors: Tensors, options: Options) -> torch.dtype:
        """The dtype of the scores."""
        asked = options.get("out_dtype")
        return fused.dot_dtype(tensors) if asked is None else DTYPES[asked]

    def envelopes(self, tensors: Tensors, options: Options = NO_OPTIONS) -> dict[str, Envelope]:
        """See :mod:`.scores`; what is masked is -inf and nothing else."""
        envelope = scores(tensors, options, format_of(self.out_dtype(tensors, options)), 1.0)
        if not options.get("causal", False):
            return {"scores": envelope}
        rows, keys = tensors["q"].shape[2], tensors["k"].shape[2]
        heads = tensors["q"].shape[0] * tensors["q"].shape[1]
        hidden = np.broadcast_to(~fused.visible(options, rows, keys), (heads, rows, keys)).reshape(-1)
        if not hidden.any():
            return {"scores": envelope}
        masked = replace(
            envelope,
            finite=envelope.finite & ~hidden,
            nan=envelope.nan & ~hidden,
            positive=envelope.positive & ~hidden,
            negative=envelope.negative | hidden,
            tame=False,
        )
        return {"scores": masked}

    def gradients(
        self, tensors: Tensors, cotangents: Tensors, requires: tuple[str, ...], options: Options = NO_OPTIONS
    ) -> dict[str, Envelope]:
        """See :mod:`.fused_gradients`."""
        return fused_gradients.gradients(tensors, cotangents, requires, options)
