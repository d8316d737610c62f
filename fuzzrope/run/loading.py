"""Turning a target's entry into something to call. Runs in the child only."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any


def load(entry: str) -> Callable[..., Any]:
    """The callable of ``module:attribute`` or of a file that defines ``ModelNew``.

    A class is instantiated, with the arguments that the file's ``get_init_inputs()`` gives, if it has one.
    Whatever the target's own code raises comes through.
    """
    if entry.endswith(".py"):
        module, name = _from_file(entry), "ModelNew"
        if not hasattr(module, name):
            raise AttributeError(f"{os.path.basename(entry)} defines no {name}")
    else:
        path, _, name = entry.partition(":")
        module = importlib.import_module(path)
    made = getattr(module, name)
    if isinstance(made, type):
        arguments: list[Any] = getattr(module, "get_init_inputs", list)()
        made = made(*arguments)
    loaded: Callable[..., Any] = made
    return loaded


def _from_file(path: str) -> Any:
    name = "candidate_" + "".join(c if c.isalnum() else "_" for c in os.path.basename(path)[:-3])
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec.loader.exec_module(module)
    return module
