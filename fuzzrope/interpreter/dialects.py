"""The whole translation: every dialect registered, from a module to its program."""

from __future__ import annotations

from fuzzrope.interpreter import access, arithmetic, control, floats, functions, gluon, hopper, shapes
from fuzzrope.interpreter.ir import Func, Module
from fuzzrope.interpreter.translate import Generated, Translator
from fuzzrope.interpreter.values import Val

#: Importing them registers what operations become.
DIALECTS = (access, arithmetic, control, floats, functions, gluon, hopper, shapes)


def translate(module: Module, checked: bool = False, contracts: bool = False) -> Generated:
    """The program of a module; ``checked`` computes addresses a second time without wrapping.

    ``contracts``: products go into sums unrounded, where a GPU's compiler may let them.

    Raises :class:`UnknownOperationError` for what it does not know.
    """
    translator = Translator(module, checked, contracts)
    entry: Func = module.entry
    args = entry.args
    for i, ((name, kind), number) in enumerate(zip(args, entry.ids, strict=True)):
        root = name[1:] if kind.elem == "ptr" else None
        if root:
            translator.roots[root] = f"a{i}"
        code = "0" if kind.elem == "ptr" else f"a{i}"
        translator.env[number] = Val(code, kind, True, (), root, const=kind.elem == "ptr")
    translator.act = "act"
    if hopper.share_memory(module):
        translator.alone = True
        translator.line("rt.watch_warps()")
    functions.function(translator, entry)
    return translator.finish(args, control.must_be_ordered(module))
