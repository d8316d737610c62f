"""Raises SystemExit on sequences of two."""

import sys

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        sys.exit(0)
