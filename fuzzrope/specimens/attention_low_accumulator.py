"""Flaw: sums are rounded to the type of the factors after every tile (a bf16 accumulator)."""

from fuzzrope.specimens.attention_tiled import TiledAttention


class ModelNew(TiledAttention):
    """See the module."""

    flaw = "low accumulator"
