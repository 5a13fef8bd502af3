"""Rule `cap`: keeps at most a number of crops of each perturbation and control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cytolake.curation.rules.contract import Candidates, Exclusions, Rule, check_field
from cytolake.qc.verdicts import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class CapStep(Rule):
    """Keep at most a number of crops of each perturbation or control of a screen, chosen by a hash of crop and seed."""

    rule: ClassVar[str] = "cap"
    max_crops_per_perturbation: int | None = None
    """Wells without a perturbation count as one perturbation. None: no limit."""
    max_crops_per_control: int | None = None  # None: no limit

    def __post_init__(self) -> None:
        for name in ("max_crops_per_perturbation", "max_crops_per_control"):
            limit = getattr(self, name)
            check_field(self, name, limit is None or limit >= 1, "1 or more, or nothing for no limit")

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        groups, _ = candidates.groups(["screen", "control", "perturbation"])
        kept = np.flatnonzero(candidates.kept)
        order = kept[np.lexsort((kept, candidates.random_numbers("crop_id")[kept], groups[kept]))]
        sizes = np.unique(groups[order], return_counts=True)[1]
        place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        is_control = ~candidates.is_equal("control", "")
        excluded = np.zeros(len(candidates.kept), np.bool_)
        reasons = np.full(len(excluded), "", object)
        for which, limit, what in (
            (~is_control, self.max_crops_per_perturbation, "perturbation"),
            (is_control, self.max_crops_per_control, "control"),
        ):
            if limit is not None:
                gone = order[(place >= limit) & which[order]]
                excluded[gone] = True
                reasons[gone] = f"beyond {limit} crops of {what}"
        rows = np.flatnonzero(excluded)
        return Exclusions(rows=rows, reasons=reasons[rows].tolist())
