"""Comparison of encoders as features of an artefact detector, with pixel statistics as the baseline.

Every encoder is frozen and used alone, on the same labelled sites, with the same heads, draws of labels, plates
held out and resamples. Differences to pixel statistics are therefore taken draw by draw.

Source: the question is that of Masud, Cohen, Bendidi, Bollot and Genovesio 2022, arXiv 2208.04592; protocol, baseline
and intervals are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import pyarrow as pa

from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.ray_tasks import run_tasks
from cytolake.catalog.tables import Catalog
from cytolake.qc.detector.compared_encoders import STATISTICS, ComparedEncoder, check_channels
from cytolake.qc.detector.detector import HEADS, DetectorConfig, Example, Head
from cytolake.qc.detector.encoders import FeatureConfig
from cytolake.qc.detector.features import RELATIONS
from cytolake.qc.detector.label_efficiency import (
    LabelEfficiency,
    LabelEfficiencyConfig,
    Point,
    detection_task,
    label_efficiency,
    score_rows,
)
from cytolake.qc.detector.learned import LabelledSites, measure_plan
from cytolake.qc.detector.site_labels import (
    Plan,
    clean_sites,
    focus_labels,
    joined,
    people_labels,
    plate_map_labels,
    simulated_labels,
)
from cytolake.qc.detector.site_split import Unit
from cytolake.qc.labels import NORMAL
from cytolake.qc.verdicts import Progress
from cytolake.statistics.intervals import few_groups_interval

BENCHMARK = "qc_encoders"
"""`scores.benchmark` of a comparison."""
METRIC = "auroc"
"""The metric of the result; it needs no threshold and no prevalence."""
LabelSource = Literal["people", "plate_map", "focus", "simulated"]
FEATURE_FOLDER = "qc/features"
"""Below the root: features measured before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderComparisonConfig:
    """Labels, heads and splits of a comparison."""

    labels: LabelSource = "people"
    """Source of labels. `people`: the table `qc_labels`. `plate_map`: a column of the plate map. `focus`: focal planes.
    `simulated`: artefacts of ten kinds added to sites without a label of an artefact."""
    label_column: str = "artefact"
    """`plate_map`: column with the artefact of a well; `<label_column>_site` names the site. `simulated`: wells with a
    value are left out."""
    in_focus: tuple[str, ...] = ()
    """`focus`: planes in focus, by their names in `sites.z`. Others are out of focus."""
    normal_sites: int = 100
    """Largest number of normal sites per plate, drawn by hashing; sites labelled by people are all used."""
    simulated_per_kind: int = 20
    """Sites of each kind of artefact, over all plates."""
    simulated_severity: tuple[float, float] = (0.25, 1.0)
    seed: int = 0
    """Of what is simulated."""
    heads: tuple[Head, ...] = ("logistic", "svm", "knn", "mahalanobis", "knn_distance", "isolation_forest")
    """Heads to compare. The first is the head of the result, set in advance and not chosen by its score."""
    curve: LabelEfficiencyConfig = field(
        default_factory=lambda: LabelEfficiencyConfig(detector=DetectorConfig(is_binary=True), n_resamples=1000)
    )
    """Labels of each class, seeds, plates held out, prevalence. Its head is replaced by each of `heads`."""
    features: FeatureConfig = field(default_factory=lambda: FeatureConfig(windows_per_side=3))
    """Windows and reference sites; what is looked at is replaced by each encoder."""

    def __post_init__(self) -> None:
        def check(name: str, is_good: bool, expected: str) -> None:
            if not is_good:
                raise ValueError(f"comparison of encoders, {name}: found {getattr(self, name)!r}, expected {expected}.")

        check("labels", self.labels in get_args(LabelSource), f"one of {', '.join(get_args(LabelSource))}")
        check("normal_sites", self.normal_sites >= 1, "1 or more")
        check("simulated_per_kind", self.simulated_per_kind >= 1, "1 or more")
        is_range = 0 < self.simulated_severity[0] <= self.simulated_severity[1] <= 1
        check("simulated_severity", is_range, "two numbers above 0, up to 1")
        check("seed", self.seed >= 0, "0 or more")
        is_set = bool(self.heads) and len(set(self.heads)) == len(self.heads) and set(self.heads) <= set(HEADS)
        check("heads", is_set, f"one or more of {', '.join(HEADS)}, each once")


