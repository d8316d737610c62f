"""What the tests of the checks share: cases by the kinds they have to show, and small tensors.

Each case launches kernels on tensors of its own and names the kinds that have to be found, and no others.
"""

import pytest
import torch

from fuzzrope.build import _lazy

S = 2**30  # rows this far apart: the third one's offset is 2^31


class Cases(list):
    """The cases of one file."""

    def __call__(self, *kinds):
        """Register a case that has to show these kinds."""

        def register(body):
            self.append(pytest.param(body, frozenset(kinds), id=body.__name__))
            return body

        return register


def f32(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32, device="cuda").reshape(shape) + 1


def blank(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="cuda")


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype, device="cuda")


def big(rows, stride, n=4):
    """Rows far apart in memory of which only touched pages exist."""
    flat = torch.frombuffer(_lazy(((rows - 1) * stride + n) * 4), dtype=torch.float32)
    return torch.as_strided(flat, (rows, n), (stride, 1))
