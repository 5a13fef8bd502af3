"""The artefact detector on a catalog: trained from its labels, and its verdicts written beside those of the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cytolake.benchmark.qc.detector import ArtefactDetector, DetectorConfig, DetectorError, Example, Verdict
from cytolake.benchmark.qc.encoders import FeatureConfig, build_extractors, features_key
from cytolake.benchmark.qc.features import feature_names
from cytolake.benchmark.qc.plates import MeasuredSite, PlateSites, Spoiling
from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.qc.labels import NORMAL, SiteLabel, newest_labels
from cytolake.catalog.qc.verdicts import Progress
from cytolake.catalog.tables import Catalog
from cytolake.screens.plate import WELLS_ONLY
from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS

RULE = "learned_artefact"
"""Of the verdict on each channel of each site."""
WELL_RULE = "learned_spoilt_sites"
PROBABILITY, SPOILT_SHARE = "artefact_probability", "spoilt_site_share"


@dataclass(frozen=True, kw_only=True, slots=True)
class QcTrainConfig:
    """What a detector is trained on, and how."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    simulated_per_kind: int = 0
    """Sites of each kind of artefact more, made by spoiling unlabelled sites, and as many unlabelled sites taken for
    normal. A detector so needs no label at all; what it then finds are the artefacts of the generator."""
    simulated_severity: tuple[float, float] = (0.25, 1.0)
    """Lowest and highest severity of these."""
    seed: int = 0
    """Of what is simulated."""

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
    """Examples of a catalog."""

    examples: tuple[Example, ...]
    plates: tuple[str, ...]
    """plate_id of each example."""
    features: tuple[str, ...]
    """Names of the columns of their deviations."""
    features_key: str


def labelled_sites(
    catalog: Catalog, config: QcTrainConfig | None = None, progress: Progress | None = None
) -> LabelledSites:
    """Measure the labelled sites of a catalog, and what `simulated_per_kind` adds to them.

    Args:
        catalog: With labels in `qc_labels`, unless some are simulated.
        config: What is measured; the head's settings do not matter here.
        progress: Told the parts of a plate that are measured.

    Raises:
        CatalogError: No label, and none to be simulated; or no site.
        ScreenError: The pixels of a site cannot be read.
        FeatureError, CheckpointError: An encoder that cannot be had.
    """
    config = config or QcTrainConfig()
    labels: dict[str, list[SiteLabel]] = defaultdict(list)
    for label in newest_labels(catalog):
        labels[label.plate_id].append(label)
    if not labels and not config.simulated_per_kind:
        raise CatalogError(
            f"{catalog.place}: no site has a label. Label some (cytolake qc label), or set simulated_per_kind to learn "
            "from artefacts put into sites."
        )
    extractors = build_extractors(config.features)
    key = features_key(config.features, extractors)
    n_simulated = _turns(catalog, labels, config.simulated_per_kind)
    examples: list[Example] = []
    plate_of: list[str] = []
    for number, plate in enumerate(sorted(labels.keys() | n_simulated.keys())):
        sites = PlateSites(catalog, plate, key, progress)
        found = [
            Example(site.deviations, label.label, _mask(site, label))
            for site, label in zip(
                sites.measure([label.site_id for label in labels[plate]]), labels[plate], strict=True
            )
        ]
        labelled = {label.site_id for label in labels[plate]}
        found += _simulated(sites, labelled, n_simulated.get(plate, 0), number, config)
        examples += found
        plate_of += [plate] * len(found)
    return LabelledSites(tuple(examples), tuple(plate_of), feature_names(extractors), key)


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


