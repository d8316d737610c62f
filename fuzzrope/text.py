"""Text from strangers, made fit for a message."""

from __future__ import annotations


def one_line(text: str, limit: int = 400) -> str:
    """Text from a stranger made fit for a message: one line, no control characters, not too long."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
