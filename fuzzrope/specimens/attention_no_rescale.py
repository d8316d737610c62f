"""Flaw: the weighted sum is not rescaled when a larger score comes (a classic of online softmax)."""

from fuzzrope.specimens.attention_tiled import TiledAttention


class ModelNew(TiledAttention):
    """See the module."""

    flaw = "no rescale"
