"""The command line: one clear line for bad input, pytest's exit codes, the documented JSON."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fuzzrope.cli import main

ROOT = Path(__file__).parents[1]
SPECIMEN_CASES = ROOT / "corpus" / "specimen-k-geometry"


def fuzzrope(*arguments: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "fuzzrope", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Call the command in this process: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fuzzrope", *arguments])
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


BAD_INPUT = {
    "no such file": ("fuzz", "no_such_file.py"),
    "not a target": ("fuzz", "kernels.nothing"),
    "--seed": ("fuzz", "--seed", "-1"),
    "--max-time": ("fuzz", "--max-time", "0"),
    "--shard": ("fuzz", "--shard", "3/2"),
    "--device": ("fuzz", "--device", "tpu"),
    "--level": ("fuzz", "--level", "strictest"),
    "No such option": ("fuzz", "--tolerance", "1"),
    "No such command": ("fuss",),
    "missing.json": ("replay", "missing.json"),
    "Missing argument": ("show",),
}


@pytest.mark.parametrize("expected", BAD_INPUT)
def test_bad_input_gives_one_clear_line_and_exit_code_4(expected, call):
    code, output = call(*BAD_INPUT[expected])
    assert code == 4
    assert len(output.strip().splitlines()) == 1
    assert output.startswith("fuzzrope: ")
    assert expected in output


def damaged(text: str) -> dict[str, str]:
    document = json.loads(text)
    bare = {key: value for key, value in document.items() if key != "digest"}
    huge = json.loads(json.dumps(bare))
    huge["case"]["tensors"]["q"]["shape"] = [2**20, 2**20, 1, 2]
    missing = {key: value for key, value in bare.items() if key != "expect"}
    return {
        "a byte changed": text.replace('"normal"', '"normbl"', 1) if '"normal"' in text else text.replace("1", "2", 1),
        "a key missing": json.dumps(missing),
        "a huge shape": json.dumps(huge),
        "a NaN stride": json.dumps(bare).replace('"strides": [', '"strides": [NaN, ', 1),
        "empty": "",
        "no JSON": "{",
    }


@pytest.mark.parametrize(
    "what", ["a byte changed", "a key missing", "a huge shape", "a NaN stride", "empty", "no JSON"]
)
@pytest.mark.parametrize("verb", ["replay", "show", "minimize"])
def test_a_damaged_case_gives_one_clear_line_and_exit_code_4(what, verb, call, tmp_path):
    original = sorted(SPECIMEN_CASES.glob("*.json"))[0].read_text()
    path = tmp_path / "case.json"
    path.write_text(damaged(original)[what])
    code, output = call(verb, str(path))
    assert code == 4
    assert len(output.strip().splitlines()) == 1
    assert "case.json" in output


def test_all_valid_cases_are_differentiated_when_asked(tmp_path):
    command = ("fuzz", "kernels.reference", "--seed", "5", "--max-examples", "40", "--json", "out.json")
    counts = {}
    for how in ("some", "all"):
        fuzzrope(*command, "--gradients", how, cwd=tmp_path)
        (target,) = json.loads((tmp_path / "out.json").read_text())["targets"]
        counts[how] = target["differentiated"], target["executed"]
    assert counts["some"][0] < counts["some"][1] == 40
    differentiated, executed = counts["all"]
    assert 30 < differentiated <= executed - 2 == 38  # the two probes are plain; some cases are invalid


def test_a_passing_campaign_exits_0_and_its_json_is_as_documented(tmp_path):
    code, output = fuzzrope("fuzz", "kernels.reference", "--seed", "5", "--json", "out.json", cwd=tmp_path)
    assert code == 0, output
    assert output.splitlines()[-1].startswith("PASS  kernels.reference")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["format"] == 1
    assert report["verdict"] == "pass"
    assert report["seed"] == 5
    assert report["examples"] == 1000
    (target,) = report["targets"]
    assert target["target"] == "kernels.reference"
    assert target["operation"] == "rope"
    assert target["findings"] == []
    assert set(target["errors"]) == {"bfloat16", "float16", "float32", "float64"}
    assert set(target["gradients"]) == set(target["errors"])
    assert all(0 < errors["max_error_over_bound"] <= 1 for errors in target["gradients"].values())
    for errors in target["errors"].values():
        assert errors["max_ulp"] == 0
        assert 0 < errors["max_error_over_bound"] <= 1
        assert errors["rms_over_reference_rms"] == 1.0
    assert target["strata"]["reached"] == target["strata"]["declared"]
    assert set(report["environment"]) >= {"torch", "triton", "python", "device", "engine"}
    assert "5" in output.splitlines()[0]


def test_a_campaign_too_small_for_its_strata_is_not_a_pass(tmp_path):
    code, output = fuzzrope("fuzz", "kernels.reference", "--seed", "5", "--max-examples", "20", cwd=tmp_path)
    assert code == 5
    assert "strata were not reached" in output


def test_a_failing_campaign_exits_1_and_every_finding_ends_with_a_command_that_shows_it(tmp_path):
    arguments = ("fuzz", "specimen:k-geometry", "--seed", "1", "--max-findings", "2", "--max-time", "60")
    code, output = fuzzrope(*arguments, "--json", "out.json", cwd=tmp_path)
    assert code == 1, output
    findings = json.loads((tmp_path / "out.json").read_text())["targets"][0]["findings"]
    commands = [line.strip() for line in output.splitlines() if line.strip().startswith("fuzzrope replay")]
    assert len(commands) == len(findings) == 2
    for line, finding in zip(commands, findings, strict=True):
        assert line == f"fuzzrope replay {finding['case']}"
        code, output = fuzzrope(*line.split()[1:], cwd=tmp_path)
        assert code == 0, output
        assert finding["bucket"] in output


def test_a_folder_is_judged_file_by_file_and_a_broken_one_stops_nothing(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for name in ("zeroes_inputs", "two_outputs"):
        shutil.copy(ROOT / "tests" / "gauntlet" / "bad" / f"{name}.py", files)
    (files / "a_typo.py").write_text("class ModelNew(:\n    pass\n")
    (files / "helper.py").write_text("raise RuntimeError('no candidate: never imported')\n")
    code, output = fuzzrope(
        "fuzz", "files", "--seed", "3", "--max-findings", "1", "--max-examples", "5", "--json", "out.json", cwd=tmp_path
    )
    assert code == 1
    report = json.loads((tmp_path / "out.json").read_text())
    kinds = {Path(one["target"]).name: [f["kind"] for f in one["findings"]] for one in report["targets"]}
    assert kinds == {"a_typo.py": ["exception"], "two_outputs.py": ["type"], "zeroes_inputs.py": ["mutation"]}
    assert report["broken"] == {}
    last = output[output.rindex("all") :]
    assert [last.count(word) for word in ("FAIL", "type", "mutation", "exception", "helper")] == [3, 1, 1, 1, 0]


def test_a_folder_without_candidates_gives_one_clear_line_and_exit_code_4(call, tmp_path):
    (tmp_path / "helper.py").write_text("ModelNewer = 1\n")
    code, output = call("fuzz", str(tmp_path))
    assert code == 4
    assert output.endswith("no file in this folder defines ModelNew\n")


def test_replaying_a_case_that_shows_something_else_exits_1(tmp_path):
    path = sorted(SPECIMEN_CASES.glob("*.json"))[0]
    document = json.loads(path.read_text())
    del document["digest"]
    document["target"] = "specimen:tiled"
    (tmp_path / "case.json").write_text(json.dumps(document))
    code, output = fuzzrope("replay", "case.json", cwd=tmp_path)
    assert code == 1
    assert "expected and not shown" in output


def test_replaying_nothing_exits_5(call, tmp_path):
    (tmp_path / "corpus").mkdir()
    assert call("replay")[0] == 5


def test_minimizing_a_minimum_says_so_and_a_larger_case_becomes_it(tmp_path):
    path = next(p for p in sorted(SPECIMEN_CASES.glob("*.json")) if p.name.startswith("mismatch"))
    shutil.copy(path, tmp_path / path.name)
    code, output = fuzzrope("minimize", path.name, cwd=tmp_path)
    assert code == 0, output
    assert "is a minimum" in output
    document = json.loads(path.read_text())
    del document["digest"]
    for tensor in document["case"]["tensors"].values():
        tensor["offset"] += 5
    (tmp_path / "mismatch-larger.json").write_text(json.dumps(document))
    code, output = fuzzrope("minimize", "mismatch-larger.json", cwd=tmp_path)
    assert code == 0, output
    assert "a minimum of" in output
    assert "fuzzrope replay" in output


def test_list_names_every_target_and_kind(call):
    from fuzzrope.findings import KINDS
    from fuzzrope.targets import names

    code, output = call("list")
    assert code == 0
    for name in [*names(), *KINDS]:
        assert name in output


def test_show_prints_the_case_and_how_to_replay_it(call):
    path = sorted(SPECIMEN_CASES.glob("*.json"))[0]
    code, output = call("show", str(path))
    assert code == 0
    assert "specimen:k-geometry" in output
    assert output.strip().splitlines()[-1] == f"fuzzrope replay {path}"


def test_doctor_finds_this_installation_sound(tmp_path):
    code, output = fuzzrope("doctor", cwd=tmp_path)
    assert code == 0, output
    assert "kernels.ModelNew: runs in a child process and is judged right" in output


def test_help_explains_the_exit_codes():
    from fuzzrope.cli import cli

    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    assert "Exit codes" in result.output
