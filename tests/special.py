"""Cases that the kernels for one device alone take, which drawn cases seldom fit: by hand, and by chance.

    python -m tests.special [--device cuda] [--engine ttir-fma] [--count 200] [--seed 1] [--max-time 300]
        [--json FILE.json]

Judges ``kernels.rope_qk@special`` and ``kernels.rope_attention@special``, gradients among what is judged. Cases by hand
come first, then those by chance, of both operations in turn: where time runs out, the report says how many there would
have been. Exit code 1 if there is a finding, a case that the judge skips, none that was judged, or on a CPU one that
went another way, with its outputs or with its gradients.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fuzzrope.case import Backward, Case, TensorSpec, Values
from fuzzrope.geometry import dense
from fuzzrope.judge import judge
from fuzzrope.run import Runner, Zygote
from fuzzrope.run.engines import CONTRACTING
from fuzzrope.targets import find
from fuzzrope.versions import versions

QK, ATTENTION = "rope_qk", "rope_attention"
KERNELS = {
    QK: ("streamed_qk_kernel", "hopper_qk_kernel", "wide_qk_kernel"),
    ATTENTION: ("hopper_attention_kernel",),
}
#: Of attention launched for rows of q, then for keys; of scores for both at once.
GRADIENTS = {QK: "hopper_qk_gradient_kernel", ATTENTION: "hopper_gradient_kernel"}
SECONDS = 120.0  # for a case: several processes may compile at once
RECIPES = ("normal",) * 6 + ("wide", "tiny", "powers", "nans", "infs", "subnormal", "zeros")


def case(
    operation: str, dtype: str = "bfloat16", rows: int = 130, keys: int = 200, width: int = 128, width_v: int = 0,
    heads: tuple[int, int] = (2, 2), **options: Any,
) -> Case:  # fmt: skip
    """A case of contiguous tensors, with tables that are just long enough."""
    shapes = {"q": (1, heads[0], rows, width), "k": (1, heads[1], keys, width)}
    if operation == ATTENTION:
        shapes["v"] = (1, heads[1], keys, width_v or width)
    needed = max(rows + options.get("q_offset", 0), keys)
    shapes |= {"cos": (needed, width // 2), "sin": (needed, width // 2)}
    specs = {
        name: TensorSpec(dtype, shape, dense(shape), storage=name, values=Values("normal", seed))
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return Case(operation, tuple(specs.items()), options=tuple(sorted(options.items())))


def differentiated(
    asked: Case, requires: tuple[str, ...] = (), used: tuple[str, ...] = (), inside: bool = False
) -> Case:
    """A case with gradients of some inputs, all but tables unless given, from those of some outputs, the first if none.

    That of the first output has heads ``inside`` rows, or is contiguous.
    """
    q, last = asked["q"], asked["k" if asked.operation == QK else "v"]
    _, heads, rows, _ = q.shape
    first, across = ("scores", last.shape[2]) if asked.operation == QK else ("o", last.shape[3])
    forms = {first: (q.dtype, (*q.shape[:3], across)), "lse": ("float32", q.shape[:3])}
    given = {
        name: TensorSpec(dtype, shape, dense(shape), 0, f"d{name}", Values("normal", 10 + seed))
        for seed, (name, (dtype, shape)) in enumerate(forms.items())
        if name in (used or (first,))
    }
    if inside:
        strides = (heads * rows * across, across, heads * across, 1)
        given[first] = replace(given[first], strides=strides)
    requires = requires or tuple(name for name in ("q", "k", "v") if name in dict(asked.tensors))
    return replace(asked, backward=Backward(requires, tuple(sorted(given.items()))))


def gradient_launches(asked: Case) -> int:
    """How many launches of GRADIENTS a case ought to end with; 0 where others make its gradients."""
    backward, width = asked.backward, asked["q"].shape[3]
    if backward is None or {"cos", "sin"} & set(backward.requires):
        return 0
    if asked.operation == QK:
        return int(width in (64, 128, 256))
    if "o" not in dict(backward.cotangents) or width != asked["v"].shape[3] or width > 128:
        return 0
    return 2 if {"k", "v"} & set(backward.requires) else 1


BY_HAND: dict[str, Case] = {
    "scores": case(QK, rows=100, keys=264),
    "scores in float16": case(QK, "float16", rows=64, keys=128, width=64),
    "scores, many steps": case(QK, rows=640, keys=8, heads=(12, 1)),
    "scores of groups": case(QK, rows=70, keys=136, heads=(4, 2), width=96),
    "scores, causal": case(QK, rows=130, keys=400, causal=True, q_offset=200),
    "scores, all hidden but one": case(QK, rows=65, keys=200, causal=True, q_offset=0),
    "scores, one column of a warp": case(QK, rows=3, keys=16, width=16),
    "scores, scaled": case(QK, rows=1, keys=1024, scale=-3.0, width=48),
    "scores, several blocks of keys": case(QK, rows=330, keys=600, heads=(6, 2)),
    "scores, several blocks of keys, causal": case(
        QK, "float16", rows=200, keys=520, width=64, heads=(2, 1), causal=True, q_offset=60
    ),
    "wide scores": case(QK, rows=300, keys=1000, width=256, heads=(4, 2)),
    "wide scores, causal": case(QK, "float16", rows=130, keys=400, width=160, causal=True, q_offset=200),
    "wide scores, one tile of keys": case(QK, rows=70, keys=72, width=208),
    "attention": case(ATTENTION),
    "attention, a ring around": case(ATTENTION, rows=20, keys=1100, width=64, heads=(1, 1)),
    "attention, causal": case(ATTENTION, rows=300, keys=300, causal=True, heads=(1, 1)),
    "attention, later rows": case(ATTENTION, "float16", rows=70, keys=400, causal=True, q_offset=330, width=64),
    "attention, hidden keys": case(ATTENTION, rows=40, keys=500, causal=True, q_offset=3, heads=(1, 1)),
    "attention of groups": case(ATTENTION, rows=65, keys=129, heads=(4, 2), width_v=64),
    "attention, negative scale": case(ATTENTION, rows=3, keys=1, scale=-2.0, width=64),
    "attention, no scale": case(ATTENTION, rows=3, keys=140, scale=0.0),
    "attention, several units a program": case(ATTENTION, rows=300, keys=200, heads=(4, 2), width=64),
    "attention, pairs of units": case(ATTENTION, rows=300, keys=400, heads=(4, 1), causal=True, q_offset=90, width=64),
    "attention, wide": case(ATTENTION, rows=130, keys=200, width=256),
    "attention, wide and causal": case(
        ATTENTION, "float16", rows=300, keys=300, width=256, heads=(4, 2), causal=True, q_offset=5
    ),
    "attention, wide, one tile of keys": case(ATTENTION, rows=3, keys=40, width=256, scale=-0.3),
    "gradients of scores": differentiated(case(QK, rows=256, keys=128)),
    "gradients of scores, ragged": differentiated(case(QK, rows=131, keys=208, heads=(1, 1))),
    "gradients of scores, two parts": differentiated(case(QK, "float16", rows=300, keys=264, width=64)),
    "gradients of scores, causal": differentiated(case(QK, rows=300, keys=304, causal=True, heads=(1, 1))),
    "gradients of scores, causal, two parts": differentiated(
        case(QK, rows=600, keys=520, causal=True, q_offset=30, width=64, heads=(2, 1))
    ),
    "gradients of scores, later rows": differentiated(
        case(QK, "float16", rows=70, keys=400, causal=True, q_offset=330, width=64)
    ),
    "gradients of scores, keys that no row sees": differentiated(
        case(QK, rows=40, keys=504, causal=True, q_offset=130, heads=(1, 1), width=64)
    ),
    "gradients of scores of groups": differentiated(case(QK, rows=70, keys=136, heads=(6, 2), width=64)),
    "gradients of scores, several units a program": differentiated(
        case(QK, rows=600, keys=400, heads=(6, 6), causal=True, q_offset=90, width=64)
    ),
    "gradients of scores, negative scale": differentiated(case(QK, rows=65, keys=32, scale=-2.0, width=64)),
    "gradients of scores, no scale": differentiated(case(QK, rows=3, keys=144, scale=0.0)),
    "gradients of scores, wide": differentiated(case(QK, rows=130, keys=200, width=256, causal=True, q_offset=20)),
    "gradients of scores of one row": differentiated(case(QK, rows=1, keys=8)),
    "gradients of scores of queries alone": differentiated(case(QK, rows=65, keys=72), ("q",)),
    "gradients of scores of keys alone": differentiated(case(QK, rows=65, keys=72), ("k",)),
    "gradients of scores, a view handed back": differentiated(
        case(QK, rows=65, keys=72, heads=(4, 2), width=64), inside=True
    ),
    "gradients of scores of other widths": differentiated(case(QK, rows=65, keys=72, width=96)),
    "gradients of scores of tables": differentiated(case(QK, rows=65, keys=72, width=64), ("q", "k", "cos", "sin")),
    "gradients": differentiated(case(ATTENTION, rows=128, keys=128)),
    "gradients, ragged": differentiated(case(ATTENTION, rows=131, keys=201, heads=(1, 1))),
    "gradients, causal": differentiated(case(ATTENTION, rows=300, keys=300, causal=True, heads=(1, 1))),
    "gradients, later rows": differentiated(
        case(ATTENTION, "float16", rows=70, keys=400, causal=True, q_offset=330, width=64)
    ),
    "gradients, keys that no row sees": differentiated(
        case(ATTENTION, rows=40, keys=500, causal=True, q_offset=130, heads=(1, 1), width=64)
    ),
    "gradients, all rows see all keys": differentiated(
        case(ATTENTION, rows=66, keys=65, causal=True, q_offset=64, heads=(1, 1), width=64)
    ),
    "gradients of groups": differentiated(case(ATTENTION, rows=70, keys=129, heads=(6, 2), width=64)),
    "gradients, several units a program": differentiated(
        case(ATTENTION, rows=300, keys=400, heads=(4, 4), causal=True, q_offset=90, width=64)
    ),
    "gradients, negative scale": differentiated(case(ATTENTION, rows=65, keys=30, scale=-2.0, width=64)),
    "gradients, no scale": differentiated(case(ATTENTION, rows=3, keys=140, scale=0.0)),
    "gradients in float16": differentiated(case(ATTENTION, "float16", rows=100, keys=90, width=64)),
    "gradients of one row": differentiated(case(ATTENTION, rows=1, keys=1)),
    "gradients of wide heads": differentiated(case(ATTENTION, rows=65, keys=70, width=256)),
    "gradients of values alone": differentiated(case(ATTENTION, rows=65, keys=70), ("v",)),
    "gradients of queries alone": differentiated(case(ATTENTION, rows=65, keys=70), ("q",)),
    "gradients, lse used too": differentiated(
        case(ATTENTION, rows=65, keys=130, causal=True, q_offset=70, return_lse=True), used=("o", "lse")
    ),
    "gradients, lse not used": differentiated(case(ATTENTION, rows=65, keys=70, return_lse=True, width=64)),
    "gradients, a view handed back": differentiated(
        case(ATTENTION, rows=65, keys=70, heads=(4, 2), width=64), inside=True
    ),
    "gradients, values of another width": differentiated(case(ATTENTION, rows=65, keys=70, width_v=64)),
    "gradients of tables": differentiated(case(ATTENTION, rows=65, keys=70, width=64), ("q", "k", "v", "cos", "sin")),
    "gradients of lse alone": differentiated(
        case(ATTENTION, rows=65, keys=70, return_lse=True, width=64), ("q", "k"), ("lse",)
    ),
}
#: With several units a program on a GPU too, which has more multiprocessors than what stands for it on a CPU.
LARGE: dict[str, Case] = {
    "attention of many": case(ATTENTION, rows=600, keys=300, heads=(64, 2)),
    "attention of many, causal": case(ATTENTION, rows=600, keys=600, heads=(80, 2), causal=True, width=64),
    "attention of many, wide values": case(ATTENTION, rows=200, keys=130, heads=(150, 1), width=64, width_v=128),
    "scores of many": case(QK, rows=1000, keys=520, heads=(40, 4), causal=True, q_offset=7),
    "scores of many, not causal": case(QK, "float16", rows=500, keys=700, heads=(60, 60)),
    "wide scores of many": case(QK, rows=1000, keys=520, width=256, heads=(40, 4)),
    "gradients of scores of many": differentiated(case(QK, rows=520, keys=600, heads=(80, 40), causal=True)),
    "gradients of scores of many, not causal": differentiated(case(QK, rows=520, keys=280, heads=(100, 100), width=64)),
    "gradients of many": differentiated(case(ATTENTION, rows=70, keys=20, heads=(150, 150), width=64)),  # soon judged
    "gradients of many, causal": differentiated(
        case(ATTENTION, rows=130, keys=130, heads=(80, 80), causal=True, width=64)
    ),
}


def laid_out(chance: random.Random, name: str, shape: tuple[int, ...], dtype: str, values: Values) -> TensorSpec:
    """A tensor whose rows start at multiples of 16 bytes: contiguous, heads inside rows, padded, or a later part."""
    kind = chance.choice(("plain", "plain", "inside", "padded", "later"))
    strides, offset = list(dense(shape)), 0
    if kind == "inside" and len(shape) == 4:
        _, heads, rows, width = shape
        strides = [heads * rows * width, width, heads * width, 1]
    elif kind == "padded":
        wide = dense((*shape[:-1], shape[-1] + 8 * chance.randint(1, 3)))
        strides = [*wide[:-1], 1]
    elif kind == "later":
        offset = 8 * chance.randint(1, 5)
    return TensorSpec(dtype, shape, tuple(strides), offset, name, values)


def handed_back(chance: random.Random, dtype: str, name: str, shape: tuple[int, ...], with_lse: bool) -> Backward:
    """What a case is differentiated by, its output of this shape in use or seldom lse alone; mostly not by tables.

    Rows of the output's gradient start at multiples of 16 bytes, as those of inputs; gradients of lse lie anyhow.
    """
    some = ("q", "k") if name == "scores" else ("q", "k", "v")
    requires = chance.choice(
        (some, some, some, some, ("q",), ("k",), some[-1:], ("q", some[-1]), (*some, "cos", "sin"))
    )
    used = chance.choice(((name,), ("lse", name), ("lse", name), ("lse",))) if with_lse else (name,)
    given = laid_out(chance, "given", shape, dtype, Values(chance.choice(RECIPES), chance.randrange(2**31)))
    _, heads, rows = shape[:3]
    steps = chance.choice(((heads * rows, rows, 1), (heads * rows, 1, heads), (0, 0, 0)))
    dlse = TensorSpec("float32", shape[:3], steps, 1, "dlse", Values(chance.choice(RECIPES), chance.randrange(2**31)))
    return Backward(requires, tuple((one, {name: given, "lse": dlse}[one]) for one in used))


def drawn(operation: str, number: int, seed: int) -> Case:
    """One case by chance, the same for the same numbers; a third is differentiated, of which numbers come last."""
    chance = random.Random(f"{operation} {seed} {number}")
    widths = (64, 64, 64, 128, 128, 128, 256) if operation == ATTENTION else (16, 48, 64, 64, 96, 128, 128, 160, 256)
    dtype, width, width_v = chance.choice(("bfloat16", "float16")), chance.choice(widths), chance.choice((64, 128))
    width_v = width_v if width <= 128 else width
    kv_heads, group, batch = chance.choice((1, 1, 2)), chance.choice((1, 1, 2, 3)), chance.choice((1, 1, 2))
    rows = chance.choice((1, 3, 63, 64, 65, 128, 130, 200))
    keys = chance.choice((8, 16, 120, 128, 136, 256, 264, 520))
    if operation == ATTENTION:
        keys += chance.choice((0, 0, 0, 1, -1, 3))
    options: dict[str, Any] = {}
    if chance.random() < 0.6:
        options |= {"causal": True, "q_offset": chance.choice((0, 0, 1, 100, max(keys - rows, 0)))}
    if chance.random() < 0.3:
        options["scale"] = chance.choice((1.0, -1.0, 0.3, 0.0, 2.0**-20, 30.0))
    if operation == ATTENTION and chance.random() < 0.3:
        options["return_lse"] = True
    needed = max(rows + options.get("q_offset", 0), keys) + chance.choice((0, 0, 5))
    shapes: dict[str, tuple[int, ...]] = {
        "q": (batch, kv_heads * group, rows, width), "k": (batch, kv_heads, keys, width),
    }  # fmt: skip
    if operation == ATTENTION:
        shapes["v"] = (batch, kv_heads, keys, width_v)
    shapes |= {"cos": (needed, width // 2), "sin": (needed, width // 2)}
    specs = {
        name: laid_out(chance, name, shape, dtype, Values(chance.choice(RECIPES), chance.randrange(2**31)))
        for name, shape in shapes.items()
    }
    backward = None
    if chance.random() < 1 / 3:
        if operation == QK:
            backward = handed_back(chance, dtype, "scores", (batch, kv_heads * group, rows, keys), False)
        else:
            if chance.random() < 0.8:  # then their kernel can take it, unless heads are wide
                specs["v"] = laid_out(chance, "v", shapes["k"], dtype, specs["v"].values)
            out = (batch, kv_heads * group, rows, specs["v"].shape[3])
            backward = handed_back(chance, dtype, "o", out, "return_lse" in options)
    return Case(operation, tuple(specs.items()), tuple(sorted(options.items())), backward)


def said_of(runner: Runner, asked: Case, device: str) -> str:
    """What the judge says of a case, ``right`` where there is nothing to say."""
    outcome = runner.run(asked, SECONDS)
    verdict = judge(asked, outcome, runner.target)
    found = [f"{finding.kind}: {finding.message}" for finding in verdict.findings] or [verdict.skipped]
    launched, gradients = [launch.kernel for launch in outcome.launches], gradient_launches(asked)
    if device == "cpu" and not {*launched[:1]} & {*KERNELS[asked.operation]}:
        found.append("another kernel was taken")
    if device == "cpu" and gradients and launched[1:] != [GRADIENTS[asked.operation]] * gradients:
        found.append("another kernel was taken for gradients")
    return "; ".join(filter(None, found)) or "right"


def share_of(text: str) -> tuple[int, int]:
    """``I/N`` as two integers, I from 0."""
    which, _, count = text.partition("/")
    if not (which.isdigit() and count.isdigit() and int(which) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N-1")
    return int(which), int(count)


def compiled_as(asked: Case) -> tuple[object, ...]:
    """What kernels are compiled for, which takes longer than to judge a case."""
    of_values = asked["v"].shape[3] if asked.operation == ATTENTION else 0
    causal = dict(asked.options).get("causal", False)
    q = asked["q"]
    return asked.operation, q.dtype, q.shape[3], of_values, causal, asked.backward is not None


def asked_for(device: str, count: int, seed: int, share: tuple[int, int]) -> list[tuple[str, Case]]:
    """A share of all cases by name, in the order in which they are judged: those that compile the same, together."""
    part, parts = share
    cases = list((BY_HAND | LARGE if device == "cuda" else BY_HAND).items())
    for number in range(count):
        cases += [(f"{operation} {number}", drawn(operation, number, seed)) for operation in KERNELS]
    forms = sorted({compiled_as(asked) for _, asked in cases}, key=repr)[part::parts]
    return [(name, asked) for name, asked in cases if compiled_as(asked) in forms]


def main(arguments: list[str]) -> int:
    """Judge all cases that there is time for; 0 if there are some, and all of them are right."""
    parser = argparse.ArgumentParser(prog="python -m tests.special", description="Cases for kernels of one device.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--engine", choices=("ttir", CONTRACTING), default="ttir", help="of a CPU")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="of cases by chance for each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=share_of, default=(0, 1), metavar="I/N", help="of what compiles alike")
    parser.add_argument(
        "--max-time", type=float, default=math.inf, metavar="SECONDS", help="after which no further case is begun"
    )
    parser.add_argument("--json", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    cases = asked_for(options.device, options.count, options.seed, options.share)
    began, counts, wrong = time.monotonic(), Counter[str](), dict[str, str]()
    with contextlib.ExitStack() as stack:
        zygote = stack.enter_context(contextlib.closing(Zygote(options.device, options.engine)))
        runners = {  # one each: a child that starts anew begins with loading kernels, and on a GPU with a context
            operation: stack.enter_context(
                Runner(find(f"kernels.{operation}@special"), options.device, engine=options.engine, zygote=zygote)
            )
            for operation in KERNELS
        }
        for name, asked in cases:
            if time.monotonic() - began >= options.max_time:
                break
            said = said_of(runners[asked.operation], asked, options.device)
            counts[asked.operation] += 1
            counts[f"{asked.operation}, differentiated"] += asked.backward is not None
            if said != "right":
                wrong[name] = said
                print(f"{name}: {said}", flush=True)
    report = {
        "format": 1, "environment": versions() | {"device": options.device}, "seed": options.seed,
        "asked": Counter(asked.operation for _, asked in cases), "cases": counts, "wrong": wrong,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    judged = sum(counts[operation] for operation in KERNELS)
    print(f"{judged} of {len(cases)} cases, {len(wrong)} of them not right, {report['seconds']} s")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if wrong or not judged else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # shares run side by side: threads of each would wait for those of all others
    sys.exit(main(sys.argv[1:]))
