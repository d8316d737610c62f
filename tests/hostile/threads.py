"""Leaves a thread running on sequences of two."""

import threading
import time

from base import Flawed


def idle():
    while True:
        time.sleep(0.01)


class ModelNew(Flawed):
    def misbehave(self, q):
        threading.Thread(target=idle, daemon=True).start()
