"""Kernels for one device alone: wishes to ask them, and their text as a file of its own, changed."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import torch

from fuzzrope.judge import judge
from fuzzrope.targets import find
from kernels.forms import Meta
from kernels.hopper import attention, attention_backward, qk, qk_backward, streamed_qk, wide_qk
from kernels.special import Wish
from kernels.tiling import Pins
from tests.special import ATTENTION, GRADIENTS, KERNELS, QK

GIVEN, BY_SCORES = ("q", "k", "v", "cos", "sin", "do", "dlse"), ("q", "k", "cos", "sin", "ds")
MODULES = {
    "streamed scores": streamed_qk,
    "scores": qk,
    "wide scores": wide_qk,
    "attention": attention,
    "gradients": attention_backward,
    "gradients of scores": qk_backward,
}
KERNEL = dict(zip(MODULES, (*KERNELS[QK], *KERNELS[ATTENTION], GRADIENTS[ATTENTION], GRADIENTS[QK]), strict=True))
OPERATION = {which: QK if which.endswith("scores") else ATTENTION for which in MODULES}
STANDS_FOR = {which: "qk" if which.endswith("scores") else which for which in MODULES}
STANDS_FOR |= {"gradients": "attention_gradients", "gradients of scores": "qk_gradients"}
ANY = Pins(special=True)


def wish(
    *shapes: tuple[int, ...], names=BY_SCORES, dtype=torch.bfloat16, causal=False, q_offset=0, plain=True, **strides
) -> Wish:
    forms = {
        name: Meta(shape, strides.get(name, torch.empty(shape, device="meta").stride()), dtype)
        for name, shape in zip(names, shapes, strict=False)
    }
    if "dlse" in forms:
        forms["dlse"] = forms["dlse"]._replace(dtype=torch.float32)
    return Wish(forms, dtype, 1.0, causal, q_offset, plain, 132)


def attention_wish(rows=512, keys=512, width=128, width_v=128, table=512, heads=2, **changes) -> Wish:
    q, k, v = ((1, heads, n, w) for n, w in ((rows, width), (keys, width), (keys, width_v)))
    return wish(q, k, v, (table, width // 2), (table, width // 2), names=GIVEN, **changes)


def gradient_wish(rows=512, keys=512, width=128, width_v=128, table=512, heads=2, group=1, **changes) -> Wish:
    q, do = ((1, heads * group, rows, w) for w in (width, width_v))
    k, v = ((1, heads, keys, w) for w in (width, width_v))
    return wish(q, k, v, (table, width // 2), (table, width // 2), do, q[:3], names=GIVEN, **changes)


def scores_gradient_wish(rows=512, keys=512, width=128, table=512, heads=2, group=1, **changes) -> Wish:
    q, k = ((1, n, length, width) for n, length in ((heads * group, rows), (heads, keys)))
    return wish(q, k, (table, width // 2), (table, width // 2), (*q[:3], keys), **changes)


#: Imports of parts of modules, whose flaws are theirs.
PARTS = re.compile(
    r"from kernels\.hopper\.(pull|pull_scores|rings|rows|streams|units|weights) import (?:\([^)]*\)|.*)\n"
)


def text_of(path: Path, known: set[str]) -> str:
    """A module with the parts that it imports written into it, each once, before what imports it."""

    def part(found: re.Match[str]) -> str:
        if found[1] in known:
            return ""
        known.add(found[1])
        return text_of(path.parent / f"{found[1]}.py", known)

    return PARTS.sub(part, path.read_text())


def changed(which: str, *changes: tuple[str, str]) -> str:
    """The text of a module and its parts, with changes."""
    text = text_of(Path(MODULES[which].__file__), set())
    for right, wrong in changes:
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    return text


def loaded(path: Path, which: str, *changes: tuple[str, str]):
    """A module of its own with the text of one, changed."""
    text = changed(which, *changes)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds_with(folder: Path, runner, which: str, flaw: tuple[str, str], asked) -> set[str]:
    """Kinds of findings of a case, with the module as a file, changed, whose kernel is the one that is taken."""
    operation = OPERATION[which]
    text = (
        changed(which, flaw)
        + f"""
from kernels.pinned import pinned
from kernels.special import SPECIAL, Special
SPECIAL["{STANDS_FOR[which]}"] = [Special(90, serves, pays, prepare)]

ModelNew = pinned("{operation}", "special")
"""
    )
    path = folder / "candidate.py"
    path.write_text(text)
    target = replace(find(str(path)), operation=operation)
    runner.turn_to(target)
    return {finding.kind for finding in judge(asked, runner.run(asked), target).findings}
