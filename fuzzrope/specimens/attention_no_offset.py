"""Flaw: rows of q are taken to be at positions 0, 1, ... (FlashInfer #847)."""

from fuzzrope.specimens.attention_tiled import TiledAttention


class ModelNew(TiledAttention):
    """See the module."""

    flaw = "q_offset ignored"