@dataclass(frozen=True, slots=True)
class EncoderComparison:
    """Scores of every encoder with every head."""

    config: EncoderComparisonConfig
    encoders: tuple[ComparedEncoder, ...]
    """Pixel statistics first."""
    curves: Mapping[tuple[str, str], LabelEfficiency]
    """Label of an encoder and head to its curve."""
    features_keys: Mapping[str, str]
    """Label of an encoder to how its features were measured."""
    plan_id: str
    """Digest of the labelled sites."""
    n_of_label: dict[str, int]
    """`normal` and kinds of artefact to sites."""
    n_plates: int

    @property
    def unit(self) -> Unit:
        """Unit held out: plates, or wells if there is one plate."""
        return "plate" if self.n_plates > 1 else "well"

    @property
    def n_groups(self) -> int:
        """Plates or wells that were in the test part of a seed."""
        return next(iter(self.curves.values())).n_groups

    def point(self, encoder: str, head: str, metric: str = METRIC, n_labels: int = 0) -> Point:
        """A score; `n_labels` 0 means the largest number of labels."""
        points = {each.n_labels: each for each in self.curves[encoder, head].curve(metric)}
        return points[n_labels or max(points)]

    def difference(
        self,
        encoder: str,
        head: str,
        metric: str = METRIC,
        n_labels: int = 0,
        level: float = 0.95,
        baseline: str = STATISTICS,
    ) -> tuple[float, float, float]:
        """Score minus the baseline's with the same head, labels, splits and resamples; and its interval."""
        point, other = (self.point(name, head, metric, n_labels) for name in (encoder, baseline))
        value = point.value - other.value
        draws = point.draws - other.draws
        return value, *few_groups_interval(value, draws, self.n_groups, (-1.0, 1.0), level)


def comparison_plan(catalog: Catalog, config: EncoderComparisonConfig) -> Plan:
    """The labelled sites of a comparison.

    Raises:
        CatalogError: No site has a label, or no normal or no spoilt site.
    """
    if config.labels == "people":
        plan = people_labels(catalog)
    elif config.labels == "plate_map":
        plan = plate_map_labels(catalog, config.label_column, config.normal_sites)
    elif config.labels == "focus":
        plan = focus_labels(catalog, config.in_focus, config.normal_sites)
    else:
        spoilt = _spoilt(people_labels(catalog)) | _spoilt(_of_plate_map(catalog, config))
        plan = joined(
            clean_sites(catalog, spoilt, config.normal_sites),
            simulated_labels(
                catalog,
                spoilt,
                config.simulated_per_kind,
                config.simulated_severity,
                config.seed,
                with_normal=False,
            ),
        )
    count = Counter(site.label for sites in plan.values() for site in sites)
    if not count[NORMAL] or not sum(count.values()) - count[NORMAL]:
        raise CatalogError(
            f"{catalog.place}: labels from {config.labels}: found {count[NORMAL]} normal and "
            f"{sum(count.values()) - count[NORMAL]} spoilt sites, expected some of both. Label sites (cytolake qc "
            "label), or take another source: --labels plate_map, focus or simulated."
        )
    return plan


def compare_encoders(
    catalog: Catalog,
    encoders: Sequence[ComparedEncoder],
    config: EncoderComparisonConfig,
    progress: Progress | None = None,
) -> EncoderComparison:
    """Measure the labelled sites with every encoder and score each head on them, in parallel if Ray is running.

    Args:
        catalog: A catalog with sites. Features are cached below its root.
        encoders: Of `compared_encoders`.
        config: Labels, heads, splits.
        progress: Called with the parts done.

    Raises:
        CatalogError: As `comparison_plan`.
        ValueError: Too few labels of a class, or of plates (or wells), for any split.
        ScreenError, CheckpointError: A site or an encoder that cannot be read.
        FeatureError: An encoder cannot be loaded, or does not accept the stains of a plate.
    """
    plan, measured = comparison_plan(catalog, config), {}
    check_channels(catalog, encoders, plan)
    for encoder in encoders:
        measured[encoder.label] = measure_plan(
            catalog,
            plan,
            encoder.features,
            _named(progress, f"sites measured by {encoder.label}"),
            catalog.root / FEATURE_FOLDER,
        )
    planned = sorted((site.site_id, site.label, repr(site.spoiling)) for sites in plan.values() for site in sites)
    plan_id = content_id("qc_plan", *(part for site in planned for part in site))
    return compare_measured(encoders, measured, plan_id, config, progress)


def compare_measured(
    encoders: Sequence[ComparedEncoder],
    measured: Mapping[str, LabelledSites],
    plan_id: str,
    config: EncoderComparisonConfig,
    progress: Progress | None = None,
) -> EncoderComparison:
    """Compare encoders on measured sites.

    Args:
        encoders: Pixel statistics first.
        measured: Label of each encoder to its features of the sites: the same sites, in the same order.
        plan_id: Digest of the sites and their labels.
        progress: Called with the heads that are fitted.

    Raises:
        ValueError: Too few labels of a class, or of plates (or wells), for any split.
    """
    first = measured[encoders[0].label]
    names = [(encoder.label, head) for encoder in encoders for head in config.heads]
    by_plate = len(set(first.plates)) > 1
    tasks = [
        (_alone(measured[encoder.label], encoder), by_plate, head, config)
        for encoder in encoders
        for head in config.heads
    ]
    curves = run_tasks(_curve, tasks, len(tasks), "heads fitted", progress)
    return EncoderComparison(
        config=config,
        encoders=tuple(encoders),
        curves=dict(zip(names, curves, strict=True)),
        features_keys={name: sites.features_key for name, sites in measured.items()},
        plan_id=plan_id,
        n_of_label=dict(Counter(example.label for example in first.examples)),
        n_plates=len(set(first.plates)),
    )


