"""A row measured: the gate before the time, a peer that fails costs its own cell, and what is reported of it."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fuzzrope.bench import command
from fuzzrope.bench.peers import PEERS, Peer, eager, plain
from fuzzrope.bench.report import Report, progress, summary
from fuzzrope.bench.session import ABSENT, FAILED, OK, WRONG, ceilings, measure
from fuzzrope.bench.timing import GpuTime
from tests.bench.simulated import CEILINGS, SMALL, CountingTimer, SimulatedGpu, machine

ROW = SMALL["rope"]


def raising(error):
    def make(row):
        raise error

    return make


def second_call_fails(row):
    calls = []

    def call(inputs):
        calls.append(inputs)
        if len(calls) > 1:
            raise RuntimeError("unstable\nsecond line")
        return eager(inputs)

    return call


def sines_swapped(inputs):
    return eager(replace(inputs, sin=-inputs.sin))


OURS = Peer("ours", "rope", plain(eager), ours=True)
OTHERS = (
    Peer("wrong", "rope", plain(sines_swapped)),
    Peer("no library", "rope", raising(ModuleNotFoundError("No module named 'nothing'"))),
    Peer("refuses", "rope", raising(ValueError("not for this shape"))),
    Peer("too large", "rope", raising(torch.OutOfMemoryError("tried to allocate"))),
    Peer("unstable", "rope", second_call_fails),
    Peer("right", "rope", plain(eager)),
)


def measured(peers=(OURS, *OTHERS), row=ROW):
    return measure(row, machine(), CEILINGS, peers, 3)


def test_each_peer_has_its_own_cell_and_those_that_are_right_a_time():
    found = {cell.peer.name: cell for cell in measured().cells}
    assert list(found) == ["ours", "wrong", "no library", "refuses", "too large", "unstable", "right"]
    assert {name: cell.status for name, cell in found.items()} == {
        "ours": OK, "wrong": WRONG, "no library": ABSENT, "refuses": FAILED, "too large": FAILED,
        "unstable": FAILED, "right": OK,
    }  # fmt: skip
    assert found["wrong"].times is None
    assert found["wrong"].error.whole > 0.1
    assert found["refuses"].reason == "ValueError: not for this shape"
    assert found["too large"].reason == "out of memory"
    assert found["unstable"].reason == "RuntimeError: unstable"
    assert found["ours"].times.batches == found["right"].times.batches == 3
    assert found["ours"].times.median == pytest.approx(3e-6)  # in turns: 1, 3, 5 and 2, 4, 6 µs
    assert found["right"].times.median == pytest.approx(4e-6)


def test_a_wrong_peer_is_never_timed():
    timer = CountingTimer()
    measure(ROW, replace(machine(), gpu=timer), CEILINGS, [OTHERS[0]], 3)
    assert timer.given == 0


def test_a_peer_that_writes_over_its_inputs_does_not_spoil_the_gate_of_the_next():
    def in_place(inputs):
        q, k = eager(inputs)
        inputs.q.copy_(q), inputs.k.copy_(k)
        return q, k

    twice = Peer("in place", "rope", plain(in_place))
    assert [cell.status for cell in measured((twice, OURS, replace(twice, name="again"))).cells] == [OK] * 3


@pytest.mark.parametrize("name", SMALL)
def test_all_peers_give_a_cell_on_a_machine_without_a_gpu(name):
    found = measured([p for p in PEERS if not p.costly], SMALL[name])
    by_name = {cell.peer.name: cell for cell in found.cells}
    ours = next(cell for cell in found.cells if cell.peer.ours)
    assert ours.status == OK
    assert all(cell.status in (OK, FAILED, ABSENT) for cell in found.cells), by_name


def test_rows_whose_launch_counts_are_timed_by_the_other_timer():
    assert measured((OURS,)).meaning == "GPU time"
    assert measured((OURS,), replace(ROW, launch=True)).meaning == "launch included"


def test_inputs_that_do_not_fit_cost_the_row_alone(monkeypatch):
    def make_all(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("fuzzrope.bench.session.make_all", make_all)
    found = measured((OURS,))
    assert (found.cells[0].status, found.cells[0].reason, found.sets) == (FAILED, "out of memory", 0)


def test_ceilings_are_bytes_and_operations_over_medians():
    gpu = SimulatedGpu()
    on_cpu = replace(machine(), gpu=CountingTimer())
    found = ceilings(on_cpu, 3, copied=2**12, size=16)
    assert found.copied == pytest.approx(2 * 2**12 / found.copy.median)
    assert found.multiplied == pytest.approx(2 * 16**3 / found.product.median)
    with pytest.raises(Exception, match="waits for the GPU"):
        ceilings(replace(on_cpu, gpu=Blocking(gpu)), 3, copied=2**12, size=16)


class Blocking(GpuTime):
    """Every call waits for the GPU."""

    def start(self, runs, result_bytes):
        return super().start([self.gpu.synchronize], result_bytes)


def test_a_backward_row_times_the_pass_back_through_one_forward_pass():
    calls = []

    def counted(inputs):
        calls.append(inputs)
        return eager(inputs)

    found = measured([Peer("ours", "rope", plain(counted), ours=True, backward=True)], SMALL["backward of rope"])
    assert found.cells[0].status == OK
    assert len(calls) == 1 + found.sets  # the gate's, and one for each set however often that is timed


ENVIRONMENT = {"device": "a GPU", "torch": "2", "triton": "3"}


def run_rows(rows, peers, report, writes, tmp_path):
    path = tmp_path / "bench.json"

    def write():
        report.write(path)
        writes.append(json.loads(path.read_text()))

    return command.run(rows, peers, machine(), report, 3, write)


def test_the_report_is_written_after_each_row_and_says_when_it_is_complete(tmp_path, capsys):
    writes, report = [], Report(ENVIRONMENT, CEILINGS)
    assert run_rows([ROW, SMALL["rope of groups"]], (OURS, *OTHERS), report, writes, tmp_path) == 0
    assert [(len(w["rows"]), w["complete"]) for w in writes] == [(1, False), (2, False), (2, True)]
    row = writes[-1]["rows"][0]
    assert (row["group"], row["name"], row["bound"], row["time"]) == ("rope", ROW.name, "bytes", "GPU time")
    peer = next(p for p in row["peers"] if p["name"] == "ours")
    assert peer["fraction"] == pytest.approx(row["floor"] / peer["seconds"]["median"])
    assert {p["name"]: p["status"] for p in row["peers"]}["no library"] == ABSENT
    printed = capsys.readouterr().out
    assert "[1/2] rope (2,2,5,8) bfloat16: floor" in printed
    assert "wrong: off by" in printed
    assert "no library" not in printed


def test_a_result_that_is_not_finite_is_written_as_json_that_any_reader_takes(tmp_path):
    def broken(inputs):
        q, k = eager(inputs)
        return q * math.nan, k

    writes, report = [], Report(ENVIRONMENT, CEILINGS)
    assert run_rows([ROW], [Peer("ours", "rope", plain(broken), ours=True)], report, writes, tmp_path) == 1
    assert writes[-1]["rows"][0]["peers"][0]["error"] == {"whole": None, "row": None}
    assert "NaN" not in (tmp_path / "bench.json").read_text()
    assert "Infinity" not in (tmp_path / "bench.json").read_text()


def test_a_kernel_of_ours_that_is_wrong_or_fails_is_exit_code_1(tmp_path, capsys):
    for peer in OTHERS[0], OTHERS[2]:
        report = Report(ENVIRONMENT, CEILINGS)
        assert run_rows([ROW], [replace(peer, ours=True)], report, [], tmp_path) == 1
        assert f"ours is wrong or failed: rope {ROW.name}" in capsys.readouterr().err


def test_an_interruption_keeps_what_is_done_and_comes_through(tmp_path):
    def interrupted(row):
        if row.group_size > 1:
            raise KeyboardInterrupt
        return eager

    writes, report = [], Report(ENVIRONMENT, CEILINGS)
    peers = [Peer("ours", "rope", interrupted, ours=True)]
    with pytest.raises(KeyboardInterrupt):
        run_rows([ROW, SMALL["rope of groups"]], peers, report, writes, tmp_path)
    assert [(len(w["rows"]), w["complete"]) for w in writes] == [(1, False), (1, False)]


def test_the_summary_compares_ours_with_the_quickest_that_rotates_too():
    bare = Peer("bare", "rope", plain(lambda x: (x.q, x.k)), rotates=False)
    found = measured((OURS, bare, OTHERS[0], replace(OTHERS[5], name="slow"), OTHERS[5]))
    heads, line = summary([found])
    assert heads.split() == ["row", "floor", "ours", "of", "floor", "quickest", "other", "ours/it", "no", "RoPE"]
    # In turns of four: ours 1, 5, 9; bare 2, 6, 10; slow 3, 7, 11; right 4, 8, 12 µs.
    assert line.split()[:3] == ["rope", "(2,2,5,8)", "bfloat16"]
    assert line.split()[4:] == ["5.0", f"{found.floor / 5e-6:.2f}", "7.0", "slow", "0.71", "6.0"]


def test_a_summary_of_a_row_without_times_says_why():
    _, line = summary([measured((replace(OTHERS[0], ours=True),))])
    assert line.split()[4:] == ["wrong", "–", "–", "–", "–"]


def test_progress_has_a_line_for_each_peer_that_is_installed():
    found = measured()
    lines = progress(found, 3, 7)
    assert lines[0].startswith("[3/7] rope (2,2,5,8) bfloat16: floor ")
    assert len(lines) == len(found.cells)  # a heading, and one peer is absent
