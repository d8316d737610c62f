"""No flaw: other tiles than :mod:`.tiled`, 4 rows and 64 columns."""

from __future__ import annotations

import triton

from fuzzrope.specimens.tiled import TiledRope, rotate_tile


class _Tiles:
    """The kernel with tiles of its own, launched over as many rows."""

    def __getitem__(self, grid: tuple[int]):
        def run(**arguments):
            arguments |= {"BLOCK_R": 4, "BLOCK_W": 64}
            rotate_tile[(triton.cdiv(arguments["rows"], 4),)](**arguments)

        return run


class ModelNew(TiledRope):
    """See the module."""

    kernel = _Tiles()
