"""What only a GPU can show of our kernels: large extents, CUDA graphs, compiled code, and compute-sanitizer.

    python -m tests.on_gpu --out gpu.json                 # all parts
    python -m tests.on_gpu extents graphs                 # some
    python -m tests.on_gpu cases 70 --share 0/4           # runs drawn cases, for compute-sanitizer to watch

``extents``: inputs and outputs with more than 2^31 elements, right at both ends of their memory; takes 40 GiB.
``graphs``: each operation and its gradients captured, and replayed with other inputs; and compiled by inductor, once
for all lengths. ``sanitizer``: memcheck, racecheck and initcheck over drawn cases. A part that fails says so, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fuzzrope.versions import versions
from kernels import reference, rope, rope_attention, rope_qk
from kernels.pinned import pinned
from tests import sanitizer
from tests.special import share_of

Tensors = list[torch.Tensor]
LENGTHS = (96, 128, 200, 333)
BLOCK_HEADS, BLOCK_ROWS, WIDTH = 129, 131_073, 128  # 129 * 131,073 * 128 elements are more than 2^31
SQUARE = 16_400  # 8 heads of scores of that many rows and keys are more than 2^31


def rope_alone(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k rotated."""
    q, k, *_ = rope(*tensors)
    return q, k


@dataclass(frozen=True)
class Operation:
    """A kernel and its twin on q, k(, v), cos and sin; ``exact``: they agree bit for bit.

    ``tables`` says whether graphs ask for gradients of cos and sin, ``width`` how many columns a head has there.
    """

    ours: Callable[..., Any]
    twin: Callable[..., Any]
    values: bool
    exact: bool = False
    tables: bool = True
    width: int = 64


OPERATIONS = {
    "rope": Operation(rope_alone, lambda *x: reference.rope(*x)[:2], False, True),
    "rope_qk": Operation(rope_qk, reference.qk_reference, False),
    "rope_attention": Operation(rope_attention, reference.attention_reference, True),
}
#: Kernels for one device alone, which calls as small as these do not take unasked.
SPECIAL = {
    f"{name}, special": replace(OPERATIONS[name], ours=pinned(name, "special"))
    for name in ("rope_qk", "rope_attention")
}
#: Theirs of gradients too, which makes none of tables.
SPECIAL |= {
    f"{name}, special, {width} columns, tables as they are": replace(
        SPECIAL[f"{name}, special"], tables=False, width=width
    )
    for name in ("rope_qk", "rope_attention")
    for width in (64, 128)
}


