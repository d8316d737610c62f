import ast
import re
from functools import cache
from pathlib import Path

import pytest

import fuzzrope
import kernels

PACKAGE = Path(fuzzrope.__file__).parent
KERNELS = Path(kernels.__file__).parent
ROOT = PACKAGE.parent

#: Rooms from the ground up. A module imports from its own room and from those below it, never sideways.
FLOORS = (
    {"text", "atomic", "draw"},
    {"case", "findings", "targets", "numbers", "versions"},
    {"values", "outcome"},
    {"build"},
    {"geometry"},
    {"operations"},
    {"shrink", "corpus", "judge", "run", "interpreter", "mutants", "specimens", "wild"},
    {"settings", "events"},
    {"examine"},
    {"notebook", "repro"},
    {"report", "replaying", "campaign", "doctor"},
    {"parallel"},
    {"cli", "pytest_plugin"},
    {"bench", "__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: Rooms that may be entered from one on the same floor: (from, to).
DOORS = {("run", "interpreter"), ("mutants", "run"), ("mutants", "judge"), ("mutants", "specimens")}

#: What only a disposable child process may import, besides itself.
CHILD_SIDE = {
    "fuzzrope.specimens",
    "fuzzrope.wild",
    "fuzzrope.run.child",
    "fuzzrope.run.differentiate",
    "fuzzrope.run.interpret",
    "fuzzrope.run.engines",
    "fuzzrope.run.facade",
    "fuzzrope.run.homes",
    "fuzzrope.run.loading",
    "fuzzrope.run.pretend",
    "fuzzrope.run.tamper",
    "fuzzrope.run.cuda",
    "fuzzrope.run.driver",
}
#: The entrance of the child's process: started as a program, imported by nobody.
CHILD_MAIN = "fuzzrope.run.zygote"

#: Rooms that no other imports and that run trusted code themselves: the engine in the child, and the benchmark.
RUN_CODE = {"interpreter", "bench"}

MAX_LINES = 350


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules():
    return {name_of(path): path for folder in (PACKAGE, KERNELS) for path in sorted(folder.rglob("*.py"))}


@cache
def imports(name):
    """Absolute names of the modules that a module imports anywhere in its text."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            inside = {f"{base}.{alias.name}" for alias in node.names} & set(modules())
            found |= inside
            if len(inside) < len(node.names):
                found.add(base)
    return frozenset(found)


def reached(start):
    """Every module of ours that importing ``start`` may import, with one way there."""
    ways = {start: (start,)}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        for other in imports(name):
            parents = [".".join(other.split(".")[:n]) for n in range(1, other.count(".") + 2)]
            for module in parents:
                if module in modules() and module not in ways:
                    ways[module] = (*ways[name], module)
                    waiting.append(module)
    return ways


def room(name):
    return name.split(".")[1] if "." in name else ""


OURS = sorted(name for name in modules() if name.startswith("fuzzrope."))


def is_child_side(name):
    return name == "kernels" or name.startswith("kernels.") or bool({name, ".".join(name.split(".")[:2])} & CHILD_SIDE)


@pytest.mark.parametrize("name", OURS)
def test_every_module_is_in_a_room_with_a_floor(name):
    assert room(name) in FLOOR


@pytest.mark.parametrize("name", OURS)
def test_imports_run_one_way(name):
    here = room(name)
    for other in imports(name):
        if not other.startswith("fuzzrope."):
            continue
        there = room(other)
        assert here == there or FLOOR.get(there, 99) < FLOOR[here] or (here, there) in DOORS, f"{name} imports {other}"


def test_no_two_modules_import_each_other():
    for name in OURS:
        below = {other for other in imports(name) if other in modules()}
        packages = {name.rpartition(".")[0]}
        for other in below - packages - {name}:
            assert name not in imports(other), f"{name} and {other}"


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.partition(".")[0] == "kernels"))
def test_kernels_never_import_fuzzrope(name):
    assert not {other for other in imports(name) if other.partition(".")[0] == "fuzzrope"}


@pytest.mark.parametrize(
    "name", [name for name in OURS if not is_child_side(name) and name != CHILD_MAIN and room(name) not in RUN_CODE]
)
def test_the_parent_never_imports_a_target_or_the_childs_side(name):
    ways = {module: way for module, way in reached(name).items() if is_child_side(module) or module == CHILD_MAIN}
    assert not ways


@pytest.mark.parametrize("name", sorted(set(OURS) & CHILD_SIDE | {CHILD_MAIN}))
def test_the_child_never_imports_what_judges_it(name):
    judges = {"judge", "campaign", "corpus", "report", "replaying", "cli", "shrink"}
    assert not {module: way for module, way in reached(name).items() if room(module) in judges}


def test_the_scan_sees_the_imports_that_matter():
    assert "fuzzrope.run.wire" in imports("fuzzrope.run.child")
    assert "fuzzrope.run.child" in imports(CHILD_MAIN)
    assert {"fuzzrope.judge", "fuzzrope.run"} <= imports("fuzzrope.campaign")
    assert "fuzzrope.corpus" in reached("fuzzrope.campaign")
    assert {"fuzzrope.case", "fuzzrope.run.runner"} <= set(reached("fuzzrope.cli"))


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_can_be_read_in_one_sitting(name):
    assert len(modules()[name].read_text(encoding="utf-8").splitlines()) < MAX_LINES


TEXTS = (
    "*.py",
    "*.toml",
    "*.ini",
    "*.cfg",
    "*.txt",
    "*.md",
    "*.json",
    "*.yml",
    "*.yaml",
    "*.sh",
    ".ci/*",
    ".gitignore",
)
LEFT_OUT = {"build", "dist", "reports"}
MACHINE = re.compile(r"(?<![\w.~}])/(?:home|root|Users|mnt|opt|tmp|work|workspace|scratch)/\w")


def tracked_looking():
    """Files of the tree, without what tools leave behind in it."""
    for pattern in TEXTS:
        for path in ROOT.rglob(pattern):
            folders = path.relative_to(ROOT).parts[:-1]
            hidden = any(part.startswith(".") and part != ".ci" for part in folders)
            made = LEFT_OUT & set(folders) or any(part.endswith(".egg-info") for part in folders)
            if path.is_file() and not hidden and not made and "venv" not in "/".join(folders):
                yield path


def test_no_file_names_a_place_on_somebodys_machine():
    found = {}
    for path in tracked_looking():
        lines = path.read_text(encoding="utf-8").splitlines()
        hits = [number for number, line in enumerate(lines, 1) if MACHINE.search(line)]
        if hits:
            found[path.relative_to(ROOT).as_posix()] = hits
    assert not found
