"""Files of embeddings, read back with the tools that people use."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tests.catalog.rows import add_rows
from tests.embed.stored_embeddings import DIM, plant, planted_catalog

from cytolake.catalog import Catalog
from cytolake.catalog.representations import find_representation
from cytolake.embed.aggregate import aggregate
from cytolake.embed.well_sums import append_profiles
from cytolake.exchange import export as module
from cytolake.exchange.export import export_anndata, export_csv, export_parquet, representations_of

Vectors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, dict[str, tuple[str, Vectors]]]:
    """Two blocks and two poolings of one model, pixel statistics, and a block of another model."""
    catalog = planted_catalog(tmp_path_factory.mktemp("planted"))
    places = {
        "block_0_mean": {"block": 0, "pooling": "mean"},
        "block_1_mean": {"block": 1, "pooling": "mean"},
        "block_1_channel_mean": {"block": 1, "pooling": "channel_mean", "dim": 2 * DIM},
        "pixel_statistics": {"block": -1, "pooling": "all", "model": "pixels", "architecture": "pixel_statistics"},
        "other": {"block": 1, "pooling": "cls", "model": "other"},
    }
    known = {
        key: plant(catalog, key, seed=i, **{"model": "ours", **place})  # type: ignore[arg-type]
        for i, (key, place) in enumerate(places.items())
    }
    append_profiles(catalog, [identity for identity, _ in known.values()])
    return catalog, known


@pytest.mark.parametrize("level", ["crop", "well"])
def test_an_anndata_holds_each_block_and_pooling_with_the_labels(planted, tmp_path, level):
    catalog, known = planted
    keys = ["block_0_mean", "block_1_mean", "block_1_channel_mean", "pixel_statistics"]
    path = export_anndata(catalog, [known[key][0] for key in keys], tmp_path / "new" / "cells.h5ad", level=level)
    cells = anndata.read_h5ad(path)
    assert list(cells.obsm) == sorted(keys)
    assert cells.X is None
    wells = {row["well_id"]: row for row in catalog.table("wells").to_pylist()}
    for key in keys:
        identity, vectors = known[key]
        about = cells.uns["cytolake"]["representations"][key]
        row = catalog.table("representations", where="representation_id = ?", parameters=[identity]).to_pylist()[0]
        assert {name: about[name] for name in ("representation_id", "model_id", "pack_id", "block")} == {
            name: row[name] for name in ("representation_id", "model_id", "pack_id", "block")
        }
        if level == "crop":
            np.testing.assert_array_equal(cells.obsm[key], [vectors[name] for name in cells.obs_names])
        else:
            stored = catalog.table("profiles", where="representation_id = ?", parameters=[identity]).to_pylist()
            by_well = {row["well_id"]: row["profile"] for row in stored}
            np.testing.assert_array_equal(cells.obsm[key], np.float32([by_well[name] for name in cells.obs_names]))
    assert cells.obsm["block_1_channel_mean"].shape == (len(cells), 2 * DIM)
    assert cells.uns["cytolake"]["table_versions"] == catalog.versions()
    well_ids = cells.obs["well_id"] if level == "crop" else cells.obs_names
    for column in ("plate", "well", "batch", "perturbation", "guide", "control", "is_negative_control"):
        assert cells.obs[column].tolist() == [wells[well][column] for well in well_ids]
    assert cells.obs["is_negative_control"].dtype == bool
    assert list(cells.obs["plate"]) == sorted(cells.obs["plate"])
    own = ["site", "y", "x"] if level == "crop" else ["n_crops"]
    assert cells.obs[own].notna().all(axis=None)


@pytest.mark.slow
def test_scanpy_finds_neighbours_in_a_block(planted, tmp_path):
    import scanpy

    catalog, known = planted
    cells = anndata.read_h5ad(export_anndata(catalog, [known["block_1_mean"][0]], tmp_path / "a.h5ad", level="crop"))
    scanpy.pp.neighbors(cells, n_neighbors=3, use_rep="block_1_mean")
    assert cells.obsp["distances"].nnz == 2 * len(cells)


@pytest.mark.parametrize("level", ["crop", "well"])
def test_a_profiling_table_has_metadata_and_features_and_is_streamed(planted, tmp_path, monkeypatch, level):
    catalog, known = planted
    identity, vectors = known["block_1_mean"]
    whole = export_parquet(catalog, identity, tmp_path / "whole.parquet", level=level)
    monkeypatch.setattr(module, "_ROW_GROUP_BYTES", 4 * DIM * 3)  # three rows at once
    path = export_parquet(catalog, identity, tmp_path / "profiles.parquet", level=level)
    assert pq.ParquetFile(path).num_row_groups > 1 or level == "well"
    frame = pd.read_parquet(path)
    pd.testing.assert_frame_equal(frame, pd.read_parquet(whole))
    features = [name for name in frame if not name.startswith("Metadata_")]
    assert features == [f"block_1_mean_{i:04d}" for i in range(DIM)]
    assert set(frame[features].dtypes) == {np.dtype("float32")}
    assert set(frame["Metadata_representation_id"]) == {identity}
    if level == "crop":
        np.testing.assert_array_equal(frame[features], [vectors[name] for name in frame["Metadata_crop_id"]])
    wells = {row["well_id"]: row for row in catalog.table("wells").to_pylist()}
    for column, label in {"Plate": "plate", "Well": "well", "Batch": "batch", "Perturbation": "perturbation"}.items():
        assert frame[f"Metadata_{column}"].tolist() == [wells[well][label] for well in frame["Metadata_well_id"]]
    assert frame["Metadata_IsNegativeControl"].tolist() == [
        wells[well]["is_negative_control"] for well in frame["Metadata_well_id"]
    ]
    described = json.loads(pq.read_schema(path).metadata[b"cytolake"])
    assert described["representation_id"] == identity
    assert described["block"] == 1


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, str]:
    """Wells with annotations: a cell line in each; in every other one a column with a slash and one named site."""
    texts = ['{"metadata_cell_line": "U2OS", "site": "left", "dose/unit": "uM"}', '{"metadata_cell_line": "A549"}']
    catalog = planted_catalog(tmp_path_factory.mktemp("annotated"), annotations=texts)
    identity, _ = plant(catalog, "block_1_mean", block=1, pooling="mean", model="ours")
    append_profiles(catalog, [identity])
    return catalog, identity


@pytest.mark.parametrize(
    ("kind", "level"), [("parquet", "crop"), ("csv", "well"), ("csv.gz", "crop"), ("h5ad", "crop"), ("h5ad", "well")]
)
def test_annotations_of_the_plate_map_are_columns_of_every_export(annotated, tmp_path, level, kind):
    catalog, identity = annotated
    path = tmp_path / f"table.{kind}"
    if kind == "h5ad":
        frame = anndata.read_h5ad(export_anndata(catalog, [identity], path, level=level)).obs
        wells = (frame if level == "crop" else frame.reset_index())["well_id"].astype(str)
    else:
        write = export_parquet if kind == "parquet" else export_csv
        write(catalog, identity, path, level=level)
        frame = pd.read_parquet(path) if kind == "parquet" else pd.read_csv(path, keep_default_na=False)
        wells = frame["Metadata_well_id"]
    said = {row["well_id"]: json.loads(row["annotations"]) for row in catalog.table("wells").to_pylist()}
    names = {"Metadata_cell_line": "metadata_cell_line", "Metadata_dose_unit": "dose/unit"}
    assert "annotations" not in frame
    for column, name in (names | {"Metadata_site_annotation": "site"}).items():
        assert frame[column].astype(str).tolist() == [said[well].get(name, "") for well in wells]
    if level == "crop" and kind != "h5ad":
        crops = {row["crop_id"]: row for row in catalog.table("crops").to_pylist()}
        for column, name in {"Metadata_Site": "site", "Metadata_y": "y", "Metadata_x": "x"}.items():
            assert frame[column].astype(str).tolist() == [str(crops[c][name]) for c in frame["Metadata_crop_id"]]


def test_csv_and_parquet_hold_the_same_table(annotated, tmp_path):
    catalog, identity = annotated
    one = pd.read_parquet(export_parquet(catalog, identity, tmp_path / "t.parquet", level="crop"))
    two = pd.read_csv(export_csv(catalog, identity, tmp_path / "t.csv", level="crop"))
    assert one.columns.tolist() == two.columns.tolist()
    features = [name for name in one if not name.startswith("Metadata_")]
    np.testing.assert_allclose(one[features], two[features], rtol=1e-6)


@pytest.mark.parametrize("level", ["guide", "perturbation"])
def test_means_of_guides_and_perturbations_are_a_profiling_table(planted, tmp_path, level):
    catalog, known = planted
    identity, _ = known["block_1_mean"]
    means = aggregate(catalog, identity, level)
    frame = pd.read_parquet(export_parquet(catalog, identity, tmp_path / "means.parquet", level=level))
    assert frame["Metadata_Perturbation"].tolist() == means["perturbation"].to_pylist()
    assert frame["Metadata_n_wells"].tolist() == means["n_wells"].to_pylist()
    features = [name for name in frame if not name.startswith("Metadata_")]
    np.testing.assert_array_equal(frame[features], np.stack(means["vector"].to_numpy()))
    as_csv = pd.read_csv(export_csv(catalog, identity, tmp_path / "means.csv", level=level))
    assert as_csv.columns.tolist() == frame.columns.tolist()


def test_blocks_of_two_models_never_share_a_file(planted, tmp_path):
    catalog, known = planted
    models = f"{known['block_0_mean'][0]}", f"{known['other'][0]}"
    with pytest.raises(ValueError, match=r"of the models .* and .* in one file.*Export each model"):
        export_anndata(catalog, models, tmp_path / "mixed.h5ad")
    again, _ = plant(catalog, "block 0 of another pack", model="ours", block=0, pack_id="pack1")
    with pytest.raises(ValueError, match="are both block_0_mean, of packs pack0 and pack1"):
        export_anndata(catalog, [known["block_0_mean"][0], again], tmp_path / "mixed.h5ad")
    assert not list(tmp_path.iterdir())


def test_representations_of_other_crops_do_not_fit_and_the_old_file_stays(planted, tmp_path):
    catalog, known = planted
    fewer, vectors = plant(catalog, "fewer", model="ours", block=3)
    well = catalog.table("wells", columns=["well_id", "plate_id"]).to_pylist()[0]
    row = {"representation_id": fewer, "crop_id": "one-more", "embedding": [0.0] * DIM} | well
    add_rows(catalog, "embeddings", row)
    path = export_anndata(catalog, [known["block_0_mean"][0]], tmp_path / "cells.h5ad", level="crop")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"1 of \d+ rows have no counterpart in representation .* such as one-more"):
        export_anndata(catalog, [known["block_0_mean"][0], fewer], path, level="crop")
    with pytest.raises(ValueError, match=rf"{len(vectors)} crops, but {len(vectors) + 1} in representation {fewer}"):
        export_anndata(catalog, [fewer, known["block_0_mean"][0]], path, level="crop")
    with pytest.raises(ValueError, match="no rows in the table profiles"):
        export_anndata(catalog, [fewer], path)
    with pytest.raises(ValueError, match="no rows in the table profiles"):
        export_parquet(catalog, fewer, path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["cells.h5ad"]


def test_rows_of_another_width_than_the_representation_says_are_refused(planted, tmp_path):
    catalog, _ = planted
    wrong, _ = plant(catalog, "wrong width", described=False)
    row = {"representation_id": wrong, "block": 0, "pooling": "mean", "dim": 9, "model_id": "m"}
    add_rows(catalog, "representations", row)
    for refuse in (
        lambda: export_parquet(catalog, wrong, tmp_path / "x", level="crop"),
        lambda: export_anndata(catalog, [wrong], tmp_path / "x", level="crop"),
    ):
        with pytest.raises(ValueError, match=f"vectors of {DIM} values, expected 9"):
            refuse()
    assert not list(tmp_path.iterdir())


def test_a_models_representations_are_found_in_order(planted):
    catalog, known = planted
    model = find_representation(catalog, known["other"][0])["model_id"]
    assert representations_of(catalog, model) == [known["other"][0]]
    ours = find_representation(catalog, known["block_0_mean"][0])["model_id"]
    ids = representations_of(catalog, ours, pack_id="pack0", poolings=("mean",), blocks=(0, 1))
    assert ids == [known["block_0_mean"][0], known["block_1_mean"][0]]
    with pytest.raises(ValueError, match="block 1 cls of pack pack0"):
        representations_of(catalog, model, blocks=(5,))
    with pytest.raises(ValueError, match="no representation given"):
        export_anndata(catalog, [], Path("nowhere.h5ad"))
