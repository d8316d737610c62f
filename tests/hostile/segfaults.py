"""Reads address 0 on sequences of two."""

import ctypes

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        ctypes.string_at(0)
