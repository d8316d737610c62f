"""Every planted fault is found, by its kind and source line; a twin that differs in that line alone is silent."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from fuzzrope.case import Values
from fuzzrope.judge import judge
from fuzzrope.run import Runner
from fuzzrope.targets import find
from tests.conftest import rope_case, spec

HERE = Path(__file__).parent
PLANTED, CORRECT = "  # planted", "# correct: "


@dataclass(frozen=True)
class Fault:
    """A planted fault: its file, the case that shows it, and what has to be said.

    Attributes:
        says: texts of the message, beside the source line: argument and program.
        follows: kinds of findings that are also true of it.
    """

    name: str
    kind: str
    case: object
    says: tuple[str, ...]
    follows: frozenset[str] = frozenset()

    @property
    def file(self):
        return HERE / f"{self.name}.py"

    @property
    def place(self):
        """``file:line: text`` of the planted line."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(PLANTED))
        return f"{self.file.name}:{number}: {lines[number - 1].strip()}"

    def corrected(self):
        """The source of the twin: the planted line replaced by the correct one, which stands above it."""
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        (number,) = (i for i, line in enumerate(lines) if line.rstrip().endswith(PLANTED))
        indent, correct = lines[number - 1].split(CORRECT)
        return "".join([*lines[:number], indent + correct, *lines[number + 1 :]])


def x(name, shape, strides=None, **changes):
    if strides is not None:
        changes["strides"] = strides
    return spec(name, shape, **{"values": Values("normal", ord(name[0])), **changes})


def packed(seq=3, width=6):
    """q and k one after the other in one storage."""
    return {
        "q": x("q", (1, 1, seq, width), storage="qk"),
        "k": x("k", (1, 1, seq, width), storage="qk", offset=seq * width),
    }


FAR = 2**30  # batches this far apart: the third one's offset is 2^31
RAGGED = rope_case(heads=1, width=6)
PADDED = rope_case(heads=1, q=x("q", (1, 1, 3, 6), (24, 24, 8, 1)), k=x("k", (1, 1, 3, 6), (24, 24, 8, 1)), width=6)
APART = rope_case(heads=1, seq=1, q=x("q", (3, 1, 1, 4), (FAR, 4, 4, 1)))
LONG = rope_case(heads=1, seq=70_000, width=2)
VALUES = frozenset({"mismatch", "nonfinite"})

FAULTS = [
    Fault("read_past_end", "out_of_bounds", RAGGED, ("load", "x_ptr 1x1x3x6", "past its last", "program (1, 0, 0)")),
    Fault(
        "write_past_end", "out_of_bounds", RAGGED, ("store", "out_ptr 1x1x3x6", "past its last", "program (1, 0, 0)")
    ),
    Fault(
        "read_in_gap", "out_of_bounds", PADDED, ("load", "x_ptr", "in a gap between its elements", "program (0, 0, 0)")
    ),
    Fault(
        "read_past_view",
        "out_of_bounds",
        rope_case(heads=1, width=6, **packed()),
        ("load", "x_ptr", "past its last, inside its storage", "program (1, 0, 0)"),
    ),
    Fault("silent_over_read", "out_of_bounds", RAGGED, ("load", "cos_ptr 3x3", "past its last", "program (1, 0, 0)")),
    Fault("unwritten_row", "uninitialized", RAGGED, ("3 of 18 elements", "q[0,0,2,0]", "base.py:", "torch.empty")),
    Fault(
        "uninitialized_read",
        "uninitialized",
        RAGGED,
        ("load of element 0 of out_ptr", "program (0, 0, 0)"),
        VALUES,
    ),
    Fault(
        "write_write_race",
        "race",
        rope_case(heads=2, seq=2),
        ("writes another value to element 0 of out_ptr", "program (0, 0, 0)", "program (1, 0, 0)"),
        VALUES | {"uninitialized"},
    ),
    Fault(
        "read_write_race",
        "race",
        RAGGED,
        ("reads element", "of x_ptr", "program (0, 0, 0)", "program (1, 0, 0)"),
        VALUES,
    ),
    Fault(
        "wrapping_index",
        "overflow",
        APART,
        ("load of x_ptr", f"{2**31} became {-(2**31)}", "program (1, 0, 0)"),
        VALUES | {"out_of_bounds"},
    ),
    Fault("sequence_on_y", "launch", LONG, ("grid (1, 70000, 1)",)),
]

