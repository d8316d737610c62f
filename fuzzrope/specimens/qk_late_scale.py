"""Flaw: scores are rounded to the type of the factors and scaled only then, so they are rounded twice."""

from fuzzrope.specimens.qk_tiled import TiledQK


class ModelNew(TiledQK):
    """See the module."""

    flaw = "scaled after rounding"
