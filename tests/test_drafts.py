"""The command that judges the drafts tells right from wrong."""

from tests import drafts
from tests.test_qk_hopper import case


def test_what_is_right_and_what_is_not_taken_is_told(monkeypatch, capsys):
    cases = {"taken": case(rows=3, keys=8, width=64), "not taken": case("float32", rows=3, keys=8, width=64)}
    monkeypatch.setattr(drafts, "DRAFTS", {"variant:qk-hopper": cases})
    assert drafts.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["variant:qk-hopper, taken: right", "variant:qk-hopper, not taken: another kernel was taken"]
    monkeypatch.setattr(drafts, "DRAFTS", {"variant:qk-hopper": {"taken": cases["taken"]}})
    assert drafts.main(["--device", "cpu"]) == 0
