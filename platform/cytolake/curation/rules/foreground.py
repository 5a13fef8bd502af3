"""Rule `foreground`: excludes crops with too little foreground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cytolake.curation.rules.contract import Candidates, Exclusions, Rule, check_field, exclude_all
from cytolake.qc.verdicts import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class ForegroundStep(Rule):
    """Exclude crops whose share of foreground pixels is below a minimum."""

    rule: ClassVar[str] = "foreground"
    min_share: float
    """Minimum share of pixels above background, 0 to 1, in the channel with the largest share."""

    def __post_init__(self) -> None:
        check_field(self, "min_share", 0 <= self.min_share <= 1, "0 to 1")

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        share = candidates.crops.column("foreground_share").to_numpy()
        return exclude_all(~(share >= self.min_share), f"foreground_share below {self.min_share:g}")
