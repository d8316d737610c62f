"""What can be known without a GPU of the commands that need one: arguments, cases, comparisons, summaries."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fuzzrope.operations import OPERATIONS
from tests import on_gpu, racecheck, sanitizer, special
from tests.conftest import rope_case, spec
from tests.on_gpu import Extent

# Importing PyTorch's compiler and tracing with it warns of its own parts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

SMALL = {
    "rope": Extent("rope", "rope", 3, 20, 20, 32),
    "scores": Extent("scores", "rope_qk", 3, 16, 40, 32),
    "part of the scores": Extent("part", "rope_qk", 2, 40, 40, 32, 8, False),
    "attention": Extent("attention", "rope_attention", 3, 16, 40, 32),
}


@pytest.fixture
def launching(engine, monkeypatch):
    """The engine, to which all kernels launch."""
    for name in ("rope", "operators", "rope_qk", "rope_attention", "fused_operators"):
        monkeypatch.setattr(importlib.import_module(f"kernels.{name}"), "can_launch", lambda device: True)
    torch.manual_seed(1)
    return engine


@pytest.fixture
def with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_arguments_name_parts_cases_and_where_the_report_goes(with_a_gpu):
    every = on_gpu.parse([])
    assert (every.parts, every.out, every.count) == (["extents", "graphs", "sanitizer"], None, None)
    for line in ("graphs --out x.json extents", "--out x.json graphs extents"):
        found = on_gpu.parse(line.split())
        assert (found.parts, found.out) == (["graphs", "extents"], Path("x.json"))
    cases = on_gpu.parse(["cases", "70", "--share", "1/4"])
    assert (cases.count, cases.share) == (70, (1, 4))
    assert on_gpu.parse(["planted"]).parts == ["planted"]
    assert on_gpu.parse(["control"]).parts == ["control"]


@pytest.mark.parametrize(
    "line", ["extent", "cases", "cases x", "cases 3 graphs", "cases 3 --share 4/4", "planted graphs"]
)
def test_other_arguments_are_refused_in_one_line(with_a_gpu, line, capsys):
    with pytest.raises(SystemExit) as found:
        on_gpu.parse(line.split())
    assert found.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        on_gpu.main([])
    assert "no GPU" in capsys.readouterr().err


def test_a_part_that_fails_is_told_and_sets_the_exit_code(with_a_gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(on_gpu, "extents", lambda: {"ok": True})
    monkeypatch.setattr(on_gpu, "graphs", lambda: 1 / 0)
    assert on_gpu.main(["extents"]) == 0
    assert on_gpu.main(["graphs", "extents", "--out", str(tmp_path / "r.json")]) == 1
    assert "graphs: FAILED" in capsys.readouterr().out
    assert '"why": "ZeroDivisionError' in (tmp_path / "r.json").read_text()


# Extents


@pytest.mark.parametrize("extent", SMALL.values(), ids=SMALL)
def test_our_kernels_are_right_at_both_ends(launching, extent, capsys):
    assert on_gpu.extents("cpu", (extent,))["ok"]
    assert launching.launches
    assert "right" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["first output", "last output", "last gradient", "a NaN"])
@pytest.mark.parametrize("extent", SMALL.values(), ids=SMALL)
def test_what_is_wrong_at_one_end_is_seen(launching, monkeypatch, extent, where, capsys):
    operation = on_gpu.OPERATIONS[extent.operation]

    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            out = x.clone()
            if where == "first output":
                out[0, 0, 0, 0] += 3
            if where == "last output":
                out[0, -1, -1, -1] += 3
            return out

        @staticmethod
        def backward(ctx, g):
            g = g.clone()
            if where == "last gradient":
                g[0, -1, -1] += 3
            if where == "a NaN":
                g[0, 0, 0, 0] = torch.nan
            return g

    def wrong(*tensors):
        first, *rest = on_gpu.several(operation.ours(*tensors))
        return (Spoiled.apply(first), *rest)

    monkeypatch.setitem(on_gpu.OPERATIONS, extent.operation, replace(operation, ours=wrong))
    assert not on_gpu.extents("cpu", (extent,))["ok"]
    assert "WRONG" in capsys.readouterr().out


def test_the_large_problems_have_more_than_two_to_the_31_elements():
    for extent in on_gpu.EXTENTS:
        sizes = [extent.heads * n for n in (extent.rows * extent.width, extent.keys * extent.width)]
        assert max(*sizes, extent.heads * extent.rows * extent.keys if extent.operation == "rope_qk" else 0) > 2**31
    assert {extent.operation for extent in on_gpu.EXTENTS} == set(on_gpu.OPERATIONS)


# Graphs


@pytest.mark.parametrize("name", on_gpu.OPERATIONS)
def test_one_compilation_serves_all_lengths(launching, monkeypatch, name):
    monkeypatch.setattr(on_gpu, "LENGTHS", (24, 40, 70))
    found = on_gpu.compiled(on_gpu.OPERATIONS[name], "cpu", "aot_eager")
    assert found == {"ok": True, "same": True, "compilations": 1, "breaks": 0, "backend": "aot_eager"}


def test_a_second_compilation_and_other_bits_are_seen(launching, monkeypatch):
    monkeypatch.setattr(on_gpu, "LENGTHS", (24, 40, 70))
    right = on_gpu.OPERATIONS["rope_qk"]

    def restless(q, *rest):
        return right.ours(q, *rest) * (1 if q.shape[2] < 50 else 2)

    assert on_gpu.compiled(replace(right, ours=restless), "cpu", "aot_eager")["compilations"] == 2

    def other(*tensors):
        return right.ours(*tensors) * (2 if torch.compiler.is_compiling() else 1)

    assert not on_gpu.compiled(replace(right, ours=other), "cpu", "aot_eager")["same"]


@pytest.mark.parametrize("name", on_gpu.SPECIAL)
def test_graphs_exercise_kernels_for_one_device_alone_and_that_of_gradients(launching, name):
    operation = on_gpu.SPECIAL[name]
    tensors, given = on_gpu.problem_of(operation, on_gpu.LENGTHS[0], "cpu")
    found = on_gpu.both_ways(operation.ours, tensors, given)
    launched = [launch["kernel"] for launch in launching.launches]
    name = special.ATTENTION if operation.values else special.QK
    assert launched[0] in special.KERNELS[name]
    of_gradients = [special.GRADIENTS[name]] * (2 if operation.values else 1)
    assert (launched[1:] == of_gradients) == (not operation.tables)
    assert len(found) == 1 + 2 + operation.values + 2 * operation.tables
    assert all(map(torch.equal, found, on_gpu.both_ways(operation.ours, tensors, given)))
    true = on_gpu.both_ways(operation.twin, tensors, [given[0].to(found[0].dtype)])
    assert all((mine - its).abs().max() < 0.05 * its.abs().max() for mine, its in zip(found, true, strict=True))


# The sanitizer


@pytest.mark.parametrize("operation", sanitizer.TARGETS)
def test_drawn_cases_are_valid_each_time_the_same_and_have_gradients(operation):
    cases = sanitizer.drawn(operation, 40)
    assert [case.id for case in cases] == [case.id for case in sanitizer.drawn(operation, 40)]
    assert len({case.id for case in cases}) == 40
    assert all(OPERATIONS[operation].rejects(case) is None for case in cases)
    assert 12 <= sum(case.backward is not None for case in cases) <= 28


def test_cases_for_one_device_have_gradients_of_its_kernels():
    cases = sanitizer.for_one_device(special.ATTENTION, 23)
    assert cases[:23] == [special.drawn(special.ATTENTION, number, 1) for number in range(23)]
    assert len(cases) == len({case.id for case in cases}) == 34
    assert all(map(special.gradient_launches, cases[23:]))
    of_scores = sanitizer.for_one_device(special.QK, 23)
    assert len(of_scores) == 34
    assert all(map(special.gradient_launches, of_scores[23:]))


def test_drawn_cases_run(launching):
    assert sanitizer.run_cases(6, (0, 2), "cpu") + sanitizer.run_cases(6, (1, 2), "cpu") >= 15
    assert set(special.GRADIENTS.values()) <= {launch["kernel"] for launch in launching.launches}
    assert not launching.accesses


def test_tensors_end_with_their_last_element_and_nothing_between_is_written(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "empty", lambda n, **form: made.append(torch.full((n,), -7.0, **form)) or made[-1])
    case = rope_case(
        q=spec("q", (1, 2, 3, 4), strides=(40, 20, 6, 1), offset=5), k=spec("k", (2, 2, 3, 4), strides=(0, 12, 4, 1))
    )
    tensors = sanitizer.build(case).tensors
    for name, one in case.tensors:
        if name in ("q", "k"):
            found = sanitizer.in_memory_of_its_own(tensors[name], one, "cpu")
            assert torch.equal(found, tensors[name])
            assert found.stride() == one.strides
            assert found.untyped_storage().nbytes() == 4 * one.end
    assert [int((flat == -7).sum()) for flat in made] == [made[0].numel() - 24, 0]


OUTPUT = """========= COMPUTE-SANITIZER
ran 12 cases
========= ERROR SUMMARY: {} errors
"""


def test_summaries_of_all_tools_are_read():
    assert sanitizer.errors_in(OUTPUT.format(0)) == 0
    assert sanitizer.errors_in(OUTPUT.format(3) + OUTPUT.format(1)) == 4
    assert sanitizer.errors_in("========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)") == 2
    assert sanitizer.errors_in("========= ERROR SUMMARY: 1 error") == 1
    assert sanitizer.errors_in("========= Error: Device not supported") is None
    assert sanitizer.ran_in(OUTPUT.format(0) * 2) == 24


def tool(folder: Path, planted: int, found: int, cases: bool = True, control: int = 0) -> str:
    """A stand-in for compute-sanitizer, which knows no filter; it counts the cases of what it is to watch."""
    path = folder / "tool"
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in *kernel-regex*) echo "unrecognised option"; exit 1;; esac\n'
        f'case "$*" in *planted*) echo "= ERROR SUMMARY: {planted} errors"; exit 0;; esac\n'
        f'case "$*" in *control*) echo "= ERROR SUMMARY: {control} errors"; exit 0;; esac\n'
        f'{"echo ran 5 cases" if cases else ":"}\necho "= ERROR SUMMARY: {found} errors"\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("planted", "found", "cases", "control", "ok"),
    [
        (2, 0, True, 0, True),
        (2, 1, True, 0, False),
        (0, 0, True, 0, False),
        (2, 0, False, 0, False),
        (2, 0, True, 1, False),
    ],
)
def test_the_sanitizer_part_holds_if_all_ran_and_only_a_planted_mistake_was_found(
    monkeypatch, tmp_path, planted, found, cases, control, ok, capsys
):
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: tool(tmp_path, planted, found, cases, control))
    monkeypatch.setattr(sanitizer.sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho ran 5 cases\n")
    (tmp_path / "python").chmod(0o755)
    report = sanitizer.sanitize(5, 2)
    assert (report["cases"], report["ok"]) == (10, ok)
    if planted:
        assert {one["filter"] for one in report["tools"].values()} == {""}
    capsys.readouterr()


def test_without_the_tool_the_part_fails(monkeypatch):
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: None)
    monkeypatch.setattr(sanitizer.os.path, "exists", lambda path: False)
    assert sanitizer.sanitize(1, 1) == {"ok": False, "why": "compute-sanitizer is not there"}


REPORT = """#!/bin/sh
case "$*" in
    *planted*) echo "= ERROR SUMMARY: 1 error";;
    *) echo ran 5 cases
       case "$*" in
           *racecheck*control*) {control}; exit {code};;
           *racecheck*guarded*) {guarded};;
           *racecheck*) {found};;
           *) echo "= ERROR SUMMARY: 0 errors";;
       esac;;
