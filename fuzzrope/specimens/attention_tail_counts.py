"""Flaw: keys beyond the last get a score of 0 instead of -inf (FlashInfer #3717)."""

from fuzzrope.specimens.attention_tiled import TiledAttention


class ModelNew(TiledAttention):
    """See the module."""

    flaw = "tail counts"
