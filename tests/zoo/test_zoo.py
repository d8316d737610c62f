"""The zoo is whole, and where Triton's own interpreter is right the truths agree with it."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import triton

from tests.zoo import FAMILIES, MODULES, ZOO, compare

ROOT = Path(__file__).resolve().parents[2]
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def interpreted():
    """What one process with Triton's own interpreter says of every entry it should compute rightly."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.zoo.interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"entry"')]
    return {line["entry"]: line for line in lines}


def test_the_interpreter_of_triton_confirms_the_truths(interpreted):
    expected = {name for name, entry in ZOO.items() if entry.interpreter}
    assert len(expected) >= 60
    assert interpreted.keys() == expected
    failed = [line for line in interpreted.values() if not line["passed"]]
    if VERSION < (3, 7):  # a loop with bounds of its own cannot be run there with NumPy 2.4
        failed = [line for line in failed if "only 0-dimensional arrays" not in line.get("error", "")]
    assert failed == []


def test_there_are_many_entries_of_every_family_and_kind():
    files = {path.stem for path in Path(__file__).parent.glob("*.py") if "\nENTRIES = " in path.read_text()}
    assert FAMILIES.keys() == files
    assert all(FAMILIES.values())
    assert len(ZOO) >= 60
    assert {entry.kind for entry in ZOO.values()} == {"exact", "approximate", "reduction", "dot"}


def test_names_are_unique():
    names = Counter(entry.name for module in MODULES for entry in module.ENTRIES)
    assert [name for name, times in names.items() if times > 1] == []


def test_what_is_not_exact_has_a_bound():
    assert [name for name, entry in ZOO.items() if (entry.kind == "exact") == (entry.bound is not None)] == []


@pytest.mark.parametrize("name", ZOO)
def test_inputs_and_truths_are_always_the_same_and_small(name):
    entry = ZOO[name]
    first, second = entry.inputs(), entry.inputs()
    assert first.keys() == second.keys()
    tensors = [value for value in first.values() if isinstance(value, torch.Tensor)]
    assert sum(x.nbytes for x in tensors) <= 2**17
    before, after = entry.truth(**first), entry.truth(**second)
    for output, values in before.items():
        np.testing.assert_array_equal(values, after[output])
    bounds = entry.bound(**first) if entry.bound else {}
    assert bounds.keys() <= before.keys()
    assert all((np.asarray(bound) >= 0).all() for bound in bounds.values())


def test_one_wrong_bit_is_seen():
    entry = ZOO["add-fp32"]
    out = torch.from_numpy(entry.truth(**entry.inputs())["out"].copy())
    assert compare(entry, {"out": out})["out"].passed
    out.view(torch.int32)[400] ^= 1
    seen = compare(entry, {"out": out})["out"]
    assert (seen.differing, seen.passed) == (1, False)
