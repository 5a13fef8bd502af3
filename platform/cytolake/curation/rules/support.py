"""Rule `support`: excludes conditions that are unknown, ambiguous or too rarely replicated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cytolake.curation.rules.contract import Candidates, Exclusions, Mask, Numbers, Rule, check_field
from cytolake.qc.verdicts import Progress

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "unknown", "?", "unclear", "ambiguous", "tbd"})
"""Values of `perturbation` that mean "not known", in lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SupportStep(Rule):
    """Exclude conditions that are unknown or have too few wells or experiments. Controls stay.

    A perturbation in MISSING is unknown; a guide listed under several perturbations of a screen is ambiguous.
    """

    rule: ClassVar[str] = "support"
    condition: tuple[str, ...] = ("perturbation", "dose")
    """Columns that together define a condition within a screen."""
    experiment: str = "batch"
    """Unit that counts as one experiment: plate or batch."""
    min_experiments: int = 3
    min_wells: int = 20

    def __post_init__(self) -> None:
        check_field(self, "experiment", self.experiment in ("plate", "batch"), "plate or batch")
        check_field(self, "condition", bool(self.condition), "one column or more")

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        candidates.check_columns(self.condition, "support.condition")
        conditions, _ = candidates.groups(["screen", *self.condition])
        wells, _ = candidates.groups(["well_id"])
        experiments, _ = candidates.experiments(self.experiment)
        treated = candidates.kept & candidates.is_equal("control", "")
        perturbations = pc.utf8_lower(pc.utf8_trim_whitespace(candidates.text("perturbation")))
        missing = np.asarray(pc.is_in(perturbations, pa.array(sorted(MISSING))).to_numpy(zero_copy_only=False), bool)
        guides, _ = candidates.groups(["screen", "guide"])
        has_guide = ~candidates.is_equal("guide", "") & treated
        named, _ = candidates.groups(["screen", "perturbation"])
        ambiguous = has_guide & (_distinct(guides, named, has_guide)[guides] > 1)
        enough = treated & ~missing & ~ambiguous
        n_experiments = _distinct(conditions, experiments, enough)[conditions]
        n_wells = _distinct(conditions, wells, enough)[conditions]
        reasons = np.full(len(treated), "", object)
        reasons[enough & (n_wells < self.min_wells)] = f"support: fewer than {self.min_wells} wells"
        few = enough & (n_experiments < self.min_experiments)
        reasons[few] = f"support: fewer than {self.min_experiments} experiments"
        reasons[treated & ambiguous] = "support: a guide of several perturbations"
        reasons[treated & missing] = "support: no perturbation"
        rows = np.flatnonzero(reasons != "")
        return Exclusions(rows=rows, reasons=reasons[rows].tolist())


def _distinct(groups: Numbers, values: Numbers, among: Mask) -> Numbers:
    """(G,) number of distinct values of each group among the crops of a mask."""
    pairs = np.unique(np.stack([groups[among], values[among]], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=int(groups.max()) + 1 if len(groups) else 0).astype(np.int64)
