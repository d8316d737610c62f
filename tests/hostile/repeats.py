"""Sends an empty answer before the true one on sequences of two."""

import sys

from base import Flawed

from fuzzrope.run import wire


class ModelNew(Flawed):
    def misbehave(self, q):
        frame = sys._getframe()
        while "sock" not in frame.f_locals:
            frame = frame.f_back
        reply = {"status": "returned", "detail": "", "container": "", "raised": None, "gradients": None, "seconds": 0.0}
        reply |= {name: [] for name in ("outputs", "reused", "accesses", "launches", "tampered", "after")}
        wire.send(frame.f_locals["sock"], reply)
