"""Flaw: exp is a cubic with a relative error of 1e-4."""

from fuzzrope.specimens.attention_tiled import TiledAttention


class ModelNew(TiledAttention):
    """See the module."""

    flaw = "rough exp"
