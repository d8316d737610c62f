"""Flaw: float32 is multiplied in tf32 although the highest precision was asked for."""

from fuzzrope.specimens.qk_tiled import TiledQK


class ModelNew(TiledQK):
    """See the module."""

    precision = "tf32"
