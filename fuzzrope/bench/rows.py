"""What is measured: one row a problem. Adding one is adding an entry here."""

from __future__ import annotations

from dataclasses import dataclass, replace

GROUPS = ("rope", "scores", "attention", "backward")
COMPILED, FLEX = "compiled", "flex"  # peers that take seconds to compile, and are asked for row by row


@dataclass(frozen=True)
class Row:
    """One problem: q (batch, heads, rows, width), k and v (batch, kv_heads, keys, width), contiguous.

    Attributes:
        group: where it is listed, one of ``GROUPS``.
        of: the operation that a row of ``backward`` differentiates; else the group's.
        offset: the position of q's first row.
        strided: q and k lie in memory as (batch, rows, heads, width).
        launch: what a call takes from the first launch to the last answer is measured, not the GPU's time alone.
        costly: peers to be compiled for it, of ``COMPILED`` and ``FLEX``.
    """

    group: str
    batch: int
    heads: int
    kv_heads: int
    rows: int
    keys: int
    width: int
    dtype: str = "bfloat16"
    causal: bool = False
    of: str = ""
    offset: int = 0
    strided: bool = False
    launch: bool = False
    costly: tuple[str, ...] = ()

    @property
    def operation(self) -> str:
        """What is computed: ``rope``, ``scores`` or ``attention``."""
        return self.of or self.group

    @property
    def group_size(self) -> int:
        """Heads of q that share one of k."""
        return self.heads // self.kv_heads

    @property
    def decodes(self) -> bool:
        """Whether q has other rows than k."""
        return self.rows != self.keys

    @property
    def name(self) -> str:
        """The row in a line of text; no two rows of a group share it."""
        heads = f"{self.heads}/{self.kv_heads}" if self.group_size > 1 else str(self.heads)
        length = f"{self.rows}:{self.keys}" if self.decodes else str(self.rows)
        words = [self.of, f"({self.batch},{heads},{length},{self.width})", self.dtype]
        words += ["causal"] * self.causal + ["BSHD"] * self.strided
        return " ".join(filter(None, words))


def _square(
    group: str, batch: int, heads: str, length: int, width: int, dtype: str = "bfloat16", **more: object
) -> Row:
    """A row with as many keys as rows; ``heads`` is ``q/k``, or one number for both."""
    of_q, _, of_k = heads.partition("/")
    row = Row(group, batch, int(of_q), int(of_k or of_q), length, length, width, dtype)
    return replace(row, **more)  # type: ignore[arg-type]  # fields of several types by name


def _both_masks(*rows: Row) -> tuple[Row, ...]:
    return tuple(replace(row, causal=causal) for row in rows for causal in (False, True))


def _decode(batch: int, heads: int, kv_heads: int, keys: int, width: int) -> Row:
    return Row("attention", batch, heads, kv_heads, 1, keys, width, causal=True, offset=keys - 1)


_ONE, _TWO = (COMPILED,), (COMPILED, FLEX)

ROWS: tuple[Row, ...] = (
    _square("rope", 2, "8", 4, 16, "float32", launch=True, costly=_ONE),
    _square("rope", 4, "32", 512, 128, costly=_ONE),
    _square("rope", 4, "32", 4096, 128, costly=_ONE),
    _square("rope", 4, "32", 4096, 128, "float32", costly=_ONE),
    _square("rope", 4, "32", 4096, 64, "float16", costly=_ONE),
    _square("rope", 4, "32", 4096, 128, strided=True, costly=_ONE),
    _square("rope", 4, "32/8", 4096, 128, costly=_ONE),
    _square("scores", 8, "32", 256, 128, costly=_ONE),
    _square("scores", 4, "32", 1024, 128, costly=_ONE),
    _square("scores", 1, "32", 4096, 128, costly=_ONE),
    _square("scores", 4, "32", 1024, 64, costly=_ONE),
    _square("scores", 4, "32/8", 1024, 128),
    _square("scores", 4, "32", 1024, 256),
    _square("scores", 4, "32", 1000, 128),
    _square("scores", 8, "32", 256, 128, causal=True),
    _square("scores", 4, "32", 1024, 128, causal=True),
    *_both_masks(
        _square("attention", 16, "32", 128, 128, costly=_ONE),
        _square("attention", 8, "32", 512, 128, costly=_ONE),
        _square("attention", 4, "32", 1024, 128, costly=_TWO),
        _square("attention", 2, "32", 2048, 128),
        _square("attention", 2, "32", 4096, 128, costly=_TWO),
        _square("attention", 1, "32", 16384, 128),
        _square("attention", 4, "32", 2048, 64, costly=_ONE),
        _square("attention", 4, "32/8", 1024, 128),
        _square("attention", 4, "32", 1024, 256),
        _square("attention", 4, "32", 1000, 128),
    ),
    _decode(8, 32, 8, 4096, 128),
    _decode(8, 32, 8, 32768, 128),
    _square("backward", 4, "32", 4096, 128, of="rope", costly=_ONE),
    _square("backward", 8, "32", 256, 128, of="scores"),
    _square("backward", 4, "32", 1024, 128, of="scores"),
    _square("backward", 4, "32", 1024, 128, of="scores", causal=True),
    _square("backward", 4, "32", 1024, 64, of="scores"),
    _square("backward", 4, "32/8", 1024, 128, of="scores"),
    *_both_masks(
        _square("backward", 8, "32", 512, 128, of="attention"),
        _square("backward", 4, "32", 1024, 128, of="attention"),
        _square("backward", 2, "32", 2048, 128, of="attention"),
        _square("backward", 2, "32", 4096, 128, of="attention"),
    ),
)
