"""Running a target where it can do no harm: a disposable child, its engine, and what comes back."""

from fuzzrope.outcome import Outcome
from fuzzrope.run.runner import Runner, RunnerError

__all__ = ["Outcome", "Runner", "RunnerError"]
