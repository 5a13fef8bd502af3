"""Figures of the report page, each as the HTML of one figure; empty where there is nothing to draw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cytolake.benchmark.unit_scores import units_in_words
from cytolake.catalog import Catalog
from cytolake.embed.maps import fit_umap
from cytolake.reports.figures import MARKS, PALETTE, as_png, as_svg, block_curves, new_figure
from cytolake.reports.report_inputs import ReportInputs
from cytolake.screens.images.compositing import add_colours, percentile_limits, stretch
from cytolake.screens.plate_format import plate_format
from cytolake.train.evaluation import read_evaluations
from cytolake.tune.block_search import BlockChoice, held_out_text

if TYPE_CHECKING:
    import pandas as pd

UMAP_CROPS = 2500
"""Crops drawn on the map; more would cost seconds and show no more."""
CHANNEL_COLORS = (
    (0.2, 0.35, 1.0),
    (0.1, 0.8, 0.2),
    (1.0, 0.85, 0.1),
    (1.0, 0.3, 0.1),
    (0.8, 0.1, 0.9),
    (0.6, 0.6, 0.6),
)
CONTROL = " control"
"""End of the name of a class of controls on a map."""
CONTROL_GREYS = ("#a3abb3", "#454c53")
"""Of negative controls, and of others."""
GREY = PALETTE[6]
MANY_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf",
    "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5",
)  # fmt: skip
"""Matplotlib's tab20 without its greys, which are for controls; neighbours differ in their mark too."""
HIDDEN = "what the encoder saw"


def block_search_figure(catalog: Catalog, inputs: ReportInputs) -> str:
    choice = inputs.choice
    rows = catalog.sql(
        "select r.kind, r.architecture, r.block, r.pooling, r.representation_id, "
        "s.value, s.ci_low, s.ci_high, s.n_classes "
        "from scores s join representations r using (representation_id) join compared c using (representation_id) "
        "where s.protocol = $protocol and s.seed = -1 and s.metric = $metric "
        "and s.label = $label order by r.kind, r.pooling, r.block",
        parameters={"protocol": choice.protocol_id, "metric": choice.metric, "label": choice.label},
        compared=pa.table({"representation_id": list(inputs.representation_ids)}),
    ).to_pylist()
    if not rows:
        return ""
    best_forms = {each.representation_id for each in choice.baselines}  # of the pixel statistics, the best form alone
    rows = [row for row in rows if row["block"] >= 0 or row["representation_id"] in best_forms]
    return block_curves(
        rows,
        f"{choice.metric.replace('_', ' ')}, {choice.label}",
        chosen_id=choice.representation_id,
        chance=choice.chance,
    )


def block_search_text(choice: BlockChoice) -> str:
    what = f"scored {held_out_text(choice.split)}" if choice.split else "scored on the profiles of all wells"
    return (
        f"Every transformer block, {what}. The ring marks the chosen block. The highest of several points is a little "
        "high by luck, so the score on top of the page is not read from this figure: there, each block is chosen on "
        f"other {units_in_words(choice.unit)} than it is scored on. The same holds for the baselines: the line of "
        "pixel statistics is their best form over all and can lie far above their score in the table on top, where "
        f"the other {units_in_words(choice.unit)} choose the form that each is scored with."
        if choice.is_nested
        else f"Every transformer block, {what}. The ring marks the chosen block, the highest of several, which "
        "reads high."
    )


def umap_figure(catalog: Catalog, inputs: ReportInputs) -> str:
    cells = catalog.to_anndata(inputs.choice.representation_id, level="crop")
    if cells.n_obs < 20:
        return ""
    rows = np.random.default_rng(0).permutation(cells.n_obs)[:UMAP_CROPS]
    points = _umap_points(np.asarray(cells.X[rows], dtype=np.float32))
    kept = cells.obs.iloc[rows]
    columns = [name for name in (inputs.choice.label, "pathway", "plate") if name in kept and len(set(kept[name])) > 1]
    columns = list(dict.fromkeys(columns))[:3]
    if (
        "pathway" in columns
        and inputs.choice.label != "pathway"
        and kept[inputs.choice.label].nunique() > len(PALETTE) * len(MARKS)
    ):
        columns.remove(inputs.choice.label)
    if not columns:
        columns = ["plate"]
    figure, panels = new_figure(4.3 * len(columns), 4.4, n_columns=len(columns))
    for axes, column in zip(np.atleast_1d(panels), columns, strict=True):
        values = map_classes(kept, column)
        classes = sorted(set(values), key=lambda name: (name.endswith(CONTROL), name))
        styles = class_styles(classes)
        for name in reversed(classes):  # controls first, below all others
            here = values == name
            color, mark = styles[name]
            axes.scatter(points[here, 0], points[here, 1], s=12, alpha=0.8, linewidths=0, color=color, marker=mark)
        for name in classes:
            color, mark = styles[name]
            axes.scatter([], [], s=12, linewidths=0, color=color, marker=mark, label=name)
        axes.set_title(f"by {column}", fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        if len(classes) <= 24:
            axes.legend(
                frameon=False,
                fontsize=6.5,
                ncols=3 if max(map(len, classes)) < 17 else 2,  # the next panel begins where this one ends
                markerscale=1.8,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.01),
            )
    return as_png(figure)


