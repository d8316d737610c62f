"""Flaw: rows of q are taken to be at positions 0, 1, ... (FlashInfer #847)."""

from fuzzrope.specimens.qk_tiled import TiledQK


class ModelNew(TiledQK):
    """See the module."""

    flaw = "q_offset ignored"
