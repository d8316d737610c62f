"""Flaw: the gradient of softmax without its second term: dS is P dP, not P (dP - do · o)."""

from fuzzrope.specimens.fused_differentiable import DifferentiableAttention


class ModelNew(DifferentiableAttention):
    """See the module."""

    flaw = "no delta"
