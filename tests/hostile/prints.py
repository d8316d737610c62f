"""Correct, and prints a gigabyte on sequences of two, half of it to the error stream."""

import os

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        for _ in range(512):
            os.write(1, b"x" * 2**20)
            os.write(2, b"x" * 2**20)
