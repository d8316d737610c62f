"""Flaw: sums are rounded to the type of the factors after every tile (a bf16 accumulator)."""

from fuzzrope.specimens.qk_tiled import TiledQK


class ModelNew(TiledQK):
    """See the module."""

    flaw = "low accumulator"
