"""Operations: mathematical contracts. Adding one is adding a module here and an entry to ``OPERATIONS``."""

from fuzzrope.operations.base import Envelope, Operation, Stratum
from fuzzrope.operations.rope import Rope
from fuzzrope.operations.rope_attention import RopeAttention
from fuzzrope.operations.rope_qk import RopeQK

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in (Rope(), RopeQK(), RopeAttention())}

__all__ = ["OPERATIONS", "Envelope", "Operation", "Stratum"]
