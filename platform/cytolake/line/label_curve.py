"""How many labels the artefact detector of a catalog needs: rows of `scores`, and the figure on the report page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cytolake
from cytolake.benchmark.qc.label_efficiency import (
    LabelEfficiency,
    LabelEfficiencyConfig,
    label_efficiency,
    label_efficiency_svg,
    score_rows,
)
from cytolake.benchmark.qc.learned import QcTrainConfig, labelled_sites
from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import content_id
from cytolake.line.report import LABEL_EFFICIENCY_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCurveConfig:
    """Which sites the detector learns from, and how the curve is measured."""

    train: QcTrainConfig = field(default_factory=QcTrainConfig)
    curve: LabelEfficiencyConfig = field(default_factory=LabelEfficiencyConfig)


def has_label_curve(catalog: Catalog, config: LabelCurveConfig) -> bool:
    """Whether the figure there is of this config and of these sites and labels."""
    path = catalog.root / LABEL_EFFICIENCY_FILE
    return path.is_file() and path.read_text(encoding="utf-8").startswith(_mark(catalog, config))


def measure_label_curve(
    catalog: Catalog, config: LabelCurveConfig, progress: Callable[[str, int, int], None] | None = None
) -> tuple[LabelEfficiency, Path]:
    """Measure the curve, add it to `scores`, and draw it; returns it and the figure.

    Raises:
        CatalogError, ScreenError, DetectorError, FeatureError, CheckpointError: As `labelled_sites`.
    """
    mark = _mark(catalog, config)
    sites = labelled_sites(catalog, config.train, progress)
    found = label_efficiency(sites.examples, sites.plates, sites.features, config.curve)
    # Of these sites and labels: measured again with others, the scores are other rows.
    examples = [
        f"{each.label} {plate} {each.deviations.tobytes().hex()}"
        for each, plate in zip(sites.examples, sites.plates, strict=True)
    ]
    rows = score_rows(found, "site statistics", content_id(sites.features_key, *examples))
    scores = table_contract("scores").rows(rows)
    catalog.append("scores", scores, transaction=f"label efficiency/{rows[0]['score_id']}")
    path = catalog.root / LABEL_EFFICIENCY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mark + label_efficiency_svg({config.curve.detector.head: found}), encoding="utf-8")
    return found, path


def _mark(catalog: Catalog, config: LabelCurveConfig) -> str:
    state = {name: of_table for name, of_table in catalog.state().items() if name in ("plates", "qc_labels")}
    return f"<!-- {content_id(cytolake.__version__, repr(config), json.dumps(state))} -->\n"
