"""Every kernel of the zoo, unmodified, on the CPU engine: the truth, and nothing to complain about."""

import pytest

from tests.zoo import ZOO, compare


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize("name", ZOO)
def test_the_engine_computes_the_truth_and_notices_nothing(engine, name):
    entry = ZOO[name]
    outputs = entry.launch(**entry.moved("cpu"))
    wrong = {output: one for output, one in compare(entry, outputs).items() if not one.passed}
    assert wrong == {}
    assert engine.accesses == {}
