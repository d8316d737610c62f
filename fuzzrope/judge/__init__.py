"""The judge: from a case and an outcome to a verdict. Pure; it runs no target and needs no GPU."""

from fuzzrope.judge.verdict import Errors, Verdict, judge

__all__ = ["Errors", "Verdict", "judge"]