esac
"""


@pytest.mark.parametrize(("in_control", "code", "ok"), [(1, 0, True), (0, 0, False), (1, 1, False)])
def test_races_of_what_roles_are_given_do_not_count_if_the_control_has_the_like(
    monkeypatch, tmp_path, in_control, code, ok, capsys
):
    ((kernel, line), *_) = racecheck.made_by_triton(racecheck.handing_kernel)

    def report(races: int) -> str:
        race = f"= Error: Race reported between Read access at {kernel}+0x1 in racecheck.py:{line}\n= \n"
        (tmp_path / f"{races}").write_text(race * races + f"= RACECHECK SUMMARY: {races} hazards displayed\n")
        return f"cat {tmp_path / str(races)}"

    texts = {"control": report(in_control), "guarded": report(7), "found": report(2)}
    (tmp_path / "tool").write_text(REPORT.format(code=code, **texts))
    (tmp_path / "python").write_text("#!/bin/sh\necho ran 5 cases\n")
    for name in ("tool", "python"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: str(tmp_path / "tool"))
    monkeypatch.setattr(sanitizer.sys, "executable", str(tmp_path / "python"))
    found = sanitizer.sanitize(5, 2)
    assert found["ok"] is ok
    assert found["tools"]["racecheck"]["of_roles"] == 4
    capsys.readouterr()


@pytest.mark.parametrize(("times", "ok"), [(1, True), (9, False)])
def test_a_report_without_places_is_asked_for_again_and_counts_if_it_stays(monkeypatch, tmp_path, times, ok, capsys):
    race = "= Error: Race reported between Read access at \n=     and Write access at  [9 hazards]\n= \n"
    (tmp_path / "unclear").write_text(race + "= RACECHECK SUMMARY: 1 hazard displayed\n")
    (tmp_path / "clear").write_text("= RACECHECK SUMMARY: 0 hazards displayed\n")
    which = f"echo >> {tmp_path}/$(echo $* | tr -dc a-z0-9); test $(cat {tmp_path}/$(echo $* | tr -dc a-z0-9) | wc -l)"
    said = f"if {which} -le {times}; then cat {tmp_path}/unclear; else cat {tmp_path}/clear; fi"
    (tmp_path / "tool").write_text(REPORT.format(code=0, control=said, guarded="true", found=said))
    (tmp_path / "python").write_text("#!/bin/sh\necho ran 5 cases\n")
    for name in ("tool", "python"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: str(tmp_path / "tool"))
    monkeypatch.setattr(sanitizer.sys, "executable", str(tmp_path / "python"))
    found = sanitizer.sanitize(5, 2)
    assert found["ok"] is ok
    assert found["tools"]["racecheck"]["again"] == (3 if ok else 6)
    capsys.readouterr()
