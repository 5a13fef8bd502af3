"""The artefact detector on a catalog: training from its labels, and verdicts in the table qc_verdicts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.tables import Catalog
from cytolake.qc.detector.detector import ArtefactDetector, DetectorConfig, DetectorError, Example, Verdict
from cytolake.qc.detector.encoders import FeatureConfig, build_extractors, features_key
from cytolake.qc.detector.features import feature_names
from cytolake.qc.detector.plates import MeasuredSite, PlateSites
from cytolake.qc.detector.site_labels import Plan, PlannedSite, joined, people_labels, simulated_labels
from cytolake.qc.verdicts import Progress
from cytolake.screens.plate import WELLS_ONLY

RULE = "learned_artefact"
"""Rule name of the verdict on each channel of each site."""
WELL_RULE = "learned_spoilt_sites"
PROBABILITY, SPOILT_SHARE = "artefact_probability", "spoilt_site_share"
WELL_SHARE = 0.5
"""A well fails above this share of spoilt sites. Part of the qc_id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QcTrainConfig:
    """Training data and settings of a detector."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    simulated_per_kind: int = 0
    """Additional sites per kind of artefact, simulated on unlabelled sites, with as many unlabelled sites taken as
    normal. Without any label, a detector then finds the artefacts of the simulator."""
    simulated_severity: tuple[float, float] = (0.25, 1.0)
    """Lowest and highest severity of simulated artefacts."""
    seed: int = 0
    """Seed of the simulated artefacts."""

    def __post_init__(self) -> None:
        if self.simulated_per_kind < 0 or self.seed < 0:
            raise ValueError(
                f"QC training: simulated_per_kind {self.simulated_per_kind}, seed {self.seed}; expected 0 or more."
            )
        low, high = self.simulated_severity
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"QC training: simulated_severity {self.simulated_severity}, expected two numbers above 0, up to 1."
            )


@dataclass(frozen=True, slots=True)
class LabelledSites:
    """Measured labelled sites of a catalog."""

    examples: tuple[Example, ...]
    plates: tuple[str, ...]
    """plate_id of each example."""
    wells: tuple[str, ...]
    """well_id of each example."""
    features: tuple[str, ...]
    """Names of the columns of the deviations."""
    features_key: str


def labelled_sites(
    catalog: Catalog, config: QcTrainConfig | None = None, progress: Progress | None = None
) -> LabelledSites:
    """Measure the labelled sites of a catalog, and those of `simulated_per_kind`.

    Args:
        catalog: A catalog with labels in `qc_labels`, unless some are simulated.
        config: Features to measure; the head's settings are not used.
        progress: Called with the parts of a plate that are measured.

    Raises:
        CatalogError: No label and no simulated ones, or no site.
        ScreenError: The pixels of a site cannot be read.
        FeatureError, CheckpointError: An encoder that cannot be had.
    """
    config = config or QcTrainConfig()
    labels = people_labels(catalog)
    if not labels and not config.simulated_per_kind:
        raise CatalogError(
            f"{catalog.place}: no site has a label. Label some (cytolake qc label), or set simulated_per_kind to learn "
            "from artefacts put into sites."
        )
    taken = {site.site_id for sites in labels.values() for site in sites}
    simulated = simulated_labels(
        catalog, taken, config.simulated_per_kind, config.simulated_severity, config.seed, also_plates=labels
    )
    return measure_plan(catalog, joined(labels, simulated), config.features, progress)


def measure_plan(
    catalog: Catalog, plan: Plan, features: FeatureConfig, progress: Progress | None = None, store: Path | None = None
) -> LabelledSites:
    """Measure planned sites, plate by plate.

    Args:
        catalog: The catalog of the plan.
        progress: Called with the parts of a plate that are measured.
        store: Folder of cached features, read and extended; None for no cache.

    Raises:
        ScreenError: The pixels of a site cannot be read.
        FeatureError, CheckpointError: An encoder that cannot be had.
    """
    extractors = build_extractors(features)
    key = features_key(features, extractors)
    examples: list[Example] = []
    plates: list[str] = []
    wells: list[str] = []
    for plate, planned in sorted(plan.items()):
        spoilings = {i: site.spoiling for i, site in enumerate(planned) if site.spoiling is not None}
        sites = PlateSites(catalog, plate, key, progress, store)
        for site, measured in zip(planned, sites.measure([s.site_id for s in planned], spoilings), strict=True):
            is_spoilt = measured.is_spoilt if site.spoiling is not None else _mask(measured, site)
            examples.append(Example(measured.deviations, site.label, is_spoilt))
            plates.append(plate)
            wells.append(measured.well_id)
    return LabelledSites(tuple(examples), tuple(plates), tuple(wells), feature_names(extractors), key)


def train_detector(
    catalog: Catalog, config: QcTrainConfig | None = None, progress: Progress | None = None
) -> ArtefactDetector:
    """Train a detector on the labels of a catalog.

    Raises:
        DetectorError: Labels of too few classes.
        CatalogError, ScreenError, FeatureError, CheckpointError: As `labelled_sites`.
    """
    config = config or QcTrainConfig()
    sites = labelled_sites(catalog, config, progress)
    return ArtefactDetector.fit(sites.examples, sites.features, config.detector, features_key=sites.features_key)


def judge_with_detector(catalog: Catalog, detector: ArtefactDetector, progress: Progress | None = None) -> str:
    """Write a detector's verdicts on every plate without verdicts of it; one commit per plate.

    Rows of qc_verdicts: for each channel of each site the rule `learned_artefact` (value: probability that the channel
    is spoilt; threshold: the detector's); for a channel that fails it `learned_<kind>` too, of the likeliest kind, with
    the same value. For each well `learned_spoilt_sites`: the share of its sites with a channel that failed.

    Args:
        catalog: The catalog to read sites from and write verdicts to.
        detector: A detector of `train_detector`.
        progress: Called after each plate.

    Returns:
        The qc_id of the verdicts, equal for equal detectors.

    Raises:
        DetectorError: The detector was not fitted to features of a catalog.
        CatalogError, ScreenError, FeatureError, CheckpointError: As `labelled_sites`.
    """
    if not detector.features_key:
        raise DetectorError(
            f"detector {detector.detector_id}: it does not say how its features are measured. Expected one of "
            "train_detector, or fit with features_key."
        )
    qc_id = content_id("qc_detector", detector.detector_id, f"{WELL_SHARE:g}")
    with_images = catalog.table(
        "plates", columns=["plate_id"], where="reader is distinct from ?", parameters=[WELLS_ONLY]
    )
    plates = sorted(with_images.column(0).to_pylist())
    verdicts_there = catalog.sql("SELECT DISTINCT plate_id FROM qc_verdicts WHERE qc_id = ?", parameters=[qc_id])
    judged = set(verdicts_there.column(0).to_pylist())
    for done, plate in enumerate(plates, start=1):
        if plate not in judged:
            sites = PlateSites(catalog, plate, detector.features_key)
            measured = sites.measure(sites.site_ids)
            verdicts = detector.predict([site.deviations for site in measured])
            shared = {"qc_id": qc_id, "plate_id": plate, "judged_at": datetime.now(UTC), "reason": ""}
            rows = [shared | row for row in _rows(detector, measured, verdicts)]
            catalog.append(
                "qc_verdicts",
                table_contract("qc_verdicts").rows(rows),
                transaction=content_id("qc_verdicts", qc_id, plate),
            )
        if progress:
            progress("plates judged", done, len(plates))
    return qc_id


def _mask(measured: MeasuredSite, site: PlannedSite) -> Any:
    return np.array([name in site.channels for name in measured.channels]) if site.channels else None


def _rows(detector: ArtefactDetector, measured: list[MeasuredSite], verdicts: list[Verdict]) -> list[dict[str, Any]]:
    threshold = detector.config.threshold
    rows: list[dict[str, Any]] = []
    spoilt_of_well: dict[str, list[bool]] = defaultdict(list)
    for site, verdict in zip(measured, verdicts, strict=True):
        found = verdict.artefact_of_channels
        spoilt_of_well[site.well_id].append(bool((found > threshold).any()))
        for index, (channel, value) in enumerate(zip(site.channels, found.tolist(), strict=True)):
            rules = [RULE]
            if value > threshold and len(detector.classes) > 2:
                rules.append(f"learned_{detector.classes[1 + int(verdict.of_channels[index, 1:].argmax())]}")
            rows += [
                {
                    "level": "site",
                    "site_id": site.site_id,
                    "well_id": site.well_id,
                    "channel": channel,
                    "channel_index": index,
                    "rule": rule,
                    "metric": PROBABILITY,
                    "value": value,
                    "threshold": threshold,
                    "is_pass": value <= threshold,
                }
                for rule in rules
            ]
    for well, is_spoilt in sorted(spoilt_of_well.items()):
        share = float(np.mean(is_spoilt))
        rows.append(
            {
                "level": "well",
                "site_id": "",
                "well_id": well,
                "channel": "",
                "channel_index": -1,
                "rule": WELL_RULE,
                "metric": SPOILT_SHARE,
                "value": share,
                "threshold": WELL_SHARE,
                "is_pass": share <= WELL_SHARE,
            }
        )
    return rows
