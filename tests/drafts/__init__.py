"""Kernels that wait for a GPU to say whether they are quicker.

    python -m tests.special --draft scores --device cuda --count 200  # are they right there
    python -m tests.drafts scores:PARTS=2:WARPS=4 scores --quick     # then how fast, by ``fuzzrope bench``
    python -m tests.drafts rope:EARLY=0 rope

What is quicker takes the place of what is shipped; what is not is deleted, and ``reports/baseline/speed.md`` says why.
"""

from pathlib import Path

HERE = Path(__file__).parent
DRAFTS = {  # of what, and where
    "rope": ("rope", HERE / "rope.py"),
    "scores": ("rope_qk", HERE / "scores.py"),
    "attention": ("rope_attention", HERE / "attention.py"),
    "long_attention": ("rope_attention", HERE / "long_attention.py"),
}
SPECIAL_DRAFTS = ("scores", "attention", "long_attention")  # in the place of a kernel for one device alone
