"""What a target did with a case, as the parent knows it. Everything a child claims is checked on arrival."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

STATUSES = ("returned", "raised", "unsupported", "died", "timeout", "oom", "tampered")


@dataclass(frozen=True, slots=True)
class Output:
    """One returned object: a tensor's form and bytes, or only the name of its type."""

    type: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    device: str = ""
    data: bytes = b""
    shares: tuple[tuple[str, int], ...] = ()
    """Inputs, or earlier outputs, whose memory it overlaps, and its byte offset from their first element."""
    origin: str = ""
    """Where its memory was allocated and stored to, as far as is known."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that left the target: its type, its text, and the innermost line of the target's code."""

    type: str
    message: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Gradients:
    """What differentiating gave: for each output whether it requires a gradient, and the gradient of each input.

    ``raised`` is what backward raised; then the rest is empty. A gradient is None where there is none.
    """

    requires: tuple[bool, ...] = ()
    tensors: tuple[Output | None, ...] = ()
    raised: Raised | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """A memory access the engine refused or noticed, with the kernel's source line."""

    what: str
    kernel: str
    line: str
    message: str
    lanes: int


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch: its name, grid and integer constexprs."""

    kernel: str
    grid: tuple[int, ...]
    constants: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a target did with a case.

    ``status`` is one of ``STATUSES``; ``detail`` says more (signal, exit code, limit). ``container`` names
    the type of the returned object, ``phase`` is ``load`` or ``run``. ``after`` maps a storage to the bytes
    of its spans after the run. ``gradients`` is None where nothing was differentiated. ``reused`` numbers the
    outputs that lie in memory of the outputs before, of the same child.
    """

    status: str
    detail: str = ""
    container: str = ""
    outputs: tuple[Output, ...] = ()
    reused: tuple[int, ...] = ()
    gradients: Gradients | None = None
    raised: Raised | None = None
    accesses: tuple[Access, ...] = ()
    launches: tuple[Launch, ...] = ()
    tampered: tuple[str, ...] = ()
    after: tuple[tuple[str, bytes], ...] = ()
    seconds: float = 0.0
    phase: str = "run"


class ReplyError(Exception):
    """A child's reply that has not the form of one."""


def _text(value: Any, limit: int = 2000) -> str:
    if not isinstance(value, str):
        raise ReplyError("expected a text")
    if value.isprintable() and len(value) <= limit:
        return value
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in value[:limit])


def _int(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise ReplyError("expected an integer")
    return value


def _seconds(value: Any) -> float:
    if type(value) is not float or not 0 <= value < 1e9:
        raise ReplyError("expected a duration")
    return value


def _ints(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 64:
        raise ReplyError("expected a list of integers")
    return tuple(_int(item) for item in value)


def _list(value: Any, limit: int = 1000) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise ReplyError("expected a list")
    return value


def from_reply(header: dict[str, Any], blobs: list[bytes]) -> Outcome:
    """Read a child's reply; raises :class:`ReplyError` when anything in it is not what it should be."""
    try:
        return _from_reply(header, blobs)
    except Exception as error:  # a stranger's data may fail in any way
        raise ReplyError(f"{type(error).__name__}: {error}") from error


def _number_of(value: Any, outputs: tuple[Output, ...]) -> int:
    if not 0 <= _int(value) < len(outputs):
        raise ReplyError("expected the number of an output")
    return int(value)


def _output(item: Any, remaining: Iterator[bytes]) -> Output:
    data = next(remaining) if item["has_data"] else b""
    return Output(
        type=_text(item["type"]),
        dtype=_text(item["dtype"]),
        shape=_ints(item["shape"]),
        strides=_ints(item["strides"]),
        device=_text(item["device"]),
        data=data,
        shares=tuple((_text(name), _int(offset)) for name, offset in _list(item["shares"])),
        origin=_text(item["origin"]),
    )


def _raised(value: Any) -> Raised | None:
    return None if value is None else Raised(*(_text(value[key]) for key in ("type", "message", "where")))


def _gradients(value: Any, remaining: Iterator[bytes]) -> Gradients:
    requires = _list(value["requires"], 32)
    if not all(type(flag) is bool for flag in requires):
        raise ReplyError("expected a truth value")
    tensors = [None if item is None else _output(item, remaining) for item in _list(value["tensors"], 32)]
    return Gradients(tuple(requires), tuple(tensors), _raised(value["raised"]))


def _from_reply(header: dict[str, Any], blobs: list[bytes]) -> Outcome:
    status = _text(header["status"])
    if status not in STATUSES:
        raise ReplyError(f"unknown status {status!r}")
    remaining = iter(blobs)
    outputs = tuple(_output(item, remaining) for item in _list(header["outputs"], 32))
    derived = header["gradients"]
    gradients = None if derived is None else _gradients(derived, remaining)
    after = tuple((_text(name), next(remaining, b"")) for name in _list(header["after"], 32))
    return Outcome(
        status=status,
        detail=_text(header["detail"]),
        container=_text(header["container"]),
        outputs=outputs,
        reused=tuple(_number_of(index, outputs) for index in _list(header["reused"], 32)),
        gradients=gradients,
        raised=_raised(header["raised"]),
        accesses=tuple(
            Access(_text(a["what"]), _text(a["kernel"]), _text(a["line"]), _text(a["message"]), _int(a["lanes"]))
            for a in _list(header["accesses"])
        ),
        launches=tuple(
            Launch(
                _text(item["kernel"]),
                _ints(item["grid"]),
                tuple((_text(name), _int(value)) for name, value in _list(item["constants"])),
            )
            for item in _list(header["launches"])
        ),
        tampered=tuple(_text(name) for name in _list(header["tampered"])),
        after=after,
        seconds=_seconds(header["seconds"]),
    )
