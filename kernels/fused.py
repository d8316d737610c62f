"""What ``rope_qk`` and ``rope_attention`` share on the host: arguments checked, and what a launch needs to know.

Checks take symbolic sizes too, of which they ask nothing but what a call has to meet. Those that ask for nothing but
sizes and types take forms of tensors as well, so that a plan is made, and checked, once for all calls of a form.

Row i of q sees the keys j with i + first < j <= i + last: the two shifts hold all that ``causal``, ``window`` and
``q_offset`` say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import mul
from typing import Any, NamedTuple

import torch

from kernels.forms import PLAIN, Meta
from kernels.launch import INT32_MAX, TL_DTYPES, VECTOR_ELEMENTS, broadcast_strides
from kernels.layout import Ints
from kernels.tiling import SHIPPED, Pins, Tiles, pick

MAX_OFFSET = 2**40
MAX_SCALE, MAX_CAP = 2.0**60, 2.0**20
MAX_WIDTH = 256  # wider heads fit no shared memory
MOST_HEADS = 512  # of a group, whose packed rows are told apart without a division

Form = torch.Tensor | Meta


class Problem(NamedTuple):
    """Sizes and types of one call, k's heads counted; ``first`` and ``last`` shift the keys a row sees."""

    batch: int
    heads: int
    group: int
    rows: int
    keys: int
    half: int
    offset: int
    first: int
    last: int
    scale: float
    dot: torch.dtype
    tables: Ints
    pins: Pins = SHIPPED

    @property
    def sizes(self) -> Ints:
        """What every kernel takes first."""
        return self.heads, self.group, self.rows, self.keys, self.half, self.offset, self.first, self.last

    def tiles(self, kernel: str, device: torch.device, dtype: torch.dtype, width: int, rule: Tiles) -> Tiles:
        """The tile of a kernel's launch, for factors of ``dtype`` and heads of so many columns at most."""
        length = self.keys if kernel.endswith("_dk") else self.rows * self.group
        return pick(kernel, device, dtype.itemsize, block_of(width), length, rule, self.pins)


def block_of(columns: int) -> int:
    """The power of two that holds so many columns; a product needs 16."""
    return max(16, 1 << (columns - 1).bit_length()) if columns else 16


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of this type are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def promoted(*tensors: Form) -> torch.dtype:
    """PyTorch's promotion of the tensors' types."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def dot_precision(*dtypes: torch.dtype) -> str:
    """How exact products of float32 are, by torch's setting; "ieee" where none is of float32."""
    cut = torch.float32 in dtypes and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if cut else "ieee"


