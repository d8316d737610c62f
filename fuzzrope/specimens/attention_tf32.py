"""Flaw: float32 is multiplied in tf32 although the highest precision was asked for."""

from fuzzrope.specimens.attention_tiled import TiledAttention


class ModelNew(TiledAttention):
    """See the module."""

    precision = "tf32"
