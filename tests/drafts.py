"""The drafts in Gluon judged on inputs that they take, which drawn cases seldom are.

    python -m tests.drafts [--device cuda]

Exit code 1 if one has a finding, is not judged, or is not taken.
"""

from __future__ import annotations

import argparse
import sys

from fuzzrope.case import Case
from fuzzrope.judge import judge
from fuzzrope.run import Runner
from fuzzrope.targets import find
from tests.test_attention_hopper import CASES as OF_ATTENTION
from tests.test_qk_hopper import CASES as OF_SCORES

DRAFTS: dict[str, dict[str, Case]] = {"variant:qk-hopper": OF_SCORES, "variant:attention-hopper": OF_ATTENTION}


def verdicts(name: str, cases: dict[str, Case], device: str) -> dict[str, str]:
    """What is said of a draft for each case, ``right`` where there is nothing to say."""
    target, said = find(name), {}
    with Runner(target, device) as runner:
        for what, case in cases.items():
            outcome = runner.run(case)
            verdict = judge(case, outcome, target)
            found = [finding.message for finding in verdict.findings] or [verdict.skipped]
            if device == "cpu" and [launch.kernel for launch in outcome.launches] != ["hopper_kernel"]:
                found.append("another kernel was taken")
            said[what] = "; ".join(filter(None, found)) or "right"
    return said


def main(arguments: list[str]) -> int:
    """Judge both drafts; 0 if all is right."""
    parser = argparse.ArgumentParser(prog="python -m tests.drafts", description="Drafts on inputs that they take.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device, right = parser.parse_args(arguments).device, True
    for name, cases in DRAFTS.items():
        for what, said in verdicts(name, cases, device).items():
            print(f"{name}, {what}: {said}", flush=True)
            right = right and said == "right"
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
