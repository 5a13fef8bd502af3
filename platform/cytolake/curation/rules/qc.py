"""Rule `qc`: excludes crops of sites, wells and plates that fail quality control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog
from cytolake.curation.rules.contract import Candidates, CurationError, Exclusions, Rule, check_field
from cytolake.qc.control_failures import failing_controls
from cytolake.qc.newest import stored_qc_id
from cytolake.qc.verdicts import DEFAULT_PROFILE, Progress, QcConfig, judge_sites, qc_profile


@dataclass(frozen=True, kw_only=True, slots=True)
class QcStep(Rule):
    """Exclude crops of sites, wells or plates that fail quality control."""

    rule: ClassVar[str] = "qc"
    tables: ClassVar[tuple[str, ...]] = ("qc_verdicts",)
    profile: str = DEFAULT_PROFILE
    """Profile of catalog/qc.yaml."""
    modalities: tuple[str, ...] = ()
    """As `QcConfig.modalities`; empty means those passed to `curate`."""
    qc_id: str = ""
    """Existing verdicts, such as those of a learned detector; empty means those of the profile."""
    rules: tuple[str, ...] = ()
    """Names of QC rules; empty means all."""
    max_failed_channels: int = 0
    """Exclude the crops of a site when more channels than this fail any of the rules."""
    levels: tuple[str, ...] = ("site",)
    """Levels whose failures count: site, well, plate. All crops of a failing well or plate are excluded."""
    even_if_controls_fail: bool = False
    """Exclude by a rule also on plates where it fails most negative controls (`qc.control_failures`)."""

    def __post_init__(self) -> None:
        check_field(self, "max_failed_channels", self.max_failed_channels >= 0, "0 or more")
        check_field(
            self, "levels", set(self.levels) <= {"site", "well", "plate"} and bool(self.levels), "site, well, plate"
        )

    def resolved(self, catalog: Catalog, curation: str) -> QcStep:
        if self.qc_id:
            try:
                qc_id = stored_qc_id(catalog, self.qc_id)
            except CatalogError as error:
                raise CurationError(f"curation {curation}: {error}") from None
            self._check_rules(_qc_rules(catalog, qc_id), curation, f"qc_id {qc_id}")
            return replace(self, qc_id=qc_id)
        profile = qc_profile(self.profile, self.modalities)
        self._check_rules({rule.name for rule in profile.rules}, curation, f"profile {self.profile}")
        return replace(self, qc_id=profile.qc_id)

    def judge(self, catalog: Catalog, progress: Progress | None) -> None:
        """Write verdicts of the profile on every plate that has none."""
        if not self.qc_id:
            judge_sites(catalog, self.qc, progress)

    @property
    def qc(self) -> QcConfig:
        """Config that judges the sites when `qc_id` is empty."""
        return QcConfig(profile=self.profile, modalities=self.modalities)

    def _check_rules(self, known: set[str], curation: str, place: str) -> None:
        if set(self.rules) - known:
            raise CurationError(
                f"curation {curation}: QC rules {', '.join(sorted(set(self.rules) - known))} are not in {place}. "
                f"There are: {', '.join(sorted(known))}."
            )

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        reasons: dict[int, str] = {}
        for level in ("plate", "well", "site"):  # the reason of the site replaces that of its well and plate
            if level not in self.levels:
                continue
            failed = self._failed(candidates.catalog, level)
            places = pc.index_in(candidates.crops.column(f"{level}_id"), failed.column(0).combine_chunks())
            rules = failed.column("rules").to_pylist()
            prefix = "qc: " if level == "site" else f"qc: {level} "
            at = places.fill_null(-1).to_numpy()
            reasons |= {row: prefix + rules[at[row]] for row in np.flatnonzero((at >= 0) & candidates.kept).tolist()}
        rows = sorted(reasons)
        return Exclusions(rows=np.array(rows, np.int64), reasons=[reasons[row] for row in rows])

    def _failed(self, catalog: Catalog, level: str) -> pa.Table:
        """Ids of failing sites, wells or plates, with the names of the rules that they fail."""
        channels = f"HAVING count(DISTINCT channel) > {self.max_failed_channels}" if level == "site" else ""
        return catalog.sql(
            f"WITH judged AS (SELECT * REPLACE (coalesce(level, 'site') AS level, coalesce(channel, '') AS channel) "
            "FROM qc_verdicts WHERE qc_id = $qc_id), "
            f"suspended AS ({failing_controls('judged')}) "
            f"SELECT {level}_id, string_agg(DISTINCT rule, ', ' ORDER BY rule) AS rules FROM judged "
            f"{'' if self.even_if_controls_fail else 'ANTI JOIN suspended USING (plate_id, level, rule, channel)'} "
            f"WHERE NOT is_pass AND level = $level {'AND rule IN $rules' if self.rules else ''} "
            f"GROUP BY {level}_id {channels}",
            parameters={"qc_id": self.qc_id, "level": level} | ({"rules": list(self.rules)} if self.rules else {}),
        )


def _qc_rules(catalog: Catalog, qc_id: str) -> set[str]:
    found = catalog.sql("SELECT DISTINCT rule FROM qc_verdicts WHERE qc_id = ?", parameters=[qc_id])
    return set(found.column(0).to_pylist())
