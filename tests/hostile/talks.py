"""Answers with ten gigabytes of its own on sequences of two."""

import json
import os
import struct
import sys

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        frame = sys._getframe()
        while "sock" not in frame.f_locals:
            frame = frame.f_back
        sock = frame.f_locals["sock"]
        header = json.dumps({"blobs": [10 * 2**30]}).encode()
        sock.sendall(struct.pack("<4sII", b"frp1", len(header), 1) + header)
        while True:
            sock.sendall(bytes(2**20))
            os.sched_yield()
