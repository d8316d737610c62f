"""What compute-sanitizer's racecheck says of kernels whose warps have roles, and whether it is to be believed.

Triton hands each role its number and its arguments through shared memory, and has barriers of the whole block before
and after. Racecheck calls these accesses races. What it says of them alone is counted apart, and does not count if it
says the like of a kernel that has nothing in shared memory but what is handed over as it should be,
:func:`run_control`. A handing over without a barrier, :func:`run_race`, has to be found where it is written.

What roles hand each other on an mbarrier racecheck calls a race too, if plain loads and stores pass it, as in
:func:`run_guarded`. What matrix instructions, bulk copies or products pass, as in the control, it does not see.
"""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from kernels.hopper.attention import hopper_attention_kernel
from kernels.hopper.attention_backward import hopper_gradient_kernel
from kernels.hopper.qk_backward import hopper_qk_gradient_kernel
from kernels.hopper.streamed_qk import streamed_qk_kernel

NUMBERS = 256  # handed over in each program
PROGRAMS, LAUNCHES = 2000, 4
RACE = re.compile(r"(?:Error|Warning): Race reported between (.*?)\n=+ *$", re.DOTALL | re.MULTILINE)
ACCESS = re.compile(r"(?:Read|Write) access at (\w+)\+0x[0-9a-f]+ in (\S+):(\d+)")

Place = tuple[str, int]  # a kernel and a line of its file


@gluon.jit
def give(numbers, given, start, GUARDED: gl.constexpr):
    """Write numbers, and say so if it is guarded."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    numbers.store(start + gl.arange(0, numbers.shape[0], layout=layout))
    if GUARDED:
        mbarrier.arrive(given, count=1)


@gluon.jit
def take(out_ptr, numbers, given, start, GUARDED: gl.constexpr):
    """Read them, after they are said to be there if it is guarded."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    if GUARDED:
        mbarrier.wait(given, 0)
    i = start + gl.arange(0, numbers.shape[0], layout=layout)
    gl.store(out_ptr + i, numbers.load(layout))


@gluon.jit
def handing_kernel(out_ptr, starts_ptr, NUMBERS: gl.constexpr, GUARDED: gl.constexpr):
    """One warp writes numbers to shared memory, four read them; the first number gets there as an argument of a role.

    Numbers of 32 bits go by matrix instructions (stmatrix, ldmatrix), those of 64 bits do not.
    """
    start = gl.load(starts_ptr + gl.program_id(0))
    numbers = gl.allocate_shared_memory(out_ptr.dtype.element_ty, [NUMBERS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    given = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(given, count=1)
    gl.warp_specialize(
        [(take, (out_ptr, numbers, given, start, GUARDED)), (give, (numbers, given, start, GUARDED))], [1], [24]
    )


def _hand(dtype: torch.dtype, guarded: bool, device: str, launches: int, programs: int) -> torch.Tensor:
    out = torch.zeros(programs * NUMBERS, dtype=dtype, device=device)
    starts = torch.arange(0, len(out), NUMBERS, dtype=dtype, device=device)
    for _ in range(launches):
        handing_kernel[(programs,)](out, starts, NUMBERS, guarded, num_warps=4)
    return out


def run_race(device: str = "cuda", launches: int = 1, programs: int = PROGRAMS) -> torch.Tensor:
    """Numbers handed over without a barrier."""
    return _hand(torch.int64, False, device, launches, programs)


def run_control(device: str = "cuda", launches: int = LAUNCHES, programs: int = PROGRAMS) -> torch.Tensor:
    """Numbers handed over as they should be, where racecheck does not look: 0, 1, 2 and so on."""
    return _hand(torch.int32, True, device, launches, programs)


def run_guarded(device: str = "cuda", launches: int = 1, programs: int = PROGRAMS) -> torch.Tensor:
    """Numbers handed over as they should be, where it does."""
    return _hand(torch.int64, True, device, launches, programs)


def made_by_triton(kernel: Any) -> set[Place]:
    """Where accesses are said to be that Triton made for roles: at ``def`` and at ``warp_specialize``."""
    lines, first = inspect.getsourcelines(kernel.fn)
    found = set()
    for node in ast.walk(ast.parse("".join(lines))):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr
        if isinstance(node, ast.FunctionDef) or called == "warp_specialize":
            found.add((kernel.fn.__name__, first + node.lineno - 1))  # type: ignore[attr-defined] # both have a line
    return found


KERNELS = (
    hopper_attention_kernel,
    hopper_gradient_kernel,
    hopper_qk_gradient_kernel,
    streamed_qk_kernel,
    handing_kernel,
)


def races_in(output: str) -> list[set[Place]]:
    """The places of each race that is reported."""
    return [{(kernel, int(line)) for kernel, _, line in ACCESS.findall(one)} for one in RACE.findall(output)]


def names_all(output: str) -> bool:
    """Whether each access of each race has a place. At times the tool has none for the first launch of a process."""
    return all(one.count(" access at ") == len(ACCESS.findall(one)) for one in RACE.findall(output))


def split(output: str) -> tuple[int, int]:
    """How many races are between accesses of which somebody wrote one; and between Triton's own, for roles, alone."""
    own = set().union(*map(made_by_triton, KERNELS))
    races = races_in(output)
    of_roles = sum(bool(race) and race <= own for race in races)
    return len(races) - of_roles, of_roles
