"""The page a pipeline run leaves behind: what went in, what was kept, what was learned, what was chosen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import cytolake
from cytolake.benchmark.confounding import confounding_warnings
from cytolake.benchmark.position_confounding import WellPlace
from cytolake.benchmark.probe_data import check_label
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.reports.choice_text import headline, how_measured, measures, why_no_interval
from cytolake.reports.figures import PALETTE, as_svg, new_figure
from cytolake.reports.page import write_page
from cytolake.reports.qc_page import PAGE_FILE
from cytolake.reports.report_figures import (
    block_search_figure,
    block_search_text,
    loss_figure,
    plate_maps_figure,
    reconstructions_figure,
    sample_crops_figure,
    umap_figure,
)
from cytolake.reports.report_inputs import ReportInputs

LABEL_EFFICIENCY_FILE = "report/label_efficiency.svg"
"""Where `label_curve` leaves its figure, below the root."""
MAX_UNITS_DRAWN = 16
"""More plates than this have one colour in a figure."""


def write_report(catalog: Catalog, inputs: ReportInputs, path: Path) -> Path:
    """Write one self-contained HTML page (no script, no outside file) and return its path.

    A section whose data is missing is left out, never faked. A page of the same inputs and tables is left as it is.
    """
    key = content_id(cytolake.__version__, repr(inputs), json.dumps(catalog.state()), _label_efficiency(path.parent))
    if path.is_file() and f'content="{key}"' in path.read_text(encoding="utf-8")[:500]:
        return path
    sections = [
        ("Single plates" if inputs.choice.unit == "plate" else "What was held out", _units(inputs), _UNITS_TEXT),
        ("Block search", block_search_figure(catalog, inputs), block_search_text(inputs.choice)),
        ("Map of the chosen representation", umap_figure(catalog, inputs), _UMAP_TEXT),
        ("Sample crops", sample_crops_figure(catalog, inputs), _CROPS_TEXT),
        ("Pretraining", loss_figure(inputs.run_folder), f"{inputs.objective} {_LOSS_TEXT}".strip()),
        ("Reconstructions", reconstructions_figure(inputs.run_folder), _RECONSTRUCTION_TEXT),
        ("Quality control", plate_maps_figure(catalog, inputs.qc_id), _QC_TEXT),
        ("Artefact detector", _label_efficiency(path.parent), _LABELS_TEXT),
    ]
    return write_page(
        path,
        "report.html.j2",
        title=inputs.title,
        key=key,
        headline=headline(inputs.choice),
        how=" ".join([how_measured(inputs.choice), why_no_interval(inputs.others)]).strip(),
        warnings=_layout_warnings(catalog, inputs.choice.representation_id, inputs.choice.label),
        measures=measures([inputs.choice, *inputs.others]),
        facts=inputs.facts,
        counts=_counts(catalog, inputs.curation_id),
        commands=inputs.commands,
        sections=[(name, figure, text) for name, figure, text in sections if figure],
        exclusions=_exclusions(catalog, inputs.curation_id),
        quarantine=_quarantine(catalog),
        has_qc_page=path.with_name(PAGE_FILE).is_file(),
    )


_UNITS_TEXT = (
    "One dot is the score on one plate (or batch, or whatever was held out); lines join the dots of one plate, so a "
    "gain is a line that falls to the right on every plate."
)
_UMAP_TEXT = (
    "One dot is one crop. Crops of one colour should gather; if they gather by plate instead, batch effects rule. "
    "Controls are grey."
)
_CROPS_TEXT = "Crops of different wells where there are several, contrast stretched for each crop and channel."
_LOSS_TEXT = (
    "Loss of training and, where the recipe sets training_probe, a linear probe of a small fixed set of crops, on "
    "plates that the probe never saw, while the encoder is trained (the highest of the blocks; step 0 is the untrained "
    "encoder)."
)
_RECONSTRUCTION_TEXT = (
    "What the encoder saw, and what the decoder made of it. Each panel is standardised as the model sees it. "
    "Flat grey patches are expected after a short training: the decoder learns the mean of a patch first and detail "
    "last, and the score of the encoder does not depend on it."
)
_LABELS_TEXT = (
    "How well the learned detector ranks sites with artefacts on plates that it never saw, by the number of labelled "
    "sites of each class; the band is the 95 % interval over plates. Labels are those of table qc_labels "
    "(cytolake qc label), or, as in the demo, artefacts of ten kinds put into sites. All metrics are in the table "
    "scores."
)
_QC_TEXT = (
    "Share of each well's site-and-channel images that failed a rule. A ring marks wells whose plate map declares an "
    "artefact."
)


def _label_efficiency(folder: Path) -> str:
    path = folder / Path(LABEL_EFFICIENCY_FILE).name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _counts(catalog: Catalog, curation_id: str) -> list[tuple[str, str]]:
    row = catalog.sql(
        "select (select count(*) from plates) plates, (select count(*) from wells) wells, (select count(*) from sites) "
        "sites, (select count(*) from crops) crops, (select count(*) from quarantine) quarantined, (select count(*) "
        "from curations where curation_id = $curation_id and is_kept) kept",
        parameters={"curation_id": curation_id},
    ).to_pylist()[0]
    names = {"kept": "crops curated", "quarantined": "quarantine rows"}
    return [(names.get(name, name), f"{value:,}") for name, value in row.items()]


def _exclusions(catalog: Catalog, curation_id: str) -> list[tuple[str, int]]:
    rows = catalog.table(
        "curations", columns=["reason"], where="curation_id = ? and not is_kept", parameters=[curation_id]
    )
    return Counter(rows["reason"].to_pylist()).most_common(12)


def _quarantine(catalog: Catalog) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = catalog.sql(
        "select screen, plate, well, site, channel, file, problem, found, expected, next_step from quarantine "
        "order by screen, plate, well, site limit 30"
    ).to_pylist()
    return rows


def _layout_warnings(catalog: Catalog, representation_id: str, label: str) -> list[str]:
    """What the layout of the plates says of the label that was predicted."""
    check_label(label)
    crops = catalog.sql(
        f"""
        select w.plate_id, w.screen, w.plate, w.batch, w.row, w."column", w.perturbation, w.is_negative_control,
               w."{label}" as label
        from wells w join profiles p using (well_id) where p.representation_id = $representation_id
        order by w.well_id
        """,
        parameters={"representation_id": representation_id},
    ).to_pylist()
    places = [
        WellPlace(f"{row['screen']}/{row['plate']}", row["row"], row["column"], f"{row['screen']}/{row['batch']}")
        for row in crops
    ]
    held = ["negative control" if row["is_negative_control"] else row["perturbation"] or "" for row in crops]
    labels = ["" if row["is_negative_control"] or row["label"] is None else str(row["label"]) for row in crops]
    return confounding_warnings(places, held, {label: labels}) if places else []


def _units(inputs: ReportInputs) -> str:
    """The score on every unit, of the chosen block and of each baseline."""
    choice = inputs.choice
    if not choice.unit_scores or len(choice.unit_scores) > MAX_UNITS_DRAWN:
        return ""
    names = ["chosen block", *(each.kind.replace("_", " ") for each in choice.baselines)]
    values = np.asarray([choice.unit_scores, *choice.baseline_unit_scores])
    figure, axes = new_figure(6.4, 3.2)
    places = np.arange(len(names))
    for unit, name in enumerate(choice.units):
        axes.plot(
            places,
            values[:, unit],
            marker="o",
            markersize=6,
            linewidth=1,
            color=PALETTE[unit % len(PALETTE)],
            label=name,
        )
    if choice.chance is not None:
        axes.axhline(choice.chance, color="#aab4be", linewidth=1, linestyle=":", label="chance")
    axes.set_xticks(places, names)
    axes.set_ylabel(choice.metric.replace("_", " "))
    axes.set_ylim(0, min(1.02, max(0.3, float(values.max()) * 1.15)))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return as_svg(figure)