def judge_with_detector(
    catalog: Catalog, detector: ArtefactDetector, progress: Progress | None = None, *, well_share: float = 0.5
) -> str:
    """Write a detector's verdicts on every plate that it has not judged yet; one commit for each plate.

    Rows of qc_verdicts: for each channel of each site the rule `learned_artefact` (value: probability that the channel
    is spoilt; threshold: the detector's); for a channel that fails it `learned_<kind>` too, of the likeliest kind, with
    the same value. For each well `learned_spoilt_sites`: the share of its sites with a channel that failed.

    Args:
        catalog: Where sites are read and verdicts written.
        detector: Of `train_detector`.
        progress: Told the plates done.
        well_share: A well fails above this share of spoilt sites. Part of the qc_id.

    Returns:
        The qc_id of the verdicts, which is the same for the same detector.

    Raises:
        DetectorError: A detector that was not fitted to features of a catalog.
        CatalogError, ScreenError, FeatureError, CheckpointError: As `labelled_sites`.
    """
    if not detector.features_key:
        raise DetectorError(
            f"detector {detector.detector_id}: it does not say how its features are measured. Expected one of "
            "train_detector, or fit with features_key."
        )
    qc_id = content_id("qc_detector", detector.detector_id, f"{well_share:g}")
    with_images = f"reader is distinct from '{WELLS_ONLY}'"
    plates = sorted(catalog.table("plates", columns=["plate_id"], where=with_images).column(0).to_pylist())
    judged = set(
        catalog.sql(f"SELECT DISTINCT plate_id FROM qc_verdicts WHERE qc_id = '{qc_id}'").column(0).to_pylist()
    )
    for done, plate in enumerate(plates, start=1):
        if plate not in judged:
            sites = PlateSites(catalog, plate, detector.features_key)
            measured = sites.measure(sites.site_ids)
            verdicts = detector.predict([site.deviations for site in measured])
            shared = {"qc_id": qc_id, "plate_id": plate, "judged_at": datetime.now(UTC), "reason": ""}
            rows = [shared | row for row in _rows(detector, measured, verdicts, well_share)]
            catalog.append(
                "qc_verdicts",
                table_contract("qc_verdicts").rows(rows),
                transaction=content_id("qc_verdicts", qc_id, plate),
            )
        if progress:
            progress("plates judged", done, len(plates))
    return qc_id


def _mask(site: MeasuredSite, label: SiteLabel) -> Any:
    return np.array([name in label.channels for name in site.channels]) if label.channels else None


def _turns(catalog: Catalog, labels: Mapping[str, Sequence[SiteLabel]], n: int) -> dict[str, int]:
    """How many sites each plate spoils with each kind, so that together they are n: plates take turns."""
    counted = catalog.sql("SELECT plate_id, count(*) AS n FROM sites GROUP BY plate_id ORDER BY plate_id").to_pylist()
    plates = [row["plate_id"] for row in counted if row["n"] > len(labels.get(row["plate_id"], ()))]
    turns = {plate: len(range(number, n, len(plates))) for number, plate in enumerate(plates)}
    return {plate: share for plate, share in turns.items() if share}


def _simulated(
    sites: PlateSites, labelled: set[str], n_of_each: int, number: int, config: QcTrainConfig
) -> list[Example]:
    unlabelled = [site for site in sites.site_ids if site not in labelled]
    rng = np.random.default_rng([config.seed, number])
    chosen: list[str] = []
    spoilings: dict[int, Spoiling] = {}
    for kind in (NORMAL, *ARTEFACT_KINDS):
        among = [site for site in unlabelled if kind != "channel_swap" or len(sites.channels(site)) > 1]
        for _ in range(n_of_each if among else 0):
            if kind != NORMAL:
                severity = float(rng.uniform(*config.simulated_severity))
                spoilings[len(chosen)] = Spoiling(kind, severity, int(rng.integers(2**31)))
            chosen.append(among[int(rng.integers(len(among)))])
    return [
        Example(site.deviations, spoilings[i].kind, site.is_spoilt)
        if i in spoilings
        else Example(site.deviations, NORMAL)
        for i, site in enumerate(sites.measure(chosen, spoilings))
    ]


def _rows(
    detector: ArtefactDetector, measured: list[MeasuredSite], verdicts: list[Verdict], well_share: float
) -> list[dict[str, Any]]:
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
                "threshold": well_share,
                "is_pass": share <= well_share,
            }
        )
    return rows
