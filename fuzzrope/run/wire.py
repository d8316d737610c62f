"""The wire between parent and child: one JSON header and raw blobs a message, sizes checked before reading.

What arrives from a child is data from a stranger: it is parsed as JSON and bytes, never unpickled. The other way,
a case travels as a pickle: a child believes its parent.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

_PREFIX = struct.Struct("<4sII")
_MAGIC = b"frp1"
MAX_HEADER = 2**22
MAX_BLOBS = 64
MAX_BLOB = 2**28
MAX_TOTAL = 2**29


class WireError(Exception):
    """The other side sent something that is no message."""


class ClosedError(Exception):
    """The other side is gone."""


class LateError(Exception):
    """No whole message before the deadline."""


def send(
    sock: socket.socket, header: dict[str, Any], blobs: list[bytes] | None = None, seconds: float | None = None
) -> None:
    """Send one message; raises :class:`LateError` if the other side does not take it within ``seconds``."""
    blobs = blobs or []
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    sock.settimeout(seconds)
    try:
        sock.sendall(b"".join([_PREFIX.pack(_MAGIC, len(text), len(blobs)), text, *blobs]))
    except TimeoutError as error:
        raise LateError from error
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ClosedError from error


def _read(
    sock: socket.socket, size: int, deadline: float | None, poll: Callable[[], None], more: Callable[[], float]
) -> bytes:
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                remaining = more()
                if remaining <= 0:
                    raise LateError
                deadline = time.monotonic() + remaining
            sock.settimeout(min(remaining, 0.05))
        else:
            sock.settimeout(None)
        try:
            piece = sock.recv(min(size - len(data), 2**20))
        except TimeoutError:
            poll()
            continue
        except (ConnectionResetError, OSError) as error:
            raise ClosedError from error
        if not piece:
            raise ClosedError
        data += piece
    return bytes(data)


def is_waiting(sock: socket.socket) -> bool:
    """Whether anything has arrived that was not read."""
    sock.settimeout(0)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def receive(
    sock: socket.socket,
    deadline: float | None = None,
    poll: Callable[[], None] = lambda: None,
    more: Callable[[], float] = lambda: 0.0,
) -> tuple[dict[str, Any], list[bytes]]:
    """Receive one message; ``poll`` is called while waiting and may raise.

    When the deadline has passed, ``more`` says how many seconds more are granted; none unless given.

    Raises:
        LateError: the deadline (``time.monotonic`` seconds) passed.
        ClosedError: the other side hung up.
        WireError: the bytes are no message, or one beyond the limits.
    """
    magic, size, count = _PREFIX.unpack(_read(sock, _PREFIX.size, deadline, poll, more))
    if magic != _MAGIC or size > MAX_HEADER or count > MAX_BLOBS:
        raise WireError("not a message")
    try:
        header = json.loads(_read(sock, size, deadline, poll, more))
    except (ValueError, RecursionError) as error:
        raise WireError(f"header is not JSON: {error}") from error
    lengths = header.get("blobs") if isinstance(header, dict) else None
    if not isinstance(lengths, list) or len(lengths) != count:
        raise WireError("header does not list its blobs")
    if not all(type(length) is int and 0 <= length <= MAX_BLOB for length in lengths):
        raise WireError("a blob's size is out of range")
    if sum(lengths) > MAX_TOTAL:
        raise WireError("more data than any case has")
    data = _read(sock, sum(lengths), deadline, poll, more)
    ends = list(itertools.accumulate(lengths, initial=0))
    return header, [data[start:end] for start, end in itertools.pairwise(ends)]
