"""The kernels with tiles of one's choice, for tests and measurements: no part of what is shipped.

Every attribute ``NAME@WHICH`` is a function of this module that is called like ``kernels.NAME``; WHICH is ``any``,
``special`` (kernels for one device alone wherever they can run, :mod:`kernels.special`), or tiles such as
``qk=64x128x8x2`` (rows, keys, warps, stages, and steps where there are five), joined by commas.
``any`` takes another of the tiles that can be shipped for each form of a call: half of the calls run as shipped, the
others take one by a checksum of shapes, strides, dtypes and options, so that the same call always has the same.
``special`` chooses so where several of these kernels can run.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch

from kernels.forms import Turn, forms_of
from kernels.rope import carry_out, make_plan
from kernels.rope_attention import call_attention
from kernels.rope_qk import call_qk
from kernels.tiling import KERNELS, SHIPPED, Pins, Tiles


def call_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    pins: Pins = SHIPPED,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`kernels.rope.rope` with tiles of one's choice; raises what it raises."""
    forms = forms_of(q, k, cos, sin)
    turn = Turn.of(forms[0].shape[3], interleaved, rotary_dim) if interleaved or rotary_dim is not None else None
    return carry_out(make_plan(*forms, turn, q.device, pins), q, k, cos, sin)


CALLS: dict[str, Callable[..., Any]] = {"rope": call_rope, "rope_qk": call_qk, "rope_attention": call_attention}


def parse(text: str) -> Pins:
    """Pins from ``KERNEL=ROWSxKEYSxWARPSxSTAGES[xSTEPS]``, joined by commas; raises ValueError for what is none."""
    named = []
    for part in text.split(","):
        name, _, numbers = part.partition("=")
        sizes = numbers.split("x")
        if name not in KERNELS or len(sizes) not in (4, 5) or not all(n.isdecimal() for n in sizes):
            raise ValueError(f"{part!r} is not KERNEL=ROWSxKEYSxWARPSxSTAGES[xSTEPS], KERNEL of {', '.join(KERNELS)}")
        tiles = Tiles(*map(int, sizes))
        if any(n < 1 or n & (n - 1) for n in tiles[:3]) or tiles.stages < 1:
            raise ValueError(f"{part!r}: rows, keys and warps are powers of two, stages at least 1")
        named.append((name, tiles))
    return Pins(tuple(named))


def _form(x: Any) -> Any:
    return (tuple(x.shape), x.stride(), str(x.dtype)) if isinstance(x, torch.Tensor) else x


def checksum(arguments: tuple[Any, ...], options: dict[str, Any]) -> int:
    """A number of 32 bits, the same for calls of the same form."""
    form = [_form(x) for x in arguments], sorted((name, repr(_form(x))) for name, x in options.items())
    return zlib.crc32(repr(form).encode())


def drawn(arguments: tuple[Any, ...], options: dict[str, Any]) -> Pins:
    """What a call of this form has under ``any``."""
    number = checksum(arguments, options)
    return SHIPPED if number & 1 else Pins(number=number >> 1)


def pinned(name: str, which: str) -> Callable[..., Any]:
    """A function of ``CALLS`` with ``any``, ``special`` or certain tiles; raises ValueError for what is none."""
    call = CALLS[name]
    fixed = None if which in ("any", "special") else parse(which)

    def with_tiles(*arguments: Any, **options: Any) -> Any:
        pins = fixed or drawn(arguments, options)
        if which == "special":
            pins = Pins(number=checksum(arguments, options), special=True)
        return call(*arguments, pins=pins, **options)

    return with_tiles


def __getattr__(name: str) -> Callable[..., Any]:
    """``NAME@WHICH`` as an attribute, which is what an entry of a target names."""
    base, at, which = name.partition("@")
    if not at or base not in CALLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pinned(base, which)
