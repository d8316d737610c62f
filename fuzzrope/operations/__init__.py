"""Operations: mathematical contracts. Adding one is adding a module here and an entry to ``OPERATIONS``."""

from fuzzrope.operations.base import Differentiable, Envelope, Operation, Stratum
from fuzzrope.operations.rope import Rope

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in (Rope(),)}

__all__ = ["OPERATIONS", "Differentiable", "Envelope", "Operation", "Stratum"]
