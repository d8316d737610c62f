"""What each engine cannot compute rightly. Known here, without importing an engine, so a parent may ask."""

from __future__ import annotations

from collections.abc import Iterable

MOST_ROWS = 4096  # more take Triton's interpreter, which runs one program after another, minutes


def cannot_run(device: str, engine: str, dtypes: Iterable[str], rows: int = 0) -> str | None:
    """Why this engine is no judge of cases with these dtypes and so many rows, or None.

    Triton's interpreter multiplies the raw bits of bfloat16 and truncates when it rounds to it.
    """
    if device == "cpu" and engine == "interpret" and "bfloat16" in tuple(dtypes):
        return "Triton's interpreter computes bfloat16 wrongly"
    if device == "cpu" and engine == "interpret" and rows > MOST_ROWS:
        return f"Triton's interpreter is too slow for {rows:,} rows"
    return None
