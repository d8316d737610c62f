"""Fills its temporary directory, a megabyte a file, on sequences of two."""

import itertools
import tempfile
from pathlib import Path

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        for number in itertools.count():
            Path(tempfile.gettempdir(), str(number)).write_bytes(b"x" * 2**20)
