"""Kernels for one device that wait for a GPU to say whether they are quicker; whoever imports one takes it.

    python -m tests.special --draft scores --device cuda --count 200  # are they right there
    python -m tests.drafts scores:PARTS=2:WARPS=4 scores --quick     # then how fast, by ``fuzzrope bench``

What is quicker takes the place of what is shipped; what is not is deleted, and ``reports/baseline/speed.md`` says why.
"""

from pathlib import Path

HERE = Path(__file__).parent
DRAFTS = {"scores": ("rope_qk", HERE / "scores.py")}  # what each is an implementation of, and where it is