def check_tensors(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Raise TypeError or ValueError for what is no tensor of this contract; cos and sin have two dimensions."""
    for role, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: {role} must be a torch.Tensor, not {type(x).__name__}")
        if x.layout is not torch.strided:
            raise TypeError(f"{name}: {role} must be a strided tensor, not {x.layout}")
        if x.dtype not in TL_DTYPES:
            raise TypeError(f"{name}: {role} must be float16, bfloat16, float32 or float64, not {x.dtype}")
        rank = 2 if role in ("cos", "sin") else 4
        if x.dim() != rank:
            raise ValueError(f"{name}: {role} must have {rank} dimensions, not shape {tuple(x.shape)}")
    device = tensors["q"].device
    for role, x in tensors.items():
        if x.device != device:
            raise ValueError(f"{name}: all tensors must be on one device: q on {device}, {role} on {x.device}")


def _check_shapes(name: str, q: Form, k: Form) -> None:
    (batch, heads, _, width), (batch_k, heads_k, _, width_k) = q.shape, k.shape
    if width % 2 or width <= 0 or width > MAX_WIDTH:
        raise ValueError(f"{name}: head_dim must be even and from 2 to {MAX_WIDTH}, not {width}")
    if width_k != width:
        raise ValueError(f"{name}: q and k must have one head_dim, not {width} and {width_k}")
    if batch_k != batch:
        raise ValueError(f"{name}: q and k must have one batch size, not {batch} and {batch_k}")
    if heads % heads_k if heads_k else heads:
        raise ValueError(f"{name}: {heads} heads of q are no multiple of {heads_k} heads of k")


def is_integer(x: Any) -> bool:
    """Whether x is a Python integer, or stands for one; truth values are none."""
    return isinstance(x, (int, torch.SymInt)) and not isinstance(x, bool)


def is_number(x: Any) -> bool:
    """Whether x is a Python number, or stands for one; truth values are none."""
    return is_integer(x) or isinstance(x, (float, torch.SymFloat))


def check_options(name: str, scale: Any, causal: Any, q_offset: Any, window: Any = None, softcap: Any = None) -> None:
    """Raise TypeError or ValueError for options that are none, whatever the tensors; rope_qk has but three."""
    if scale is not None and not is_number(scale):
        raise TypeError(f"{name}: scale must be a number or None, not {type(scale).__name__}")
    if scale is not None and not abs(scale) <= MAX_SCALE:
        raise ValueError(f"{name}: scale must be at most 2**60 in size, not {scale}")
    if not isinstance(causal, bool):
        raise TypeError(f"{name}: causal must be a bool, not {type(causal).__name__}")
    if not is_integer(q_offset):
        raise TypeError(f"{name}: q_offset must be an int, not {type(q_offset).__name__}")
    if not 0 <= q_offset <= MAX_OFFSET:
        raise ValueError(f"{name}: q_offset must be from 0 to 2**40, not {q_offset}")
    if window is not None:
        if not is_integer(window):
            raise TypeError(f"{name}: window must be an int or None, not {type(window).__name__}")
        if window < 1 or not causal:
            raise ValueError(f"{name}: window must be positive, and needs causal=True; it is {window}")
    if softcap is not None and not is_number(softcap):
        raise TypeError(f"{name}: softcap must be a number or None, not {type(softcap).__name__}")
    if softcap is not None and not 0 < softcap <= MAX_CAP:
        raise ValueError(f"{name}: softcap must be positive and at most 2**20, not {softcap}")


def check_sizes(name: str, tensors: Mapping[str, Form], q_offset: int) -> None:
    """Raise ValueError for sizes that do not belong together; v is there or not."""
    q, k = tensors["q"], tensors["k"]
    _check_shapes(name, q, k)
    half, end, keys = q.shape[3] // 2, q_offset + q.shape[2], k.shape[2]
    for role in ("cos", "sin"):
        have, columns = tensors[role].shape
        if have != 1 and (have < keys or have < end):
            raise ValueError(f"{name}: {role} has {have} rows for {max(end, keys)} positions")
        if columns != half and columns != 1:
            raise ValueError(f"{name}: {role} must have {half} columns or one, not {columns}")
    if "v" not in tensors:
        return
    v = tensors["v"]
    if v.shape[:3] != k.shape[:3]:
        shapes = tuple(k.shape), tuple(v.shape)
        raise ValueError(f"{name}: k {shapes[0]} and v {shapes[1]} must agree in batch, heads and length")
    if v.shape[3] > MAX_WIDTH:
        raise ValueError(f"{name}: v's head_dim must be at most {MAX_WIDTH}, not {v.shape[3]}")


def is_traced(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether a call is looked at rather than run: compiled, on tensors that stand for others, or transformed."""
    return (
        torch.compiler.is_compiling()
        or not all(type(x) in PLAIN for x in tensors.values())
        or torch._C._are_functorch_transforms_active()
    )


def make_problem(
    forms: Mapping[str, Meta],
    scale: float | None,
    causal: bool,
    q_offset: int,
    window: int | None = None,
    pins: Pins = SHIPPED,
) -> Problem:
    """The sizes of a call whose arguments have been checked."""
    q, k, cos, sin = (forms[role] for role in ("q", "k", "cos", "sin"))
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    # A shift beyond what any row or key can tell is as good as the least that is.
    last = min(q_offset, keys) if causal else keys
    first = -rows - 1 if window is None else min(max(q_offset - window, -rows - 1), keys)
    steps = [strides_of(table) for table in (cos, sin)]
    return Problem(
        batch, heads_k, heads // heads_k if heads_k else 1, rows, keys, width // 2, q_offset, first, last,
        1 / math.sqrt(width) if scale is None else float(scale), promoted(q, k, cos, sin), (*steps[0], *steps[1]), pins,
    )  # fmt: skip


def strides_of(x: Form) -> Ints:
    """The strides by which a kernel reads x; a dimension of size 1 has none."""
    return broadcast_strides(x.shape, x.strides if isinstance(x, Meta) else x.stride())


def is_wide(problem: Problem, tiles: Tiles, q: Sequence[Ints], k: Sequence[Ints], width: int) -> bool:
    """Whether indices within a tile, its masked lanes included, need 64 bits, or a group a division.

    q and k are strides (batch, head, row, column) of tensors whose rows are packed, and of those of keys; ``width``
    is the largest number of columns of any.
    """
    local = (tiles.rows - 1) // max(problem.group, 1) + 1
    farthest = problem.rows * problem.group + 2 * problem.keys + 2 * tiles.rows + 2 * tiles.keys
    tables = problem.tables
    for row, column in (tables[:2], tables[2:], *(strides[2:] for strides in (*q, *k))):
        farthest = max(farthest, max(local, tiles.keys) * row + width * column)
    for strides in q:
        farthest = max(farthest, sum(map(mul, (problem.group - 1, local, width), strides[1:])))
    return farthest > INT32_MAX or problem.group > MOST_HEADS


def are_even(strides: Sequence[Ints], widths: Sequence[int]) -> bool:
    """Whether by these layouts all that is read and written lies in groups of eight elements, side by side.

    ``strides`` are those of the tensors, column last; ``widths`` are the columns that are read and written.
    """
    return all(width % VECTOR_ELEMENTS == 0 for width in widths) and all(
        steps[-1] == 1 and not any(step % VECTOR_ELEMENTS for step in steps[:-1]) for steps in strides
    )


def check_programs(name: str, programs: int) -> int:
    """The number of programs, which must be one that hardware launches; raises ValueError."""
    if programs > INT32_MAX:
        raise ValueError(f"{name}: {programs} programs are more than a launch can have")
    return programs
