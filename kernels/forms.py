"""What a launch has to know of tensors, and which arguments are none for :func:`kernels.rope.rope`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kernels.launch import TL_DTYPES
from kernels.layout import Ints

PLAIN = (torch.Tensor, torch.nn.Parameter)
NAMES = ("q", "k", "cos", "sin")


class Meta(NamedTuple):
    """What decides a launch about a tensor: everything but its memory."""

    shape: Ints
    strides: Ints
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Meta:
        """The form of a tensor, strides in elements."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def narrowed(self, columns: int) -> Meta:
        """The form without the last so many columns."""
        return Meta((*self.shape[:-1], self.shape[-1] - columns), self.strides, self.dtype) if columns else self


class Turn(NamedTuple):
    """Which columns of a head are rotated, and which two belong together.

    Attributes:
        columns: the first so many, an even number; the others are copied.
        interleaved: column 2*i pairs with 2*i + 1; otherwise i with columns/2 + i.
    """

    columns: int
    interleaved: bool

    def pairs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first and the second of each pair in x (..., D), as views (..., columns/2)."""
        if self.interleaved:
            return x[..., 0 : self.columns : 2], x[..., 1 : self.columns : 2]
        half = self.columns // 2
        return x[..., :half], x[..., half : self.columns]

    def across(self, columns: int) -> Turn:
        """The same turn of another number of columns: an output's, where tables spread a pair over several."""
        return Turn(columns, self.interleaved)

    @classmethod
    def of(cls, width: int, interleaved: bool, rotary_dim: int | None) -> Turn:
        """The turn that options ask for; raises TypeError or ValueError for what is none."""
        if not isinstance(interleaved, bool):
            raise TypeError(f"rope: interleaved must be True or False, not {interleaved!r}")
        if rotary_dim is None:
            return cls(width, interleaved)
        if isinstance(rotary_dim, bool) or not isinstance(rotary_dim, (int, torch.SymInt)):
            raise TypeError(f"rope: rotary_dim must be an integer or None, not {type(rotary_dim).__name__}")
        if rotary_dim % 2 or not 2 <= rotary_dim <= width:
            raise ValueError(f"rope: rotary_dim must be even and from 2 to head_dim {width}, not {rotary_dim}")
        return cls(rotary_dim, interleaved)


def _form(name: str, x: torch.Tensor) -> Meta:
    """The form of an argument; raises TypeError for what has none."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"rope: {name} must be a torch.Tensor, not {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"rope: {name} must be a strided tensor, not {x.layout}")
    return Meta.of(x)


def check_forms(forms: Sequence[Meta], devices: Sequence[torch.device], tables: int = 2) -> None:
    """Raise TypeError or ValueError for forms and devices of the arguments that the kernel's contract leaves out."""
    for name, form, rank in zip(NAMES, forms, (4, 4, tables, tables), strict=True):
        if form.dtype not in TL_DTYPES:
            raise TypeError(f"rope: {name} must be float16, bfloat16, float32 or float64, not {form.dtype}")
        if len(form.shape) != rank:
            raise ValueError(f"rope: {name} must have {rank} dimensions, not shape {tuple(form.shape)}")
    for name, device in zip(NAMES, devices, strict=True):
        if device != devices[0]:
            raise ValueError(f"rope: all tensors must be on one device: q on {devices[0]}, {name} on {device}")
    width, other = forms[0].shape[3], forms[1].shape[3]
    if width % 2:
        raise ValueError(f"rope: head_dim must be even, not {width}")
    if other != width:
        raise ValueError(f"rope: q and k must have one head_dim, not {width} and {other}")


def forms_of(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, tables: int = 2
) -> tuple[Meta, Meta, Meta, Meta]:
    """The forms of the arguments, whose tables have so many dimensions.

    Raises TypeError or ValueError for what the kernel's contract leaves out.
    """
    forms = _form("q", q), _form("k", k), _form("cos", cos), _form("sin", sin)
    check_forms(forms, (q.device, k.device, cos.device, sin.device), tables)
    return forms


def is_plain(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether these have memory of their own and nothing looks on: no subclass, no transform of ``torch.func``."""
    own = type(q) in PLAIN and type(k) in PLAIN and type(cos) in PLAIN and type(sin) in PLAIN
    return own and not torch._C._are_functorch_transforms_active()


def allocate(outs: tuple[Meta, Meta], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh memory for both outputs."""
    q, k = outs
    new = torch.empty_strided
    return new(*q[:2], dtype=q.dtype, device=device), new(*k[:2], dtype=k.dtype, device=device)
