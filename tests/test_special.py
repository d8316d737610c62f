"""The command that judges kernels for one device alone: what it says, in what order, and what a share is."""

import json
from types import SimpleNamespace

import pytest

from fuzzrope.targets import find
from tests import special as command
from tests.special import ATTENTION, BY_HAND, KERNELS, LARGE, QK, asked_for, case, compiled_as


def test_the_command_tells_what_is_right_and_what_went_another_way(monkeypatch, capsys, tmp_path):
    cases = {"taken": case(QK, rows=3, keys=8, width=64), "not taken": case(QK, "float32", rows=3, keys=8, width=64)}
    monkeypatch.setattr(command, "BY_HAND", cases)
    assert command.main(["--json", str(tmp_path / "said.json")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "not taken: another kernel was taken"
    assert lines[1].startswith("2 of 2 cases, 1 of them not right")
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["wrong"] == {"not taken": "another kernel was taken"}
    assert said["asked"] == {QK: 2}
    assert said["cases"][QK] == 2
    monkeypatch.setattr(command, "BY_HAND", {"taken": cases["taken"]})
    assert command.main(["--device", "cpu", "--count", "1"]) == 0


@pytest.mark.parametrize(("seconds", "judged"), [(0.0, []), (1.5, [QK]), (6.0, [QK, ATTENTION, QK, ATTENTION])])
def test_no_case_is_begun_after_the_time_that_there_is_and_both_operations_have_their_part(
    monkeypatch, capsys, tmp_path, seconds, judged
):
    clock, order = [100.0], []

    def said_of(runner, asked, device):
        assert runner.target == find(f"kernels.{asked.operation}@special")
        clock[0] += 1.5
        order.append(asked.operation)
        return "right"

    monkeypatch.setattr(command, "said_of", said_of)
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(command, "BY_HAND", {"by hand": case(QK), "another": case(ATTENTION)})
    file = tmp_path / "said.json"
    ended = command.main(["--count", "7", "--max-time", str(seconds), "--json", str(file)])
    assert ended == (0 if judged else 1)
    assert order == judged
    assert capsys.readouterr().out.startswith(f"{len(judged)} of 16 cases, 0 of them not right")
    said = json.loads(file.read_text())
    assert said["asked"] == {QK: 8, ATTENTION: 8}
    assert {name: said["cases"].get(name, 0) for name in KERNELS} == {name: judged.count(name) for name in KERNELS}


def test_cases_by_hand_come_before_those_by_chance_of_both_operations_in_turn():
    names = [name for name, _ in asked_for("cuda", 5, 1, (0, 1))]
    assert names == [*BY_HAND, *LARGE, *(f"{operation} {n}" for n in range(5) for operation in (QK, ATTENTION))]


def test_each_case_is_in_one_share_with_all_that_compile_alike():
    everything = asked_for("cpu", 40, 1, (0, 1))
    shares = [asked_for("cpu", 40, 1, (which, 5)) for which in range(5)]
    assert sorted(name for share in shares for name, _ in share) == sorted(name for name, _ in everything)
    forms = [{compiled_as(asked) for _, asked in share} for share in shares]
    assert all(forms)
    assert sum(map(len, forms)) == len(set().union(*forms))
