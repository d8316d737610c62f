"""One file out of many: what it imports, that it is whole, and that it is still our kernel."""

import ast
import builtins
import importlib.util
import re
import subprocess
import symtable
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import triton
from click.testing import CliRunner

from fuzzrope.campaign import run_campaign
from fuzzrope.cli import cli
from fuzzrope.events import Event, Example, Seen
from fuzzrope.run import Runner
from fuzzrope.settings import PROFILES
from fuzzrope.targets import find
from kernels import export
from tests.kernels.test_sources import empty_grids, forbidden, jit_functions, odd_blocks

FOLDER = Path(export.__file__).parent


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.py"
    assert export.main([str(path)]) == 0
    return path


def test_the_file_imports_nothing_but_torch_triton_and_the_standard_library(file: Path):
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").partition(".")[0])
    assert {"torch", "triton"} <= found <= {"torch", "triton", *sys.stdlib_module_names}


def test_the_file_looks_up_no_name_that_it_does_not_define(file: Path):
    assert undefined(file.read_text()) == set()
    assert undefined("def f():\n    return lambda: g\n") == {"g"}


def undefined(text: str) -> set[str]:
    """Global names that are looked up anywhere and bound nowhere."""
    top = symtable.symtable(text, "file", "exec")
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    bound |= {child.get_name() for child in top.get_children()} | set(dir(builtins)) | {"__name__"}
    tables, wanted = [top], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        wanted |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or table is top)}
    return wanted - bound


def test_the_file_has_the_form_that_is_asked_for(file: Path):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree)
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes.count("ModelNew") == 1
    assert not any(isinstance(node, ast.If) for node in tree.body)
    kernels = list(jit_functions(tree))
    assert {"rope_kernel", "rotate", "sum_products_kernel", "qk_kernel", "attention_kernel"} <= {
        k.name for k in kernels
    }
    assert sum(kernel.name.endswith("_gradient_kernel") for kernel in kernels) == 4
    assert all(forbidden(kernel) == [] for kernel in kernels)
    assert odd_blocks(tree) == []
    assert empty_grids(tree, {kernel.name for kernel in kernels}) == []


