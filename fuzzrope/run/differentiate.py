"""Gradients of what a target returned. Runs in the child only; it judges nothing.

``torch.autograd.grad`` steps out of torch function modes before it runs, and with it would every backward
written in Python: kernels launched there would see host tensors. The engine below it does not: it runs CPU
nodes on the calling thread, under the modes that are entered when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fuzzrope.build import Built
from fuzzrope.case import Backward


def require(built: Built, backward: Backward) -> None:
    """Have the inputs that are to get a gradient ask for one."""
    for name in backward.requires:
        built.tensors[name].requires_grad_()


def differentiate(
    result: Any, names: tuple[str, ...], built: Built, backward: Backward
) -> tuple[list[bool], list[torch.Tensor | None]] | None:
    """Whether each output requires a gradient, and the gradient of each input that asks for one.

    None if what came back is not what the cotangents are of: then there is nothing to differentiate. An output
    that does not require a gradient contributes none; what no used output depends on has None.
    """
    items = list(result) if isinstance(result, (tuple, list)) else [result]
    outputs: Mapping[str, Any] = dict(zip(names, items, strict=False))
    if len(items) != len(names) or not all(type(item) is torch.Tensor for item in items):
        return None
    with torch._C.DisableTorchFunction():
        flags = [bool(item.requires_grad) for item in items]
        if any(name not in outputs for name, _ in backward.cotangents):
            return None
        pairs = [(outputs[name], built.cotangents[name]) for name, _ in backward.cotangents]
        if any(_form(output) != _form(cotangent) for output, cotangent in pairs):
            return None
        pairs = [(output, cotangent) for output, cotangent in pairs if output.requires_grad]
    if not pairs:
        return flags, [None] * len(backward.requires)
    roots, cotangents = zip(*pairs, strict=True)
    leaves = tuple(built.tensors[name] for name in backward.requires)
    run: Any = torch.autograd.Variable._execution_engine.run_backward
    gradients = run(roots, cotangents, False, False, leaves, allow_unreachable=True, accumulate_grad=False)
    return flags, list(gradients)


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.layout