NASTY = {
    "nan": rope_case(
        q=x("q", (1, 2, 3, 4), values=Values("nans", 1)), cos=spec("cos", (3, 2), values=Values("infs", 2))
    ),
    "half": rope_case(dtype="float16", width=6, batch=2),
    "bfloat16": rope_case(dtype="bfloat16", width=10),
    "double": rope_case(dtype="float64", width=2),
    "padded": PADDED,
    "transposed": rope_case(q=x("q", (1, 2, 3, 4), (24, 4, 8, 1)), k=x("k", (1, 2, 3, 4), (24, 1, 8, 2))),
    "expanded": rope_case(q=x("q", (2, 2, 3, 4), (0, 0, 4, 1)), cos=spec("cos", (3, 2), strides=(0, 0))),
    "broadcast tables": rope_case(cos=spec("cos", (1, 2)), sin=spec("sin", (3, 1))),
    "long tables": rope_case(cos=spec("cos", (5, 2)), sin=spec("sin", (7, 2), strides=(3, 1))),
    "packed": rope_case(heads=1, width=6, **packed()),
    "interleaved": rope_case(
        heads=1,
        q=x("q", (1, 1, 3, 4), (24, 8, 8, 2), storage="qk"),
        k=x("k", (1, 1, 3, 4), (24, 8, 8, 2), storage="qk", offset=1),
    ),
    "one tensor": rope_case(q=x("q", (1, 2, 3, 4)), k=x("q", (1, 2, 3, 4))),
    "no batch": rope_case(batch=0),
    "no rows": rope_case(seq=0),
    "no columns": rope_case(width=0),
    "below 2^31": rope_case(heads=1, seq=1, q=x("q", (2, 1, 1, 4), (2**31 - 64, 4, 4, 1))),
    "beyond 2^31": APART,
    "stride beyond 2^31": rope_case(heads=1, seq=1, q=x("q", (2, 1, 1, 4), (2**31 + 64, 4, 4, 1))),
    "columns far apart": rope_case(heads=1, seq=1, width=2, q=x("q", (1, 1, 1, 2), (1, 1, 1, 2**31 - 64))),
}


@pytest.fixture(scope="module")
def run():
    """Judge the file of a candidate on a case; one runner, a fresh child for each file."""
    with Runner(find(str(FAULTS[0].file))) as runner:

        def judged(file, case):
            target = find(str(file))
            if target != runner.target:
                runner.discard()
                runner.target = target
            outcome = runner.run(case)
            assert outcome.status in ("returned", "raised"), outcome.detail
            return judge(case, outcome, target).findings

        yield judged


@pytest.fixture
def twin(request, tmp_path):
    """The file of a fault's correct twin, under the same name."""
    (tmp_path / "base.py").write_text((HERE / "base.py").read_text(encoding="utf-8"), encoding="utf-8")
    file = tmp_path / f"{request.param.name}.py"
    file.write_text(request.param.corrected(), encoding="utf-8")
    return file


def test_eleven_faults_are_planted():
    kinds = [fault.kind for fault in FAULTS]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "out_of_bounds": 5, "uninitialized": 2, "race": 2, "overflow": 1, "launch": 1,
    }  # fmt: skip
    assert {fault.file for fault in FAULTS} == {
        file for file in HERE.glob("*.py") if file.stem not in ("__init__", "base", "test_planted")
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found_at_its_line(fault, run):
    found = run(fault.file, fault.case)
    messages = [finding.message for finding in found if finding.kind == fault.kind]
    assert messages
    assert fault.place in messages[0]
    assert [text for text in fault.says if text not in messages[0]] == []
    assert {finding.kind for finding in found} - {fault.kind} <= fault.follows


@pytest.mark.parametrize("twin", FAULTS, ids=lambda fault: fault.name, indirect=True)
def test_its_twin_is_silent_everywhere(twin, run):
    cases = {fault.name: fault.case for fault in FAULTS} | NASTY
    assert {name: found for name, case in cases.items() if (found := run(twin, case))} == {}


def test_an_index_that_just_fits_is_no_finding(run):
    (fault,) = (fault for fault in FAULTS if fault.kind == "overflow")
    assert run(fault.file, NASTY["below 2^31"]) == []
    assert {finding.kind for finding in run(fault.file, NASTY["beyond 2^31"])} >= {"overflow"}
