"""Rule `where`: keeps the crops that match a SQL condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cytolake.catalog.errors import CatalogError
from cytolake.curation.rules.contract import Candidates, CurationError, Exclusions, Rule, exclude_all
from cytolake.qc.verdicts import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class WhereStep(Rule):
    """Keep crops that match a SQL condition; a condition that is null does not match."""

    rule: ClassVar[str] = "where"
    where: str
    """SQL condition on columns of crops and wells, such as: gene <> '' OR is_negative_control."""

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        try:
            matches = candidates.catalog.sql(
                f"SELECT matches FROM (SELECT crop_id, coalesce(({self.where}), false) AS matches FROM considered) "
                "ORDER BY crop_id",
                considered=candidates.crops,
            )
        except CatalogError as error:
            raise CurationError(
                f"curation {candidates.name}: where {self.where!r} cannot be used. {error} "
                f"Columns: {', '.join(candidates.crops.column_names)}."
            ) from error
        return exclude_all(~np.asarray(matches.column(0).to_numpy(), np.bool_), f"not where {self.where.strip()}")
