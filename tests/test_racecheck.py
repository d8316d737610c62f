"""What racecheck says is told apart by where it says it, and the kernels that try it out do what they should."""

import pytest
import torch

from tests import racecheck, sanitizer

KERNEL = "hopper_attention_kernel"
DEFINED, SPECIALIZED = sorted(line for _, line in racecheck.made_by_triton(racecheck.hopper_attention_kernel))
WRITTEN = DEFINED - 40  # a line of a role


def said(*races: tuple[int, ...], summary: int | None = None) -> str:
    """A report as compute-sanitizer prints it: a race between accesses at each tuple of lines."""
    lines = ["========= COMPUTE-SANITIZER"]
    for first, *others in races:
        lines.append(f"========= Error: Race reported between Read access at {KERNEL}+0x160 in attention.py:{first}")
        lines += [
            f"=========     and Write access at {KERNEL}+0xe940 in attention.py:{line} [4 hazards]" for line in others
        ]
        lines.append("========= ")
    number = len(races) if summary is None else summary
    summary_line = f"========= RACECHECK SUMMARY: {number} hazards displayed ({number} errors, 0 warnings)"
    return "\n".join([*lines, "ran 5 cases", summary_line, ""])


@pytest.mark.parametrize("kernel", racecheck.KERNELS[:2], ids=lambda kernel: kernel.fn.__name__)
def test_roles_get_their_arguments_where_the_kernel_begins_and_where_it_gives_roles(kernel):
    (_, defined), (_, specialized) = sorted(racecheck.made_by_triton(kernel))
    with open(kernel.fn.__code__.co_filename) as file:
        lines = file.read().splitlines()
    assert lines[defined - 1] == f"def {kernel.fn.__name__}("
    assert lines[specialized - 1] == "    gl.warp_specialize("


@pytest.mark.parametrize(
    ("races", "apart"),
    [
        ([], (0, 0)),
        ([(DEFINED, DEFINED, SPECIALIZED), (DEFINED, SPECIALIZED)], (0, 2)),
        ([(DEFINED, WRITTEN), (DEFINED, SPECIALIZED)], (1, 1)),
        ([(WRITTEN, WRITTEN)], (1, 0)),
    ],
)
def test_a_race_with_an_access_that_somebody_wrote_counts(races, apart):
    assert racecheck.split(said(*races)) == apart
    assert sanitizer.counted(said(*races), "racecheck") == apart[0]
    assert sanitizer.counted(said(*races), "memcheck") == sum(apart)


def test_if_a_report_is_not_understood_all_of_it_counts():
    assert sanitizer.counted(said((DEFINED, SPECIALIZED), summary=3), "racecheck") == 3
    assert sanitizer.counted("nothing", "racecheck") is None


def test_a_report_without_a_place_is_told_from_others():
    report = said((DEFINED, SPECIALIZED), (WRITTEN, WRITTEN))
    assert racecheck.names_all("nothing")
    assert racecheck.names_all(report)
    nameless = report.replace(f"{KERNEL}+0x160 in attention.py:{WRITTEN}", "")
    assert not racecheck.names_all(nameless)
    assert sanitizer.counted(nameless, "racecheck") == 1  # it counts for all that


def test_numbers_are_handed_over_and_without_a_barrier_it_is_a_race(engine):
    assert torch.equal(racecheck.run_control("cpu", 2, 3), torch.arange(3 * racecheck.NUMBERS, dtype=torch.int32))
    assert torch.equal(racecheck.run_guarded("cpu", 1, 3), torch.arange(3 * racecheck.NUMBERS))
    assert not engine.accesses
    racecheck.run_race("cpu", 1, 3)
    assert {entry["what"] for entry in engine.accesses.values()} == {"race"}
