"""Which cases an engine is no judge of."""

from fuzzrope.operations.rope_strata import LONG_ROWS
from fuzzrope.run.capability import cannot_run


def test_only_tritons_interpreter_is_kept_from_bfloat16_and_from_long_sequences():
    for dtypes, rows in ((("bfloat16",), 0), ((), LONG_ROWS)):
        assert cannot_run("cpu", "interpret", dtypes, rows)
        assert cannot_run("cpu", "ttir", dtypes, rows) is None
        assert cannot_run("cuda", "interpret", dtypes, rows) is None
    assert cannot_run("cpu", "interpret", ("float32",), 600) is None
