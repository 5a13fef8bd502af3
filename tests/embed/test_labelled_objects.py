"""A pooled screen: cells of several guides in each well, imported with their labels, and all that is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.benchmark.linear_probe import ProbeConfig
from cytolake.benchmark.probe_data import read_probe_data
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.score import score_profiles
from cytolake.benchmark.profiles.wells import read_profiles, read_wells
from cytolake.benchmark.stored_probe import probe_stored
from cytolake.benchmark.units import held_out_units
from cytolake.catalog import Catalog
from cytolake.catalog.corrections import annotate_objects
from cytolake.catalog.representations import find_representation
from cytolake.cli.main import app
from cytolake.embed.aggregate import aggregate
from cytolake.embed.align import align_representation
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.variants import AlignmentConfig
from cytolake.embed.well_sums import append_group_profiles
from cytolake.exchange.export import export_anndata, export_parquet

GUIDES = {"NTC_1": "NTC", "TP53_1": "TP53", "TP53_2": "TP53", "MYC_1": "MYC"}
PLATES, WELLS, CELLS, DIM = ("P1", "P2", "P3"), ("A01", "A02", "B01"), 6, 4
FEATURES = [f"f{i}" for i in range(DIM)]


def cells() -> pd.DataFrame:
    """Six cells of each guide in each well and two without a guide; a gene moves one feature, a plate all of them."""
    random = np.random.default_rng(0)
    rows = []
    for p, plate in enumerate(PLATES):
        for well in WELLS:
            for guide in [*GUIDES, ""]:
                for _ in range(CELLS if guide else 2):
                    gene = GUIDES.get(guide, "")
                    vector = random.normal(size=DIM) + 3 * p
                    if gene in ("TP53", "MYC"):
                        vector[("TP53", "MYC").index(gene)] += 6
                    control = "negcon" if gene == "NTC" else ""
                    rows.append([plate, well, guide, gene, control, *vector.astype(np.float32)])
    return pd.DataFrame(rows, columns=["plate", "well", "sgRNA", "Gene Symbol", "control_type", *FEATURES])


def import_cells(root: Path, frame: pd.DataFrame) -> tuple[Catalog, str]:
    """By the command that a user types: the wells are of one condition each, so the plate map names no gene."""
    frame.to_csv(root / "cells.csv", index=False)
    rows = [f"{plate},{well},pool 7,{1 if well != 'A01' else 'much'}" for plate in PLATES for well in WELLS]
    (root / "map.csv").write_text("\n".join(["plate,well,library,dose", *rows]) + "\n")
    catalog = root / "catalog"
    arguments = ["import", str(root / "cells.csv"), "--name", "peer", "--screen", "ops", "--label-objects"]
    done = CliRunner().invoke(app, [*arguments, "--wells", str(root / "map.csv"), "--root", str(catalog)])
    assert done.exit_code == 0, done.output
    assert "plate P1, well A01: bad dose: dose much." in done.output
    assert f"{len(frame) - 2 * 9} of {len(frame)} cells have labels, of 3 perturbations" in done.output
    opened = cytolake.catalog.open(catalog)
    return opened, str(find_representation(opened, "peer")["representation_id"])


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, str, pd.DataFrame]:
    frame = cells()
    catalog, identity = import_cells(tmp_path_factory.mktemp("pooled"), frame)
    return catalog, identity, frame


def test_a_profile_is_the_mean_of_the_cells_of_a_guide_in_a_well(pooled):
    catalog, identity, frame = pooled
    wells = read_wells(catalog, identity)
    assert len(wells.well_id) == 9 * len(GUIDES)
    assert set(wells.perturbation) == {"NTC", "TP53", "MYC"}
    assert sum(wells.is_control.tolist()) == 9
    found = pd.DataFrame(read_profiles(catalog, identity, wells.well_id), columns=FEATURES)
    found["plate"], found["guide"] = [plate.split("/")[1] for plate in wells.plate], wells.guide
    expected = frame[frame["sgRNA"] != ""].groupby(["plate", "well", "sgRNA"])[FEATURES].mean().reset_index()
    order = ["plate", "guide", *FEATURES]
    pd.testing.assert_frame_equal(
        found[order].sort_values(order).reset_index(drop=True),
        expected.rename(columns={"sgRNA": "guide"})[order].sort_values(order).reset_index(drop=True),
        check_dtype=False,
        rtol=1e-6,
    )


@pytest.mark.parametrize(("level", "column"), [("guide", "sgRNA"), ("perturbation", "Gene Symbol")])
def test_aggregates_take_cells_by_their_own_labels(pooled, level, column):
    catalog, identity, frame = pooled
    found = aggregate(catalog, identity, level).to_pandas().set_index(level)
    labelled = frame[frame[column] != ""]
    expected = labelled.groupby(column)[FEATURES].mean()
    assert found.index.tolist() == expected.index.tolist()
    assert found["n_crops"].tolist() == labelled.groupby(column).size().tolist()
    np.testing.assert_allclose(np.stack(found["vector"]), expected.to_numpy(), rtol=1e-6)


def test_a_probe_predicts_the_labels_of_cells_on_plates_it_never_saw(pooled):
    catalog, identity, _ = pooled
    config = ProbeConfig(label="perturbation", split="plate", align="plate_controls", include_controls=True)
    data = read_probe_data(catalog, identity, "perturbation", include_controls=True)
    assert data.classes == ("MYC", "NTC", "TP53")
    labels = data.label_of_well[data.well_of_crop]
    assert [(labels == i).sum() for i in range(3)] == [54, 54, 108]
    assert (labels == -1).sum() == 18  # cells without a guide
    result = probe_stored(catalog, identity, config)
    assert result.summary["balanced_accuracy"].value > 0.9


def test_wells_are_held_out_whole(pooled):
    catalog, identity, _ = pooled
    data = read_probe_data(catalog, identity, "guide", include_controls=True)
    for kind in ("well", "leave_one_well_out"):
        units = held_out_units(data, kind, 0.25, seed=0)
        used = np.flatnonzero(data.label_of_well >= 0)
        of_unit = {data.held_wells[i]: set() for i in used}
        for i in used:
            of_unit[data.held_wells[i]].add(int(units.of_well[i]))
        assert all(len(found) == 1 for found in of_unit.values())
        assert len(units.names) == 9


def test_benchmarks_of_profiles_rank_guides_of_pools(pooled):
    catalog, identity, _ = pooled
    # Centred alone: a scale from the two or three controls of a plate would drown the effect now and then.
    config = ProfileBenchmarkConfig(tasks=("magnitude",), alignments=("centre",), draws=200)
    rows = score_profiles(catalog, [identity], config).rows
    shares = {row["metric"]: row["value"] for row in rows if row["seed"] == -1}
    assert shares["share_significant"] == 1.0


@pytest.mark.parametrize("level", ["well", "crop"])
def test_an_alignment_takes_its_controls_from_the_objects(pooled, level):
    catalog, identity, frame = pooled
    config = AlignmentConfig(variant="centre_scale")
    aligned = align_representation(catalog, identity, config, level=level)
    table, vector = ("profiles", "profile") if level == "well" else ("embeddings", "embedding")
    before = catalog.table(table, where="representation_id = ?", parameters=[identity]).sort_by("plate_id")
    if level == "crop":
        of_plate = frame["plate"].to_numpy()
        fitted = fit_alignment(
            frame[FEATURES].to_numpy(np.float32), of_plate, (frame["control_type"] == "negcon").to_numpy(), config
        )
        expected = fitted.apply(frame[FEATURES].to_numpy(np.float32), of_plate)
        found = catalog.table(table, where="representation_id = ?", parameters=[aligned])
        matrix = np.stack(found[vector].to_pylist())
        np.testing.assert_allclose(np.sort(matrix, axis=0), np.sort(expected, axis=0), rtol=1e-4, atol=1e-4)
    else:
        wells = read_wells(catalog, identity)
        profiles = read_profiles(catalog, identity, wells.well_id)
        fitted = fit_alignment(profiles, wells.plate, wells.is_control, config)
        found_WD = read_profiles(catalog, aligned, read_wells(catalog, aligned).well_id)
        np.testing.assert_allclose(found_WD, fitted.apply(profiles, wells.plate), rtol=1e-4, atol=1e-4)
    assert catalog.table(table, where="representation_id = ?", parameters=[aligned]).num_rows == before.num_rows


def test_exports_have_the_labels_of_cells(pooled, tmp_path):
    import anndata

    catalog, identity, frame = pooled
    exported = pd.read_parquet(export_parquet(catalog, identity, tmp_path / "cells.parquet", level="crop"))
    assert exported["Metadata_Guide"].value_counts().to_dict() == frame["sgRNA"].value_counts().to_dict()
    wells = pd.read_parquet(export_parquet(catalog, identity, tmp_path / "wells.parquet", level="well"))
    assert len(wells) == 9 * (len(GUIDES) + 1)  # each well as a whole, too
    data = anndata.read_h5ad(export_anndata(catalog, [identity], tmp_path / "cells.h5ad", level="crop"))
    assert data.obs["gene"].astype(str).value_counts()["TP53"] == 108
    whole = catalog.to_anndata(identity, level="well")
    assert (whole.obs["guide"] == "MYC_1").sum() == 9


def test_new_labels_make_new_groups_and_leave_the_old_ones_behind(tmp_path):
    frame = cells()
    catalog, identity = import_cells(tmp_path, frame)
    n_before = catalog.table("profiles").num_rows
    labels = catalog.table("objects").to_pandas()
    renamed = labels.assign(crop_id=[ids[0] for ids in labels["crop_ids"]])
    renamed.loc[renamed["guide"] == "TP53_2", "guide"] = "TP53_1"
    path = tmp_path / "corrected.csv"
    renamed[["crop_id", "guide", "gene", "control"]].to_csv(path, index=False)
    annotate_objects(catalog, "ops", path)
    with_old = read_wells(catalog, identity)
    assert append_group_profiles(catalog, [identity])
    wells = read_wells(catalog, identity)
    assert set(wells.guide) == {"NTC_1", "TP53_1", "MYC_1"}
    assert len(wells.well_id) == 9 * 3
    assert set(with_old.guide) <= set(wells.guide)  # outdated profiles are never shown under new labels
    assert not append_group_profiles(catalog, [identity])
    assert catalog.table("profiles").num_rows == n_before + 9
    assert len(pd.read_parquet(export_parquet(catalog, identity, tmp_path / "w.parquet", level="well"))) == 9 * 4
    aligned = align_representation(catalog, identity, AlignmentConfig(variant="centre"), level="well")
    assert len(read_wells(catalog, aligned).well_id) == 27
    means = aggregate(catalog, aligned, "guide")
    assert pc.sum(means["n_wells"]).as_py() == 27