def map_classes(obs: pd.DataFrame, column: str) -> np.ndarray:
    """(N,) what each crop is called on the map: its value in the column, and whether it is a control.

    Args:
        obs: N rows, with `column` and, where the plate map has controls, `control`.
        column: A plate is no treatment: its controls are crops like all others.
    """
    values = obs[column].astype(str).to_numpy()
    if column == "plate":
        return np.asarray(values, dtype=object)
    controls = obs["control"].astype(str).to_numpy() if "control" in obs else np.full(len(obs), "")
    return np.array(
        [
            f"{value}, {control}{CONTROL}".removeprefix(", ") if control else value or f"no {column}"
            for value, control in zip(values, controls, strict=True)
        ],
        dtype=object,
    )


def class_styles(classes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each class of a map: no two alike up to 108 classes, and controls in greys."""
    treated = [name for name in classes if not name.endswith(CONTROL)]
    controls = [name for name in classes if name.endswith(CONTROL)]
    colours = [each for each in PALETTE if each != GREY] if len(treated) < len(PALETTE) else MANY_COLOURS
    styles = {
        name: (colours[i % len(colours)], MARKS[(i + i // len(colours)) % len(MARKS)]) for i, name in enumerate(treated)
    }
    of_grey = dict.fromkeys(CONTROL_GREYS, 0)
    for name in controls:
        grey = CONTROL_GREYS[0 if name.endswith(f"negative{CONTROL}") else 1]
        styles[name] = (grey, MARKS[of_grey[grey] % len(MARKS)])
        of_grey[grey] += 1
    return styles


def _umap_points(embeddings_ND: np.ndarray) -> np.ndarray:
    import warnings

    sd_D = embeddings_ND.std(axis=0)
    standardised_ND = (embeddings_ND - embeddings_ND.mean(axis=0)) / np.where(sd_D > 0, sd_D, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorflow is not installed, and umap does not need it here
        return np.asarray(fit_umap(standardised_ND, min_dist=0.2).embedding_)


def sample_crops_figure(catalog: Catalog, inputs: ReportInputs) -> str:
    n_columns, n_rows = 8, 6
    rows = catalog.sql(
        f"""
        select c.crop_id, c.plate, coalesce(nullif(w.perturbation, ''), c.screen) as name,
               row_number() over (partition by coalesce(nullif(w.perturbation, ''), c.screen), c.well_id
                                  order by c.crop_id) as in_well
        from crops c join wells w using (well_id) join curations k using (crop_id)
        where k.curation_id = '{inputs.curation_id}' and k.is_kept
        order by name, in_well, c.crop_id
        """
    ).to_pylist()
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    names = sorted(by_name)
    if not names:
        return ""
    names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, n_rows).astype(int))]
    picked = [by_name[name][:n_columns] for name in names]
    flat = [row["crop_id"] for line in picked for row in line]
    pixels = dict(zip(flat, catalog.crop_pixels(flat), strict=True))
    figure, panels = new_figure(8.6, 1.08 * len(names), n_columns=n_columns, n_rows=len(names), gap=0.03)
    for y, (name, line) in enumerate(zip(names, picked, strict=True)):
        for x, axes in enumerate(np.atleast_2d(panels)[y]):
            axes.axis("off")
            if x < len(line):
                axes.imshow(composite(pixels[line[x]["crop_id"]]), interpolation="nearest")
        np.atleast_2d(panels)[y][0].text(
            -0.08,
            0.5,
            name[:18],
            rotation=0,
            ha="right",
            va="center",
            fontsize=8,
            transform=np.atleast_2d(panels)[y][0].transAxes,
        )
    return as_png(figure, dpi=120)


def composite(pixels_CHW: np.ndarray, contrast_of_CHW: np.ndarray | None = None) -> np.ndarray:
    """Blend channels into one colour picture.

    Args:
        pixels_CHW: (C, H, W), in any unit.
        contrast_of_CHW: (C, h, w), the picture whose 1st and 99.7th percentiles become black and full colour in each
            channel; None means the pixels themselves.

    Returns:
        (H, W, 3), 0..1.
    """
    reference_CHW = pixels_CHW if contrast_of_CHW is None else contrast_of_CHW
    stretched = [
        stretch(channel.astype(np.float64), *percentile_limits(reference.astype(np.float64), 1, 99.7))
        for channel, reference in zip(pixels_CHW, reference_CHW, strict=True)
    ]
    if len(stretched) == 1:
        return np.repeat(stretched[0][..., None], 3, axis=-1)
    colours = [CHANNEL_COLORS[index % len(CHANNEL_COLORS)] for index in range(len(stretched))]
    return np.asarray(np.clip(add_colours(stretched, colours, pixels_CHW.shape[1:]) / 1.6, 0, 1))


def loss_figure(run_folder: Path) -> str:
    history_path = run_folder / "history.json"
    if not history_path.exists():
        return ""
    history = json.loads(history_path.read_text())
    steps = [row["step"] for row in history]
    evaluations = read_evaluations(run_folder)
    figure, axes = new_figure(8.6, 2.8)
    axes.plot(steps, [row["loss"] for row in history], color=PALETTE[0], linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("loss", color=PALETTE[0])
    if any("best_block" in numbers for numbers in evaluations.values()):
        probe = {step: numbers["best_block"] for step, numbers in evaluations.items() if "best_block" in numbers}
        right = axes.twinx()
        right.plot(list(probe), list(probe.values()), color=PALETTE[1], linewidth=1.6, marker="o", markersize=4)
        right.set_ylabel("probe, best block", color=PALETTE[1])
        right.set_ylim(bottom=0)
        right.tick_params(labelsize=axes.yaxis.get_ticklabels()[0].get_fontsize())
        right.spines["top"].set_visible(False)
    rate = float(np.median([row["crops_per_s"] for row in history if row.get("crops_per_s")] or [0]))
    wait = float(np.median([row.get("data_wait_share", 0) for row in history]))
    axes.set_title(
        f"{rate:,.0f} crops/s; {wait:.1%} of the time waiting for data", fontsize=9, loc="left", color="#5a6672"
    )
    return as_svg(figure)


def reconstructions_figure(run_folder: Path) -> str:
    path = run_folder / "reconstructions.npz"
    if not path.exists():
        return ""
    with np.load(path, allow_pickle=False) as arrays:
        rows = [arrays[name] for name in ("original", "masked", "reconstruction")]
        n_channels = arrays["n_channels"] if "n_channels" in arrays else [rows[0].shape[1]] * len(rows[0])
    n = min(6, len(rows[0]))
    names = ("crop", HIDDEN, "reconstruction")
    figure, panels = new_figure(8.6, 1.5 * len(rows), n_columns=n, n_rows=len(rows), gap=0.04)
    for y in range(len(rows)):
        for x in range(n):
            axes = np.atleast_2d(panels)[y][x]
            axes.axis("off")
            original, image = (rows[i][x][: n_channels[x]] for i in (0, y))
            picture = composite(image, contrast_of_CHW=original)
            if names[y] == HIDDEN:
                picture[(image == 0).all(axis=0)] = 0.85  # hidden patches are exactly 0
            axes.imshow(picture, interpolation="nearest")
        np.atleast_2d(panels)[y][0].text(
            -0.06, 0.5, names[y], ha="right", va="center", fontsize=8, transform=np.atleast_2d(panels)[y][0].transAxes
        )
    return as_png(figure, dpi=120)


def plate_maps_figure(catalog: Catalog, qc_id: str) -> str:
    rows = catalog.sql(
        f"""
        select w.screen, w.plate, w.row, w."column", any_value(w.annotations) as annotations,
               avg(case when v.is_pass then 0.0 else 1.0 end) as failed
        from (select site_id, channel, bool_and(is_pass) as is_pass from qc_verdicts
              where qc_id = '{qc_id}' group by all) v
        join sites s using (site_id) join wells w using (well_id)
        group by all order by w.screen, w.plate
        """
    ).to_pylist()
    plates = sorted({(row["screen"], row["plate"]) for row in rows})
    if not plates:
        return ""
    shown = plates[:8]
    n_columns = min(4, len(shown))
    n_rows = -(-len(shown) // n_columns)
    figure, panels = new_figure(8.6, 2.0 * n_rows + 0.2, n_columns=n_columns, n_rows=n_rows, gap=0.35)
    flat = np.atleast_1d(panels).ravel()
    for axes in flat[len(shown) :]:
        axes.axis("off")
    image = None
    for axes, (screen, plate) in zip(flat, shown, strict=False):
        here = [row for row in rows if (row["screen"], row["plate"]) == (screen, plate)]
        height, width = plate_format(max(row["row"] for row in here), max(row["column"] for row in here))
        grid = np.full((height, width), np.nan)
        for row in here:
            grid[row["row"], row["column"]] = row["failed"]
            if json.loads(row["annotations"] or "{}").get("artefact"):
                axes.plot(
                    row["column"],
                    row["row"],
                    "o",
                    fillstyle="none",
                    color=PALETTE[5],
                    markersize=6,
                    markeredgewidth=1.1,
                )
        image = axes.imshow(grid, vmin=0, vmax=1, cmap="cividis_r", aspect="equal")
        axes.set_title(plate[:26], fontsize=8)
        axes.set_xticks(range(0, width, 4), [str(i + 1) for i in range(0, width, 4)], fontsize=6)
        axes.set_yticks(range(0, height, 2), [chr(65 + i) for i in range(0, height, 2)], fontsize=6)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_color("#c8d0d8")
    if image is not None:
        bar = figure.colorbar(image, ax=list(flat), fraction=0.02, pad=0.02)
        bar.set_label("share failed", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return as_png(figure)
