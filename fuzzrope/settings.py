"""Settings of a campaign, and the profiles that name useful ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fuzzrope.run.runner import Limits


@dataclass(frozen=True, slots=True)
class Settings:
    """The budget and manner of a campaign.

    Attributes:
        seed: with the same seed, target and versions, the same cases are drawn on every machine.
        max_examples: cases drawn for a target, not counting those spent on minimizing.
        max_time: seconds for a target; minimizing what was found may take ``grace`` more.
        max_findings: the campaign ends after so many different buckets.
        visits: how often each declared stratum is aimed at.
        shrink_examples: cases that Hypothesis may spend on shrinking one finding.
        engine: what runs kernels where there is no GPU: ``ttir`` or ``interpret``.
        gradients: whether ``some`` or ``all`` valid cases are differentiated, of targets that have gradients.
        shard: (index from 0, count): this process takes every count-th round.
    """

    seed: int = 0
    max_examples: int = 1000
    max_time: float = 170.0
    max_findings: int = 20
    visits: int = 1
    shrink_examples: int = 60
    grace: float = 60.0
    device: str = "cpu"
    engine: str = "ttir"
    level: str | None = None
    gradients: str = "some"
    shard: tuple[int, int] = (0, 1)
    limits: Limits = field(default_factory=Limits)

    def with_changes(self, **changes: object) -> Settings:
        """These settings with some replaced; a change to None keeps what is there."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]  # checked by the dataclass's own field names


PROFILES: dict[str, Settings] = {
    "quick": Settings(),
    "ci": Settings(max_examples=3000, max_time=900.0, visits=2),
    "soak": Settings(max_examples=10**9, max_time=8 * 3600.0, visits=4, max_findings=100),
}
