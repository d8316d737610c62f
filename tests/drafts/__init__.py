"""Kernels that wait for a GPU to say whether they are quicker.

    python -m tests.special --draft scores --device cuda --count 200  # are they right there
    python -m tests.drafts scores:PARTS=2:WARPS=4 scores --quick     # then how fast, by ``fuzzrope bench``
    python -m tests.drafts rope:EARLY=0 rope

What is quicker takes the place of what is shipped; what is not is deleted, and ``reports/baseline/speed.md`` says why.
"""

from pathlib import Path

HERE = Path(__file__).parent
DRAFTS = {"rope": ("rope", HERE / "rope.py"), "scores": ("rope_qk", HERE / "scores.py")}  # of what, and where
SPECIAL = ("scores",)  # in the place of a kernel for one device alone
