"""Flaw: the gradient of a head of k is that of the first head of q which uses it, not the sum over its group."""

from fuzzrope.specimens.fused_differentiable import DifferentiableQK


class ModelNew(DifferentiableQK):
    """See the module."""

    flaw = "first head of a group"
