"""Ends its process with success on sequences of two."""

import os

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        os._exit(0)
