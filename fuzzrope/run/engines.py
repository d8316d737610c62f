"""The engines that run kernels on a CPU, by name."""

from __future__ import annotations

from typing import Any, Protocol

from fuzzrope.interpreter.engine import Unsupported

__all__ = ["BARE", "Engine", "Unsupported", "make_engine"]

#: In an engine's place: the CPU is one, no kernel runs, and nothing pretends to be a GPU.
BARE = "bare"


class Engine(Protocol):
    """What a child needs of an engine: it takes Triton's place, and remembers what launches did.

    Attributes:
        launches: name, grid and integer constexprs of each launch.
        accesses: what was noticed, by kind, kernel and source line.
        is_host: given by the child: tells tensors that a kernel may not touch.
        fresh: given by the child: the pattern that a storage (by first byte) held when allocated, or None.
        idle: given by the child: launches are counted and not executed.
    """

    launches: list[dict[str, Any]]
    accesses: dict[tuple[str, str, str], dict[str, Any]]
    is_host: Any
    fresh: Any
    idle: bool

    def install(self) -> None:
        """Take Triton's place in this process."""

    def reset(self) -> None:
        """Forget the last case."""

    def stored_at(self, address: int) -> list[str]:
        """The kernels' source lines that stored into the fresh storage at an address, as far as it knows."""


CONTRACTING = "ttir-fma"


def make_engine(name: str, memory: int, strict: bool) -> Engine:
    """The engine of a name; ``memory`` caps (in bytes) the values of programs that run at once.

    ``strict`` has launches refused that would take too much shared memory.
    """
    if name == "interpret":
        from fuzzrope.run import interpret

        return interpret.Engine()
    from fuzzrope.interpreter import engine

    return engine.Engine(memory, strict, contracts=name == CONTRACTING)
