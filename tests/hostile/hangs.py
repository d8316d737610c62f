"""Never returns on sequences of two."""

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        while True:
            pass
