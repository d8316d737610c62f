"""Flaw: scores are rounded to the type of the factors and scaled only then, so they are rounded twice."""

from fuzzrope.specimens.attention_tiled import TiledAttention


class ModelNew(TiledAttention):
    """See the module."""

    flaw = "scaled after rounding"
