"""Flaw: softcap is applied going forward and not differentiated going back."""

from fuzzrope.specimens.fused_differentiable import DifferentiableAttention


class ModelNew(DifferentiableAttention):
    """See the module."""

    flaw = "softcap forgotten"
