"""Makes every comparison pass, from the first sequence of two on."""

import torch
from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        torch.allclose = lambda *args, **kwargs: True
