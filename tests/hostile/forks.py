"""Leaves a process behind in a session of its own, whose parent is gone, on sequences of two."""

import os
import time

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(300)
            os._exit(0)
