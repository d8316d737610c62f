"""The judge: from a case and an outcome to a verdict. Pure; it runs no target and needs no GPU."""

from fuzzrope.judge.values import GRADIENT, Errors
from fuzzrope.judge.verdict import Verdict, judge

__all__ = ["GRADIENT", "Errors", "Verdict", "judge"]