def loaded(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exported_model"] = module  # Triton asks for it
    spec.loader.exec_module(module)
    return module


def test_kernels_take_the_same_parameters_in_the_file(file: Path):
    """Annotations are text there, and say how wide a number is; so do the decorator's arguments."""

    def parameters(module: Any) -> dict[str, list[tuple[Any, ...]]]:
        found = {name: x for name, x in vars(module).items() if isinstance(x, triton.JITFunction)}
        return {
            name.removeprefix(f"{module.__name__.rpartition('.')[2]}_"): [
                (p.name, p.annotation, p.annotation_type, p.do_not_specialize, p.do_not_specialize_on_alignment)
                for p in kernel.params
            ]
            for name, kernel in found.items()
        }

    ours = {}
    for path in (*FOLDER.glob("rope*.py"), FOLDER / "attention_launch.py"):
        module = importlib.import_module(f"kernels.{path.stem}")
        ours |= {f"{path.stem}.{name}": kernel for name, kernel in parameters(module).items()}
    theirs = parameters(loaded(file))
    wide = 0
    for name, found in ours.items():
        module, _, kernel = name.partition(".")
        assert found == theirs.get(f"{module}_{kernel}", theirs.get(kernel)), name
        wide += sum(annotation_type in ("i64", "fp64") for _, _, annotation_type, *_ in found)
    assert wide == 6 + 6 + 3


def test_docstrings_and_comments_come_along(file: Path):
    text = file.read_text()
    some = {
        "rope_launch": "So none is specialized: one flag, VECTOR, says all",
        "launch": "# the widest load of one thread",
    }
    for module, line in some.items():
        assert line in (FOLDER / f"{module}.py").read_text()
        assert line in text
    assert '"""Rotate query and key by position' in text


def test_what_the_model_does_not_reach_is_left_out(file: Path):
    text = file.read_text()
    assert "def get_inputs" in (FOLDER / "reference.py").read_text()
    assert "get_inputs(" not in text
    assert "class ModelNew" in text
    assert "main(" not in text


def test_the_same_modules_give_the_same_file(file: Path, tmp_path: Path):
    other = tmp_path / "again.py"
    result = CliRunner().invoke(cli, ["export", str(other)])
    assert result.exit_code == 0, result.output
    assert other.read_bytes() == file.read_bytes()
    seeds = [subprocess.run([sys.executable, "-I", export.__file__, str(other)], env={"PYTHONHASHSEED": seed})
             for seed in "01"]  # fmt: skip
    assert [done.returncode for done in seeds] == [0, 0]
    assert other.read_bytes() == file.read_bytes()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = str(tmp_path / "missing" / "out.py")
    assert export.main([path]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    result = CliRunner().invoke(cli, ["export", path])
    assert result.exit_code != 0
    assert export.main([]) == 2
    assert export.main(["--help"]) == 2
    assert capsys.readouterr().err.startswith("usage")


def test_the_judge_finds_nothing_at_the_strict_level(file: Path, runner: Runner):
    events: list[Event] = []
    settings = PROFILES["quick"].with_changes(seed=11, max_examples=300, max_time=600.0, level="strict")
    run_campaign(find(str(file)).at("strict"), settings, None, events.append, runner)
    examples = [event for event in events if isinstance(event, Example)]
    assert len(examples) == 300
    assert [event.finding.message for event in events if isinstance(event, Seen)] == []
    assert not any(example.skipped for example in examples)


def judged(path: Path, operation: str, examples: int, runner: Runner) -> list[Event]:
    """The events of a campaign at the strict level over a file, as an implementation of this operation."""
    events: list[Event] = []
    changes = {"max_findings": 1, "shrink_examples": 1, "grace": 1.0, "level": "strict"}
    settings = PROFILES["quick"].with_changes(seed=11, max_examples=examples, max_time=600.0, **changes)
    target = replace(find(str(path)), operation=operation).at("strict")
    run_campaign(target, settings, None, events.append, runner)
    return events


#: Methods of an exported file's ModelNew as implementations of the operations.
METHODS = {"rope_qk": "scores", "rope_attention": "attention"}


def with_method(file: Path, folder: Path, operation: str, text: str | None = None) -> Path:
    """A file beside a copy of the exported one, whose ModelNew is a method of that one's."""
    (folder / f"exported_{operation}.py").write_text(text or file.read_text())
    path = folder / f"judged_{operation}.py"
    path.write_text(f"import exported_{operation} as given\nModelNew = given.ModelNew().{METHODS[operation]}\n")
    return path


@pytest.mark.parametrize("operation", METHODS)
def test_the_judge_finds_nothing_in_the_methods_at_the_strict_level(
    file: Path, tmp_path: Path, runner: Runner, operation: str
):
    events = judged(with_method(file, tmp_path, operation), operation, 60, runner)
    examples = [event for event in events if isinstance(event, Example)]
    assert len(examples) == 60
    assert [event.finding.message for event in events if isinstance(event, Seen)] == []
    assert not any(example.skipped for example in examples)


@pytest.mark.parametrize(
    ("operation", "line", "wrong"),
    [
        ("rope_qk", "s = s * scale.to(WORK)", "s = s * 1.01"),
        ("rope_qk", "dk2 = (dk2 * scale.to(SUM)).to(WORK)", "dk2 = dk2.to(WORK)"),
        ("rope_attention", "total = total * alpha + tl.sum(p, 1)", "total = total + tl.sum(p, 1)"),
        ("rope_attention", "delta = -dlse.to(GRAD)", "delta = dlse.to(GRAD)"),
        ("rope_attention", "return low, tl.maximum(tl.minimum(high, last_tile), low)", "return low, last_tile"),
        ("rope_qk", "if first + last_shift < start_n + BLOCK_N - 1:", "if first + last_shift < start_n:"),
    ],
)
def test_the_judge_finds_mistakes_in_the_methods(
    file: Path, tmp_path: Path, runner: Runner, operation: str, line: str, wrong: str
):
    text = file.read_text()
    assert text.count(line) == 1
    events = judged(with_method(file, tmp_path, operation, text.replace(line, wrong)), operation, 150, runner)
    assert {event.finding.kind for event in events if isinstance(event, Seen)} & {"mismatch", "nonfinite", "gradient"}


def test_the_judge_finds_a_mistake_in_such_a_file(file: Path, tmp_path: Path, runner: Runner):
    text = file.read_text()
    line = "first = (c1.to(tl.float32) - s2.to(tl.float32)).to(OUT_DTYPE)"
    assert text.count(line) == 1
    wrong = tmp_path / "wrong.py"
    wrong.write_text(text.replace(line, line.replace("-", "+")))
    events: list[Event] = []
    settings = PROFILES["quick"].with_changes(seed=11, max_examples=20, max_time=600.0, level="strict", max_findings=1)
    run_campaign(find(str(wrong)).at("strict"), settings, None, events.append, runner)
    assert "mismatch" in {event.finding.kind for event in events if isinstance(event, Seen)}


# Merging


def merged(monkeypatch: pytest.MonkeyPatch, folder: Path, **modules: str) -> str:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(export, "FOLDER", folder)
    return export.exported()


MODEL = "from kernels.a import f\nclass ModelNew:\n    x = f\n"


def test_modules_stand_in_the_order_of_their_imports_and_late_imports_follow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    a = "from kernels.b import g\ndef f():\n    from kernels.c import h  # late\n\n    return g, h\n"
    text = merged(monkeypatch, tmp_path, ModelNew=MODEL, a=a, b="g = 1\n", c="from kernels.a import f\nh = f\n")
    names: dict[str, object] = {}
    exec(compile(text, "merged", "exec"), names)
    assert names["f"]() == (1, names["f"])  # type: ignore[operator]
    assert "import" not in text.replace("from __future__ import annotations", "")


def test_a_module_imported_by_name_leaves_its_name_as_a_prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    a = "from kernels import b\ndef f():\n    return b.f(2)\n"
    text = merged(monkeypatch, tmp_path, ModelNew=MODEL, a=a, b="Y = 3\ndef f(x: int):\n    return x * Y\n")
    names: dict[str, object] = {}
    exec(compile(text, "merged", "exec"), names)
    assert names["f"]() == 6  # type: ignore[operator]
    assert "b_f" in names
    assert "b_Y" in names


def test_of_two_definitions_the_later_one_gets_its_modules_name_as_a_prefix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    a = "from kernels.b import g\nNAME = 'a'\ndef f():\n    from kernels.c import h\n    return f'é{NAME}{h()}{g()}'\n"
    b = "NAME = 'b'\ndef g():\n    return f'{NAME}'\n"
    c = "NAME = 'c'\ndef g():\n    return NAME\ndef h():\n    return g()\n"
    text = merged(monkeypatch, tmp_path, ModelNew=MODEL, a=a, b=b, c=c)
    names: dict[str, object] = {}
    exec(compile(text, "merged", "exec"), names)
    assert names["f"]() == "éacb"  # type: ignore[operator]
    assert (names["NAME"], names["a_NAME"], names["c_NAME"]) == ("b", "a", "c")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"a": "from kernels.b import g\nf = g\n", "b": "g = f = 1\na_f = 2\n"},
            "a and b both define a_f",
        ),
        (
            {"a": "from kernels.b import g\ndef f():\n    h = g\nh = 1\n", "b": "g = h = 1\n"},
            "h is also the name of something local",
        ),
        (
            {"a": "from kernels.b import g\ndef f():\n    from kernels.c import g\n", "b": "g = 1\n", "c": "g = 1\n"},
            "g of b and of c",
        ),
        (
            {"a": "from kernels import b\ndef f(b):\n    return b.f\n", "b": "f = 1\n"},
            "b is also the name",
        ),
        ({"a": "from kernels import b as c\nf = c.g\n", "b": "g = 1\n"}, "under another name"),
    ],
    ids=["a name with a prefix that is there", "a local name", "two names in one", "a local module", "an alias"],
)
def test_what_cannot_be_merged_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, modules: dict[str, str], message: str
):
    with pytest.raises(export.ExportError, match=message):
        merged(monkeypatch, tmp_path, ModelNew=MODEL, **modules)


def test_its_operators_are_not_those_of_the_package():
    text = export.exported()
    assert "rope_kernels::" not in text
    assert len(set(re.findall(r'"(rope_kernels_[0-9a-f]{8})::', text))) == 1
