"""Writes beside its own file on sequences of two."""

from pathlib import Path

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        Path(__file__).with_name("written").write_text("was here")
