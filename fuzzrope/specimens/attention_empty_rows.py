"""Flaw: a row that sees no key becomes NaN (flash-attention 26d7d92f, FlashInfer #4401)."""

from fuzzrope.specimens.attention_tiled import TiledAttention


class ModelNew(TiledAttention):
    """See the module."""

    flaw = "empty rows"
