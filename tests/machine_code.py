"""What the compiler makes of the fused kernels for compute capability 9.0, without a GPU: registers, spills, loops.

    python -m tests.machine_code [KERNEL=ROWSxKEYSxWARPSxSTAGES ...]

KERNEL is qk, attention, attention_dq or attention_dk; bfloat16, head_dim 128, as for even layouts. Of each loop with
products of tensor cores it says how many instructions a warp has in it, and of the commonest kinds how many. Branches
inside a loop are counted whether they are taken or not.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import attention_launch, rope_attention_backward
from kernels.pinned import parse
from kernels.rope_qk import qk_kernel
from kernels.tiling import Tiles

KERNELS = {
    "qk": qk_kernel,
    "attention": attention_launch.attention_kernel,
    "attention_dq": rope_attention_backward.query_gradient_kernel,
    "attention_dk": rope_attention_backward.key_gradient_kernel,
}
DEFAULT = (
    "qk=64x128x4x2", "attention=128x64x8x3", "attention=256x64x16x2",
    "attention_dq=64x128x8x1", "attention_dq=64x64x8x2", "attention_dk=64x128x8x1", "attention_dk=64x64x8x2",
)  # fmt: skip
CONSTANTS = {
    "WORK": tl.float32, "DOT": tl.bfloat16, "VALUE": tl.bfloat16, "SUM": tl.float32, "PRECISION": "ieee", "CAP": False,
    "SPLIT": False, "VECTOR": True, "WIDE": False, "OUT": tl.bfloat16, "GRAD": tl.float32, "USED": True,
    "TABLES": False, "BLOCK_D": 64, "BLOCK_V": 128,
}  # fmt: skip
SCRATCH = ("lse_ptr", "total_ptr", "delta_ptr", "dlse_ptr")  # of float32 whatever inputs are
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHOWN = 8  # kinds of instructions


def compiled(name: str, tiles: Tiles) -> tuple[bytes, int]:
    """The machine code of a kernel with such tiles, and its shared memory in bytes."""
    kernel, signature, constants = KERNELS[name], {}, {}
    given = CONSTANTS | {"BLOCK_M": tiles.rows, "BLOCK_N": tiles.keys}
    for index, param in enumerate(kernel.params):
        if param.is_constexpr:
            signature[param.name] = "constexpr"
            constants[(index,)] = given[param.name]
        elif param.name.endswith("_ptr"):
            signature[param.name] = "*fp32" if param.name in SCRATCH else "*bf16"
        else:
            signature[param.name] = param.annotation_type or "i32"
    source = ASTSource(kernel, signature, constants)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return found.asm["cubin"], found.metadata.shared


def loops(listing: str) -> list[Counter[str]]:
    """Instructions by kind, in each loop that has products of tensor cores."""
    labels: dict[str, int] = {}
    found: list[tuple[str, str]] = []
    for line in map(str.strip, listing.splitlines()):
        label = re.fullmatch(r"(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(found)
        instruction = re.match(r"(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]+)([^;]*);", line)
        if instruction:
            found.append((instruction[1], instruction[2]))
    bodies = []
    for at, (kind, operands) in enumerate(found):
        back = re.search(r"\.L_\w+", operands) if kind == "BRA" else None
        if back and labels.get(back[0], at) < at:
            bodies.append(Counter(kind for kind, _ in found[labels[back[0]] : at + 1]))
    return [body for body in bodies if body["HGMMA"] or body["HMMA"]]


def described(name: str, tiles: Tiles) -> str:
    """One kernel's figures, a line for each loop."""
    code, shared = compiled(name, tiles)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()

        def ask(tool: str, flag: str) -> str:
            command = [str(TOOLS / tool), flag, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = re.search(r"REG:(\d+) STACK:(\d+)", ask("cuobjdump", "-res-usage"))
        listing = ask("nvdisasm", "-c")
    assert usage is not None
    head = f"{name}={'x'.join(map(str, tiles[:4]))}: {usage[1]} registers, {usage[2]} bytes spilled, {shared} shared"
    bodies = [
        f"  loop of {body.total()}: " + ", ".join(f"{count} {kind}" for kind, count in body.most_common(SHOWN))
        for body in loops(listing)
    ]
    return "\n".join([head, *bodies])


def main() -> None:
    """Describe each kernel asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.machine_code", description="Registers, spills and loops.")
    parser.add_argument("tiles", nargs="*", default=DEFAULT, metavar="KERNEL=ROWSxKEYSxWARPSxSTAGES")
    for text in parser.parse_args().tiles:
        ((name, tiles),) = parse(text).named
        if name not in KERNELS:
            parser.error(f"{name} is none of {', '.join(KERNELS)}")
        print(described(name, tiles), flush=True)


if __name__ == "__main__":
    main()