def add_comparison_scores(catalog: Catalog, comparison: EncoderComparison) -> int:
    """Append every score to the table `scores`, benchmark `qc_encoders`, once; returns the number of rows.

    `details` names encoder, training, head and labels of each class, and holds the difference to pixel statistics.
    """
    rows: list[dict[str, Any]] = []
    for encoder in comparison.encoders:
        for head in comparison.config.heads:
            rows += score_rows(
                comparison.curves[encoder.label, head],
                encoder.label,
                comparison.plan_id,
                benchmark=BENCHMARK,
                identity=comparison.features_keys[encoder.label],
                details={
                    (point.metric, point.n_labels): _details(comparison, encoder, head, point)
                    for point in comparison.curves[encoder.label, head].points
                },
            )
    transaction = f"{BENCHMARK}/{content_id(*sorted(row['score_id'] for row in rows))}"
    catalog.append("scores", table_contract("scores").rows(rows), transaction=transaction)
    return len(rows)


def comparison_table(comparison: EncoderComparison) -> pa.Table:
    """One row per encoder, head, number of labels and metric; and per kind of artefact (`kind`) at the largest number
    of labels. Differences are to pixel statistics."""
    rows = []
    for encoder in comparison.encoders:
        for head in comparison.config.heads:
            curve = comparison.curves[encoder.label, head]
            shared = {"encoder": encoder.label, "training": encoder.training, "head": head, "held_out": curve.unit}
            of_all = [("", point, comparison.difference(encoder.label, head, point.metric, point.n_labels))
                      for point in curve.points]  # fmt: skip
            for kind, point, difference in [*of_all, *((k, p, (None,) * 3) for k, p in curve.of_kind.items())]:
                ends = dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))
                rows.append(
                    shared
                    | {"kind": kind, "n_labels": point.n_labels, "metric": point.metric, "value": point.value}
                    | {"low": point.low, "high": point.high, "n_splits": len(point.of_seed)}
                    | {"n_train": point.n_train, "n_test": point.n_test}
                    | ends
                )
    texts = ("encoder", "training", "head", "held_out", "kind", "metric")
    counts = ("n_labels", "n_splits", "n_train", "n_test")
    numbers = ("value", "low", "high", "difference", "difference_low", "difference_high")
    types = dict.fromkeys(texts, pa.string()) | dict.fromkeys(counts, pa.int32()) | dict.fromkeys(numbers, pa.float64())
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


def _spoilt(plan: Plan) -> set[str]:
    return {site.site_id for sites in plan.values() for site in sites if site.label != NORMAL}


def _of_plate_map(catalog: Catalog, config: EncoderComparisonConfig) -> Plan:
    try:
        return plate_map_labels(catalog, config.label_column, config.normal_sites)
    except CatalogError:  # real plate maps rarely have such a column
        return {}


def _named(progress: Progress | None, what: str) -> Progress | None:
    return None if progress is None else lambda _, done, total: progress(what, done, total)


def _alone(sites: LabelledSites, encoder: ComparedEncoder) -> LabelledSites:
    """An encoder's own features, without the correlations of channels, which are statistics of pixels."""
    if encoder.features.statistics:
        return sites
    n = len(sites.features) - len(RELATIONS)
    examples = tuple(Example(e.deviations[:, :n], e.label, e.is_spoilt) for e in sites.examples)
    return replace(sites, examples=examples, features=sites.features[:n])


def _curve(sites: LabelledSites, by_plate: bool, head: Head, config: EncoderComparisonConfig) -> LabelEfficiency:
    """Score one encoder with one head, in one task."""
    unit: Unit = "plate" if by_plate else "well"
    groups = sites.plates if by_plate else sites.wells
    curve = replace(config.curve, detector=replace(config.curve.detector, head=head))
    task = detection_task([example.label for example in sites.examples], groups, curve, unit)
    most = min((task.most_labels(split) for split in task.splits), default=0)
    sizes = {n for n in curve.labels_per_class if n <= most}
    if 0 < most < max(curve.labels_per_class):
        sizes.add(most)  # the largest number of labels that all seeds have
    return label_efficiency(
        sites.examples,
        groups,
        sites.features,
        replace(curve, labels_per_class=tuple(sorted(sizes))) if sizes else curve,
        unit,
    )


def _details(comparison: EncoderComparison, encoder: ComparedEncoder, head: str, point: Point) -> dict[str, Any]:
    value, low, high = comparison.difference(encoder.label, head, point.metric, point.n_labels)
    return {
        "encoder": encoder.label,
        "training": encoder.training,
        "head": head,
        "labels_of_each_class": point.n_labels,
        "difference_to_statistics": {"value": value, "low": low, "high": high},
    }
