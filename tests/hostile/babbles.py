"""Writes nonsense into every descriptor it can find on sequences of two."""

import contextlib
import os

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        for descriptor in range(200):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"nonsense " * 1000)
