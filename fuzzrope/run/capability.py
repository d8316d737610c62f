"""What each engine cannot compute rightly. Known here, without importing an engine, so a parent may ask."""

from __future__ import annotations

from collections.abc import Iterable


def cannot_run(device: str, engine: str, dtypes: Iterable[str]) -> str | None:
    """Why this engine is no judge of cases with these dtypes, or None.

    Triton's interpreter multiplies the raw bits of bfloat16 and truncates when it rounds to it.
    """
    if device == "cpu" and engine == "interpret" and "bfloat16" in tuple(dtypes):
        return "Triton's interpreter computes bfloat16 wrongly"
    return None
