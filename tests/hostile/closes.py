"""Closes every file descriptor, the judge's among them, on sequences of two."""

import os

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        os.closerange(0, 200)
