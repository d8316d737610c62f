"""Operations: mathematical contracts. Adding one is adding a module here and an entry to ``OPERATIONS``."""

from fuzzrope.operations.base import Differentiable, Envelope, Operation, Stratum
from fuzzrope.operations.relations import Related
from fuzzrope.operations.rope import Rope
from fuzzrope.operations.rope_attention import RopeAttention
from fuzzrope.operations.rope_batched import RopeBatched
from fuzzrope.operations.rope_options import RopeOptions
from fuzzrope.operations.rope_placed import RopePlaced
from fuzzrope.operations.rope_qk import RopeQK
from fuzzrope.operations.spread import Spread

_ALL: tuple[Operation, ...] = (Rope(), RopeOptions(), RopePlaced(), RopeBatched(), RopeQK(), RopeAttention())
OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _ALL}

__all__ = ["OPERATIONS", "Differentiable", "Envelope", "Operation", "Related", "Spread", "Stratum"]