def several(result: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of a result, which may be one."""
    return result if isinstance(result, tuple) else (result,)


def inputs(operation: Operation, heads: int, rows: int, keys: int, width: int, device: str) -> Tensors:
    """Normal q, k(, v) of one batch in bfloat16, and tables of true angles for all positions."""
    made = [torch.empty((1, heads, n, width), dtype=torch.bfloat16, device=device) for n in (rows, keys)]
    if operation.values:
        made.append(torch.empty_like(made[1]))
    angles = torch.arange(max(rows, keys), device=device, dtype=torch.float64)[:, None]
    angles = angles * 10000.0 ** -torch.linspace(0, 1, width // 2, device=device, dtype=torch.float64)
    return [*(x.normal_() for x in made), angles.cos().bfloat16(), angles.sin().bfloat16()]


def cotangents(outputs: tuple[torch.Tensor, ...]) -> Tensors:
    """Something to hand back for each output, contiguous."""
    return [torch.empty(out.shape, dtype=out.dtype, device=out.device).normal_() for out in outputs]


# Extents


@dataclass(frozen=True)
class Extent:
    """A problem with large tensors, and what of it is held against the twin: some heads, and of those some rows."""

    name: str
    operation: str
    heads: int
    rows: int
    keys: int
    width: int
    compared: int = 0  # rows of q at each end, 0 for all
    keys_too: bool = True  # gradients of keys are known where all rows are compared


EXTENTS = (
    Extent("rope of 2^31 elements", "rope", BLOCK_HEADS, BLOCK_ROWS, BLOCK_ROWS, WIDTH),
    Extent("scores against 2^31 elements of k", "rope_qk", BLOCK_HEADS, 16, BLOCK_ROWS, WIDTH),
    Extent("2^31 scores", "rope_qk", 8, SQUARE, SQUARE, WIDTH, 64, False),
    Extent("attention to 2^31 elements of k and v", "rope_attention", BLOCK_HEADS, 16, BLOCK_ROWS, WIDTH),
    Extent("attention of 2^31 elements of q", "rope_attention", BLOCK_HEADS, BLOCK_ROWS, 64, WIDTH),
)


def error(ours: torch.Tensor, true: torch.Tensor, exact: bool) -> float:
    """The largest error in units of the largest number there should be; 0 or 1 where bits have to agree."""
    if exact:
        return float(not torch.equal(ours, true))
    if not ours.isfinite().all():  # a NaN would get lost among maxima
        return math.inf
    return float((ours.double() - true).abs().max() / true.abs().max().clamp(min=1e-30))


def worst_at_the_ends(extent: Extent, device: str) -> float:
    """Run the problem and its gradients; the largest error of any part at either end of the memory."""
    operation = OPERATIONS[extent.operation]
    tensors = inputs(operation, extent.heads, extent.rows, extent.keys, extent.width, device)
    large = tensors[:-2]
    for x in large:
        x.requires_grad_()
    outputs = several(operation.ours(*tensors))
    given = cotangents(outputs)
    gradients = torch.autograd.grad(outputs, large, given)
    wanted = torch.bfloat16 if operation.exact else torch.float64
    worst = 0.0
    for head in (0, extent.heads - 1):
        for first in (0, extent.rows - extent.compared) if extent.compared else (0,):
            rows = slice(first, first + extent.compared if extent.compared else None)
            at = [(slice(None), slice(head, head + 1), rows if i == 0 else slice(None)) for i in range(len(large))]
            leaves = [x.detach()[where].to(wanted).requires_grad_() for x, where in zip(large, at, strict=True)]
            tables = [table.to(wanted) for table in tensors[-2:]]
            options = {"q_offset": first} if first else {}
            true = several(operation.twin(*leaves, *tables, **options))
            # Outputs of rope are those of q and of k; the others' have rows of q.
            spots = at if operation.exact else [(*at[0][:2], rows)] * len(true)
            parts = [(out.detach()[where], t.detach()) for out, where, t in zip(outputs, spots, true, strict=True)]
            handed = [g[where].to(t.dtype) for g, where, t in zip(given, spots, true, strict=True)]
            exact = torch.autograd.grad(true, leaves, handed)
            known = slice(None) if extent.keys_too else slice(0, 1)
            parts += list(zip((g[where] for g, where in zip(gradients, at, strict=True)), exact, strict=True))[known]
            worst = max(worst, *(error(mine, t, operation.exact) for mine, t in parts))
    return worst


def extents(device: str = "cuda", problems: tuple[Extent, ...] = EXTENTS) -> dict[str, Any]:
    """Every problem; right is bit for bit, or within some roundings of bfloat16 factors."""
    report: dict[str, Any] = {"ok": True, "worst": {}}
    for problem in problems:
        found = worst_at_the_ends(problem, device)
        right = found == 0 if OPERATIONS[problem.operation].exact else found < 8 * torch.finfo(torch.bfloat16).eps
        report["worst"][problem.name] = found
        report["ok"] = report["ok"] and right
        print(f"  {problem.name}: {'right' if right else 'WRONG'}, error {found:.3g}", flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    return report


# Graphs


def both_ways(function: Callable[..., Any], tensors: Tensors, given: Tensors) -> Tensors:
    """Outputs, and gradients of everything that asks for one."""
    outputs = several(function(*tensors))
    return [*outputs, *torch.autograd.grad(outputs, [x for x in tensors if x.requires_grad], given)]


def problem_of(operation: Operation, length: int, device: str) -> tuple[Tensors, Tensors]:
    """Inputs that ask for gradients, GQA and all, and what is handed back."""
    q, k, *rest = inputs(operation, 4, length, length, operation.width, device)
    tensors = [x.detach().requires_grad_() for x in (q, k[:, :2], *(x[:, :2] for x in rest[:-2]))]
    tensors += [x.detach().requires_grad_(operation.tables) for x in rest[-2:]]
    return tensors, cotangents(several(operation.twin(*(x.detach() for x in tensors))))


def replayed(operation: Operation) -> bool:
    """Whether a captured step gives the bits of an eager one for inputs that it has not seen."""
    tensors, given = problem_of(operation, LENGTHS[0], "cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and lets autograd make what it makes once
        for _ in range(3):
            both_ways(operation.ours, tensors, given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both_ways(operation.ours, tensors, given)
    right = True
    for _ in range(3):
        with torch.no_grad():
            for x in (*tensors, *given):
                x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        right = right and all(map(torch.equal, found, both_ways(operation.ours, tensors, given)))
    return right


def compiled(operation: Operation, device: str, backend: str) -> dict[str, Any]:
    """One compilation for all lengths, without a break: how many there were, and whether bits are eager's."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend(backend)
    function = torch.compile(operation.ours, fullgraph=True, dynamic=True, backend=counter)
    same = True
    for length in LENGTHS:
        tensors, given = problem_of(operation, length, device)
        pairs = zip(both_ways(function, tensors, given), both_ways(operation.ours, tensors, given), strict=True)
        same = same and all(torch.equal(a, b) for a, b in pairs)
    breaks = sum(counters["graph_break"].values())
    ok = same and counter.frame_count == 1 and not breaks
    return {"ok": ok, "same": same, "compilations": counter.frame_count, "breaks": breaks, "backend": backend}


def graphs() -> dict[str, Any]:
    """CUDA graphs and inductor, for every operation and its gradients."""
    report: dict[str, Any] = {"ok": True}
    for name, operation in OPERATIONS.items():
        found = {"replayed": replayed(operation), "compiled": compiled(operation, "cuda", "inductor")}
        report[name] = found
        report["ok"] = report["ok"] and found["replayed"] and found["compiled"]["ok"]
        print(f"  {name}: {found}", flush=True)
    for name, operation in SPECIAL.items():
        report[name] = {"replayed": replayed(operation)}
        report["ok"] = report["ok"] and report[name]["replayed"]
        print(f"  {name}: {report[name]}", flush=True)
    return report


# Command line

#: What the sanitizer is tried out with.
TRIALS = {"planted": sanitizer.run_planted, "control": sanitizer.run_control, "guarded": sanitizer.run_guarded}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; ``count`` of the result is the number after ``cases``, or None."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"extents, graphs, sanitizer; or: cases N; {'; '.join(TRIALS)}"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--share", type=share_of, default=(0, 1), metavar="I/N", help="of the cases, every N-th")
    parser.add_argument("--each", type=int, default=70, metavar="N", help="cases of each operation for the sanitizer")
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="side by side under the sanitizer")
    options = parser.parse_intermixed_args(arguments)
    options.count = None
    if options.parts[:1] == ["cases"]:
        if len(options.parts) != 2 or not options.parts[1].isdigit():
            parser.error("cases takes one number")
        options.count = int(options.parts[1])
    elif " ".join(options.parts) not in TRIALS:
        options.parts = options.parts or ["extents", "graphs", "sanitizer"]
        unknown = [part for part in options.parts if part not in ("extents", "graphs", "sanitizer")]
        if unknown:
            parser.error(f"{unknown[0]!r} is no part")
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    return options


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The report of one part; what it raises is its failure, and hides no other part."""
    started = time.monotonic()
    try:
        if part == "sanitizer":
            report = sanitizer.sanitize(options.each, options.processes)
        else:
            report = {"extents": extents, "graphs": graphs}[part]()
    except Exception as found:  # noqa: BLE001 - one part that fails must not hide the others
        traceback.print_exc()
        report = {"ok": False, "why": f"{type(found).__name__}: {found}"[:2000]}
    report["seconds"] = round(time.monotonic() - started, 1)
    print(f"{part}: {'ok' if report['ok'] else 'FAILED'} in {report['seconds']} s", flush=True)
    return report


def main(arguments: list[str]) -> int:
    """Run the parts; 0 if all that was asked holds."""
    options = parse(arguments)
    if " ".join(options.parts) in TRIALS:
        TRIALS[options.parts[0]]()
        return 0
    if options.count is not None:
        print(f"ran {sanitizer.run_cases(options.count, options.share, 'cuda')} cases")
        return 0
    torch.manual_seed(7)
    parts: dict[str, Any] = {}
    report = {"format": 1, "environment": versions() | {"gpu": torch.cuda.get_device_name()}, "parts": parts}
    for part in options.parts:
        parts[part] = run_part(part, options)
        if options.out:  # each time: a later part may outlast the time there is
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(part["ok"] for part in parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
