"""Asks for 200 GB on sequences of two."""

import torch
from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        torch.ones(200 * 10**9, dtype=torch.uint8)
