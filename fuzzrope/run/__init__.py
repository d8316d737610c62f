"""Running a target where it can do no harm: a disposable child, its engine, and what comes back."""

from fuzzrope.outcome import Outcome
from fuzzrope.run.nursery import RunnerError, Zygote
from fuzzrope.run.runner import Runner

__all__ = ["Outcome", "Runner", "RunnerError", "Zygote"]
