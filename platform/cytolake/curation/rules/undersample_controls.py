"""Rule `undersample_controls`: keeps a share of the control wells of each plate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cytolake.curation.rules.contract import Candidates, Exclusions, Rule, check_field
from cytolake.qc.verdicts import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class UndersampleControlsStep(Rule):
    """Keep a share of the control wells of each plate, chosen by a hash of well and seed."""

    rule: ClassVar[str] = "undersample_controls"
    positive_share: float = 0.1
    negative_share: float = 0.3
    min_wells: int = 1
    """Wells of each kind to keep on each plate, where it has them, even if the share is smaller."""

    def __post_init__(self) -> None:
        for name in ("positive_share", "negative_share"):
            check_field(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        excluded = np.zeros(len(candidates.kept), np.bool_)
        wells, first = candidates.groups(["well_id"])
        plates, _ = candidates.groups(["plate_id"])
        random_order = candidates.random_numbers("well_id")[first]
        reasons = np.full(len(excluded), "", object)
        for kind, share in (("positive", self.positive_share), ("negative", self.negative_share)):
            of_kind = candidates.kept & candidates.is_equal("control", kind)
            present = np.unique(wells[of_kind])
            plate_of = plates[first[present]]
            for plate in np.unique(plate_of).tolist():
                members = present[plate_of == plate]
                n_kept = max(min(self.min_wells, len(members)), round(share * len(members)))
                gone = members[np.argsort(random_order[members], kind="stable")][n_kept:]
                here = of_kind & np.isin(wells, gone)
                excluded |= here
                reasons[here] = f"undersample_controls: beyond {share:g} of {kind} control wells"
        rows = np.flatnonzero(excluded)
        return Exclusions(rows=rows, reasons=reasons[rows].tolist())
