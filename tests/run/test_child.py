"""What a child does between cases, in a process of its own: it takes this one's place as a child takes a zygote's."""

import subprocess
import sys

CASES = """
import gc
from fuzzrope.build import contents
from fuzzrope.run.child import _Runner
from tests.conftest import rope_case

runner = _Runner("kernels.ModelNew:ModelNew", "cpu", "ttir", {"values": 2**30, "strict": False})
assert runner.load()[0]["status"] == "returned"

def run(rows):
    case = rope_case(2, 3, rows, 16)
    assert runner.run(case, contents(case), False, False)[0]["status"] == "returned"

run(5)
gc.collect()
gc.disable()
for rows in (5, 6, 7):
    run(rows)
print(gc.collect())
"""


def test_memory_of_a_case_is_free_when_the_next_begins_without_a_collection():
    done = subprocess.run([sys.executable, "-c", CASES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]
