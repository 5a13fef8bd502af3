"""The rules that a curation is made of. Each looks at the crops that the rules before it kept, and excludes some.

A rule is a dataclass: its fields are its keys in catalog/curation/*.yaml, where catalog/curation/phenoprints.yaml has
most of them with a comment. What it needs from the catalog it reads at the versions that the curation pinned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ray_tasks import run_tasks
from cytolake.catalog.representations import StoredVectors, find_representation, stored_vectors
from cytolake.catalog.tables import Catalog
from cytolake.curation.balanced_sampling import balanced_choice
from cytolake.curation.consistency import align_to_controls, combined_p_value
from cytolake.curation.near_duplicates import (
    centred,
    cluster_centres,
    find_duplicates,
    standardised,
    two_nearest,
    unit_rows,
)
from cytolake.qc.control_failures import failing_controls
from cytolake.qc.verdicts import Progress, QcConfig, judge_sites, qc_profile
from cytolake.statistics.consistency import ConsistencyTest, consistency_tests
from cytolake.statistics.false_discovery import benjamini_hochberg

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "unknown", "?", "unclear", "ambiguous", "tbd"})
"""Perturbations that say that nobody knows, in any case."""

FINGERPRINT = ("mean", "sd", "p01", "p50", "p99", "max", "laplacian_variance", "focus_slope", "noise_share")
"""Columns of qc_metrics that together tell two images apart unless they are the same, to the last bit."""


class CurationError(CatalogError):
    """A spec that is not sound, or one that keeps no crop."""


@dataclass(slots=True)
class Considered:
    """All crops, and what the rules so far made of them. Rules read it; `curate` changes it."""

    name: str
    """The curation's, for errors."""
    catalog: Catalog
    """At the pinned versions."""
    crops: pa.Table
    """Columns of crops and wells, in the order of crop_id."""
    kept: Mask
    """(N,) no rule has excluded the crop yet."""
    seed: int
    evidence: list[dict[str, Any]] = field(default_factory=list)
    """Rows of consistency_tests, without curation_id."""

    def check_columns(self, columns: Iterable[str], place: str) -> None:
        """Refuse columns that neither crops nor wells has."""
        unknown = [column for column in columns if column not in self.crops.column_names]
        if unknown:
            raise CurationError(
                f"curation {self.name}: {place}: no column {', '.join(unknown)}. Columns of crops and wells: "
                f"{', '.join(self.crops.column_names)}."
            )

    def text(self, column: str) -> pa.ChunkedArray:
        """A column as text; nothing where it is null."""
        values = self.crops.column(column)
        return pc.fill_null(values if pa.types.is_string(values.type) else values.cast(pa.string()), "")

    def groups(self, columns: Sequence[str]) -> tuple[Numbers, Numbers]:
        """Number of each crop's group (N,), crops of a group being equal in all columns; and a crop of each group."""
        codes = np.zeros(self.crops.num_rows, np.int64)
        for column in columns:
            encoded = self.text(column).combine_chunks().dictionary_encode()
            codes = codes * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy().astype(np.int64)
            codes = np.unique(codes, return_inverse=True)[1]
        _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
        return codes.astype(np.int64), first.astype(np.int64)

    def experiments(self, experiment: str) -> tuple[Numbers, Numbers]:
        """`groups` of plates, or of the batches of a screen."""
        return self.groups(["screen", "plate_id"] if experiment == "plate" else ["screen", "batch"])

    def is_equal(self, column: str, value: str) -> Mask:
        """(N,) True where a column has this text."""
        return np.asarray(pc.equal(self.text(column), value).to_numpy(zero_copy_only=False), np.bool_)

    def lots(self, column: str) -> NDArray[np.uint64]:
        """(N,) a random number for each value of a column, a hash of value and seed: more plates change none."""
        encoded = self.text(column).combine_chunks().dictionary_encode()
        numbers = np.array([lot(value, self.seed) for value in encoded.dictionary.to_pylist()], np.uint64)
        of_each: NDArray[np.uint64] = numbers[encoded.indices.to_numpy()]
        return of_each

    def vectors(self, representation_id: str) -> tuple[StoredVectors, Numbers]:
        """Vectors of kept crops, whose `rows` count all crops; and the kept crops that have none."""
        kept = np.flatnonzero(self.kept)
        found = stored_vectors(self.catalog, representation_id, self.crops.column("crop_id").take(pa.array(kept)))
        return replace(found, rows=kept[found.rows]), np.setdiff1d(kept, kept[found.rows], assume_unique=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusions:
    """Crops that a rule excludes."""

    rows: Numbers
    """(M,) positions among the crops considered."""
    reasons: Sequence[str]
    """(M,) in few words, the same for crops excluded for the same reason: they are counted."""
    details: Sequence[str] | None = None
    """(M,) what is particular to the crop: what it is a copy of, its p-value."""


class Rule(Protocol):
    """One entry of `steps`."""

    rule: ClassVar[str]
    """Its name in the YAML file."""
    tables: ClassVar[tuple[str, ...]]
    """Tables that it reads beside crops, plates, sites and wells."""

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> Rule:
        """The rule with names replaced by the ids that they mean now; judges sites where that is needed."""
        ...

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        """Choose among the kept crops those to exclude; may name others too, they count as excluded before."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class QcStep:
    """Exclude crops of sites, wells or plates that fail quality control."""

    rule: ClassVar[str] = "qc"
    tables: ClassVar[tuple[str, ...]] = ("qc_verdicts",)
    profile: str = "default"
    """Of catalog/qc.yaml."""
    modalities: tuple[str, ...] = ()
    """As `QcConfig.modalities`; where empty, those that `curate` is given."""
    qc_id: str = ""
    """Verdicts that are in the table already, such as those of a learned detector; empty means those of the profile."""
    rules: tuple[str, ...] = ()
    """Names of QC rules; empty means all."""
    max_failed_channels: int = 0
    """A site with more channels than this failing any of the rules loses its crops."""
    levels: tuple[str, ...] = ("site",)
    """Whose failures count: site, well, plate. A failing well or plate loses all its crops."""
    even_if_controls_fail: bool = False
    """Exclude by a rule also on plates where it fails most negative controls (`qc.control_failures`)."""

    def __post_init__(self) -> None:
        _check(self, "max_failed_channels", self.max_failed_channels >= 0, "0 or more")
        _check(self, "levels", set(self.levels) <= {"site", "well", "plate"} and bool(self.levels), "site, well, plate")

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> QcStep:
        if self.qc_id:
            known = _qc_rules(catalog, self.qc_id)
            if not known:
                there = catalog.sql("SELECT DISTINCT qc_id FROM qc_verdicts ORDER BY qc_id").column(0).to_pylist()
                raise CurationError(
                    f"curation {curation}: qc_id {self.qc_id} has no verdicts. There are: {', '.join(there) or 'none'}."
                )
            self._check_rules(known, curation, f"qc_id {self.qc_id}")
            return self
        profile = qc_profile(self.profile)
        self._check_rules({rule.name for rule in profile.rules}, curation, f"profile {self.profile}")
        return replace(self, qc_id=judge_sites(catalog, self.qc, progress))

    @property
    def qc(self) -> QcConfig:
        """What judges the sites where no `qc_id` is given."""
        return QcConfig(profile=self.profile, modalities=self.modalities)

    def _check_rules(self, known: set[str], curation: str, place: str) -> None:
        if set(self.rules) - known:
            raise CurationError(
                f"curation {curation}: QC rules {', '.join(sorted(set(self.rules) - known))} are not in {place}. "
                f"There are: {', '.join(sorted(known))}."
            )

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        reasons: dict[int, str] = {}
        for level in ("plate", "well", "site"):  # a site's own failures tell more than its plate's
            if level not in self.levels:
                continue
            failed = self._failed(considered.catalog, level)
            places = pc.index_in(considered.crops.column(f"{level}_id"), failed.column(0).combine_chunks())
            rules = failed.column("rules").to_pylist()
            prefix = "qc: " if level == "site" else f"qc: {level} "
            at = places.fill_null(-1).to_numpy()
            reasons |= {row: prefix + rules[at[row]] for row in np.flatnonzero((at >= 0) & considered.kept).tolist()}
        rows = sorted(reasons)
        return Exclusions(rows=np.array(rows, np.int64), reasons=[reasons[row] for row in rows])

    def _failed(self, catalog: Catalog, level: str) -> pa.Table:
        """Ids of one level that fail, with the names of the rules they fail."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ForegroundStep:
    """Exclude crops that show too little."""

    rule: ClassVar[str] = "foreground"
    tables: ClassVar[tuple[str, ...]] = ()
    min_share: float
    """Of the crop's pixels above background, in the channel that shows most."""

    def __post_init__(self) -> None:
        _check(self, "min_share", 0 <= self.min_share <= 1, "0 to 1")

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> ForegroundStep:
        return self

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        share = considered.crops.column("foreground_share").to_numpy()
        return _all_for(~(share >= self.min_share), f"foreground_share below {self.min_share:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WhereStep:
    """Keep crops for which a SQL condition holds; one that is null does not."""

    rule: ClassVar[str] = "where"
    tables: ClassVar[tuple[str, ...]] = ()
    where: str
    """On the columns of crops and wells, such as: gene <> '' OR is_negative_control."""

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> WhereStep:
        return self

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        try:
            matches = considered.catalog.sql(
                f"SELECT matches FROM (SELECT crop_id, coalesce(({self.where}), false) AS matches FROM considered) "
                "ORDER BY crop_id",
                considered=considered.crops,
            )
        except CatalogError as error:
            raise CurationError(
                f"curation {considered.name}: where {self.where!r} cannot be used. {error} "
                f"Columns: {', '.join(considered.crops.column_names)}."
            ) from error
        return _all_for(~np.asarray(matches.column(0).to_numpy(), np.bool_), f"not where {self.where.strip()}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SupportStep:
    """Exclude conditions that are not known, or not repeated often enough. Controls stay.

    Missing is a perturbation of MISSING; ambiguous is a guide that is there under several perturbations of a screen.
    """

    rule: ClassVar[str] = "support"
    tables: ClassVar[tuple[str, ...]] = ()
    condition: tuple[str, ...] = ("perturbation", "dose")
    """Columns that together, within a screen, say what was done to a well."""
    experiment: str = "batch"
    """What counts as one experiment: plate or batch."""
    min_experiments: int = 3
    min_wells: int = 20

    def __post_init__(self) -> None:
        _check(self, "experiment", self.experiment in ("plate", "batch"), "plate or batch")
        _check(self, "condition", bool(self.condition), "one column or more")

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> SupportStep:
        return self

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        considered.check_columns(self.condition, "support.condition")
        conditions, _ = considered.groups(["screen", *self.condition])
        wells, _ = considered.groups(["well_id"])
        experiments, _ = considered.experiments(self.experiment)
        treated = considered.kept & considered.is_equal("control", "")
        perturbations = pc.utf8_lower(pc.utf8_trim_whitespace(considered.text("perturbation")))
        missing = np.asarray(pc.is_in(perturbations, pa.array(sorted(MISSING))).to_numpy(zero_copy_only=False), bool)
        guides, _ = considered.groups(["screen", "guide"])
        has_guide = ~considered.is_equal("guide", "") & treated
        named, _ = considered.groups(["screen", "perturbation"])
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


@dataclass(frozen=True, kw_only=True, slots=True)
class UndersampleControlsStep:
    """Keep a share of the control wells of each plate, chosen by a hash of well and seed."""

    rule: ClassVar[str] = "undersample_controls"
    tables: ClassVar[tuple[str, ...]] = ()
    positive_share: float = 0.1
    negative_share: float = 0.3
    min_wells: int = 1
    """Of each kind, on each plate that has so many, whatever the share."""

    def __post_init__(self) -> None:
        for name in ("positive_share", "negative_share"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> UndersampleControlsStep:
        return self

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        excluded = np.zeros(len(considered.kept), np.bool_)
        wells, first = considered.groups(["well_id"])
        plates, _ = considered.groups(["plate_id"])
        lots = considered.lots("well_id")[first]
        reasons = np.full(len(excluded), "", object)
        for kind, share in (("positive", self.positive_share), ("negative", self.negative_share)):
            of_kind = considered.kept & considered.is_equal("control", kind)
            present = np.unique(wells[of_kind])
            plate_of = plates[first[present]]
            for plate in np.unique(plate_of).tolist():
                members = present[plate_of == plate]
                n_kept = max(min(self.min_wells, len(members)), round(share * len(members)))
                gone = members[np.argsort(lots[members], kind="stable")][n_kept:]
                here = of_kind & np.isin(wells, gone)
                excluded |= here
                reasons[here] = f"undersample_controls: beyond {share:g} of {kind} control wells"
        rows = np.flatnonzero(excluded)
        return Exclusions(rows=rows, reasons=reasons[rows].tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyStep:
    """Keep conditions whose wells look more alike than treated wells drawn at random, under any of the representations.

    Wells are means of their kept crops, centred on the negative controls of their plate. Conditions are tested in each
    experiment; the p-values of the experiments are combined. Controls stay. See `cytolake.statistics.consistency`. The
    details of an excluded crop hold the q-value (Benjamini-Hochberg over the conditions) next to the p-value.
    """

    rule: ClassVar[str] = "consistency"
    tables: ClassVar[tuple[str, ...]] = ("embeddings", "representations")
    representations: tuple[str, ...] = ("pixel_statistics",)
    """Ids, `champion` or `pixel_statistics`; a condition stays if it passes under one of them."""
    of: str = ""
    """Name of the curation whose pack `pixel_statistics` means; empty means the newest of another curation."""
    condition: tuple[str, ...] = ("perturbation", "dose")
    """Columns that together, within a screen, say what was done to a well."""
    experiment: str = "batch"
    """Wells that are compared with each other: of a plate or of a batch."""
    is_stratified: bool = True
    """Random wells come from the plates that the condition's wells come from, as many of each."""
    sphere: bool = True
    """Weigh down directions in which the controls vary anyway."""
    n_draws: int = 10_000
    """Random sets of wells for each experiment and number of wells; no p-value is below 1 / (1 + n_draws)."""
    alpha: float = 0.01
    """A condition stays if its p-value is below this; of conditions without an effect this share stays. To bound their
    share among those that stay, read the q-values."""

    def __post_init__(self) -> None:
        _check(self, "representations", bool(self.representations), "one or more")
        _check(self, "condition", bool(self.condition), "one column or more")
        _check(self, "experiment", self.experiment in ("plate", "batch"), "plate or batch")
        _check(self, "n_draws", self.n_draws >= 100, "100 or more")
        _check(self, "alpha", 1 / (1 + self.n_draws) < self.alpha <= 1, "more than 1 / (1 + n_draws), at most 1")

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> ConsistencyStep:
        found = [
            find_representation(catalog, name, of=self.of, not_of=curation)["representation_id"]
            for name in self.representations
        ]
        return replace(self, representations=tuple(found))

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        considered.check_columns(self.condition, "consistency.condition")
        conditions, first = considered.groups(["screen", *self.condition])
        best, best_q = (np.full(len(first), np.nan) for _ in range(2))
        for representation in self.representations:
            of_conditions = self._p_values(considered, representation, conditions, first, progress)
            best, best_q = np.fmin(best, of_conditions), np.fmin(best_q, benjamini_hochberg(of_conditions))
        p_values, q_values = best[conditions], best_q[conditions]
        treated = considered.kept & considered.is_equal("control", "")
        rows = np.flatnonzero(treated & ~(p_values < self.alpha))
        untested = "consistency: not tested, fewer than 2 wells with embeddings in each experiment, or too few others"
        return Exclusions(
            rows=rows,
            reasons=[untested if np.isnan(p) else f"consistency: p {self.alpha:g} or more" for p in p_values[rows]],
            details=[
                "" if np.isnan(p) else f"p = {p:.3g}, q = {q:.3g}"
                for p, q in zip(p_values[rows], q_values[rows], strict=True)
            ],
        )

    def _p_values(
        self,
        considered: Considered,
        representation: str,
        conditions: Numbers,
        first: Numbers,
        progress: Progress | None,
    ) -> NDArray[np.float64]:
        """p-value of each condition over its experiments; NaN where none could test it. Keeps all as evidence."""
        found, _ = considered.vectors(representation)
        wells, crop = np.unique(considered.groups(["well_id"])[0][found.rows], return_inverse=True)
        row_of_well = np.zeros(len(wells), np.int64)
        row_of_well[crop] = found.rows  # any crop of the well: what is read of it is the well's
        sums = np.zeros((len(wells), found.vectors.shape[1]))
        np.add.at(sums, crop, found.vectors)
        profiles = sums / np.bincount(crop)[:, None]
        plates = considered.groups(["plate_id"])[0][row_of_well]
        is_negative = considered.is_equal("control", "negative")[row_of_well]
        aligned, _ = align_to_controls(profiles, plates, is_negative, sphere=self.sphere)
        is_treated = considered.is_equal("control", "")[row_of_well]
        experiments, experiment_row = considered.experiments(self.experiment)
        labels = [
            json.dumps([considered.text(c)[int(row)].as_py() for c in ("screen", self.experiment)])
            for row in experiment_row
        ]
        tasks, names = [], []
        for experiment in np.unique(experiments[row_of_well][is_treated]).tolist():
            members = np.flatnonzero(is_treated & (experiments[row_of_well] == experiment))
            strata = (
                np.unique(plates[members], return_inverse=True)[1] if self.is_stratified else np.zeros(len(members))
            )
            names.append(labels[experiment])
            tasks.append(
                (
                    aligned[members],
                    conditions[row_of_well[members]],
                    strata.astype(np.int64),
                    self.n_draws,
                    considered.seed,
                    labels[experiment],
                )
            )
        tests: dict[int, list[ConsistencyTest]] = {}
        for name, of_experiment in zip(
            names, run_tasks(consistency_tests, tasks, len(tasks), "experiments tested", progress), strict=True
        ):
            for test in of_experiment:
                if np.isnan(test.p_value):  # too few ways to draw other wells: it says nothing of the condition
                    continue
                tests.setdefault(test.group, []).append(test)
                self._keep_evidence(considered, representation, first, name, test)
        p_values = np.full(len(first), np.nan)
        for condition, of_condition in sorted(tests.items()):
            p_values[condition] = combined_p_value([test.p_value for test in of_condition], self.n_draws)
            whole = ConsistencyTest(
                group=condition,
                n_rows=sum(test.n_rows for test in of_condition),
                cosine=float(np.average([t.cosine for t in of_condition], weights=[t.n_rows for t in of_condition])),
                p_value=float(p_values[condition]),
            )
            self._keep_evidence(considered, representation, first, "", whole)
        return p_values

    def _keep_evidence(
        self,
        considered: Considered,
        representation: str,
        first: Numbers,
        experiment: str,
        test: ConsistencyTest,
    ) -> None:
        row = int(first[test.group])
        considered.evidence.append(
            {
                "representation_id": representation,
                "screen": considered.text("screen")[row].as_py(),
                "condition": json.dumps({name: considered.text(name)[row].as_py() for name in self.condition}),
                "perturbation": considered.text("perturbation")[row].as_py(),
                "experiment": experiment,
                "n_wells": test.n_rows,
                "cosine": test.cosine,
                "p_value": test.p_value,
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDuplicatesStep:
    """Exclude sites whose pixels are those of another site: every QC metric of every channel is the same number.

    Which site of a group stays is drawn by a hash of site and seed.
    """

    rule: ClassVar[str] = "exact_duplicates"
    tables: ClassVar[tuple[str, ...]] = ("qc_metrics",)

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> ExactDuplicatesStep:
        return self

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        values = ", ".join(f"coalesce({name}::VARCHAR, '')" for name in FINGERPRINT)
        prints = considered.catalog.sql(
            f"SELECT site_id, string_agg(concat_ws(' ', channel, {values}), '|' ORDER BY channel) AS fingerprint "
            "FROM qc_metrics GROUP BY site_id"
        )
        places = pc.index_in(considered.crops.column("site_id"), prints.column("site_id").combine_chunks())
        fingerprints = prints.column("fingerprint").combine_chunks().dictionary_encode().indices.to_numpy()
        is_measured = places.is_valid().to_numpy(zero_copy_only=False)
        group = np.where(is_measured, fingerprints[places.fill_null(0).to_numpy()] if len(fingerprints) else 0, -1)
        sites, first = considered.groups(["site_id"])
        lots = considered.lots("site_id")[first]
        present = np.unique(sites[considered.kept & is_measured])
        order = present[np.lexsort((lots[present], group[first[present]]))]
        is_later = np.concatenate([[False], np.diff(group[first[order]]) == 0]) if len(order) else np.zeros(0, np.bool_)
        starts = np.maximum.accumulate(np.where(is_later, 0, np.arange(len(order)))) if len(order) else order
        original = dict(zip(order[is_later].tolist(), order[starts][is_later].tolist(), strict=True))
        rows = np.flatnonzero(considered.kept & np.isin(sites, order[is_later]))
        site_ids = considered.text("site_id")
        return Exclusions(
            rows=rows,
            reasons=["exact_duplicates: same pixels as another site"] * len(rows),
            details=[f"site {site_ids[int(first[original[site]])].as_py()}" for site in sites[rows].tolist()],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicatesStep:
    """Exclude sites, or crops, whose embedding is almost that of another one that stays.

    A site is the vectors of its crops side by side, so a field imaged twice is found by all of its crops together.
    Which one of a group stays is drawn by a hash of site and seed. First the vectors of each plate are centred, then
    features standardised: cosines are of what differs within plates.
    """

    rule: ClassVar[str] = "near_duplicates"
    tables: ClassVar[tuple[str, ...]] = ("embeddings", "representations")
    representation: str = "pixel_statistics"
    of: str = ""
    """Name of the curation whose pack `pixel_statistics` means; empty means the newest of another curation."""
    level: str = "site"
    """`site` finds fields imaged twice, `crop` any two crops that look alike."""
    min_cosine: float = 0.9
    """As near as this is a duplicate."""
    n_clusters: int | None = None
    """None: all pairs up to 50,000 items, within k-means clusters of 10,000 beyond."""

    def __post_init__(self) -> None:
        _check(self, "level", self.level in ("site", "crop"), "site or crop")
        _check(self, "min_cosine", 0 < self.min_cosine <= 1, "more than 0, at most 1")
        _check(self, "n_clusters", self.n_clusters is None or self.n_clusters >= 1, "1 or more, or nothing")

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> NearDuplicatesStep:
        found = find_representation(catalog, self.representation, of=self.of, not_of=curation)
        return replace(self, representation=found["representation_id"])

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        found, without = considered.vectors(self.representation)
        vectors = standardised(centred(found.vectors, considered.groups(["plate_id"])[0][found.rows]))
        sites, site_row = considered.groups(["site_id"])
        items, item = np.unique(sites[found.rows], return_inverse=True)
        if self.level == "site":
            places, _ = considered.groups(["y", "x", "size"])
            used, place = np.unique(places[found.rows], return_inverse=True)
            beside = np.zeros((len(items), len(used), vectors.shape[1]), np.float32)
            beside[item, place] = vectors
            vectors, item_rows = beside.reshape(len(items), -1), site_row[items]
        else:
            item, item_rows = np.arange(len(found.rows)), found.rows
        lots = considered.lots("site_id")[item_rows]
        order = np.lexsort((item_rows, lots))  # all crops of a site before those of the next: the same site stays
        duplicates = find_duplicates(
            vectors[order], self.min_cosine, n_clusters=self.n_clusters, seed=considered.seed, progress=progress
        )
        gone = np.flatnonzero(duplicates.original >= 0)
        name = considered.text("site_id" if self.level == "site" else "crop_id")
        detail = np.full(len(item_rows), "", object)
        for position in gone.tolist():
            other = name[int(item_rows[order[duplicates.original[position]]])].as_py()
            detail[order[position]] = f"{self.level} {other}, cosine {duplicates.cosine[position]:.4f}"
        is_gone = detail[item] != ""
        rows = np.concatenate([found.rows[is_gone], without])
        return Exclusions(
            rows=rows,
            reasons=[f"near_duplicates: cosine {self.min_cosine:g} or more to another {self.level}"]
            * int(is_gone.sum())
            + ["near_duplicates: no embedding"] * len(without),
            details=[*detail[item][is_gone].tolist(), *[""] * len(without)],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterBalancedStep:
    """Keep so many crops, as evenly as possible from kinds of images, from clusters, from treatments and from plates.

    Every group gives as many as every other until it has no more; see `balanced_sampling`. Clusters alone would not do:
    k-means gives most of its centres to what is most common. The centres of the centres lie more evenly (Vo et al.).
    """

    rule: ClassVar[str] = "cluster_balanced"
    tables: ClassVar[tuple[str, ...]] = ("embeddings", "representations")
    representation: str = "pixel_statistics"
    of: str = ""
    """Name of the curation whose pack `pixel_statistics` means; empty means the newest of another curation."""
    n_clusters: int = 100
    """Of k-means, on standardised vectors of length 1."""
    n_kinds: int = 10
    """Of k-means on the centres of the clusters: kinds of images, which share `max_crops` first."""
    max_crops: int | None = None
    """Of all kept crops; None for no limit."""
    max_crops_per_cluster: int | None = None
    balance: tuple[str, ...] = ("perturbation", "plate")
    """Columns of crops and wells: what is balanced within a cluster, and within that, and so on."""

    def __post_init__(self) -> None:
        for name in ("n_clusters", "n_kinds"):
            _check(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("max_crops", "max_crops_per_cluster"):
            limit = getattr(self, name)
            _check(self, name, limit is None or limit >= 1, "1 or more, or nothing for no limit")
        some = self.max_crops is not None or self.max_crops_per_cluster is not None
        _check(self, "max_crops", some, "a number here or in max_crops_per_cluster")

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> ClusterBalancedStep:
        found = find_representation(catalog, self.representation, of=self.of, not_of=curation)
        return replace(self, representation=found["representation_id"])

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        considered.check_columns(self.balance, "cluster_balanced.balance")
        found, without = considered.vectors(self.representation)
        unit = unit_rows(standardised(found.vectors))
        centres = cluster_centres(unit, self.n_clusters, considered.seed)
        kinds = two_nearest(centres, cluster_centres(centres, self.n_kinds, considered.seed))[:, 0]
        clusters = two_nearest(unit, centres)[:, 0]
        levels = [clusters, *(considered.groups([column])[0][found.rows] for column in self.balance)]
        lots = considered.lots("crop_id")[found.rows]
        rank = np.argsort(np.lexsort((found.rows, lots)), kind="stable")
        chosen = balanced_choice(levels, rank, per_group=self.max_crops_per_cluster)
        of_all = [level[chosen] for level in (kinds[clusters], *levels)]
        chosen[chosen] = balanced_choice(of_all, rank[chosen], self.max_crops)
        rows = np.concatenate([found.rows[~chosen], without])
        return Exclusions(
            rows=rows,
            reasons=["cluster_balanced: beyond the cluster's share"] * int((~chosen).sum())
            + ["cluster_balanced: no embedding"] * len(without),
            details=[*(f"cluster {cluster}" for cluster in clusters[~chosen].tolist()), *[""] * len(without)],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CapStep:
    """Keep at most so many crops of each perturbation or control of a screen, chosen by a hash of crop and seed."""

    rule: ClassVar[str] = "cap"
    tables: ClassVar[tuple[str, ...]] = ()
    max_crops_per_perturbation: int | None = None
    """Wells without a perturbation count as one."""
    max_crops_per_control: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_crops_per_perturbation", "max_crops_per_control"):
            limit = getattr(self, name)
            _check(self, name, limit is None or limit >= 1, "1 or more, or nothing for no limit")

    def prepared(self, catalog: Catalog, curation: str, progress: Progress | None) -> CapStep:
        return self

    def exclude(self, considered: Considered, progress: Progress | None) -> Exclusions:
        groups, _ = considered.groups(["screen", "control", "perturbation"])
        kept = np.flatnonzero(considered.kept)
        order = kept[np.lexsort((kept, considered.lots("crop_id")[kept], groups[kept]))]
        sizes = np.unique(groups[order], return_counts=True)[1]
        place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        is_control = ~considered.is_equal("control", "")
        excluded = np.zeros(len(considered.kept), np.bool_)
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


RULES: dict[str, type[Rule]] = {
    step.rule: step
    for step in (
        QcStep, ForegroundStep, WhereStep, SupportStep, UndersampleControlsStep, ConsistencyStep, ExactDuplicatesStep,
        NearDuplicatesStep, ClusterBalancedStep, CapStep,
    )
}  # fmt: skip


def lot(value: str, seed: int) -> int:
    """A number, 0 to 2**64 - 1, drawn by hashing."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{value}".encode(), digest_size=8).digest())


def _all_for(mask: Mask, reason: str) -> Exclusions:
    rows = np.flatnonzero(mask)
    return Exclusions(rows=rows, reasons=[reason] * len(rows))


def _check(step: Rule, name: str, is_good: bool, expected: str) -> None:
    if not is_good:
        raise CurationError(f"{step.rule}.{name} is {getattr(step, name)!r}; expected {expected}.")


def _qc_rules(catalog: Catalog, qc_id: str) -> set[str]:
    found = catalog.sql("SELECT DISTINCT rule FROM qc_verdicts WHERE qc_id = ?", parameters=[qc_id])
    return set(found.column(0).to_pylist())


def _distinct(groups: Numbers, values: Numbers, among: Mask) -> Numbers:
    """(G,) how many different values each group has among some crops."""
    pairs = np.unique(np.stack([groups[among], values[among]], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=int(groups.max()) + 1 if len(groups) else 0).astype(np.int64)
