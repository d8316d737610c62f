"""How much of the bounds of the fused operations the reference uses up: ``python -m tests.tightness``.

Normal values, 32 rows and keys; error over bound, the median and the largest over all elements.
"""

import math

import numpy as np
import torch

from fuzzrope.case import FLOATS, Values
from fuzzrope.operations import OPERATIONS
from fuzzrope.values import expand

LENGTH = 32


def ratios(name: str, dtype: str, width: int, seeds: int) -> dict[str, np.ndarray]:
    """Error over bound of each output."""
    operation, found = OPERATIONS[name], {}
    rows, table = (1, 2, LENGTH, width), (LENGTH, width // 2)
    shapes = {"q": rows, "k": rows, "v": rows, "cos": table, "sin": table}
    options = {} if name == "rope_qk" else {"return_lse": True}
    for seed in range(seeds):
        tensors = {
            key: expand(Values("normal", 10 * seed + i), getattr(torch, dtype), math.prod(shapes[key])).view(
                shapes[key]
            )
            for i, key in enumerate(operation.inputs)
        }
        expected, envelopes = operation.reference(tensors, options), operation.envelopes(tensors, options)
        for output in operation.results(options):
            error = envelopes[output].exact.distance(expected[output].double().reshape(-1).numpy())
            found.setdefault(output, []).append(error / envelopes[output].bound)
    return {output: np.concatenate(parts) for output, parts in found.items()}


if __name__ == "__main__":
    for name in ("rope_qk", "rope_attention"):
        for dtype in FLOATS:
            for width in (16, 64, 128):
                for output, ratio in ratios(name, dtype, width, 5 if dtype != "float64" else 1).items():
                    print(f"{output:6} {dtype:9} D {width:3}  median {np.median(ratio):.4f}  largest {ratio.max():.4f}")
