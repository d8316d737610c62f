"""Drawn cases of our kernels, in memory as small as they need it, and NVIDIA's compute-sanitizer over them.

``python -m tests.on_gpu sanitizer`` runs it. Each tensor has an allocation of its own that ends with its last element,
and only its elements are written: what lies between them is not initialized. PyTorch's caching allocator would hide
overruns, so it is off in the processes that are watched. Kernels with planted mistakes show first that each tool sees
what it is there for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import triton
import triton.language as tl

from fuzzrope.build import DTYPES, build, offsets
from fuzzrope.case import Case, TensorSpec
from fuzzrope.draw import Draw, search
from fuzzrope.operations import OPERATIONS
from kernels import rope, rope_attention, rope_qk
from kernels.pinned import pinned
from tests import racecheck, special

TARGETS: dict[str, Callable[..., Any]] = {
    "rope_options": rope,
    "rope_qk": rope_qk,
    "rope_attention": rope_attention,
}
#: Kernels for one device alone, with cases that they take.
SPECIAL = {operation: pinned(operation, "special") for operation in special.KERNELS}
TOOLS = ("memcheck", "racecheck", "initcheck")
BLOCKS = (16, 64)
LARGEST = 2**22  # elements of a storage
FLOATS = ("float32", "float16", "float64", "bfloat16")
#: Ways not to spend time on PyTorch's own kernels; the first with which the planted mistake is seen is taken.
FILTERS = (("--kernel-regex-exclude", "kns=at6native"), ())
#: What kernels that are left out write, initcheck does not see written.
UNFILTERED = ("initcheck",)
ATTEMPTS = 3  # at a report whose accesses have places
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)")
RAN = re.compile(r"^ran (\d+) cases", re.MULTILINE)


def drawn(operation: str, count: int) -> list[Case]:
    """The first so many valid cases of moderate size that a search with a fixed seed draws, half of them backward."""
    found: dict[str, Case] = {}
    contract = OPERATIONS[operation]

    def note(draw: Draw) -> bool:
        pins: dict[str, Any] = {"floats": FLOATS, "gradients": "some"}
        case = contract.draw(draw, pins | {"backward": True} if draw.flag() else pins, BLOCKS)
        if contract.rejects(case) is None and all(spec.end <= LARGEST for _, spec in case.specs):
            found.setdefault(case.id, case)
        return False

    for attempt in range(20):
        if len(found) < count:
            search(note, 2 * count, f"on a GPU {operation} {attempt}")
    return list(found.values())[:count]


def in_memory_of_its_own(values: torch.Tensor, spec: TensorSpec, device: str) -> torch.Tensor:
    """The tensor of a spec in an allocation without room to spare, of which its elements alone are written."""
    flat = torch.empty(spec.end, dtype=values.dtype, device=device)
    if spec.numel:
        flat[torch.from_numpy(offsets(spec)).to(device)] = values.reshape(-1).to(device)
    return flat.as_strided(spec.shape, spec.strides, spec.offset if spec.numel else 0)


def run(case: Case, device: str, target: Callable[..., Any]) -> bool:
    """Run a case, its backward pass included; False if our kernel refuses it."""
    built, specs = build(case), dict(case.tensors)
    inputs = {name: in_memory_of_its_own(built.tensors[name], spec, device) for name, spec in specs.items()}
    options = dict(case.options)
    torch.set_float32_matmul_precision(options.pop("precision", "highest"))
    if options.get("out_dtype") is not None:
        options["out_dtype"] = DTYPES[options["out_dtype"]]
    for name in case.backward.requires if case.backward is not None else ():
        inputs[name].requires_grad_()
    try:
        outputs = target(*inputs.values(), **options)
    except (TypeError, ValueError):
        return False
    if case.backward is not None:
        names = OPERATIONS[case.operation].results(dict(case.options))
        found = dict(zip(names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
        pairs = [
            (found[name], in_memory_of_its_own(built.cotangents[name], spec, device))
            for name, spec in case.backward.cotangents
            if found[name].requires_grad
        ]
        if pairs:
            roots, given = zip(*pairs, strict=True)
            leaves = [inputs[name] for name in case.backward.requires]
            torch.autograd.grad(roots, leaves, given, allow_unused=True)
    return True


def for_one_device(operation: str, count: int) -> list[Case]:
    """So many drawn cases of kernels for one device alone, then half as many whose gradients too are made by one."""
    cases = (special.drawn(operation, number, 1) for number in range(count, 100 * count))
    gradients = islice(filter(special.gradient_launches, cases), count // 2)
    return [*(special.drawn(operation, number, 1) for number in range(count)), *gradients]


def run_cases(count: int, share: tuple[int, int], device: str) -> int:
    """Run every so-and-so-many-th of ``count`` cases of each target, fewer of special ones; how many were run."""
    ran = 0
    for operation, target in TARGETS.items():
        for case in drawn(operation, count)[share[0] :: share[1]]:
            ran += run(case, device, target)
    for operation, target in SPECIAL.items():
        for case in for_one_device(operation, count // 3)[share[0] :: share[1]]:
            ran += run(case, device, target)
    if device == "cuda":
        torch.cuda.synchronize()
    return ran


@triton.jit
def planted_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Reads and writes one element past n; each sum goes through shared memory."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i <= n, other=0.0)
    tl.store(out_ptr + i, x + tl.sum(x, 0), mask=i <= n)


def run_planted() -> None:
    """Launch the planted mistakes: leaves its tensors, reads what nothing has written, a race in shared memory."""
    x, out = (torch.empty(1000, device="cuda") for _ in range(2))
    planted_kernel[(1,)](x, out, 1000, BLOCK=1024)
    racecheck.run_race()
    torch.cuda.synchronize()


def _in_order(numbers: torch.Tensor) -> None:
    if not torch.equal(numbers, torch.arange(len(numbers), dtype=numbers.dtype, device=numbers.device)):
        raise AssertionError("numbers were not handed over as they should be")


def run_control() -> None:
    """Launch what resembles the planted race, without the mistake, and where racecheck does not look."""
    _in_order(racecheck.run_control())


def run_guarded() -> None:
    """The planted race without the mistake."""
    _in_order(racecheck.run_guarded())


def errors_in(output: str) -> int | None:
    """What the tool counted, all summaries added up; None if it printed none."""
    counts = [int(count) for count in SUMMARY.findall(output)]
    return sum(counts) if counts else None


def counted(output: str, tool: str) -> int | None:
    """What counts of it: all but races between accesses that Triton made for roles of warps."""
    errors = errors_in(output)
    if errors is None or tool != "racecheck":
        return errors
    written, of_roles = racecheck.split(output)
    return written if errors == written + of_roles else errors  # if not all could be read, all count


def total(counts: Iterable[int | None]) -> int | None:
    """Their sum; None if one is not known."""
    known = list(counts)
    return None if None in known else sum(one for one in known if one)


def ran_in(output: str) -> int:
    """How many cases a process says that it has run."""
    return sum(int(count) for count in RAN.findall(output))


def _processes(commands: list[list[str]], environment: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Exit code and output of each command, run side by side."""
    started = [
        subprocess.Popen(one, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for one in commands
    ]
    for process in started:
        output, _ = process.communicate()
        yield process.returncode, output


def _reports(commands: list[list[str]], environment: dict[str, str], report: dict[str, Any]) -> list[tuple[int, str]]:
    """What :func:`_processes` says; again where racecheck has no place for an access, which ``report`` tells."""
    results = list(_processes(commands, environment))
    for _ in range(ATTEMPTS - 1):
        unclear = [i for i, (_, output) in enumerate(results) if not racecheck.names_all(output)]
        report["again"] = report.get("again", 0) + len(unclear)
        for i, result in zip(unclear, _processes([commands[i] for i in unclear], environment), strict=True):
            results[i] = result
    return results


def sanitize(count: int, processes: int) -> dict[str, Any]:
    """Every tool over ``count`` cases of each operation; ``ok`` says whether all ran and nothing was found."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(tool):
        return {"ok": False, "why": "compute-sanitizer is not there"}
    base = [sys.executable, "-m", "tests.on_gpu"]
    shares = [[*base, "cases", str(count), "--share", f"{i}/{processes}"] for i in range(processes)]
    plain = dict(os.environ)
    watched = plain | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    first = list(_processes(shares, plain))  # compiles what the watched processes then find in Triton's cache
    report: dict[str, Any] = {"cases": sum(ran_in(output) for _, output in first), "tools": {}}
    # A process that has run its cases may still end badly: threads of PyTorch's autograd do at times.
    failed = [output[-2000:] for code, output in first if code and not ran_in(output)]
    report["ok"] = not failed
    if failed:
        report["why"] = failed
        return report
    for name in TOOLS:
        report["tools"][name] = found = _watch([tool, "--tool", name], base, shares, watched, name)
        found["ok"] = found["errors"] == 0 and found["cases"] == report["cases"] and found["planted"] is not None
        report["ok"] = report["ok"] and found["ok"]
        print(f"  {name}: {found['cases']} cases, {found['errors']} errors", flush=True)
    return report


def _watch(
    tool: list[str], base: list[str], shares: list[list[str]], environment: dict[str, str], name: str
) -> dict[str, Any]:
    """One tool over all shares, with the first filter under which it sees the planted mistake."""
    chosen, planted, output = FILTERS[-1], None, ""
    for filters in FILTERS[-1:] if name in UNFILTERED else FILTERS:
        ((_, output),) = _processes([[*tool, *filters, *base, "planted"]], environment)
        if counted(output, name):
            chosen, planted = filters, counted(output, name)
            break
    if planted is None:
        return {"planted": None, "errors": None, "cases": 0, "why": output[-2000:]}
    report: dict[str, Any] = {"filter": " ".join(chosen), "planted": planted}
    results = _reports([[*tool, *chosen, *one] for one in shares], environment, report)
    report["errors"] = total(counted(one, name) for _, one in results)
    report["cases"] = sum(ran_in(one) for _, one in results)
    failed = [one for code, one in results if code or counted(one, name) != 0]
    if name == "racecheck":
        parts = [[*tool, *chosen, *base, part] for part in ("control", "guarded")]
        (code, control), (_, guarded) = _reports(parts, environment, report)
        report["guarded"] = {"errors": counted(guarded, name)}  # all of them mistaken
        report["of_roles"] = sum(racecheck.split(one)[1] for _, one in results)
        report["control"] = {"errors": counted(control, name), "of_roles": racecheck.split(control)[1]}
        unlike = report["of_roles"] and not report["control"]["of_roles"]
        if code or report["control"]["errors"] != 0 or unlike:
            report["errors"] = None  # either the tool is wrong about what is right, or it may be right about roles
            failed += [control]
    if failed:
        report["why"] = [one if len(one) < 4000 else one[:3000] + one[-1000:] for one in failed]
    return report
