"""What can be wrong with a target: the closed list of kinds, and one finding as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Kind -> one sentence. The order is the order of severity, worst first: a case is filed under the first.
KINDS: dict[str, str] = {
    "tamper": "it changed the process it runs in, or tried to leave it",
    "crash": "the process died of a signal",
    "oom": "it asked for more memory than the limit",
    "timeout": "it did not return before the deadline",
    "out_of_bounds": "it read or wrote memory outside the views it was given",
    "launch": "it launched a grid or block that real hardware refuses",
    "race": "programs of one launch wrote, or wrote and read, the same memory",
    "overflow": "32-bit index arithmetic wrapped",
    "assumption": "it told the compiler to assume what does not hold",
    "uninitialized": "its output holds memory that nothing wrote",
    "mutation": "it changed an input",
    "alias": "an output shares memory it must not share, or does not share what it must",
    "exception": "it raised where the reference does not",
    "no_exception": "it returned where the contract demands an error",
    "type": "it did not return the tensors of the contract",
    "shape": "an output has another shape than the reference's",
    "dtype": "an output has another dtype than the reference's",
    "device": "an output is on another device than the reference's",
    "nonfinite": "NaN or infinity where the reference has none, or the reverse",
    "mismatch": "values outside the derived error bound",
    "gradient": "gradients differ from the reference's",
    "layout": "strides differ from the reference's (strict level)",
    "no_launch": "a kernel target launched no kernel",
    "nondeterministic": "two runs of one case differ",
    "stateful": "the answer depends on earlier calls",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One departure from the contract.

    ``bucket`` identifies the flaw across cases: two findings in one bucket are taken for the same flaw.
    ``magnitude`` is how large it is in the kind's own unit (error over bound, elements, bytes), if any.
    """

    kind: str
    bucket: str
    message: str
    output: str = ""
    magnitude: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "kind": self.kind,
            "bucket": self.bucket,
            "output": self.output,
            "magnitude": self.magnitude,
            "message": self.message,
        }


def finding(kind: str, message: str, *, output: str = "", detail: str = "", magnitude: float | None = None) -> Finding:
    """Make a finding; its bucket is ``kind[:output][:detail]``."""
    if kind not in KINDS:
        raise ValueError(f"unknown finding kind {kind!r}")
    return Finding(kind, ":".join(filter(None, (kind, output, detail))), message, output, magnitude)


def worst(findings: list[Finding]) -> Finding:
    """The finding a case is filed under."""
    order = list(KINDS)
    return min(findings, key=lambda f: (order.index(f.kind), f.bucket))
