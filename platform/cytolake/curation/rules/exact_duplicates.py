"""Rule `exact_duplicates`: excludes sites with the same pixels as another site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow.compute as pc

from cytolake.curation.rules.contract import Candidates, Exclusions, Rule
from cytolake.qc.verdicts import Progress

FINGERPRINT = ("mean", "sd", "p01", "p50", "p99", "max", "laplacian_variance", "focus_slope", "noise_share")
"""Columns of qc_metrics that together are equal for two images only if all their pixels are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDuplicatesStep(Rule):
    """Exclude sites whose pixels are those of another site: every QC metric of every channel is the same number.

    A hash of site and seed decides which site of a group stays.
    """

    rule: ClassVar[str] = "exact_duplicates"
    tables: ClassVar[tuple[str, ...]] = ("qc_metrics",)

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        values = ", ".join(f"coalesce({name}::VARCHAR, '')" for name in FINGERPRINT)
        prints = candidates.catalog.sql(
            f"SELECT site_id, string_agg(concat_ws(' ', channel, {values}), '|' ORDER BY channel) AS fingerprint "
            "FROM qc_metrics GROUP BY site_id"
        )
        places = pc.index_in(candidates.crops.column("site_id"), prints.column("site_id").combine_chunks())
        fingerprints = prints.column("fingerprint").combine_chunks().dictionary_encode().indices.to_numpy()
        is_measured = places.is_valid().to_numpy(zero_copy_only=False)
        group = np.where(is_measured, fingerprints[places.fill_null(0).to_numpy()] if len(fingerprints) else 0, -1)
        sites, first = candidates.groups(["site_id"])
        random_order = candidates.random_numbers("site_id")[first]
        present = np.unique(sites[candidates.kept & is_measured])
        order = present[np.lexsort((random_order[present], group[first[present]]))]
        is_later = np.concatenate([[False], np.diff(group[first[order]]) == 0]) if len(order) else np.zeros(0, np.bool_)
        starts = np.maximum.accumulate(np.where(is_later, 0, np.arange(len(order)))) if len(order) else order
        original = dict(zip(order[is_later].tolist(), order[starts][is_later].tolist(), strict=True))
        rows = np.flatnonzero(candidates.kept & np.isin(sites, order[is_later]))
        site_ids = candidates.text("site_id")
        return Exclusions(
            rows=rows,
            reasons=["exact_duplicates: same pixels as another site"] * len(rows),
            details=[f"site {site_ids[int(first[original[site]])].as_py()}" for site in sites[rows].tolist()],
        )
