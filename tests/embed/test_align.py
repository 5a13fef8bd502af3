"""Representations aligned in parts: the vectors that one pass in memory gives, each row once."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import pandas as pd
import pytest
from deltalake import DeltaTable, write_deltalake
from tests.catalog.rows import add_rows
from tests.embed.stored_embeddings import DIM, plant, planted_catalog
from tests.fast_cases import fast_cases
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError
from cytolake.catalog.representations import VectorReader
from cytolake.cli.main import app
from cytolake.embed import align as module
from cytolake.embed.aggregate import aggregate
from cytolake.embed.align import align_representation, fit_representation, planned_commits
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.fitted import FittedAlignment
from cytolake.embed.alignment.stored import ALIGNMENTS_FOLDER, load_alignment, save_alignment
from cytolake.embed.alignment.variants import AlignmentConfig
from cytolake.embed.well_sums import append_profiles
from cytolake.exchange.export import export_anndata, export_parquet, representations_of
from cytolake.exchange.external import _check_pack

Level = Literal["crop", "well"]
LEVELS: tuple[Level, ...] = ("crop", "well")
KEYS = {"crop": ("embeddings", "crop_id", "embedding"), "well": ("profiles", "well_id", "profile")}
TVN = AlignmentConfig(variant="tvn_vcb")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, str]:
    """A catalog of two screens of two plates, and a representation of its crops and wells."""
    catalog = planted_catalog(tmp_path_factory.mktemp("planted"), ("S", "T"))
    return catalog, planted_representation(catalog)


def planted_representation(catalog: Catalog, name: str = "whole", **changes: object) -> str:
    identity, _ = plant(catalog, name, **changes)  # type: ignore[arg-type]
    append_profiles(catalog, [identity])
    return identity


def take_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tasks, one file in each commit."""
    monkeypatch.setattr(module, "BYTES_FOR_TASKS", 400)
    monkeypatch.setattr(module, "APPEND_BYTES", 4 * DIM * 10)


@pytest.fixture
def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in this process, also where tests of other files have started Ray, and a few rows counted at once."""
    take_small_parts(monkeypatch)
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * DIM * 3)
    monkeypatch.delitem(sys.modules, "ray", raising=False)


def stored(catalog: Catalog, identity: str, level: Level) -> pd.DataFrame:
    """Rows in the order of their ids, with what is known of their wells."""
    table, key, vector = KEYS[level]
    rows = catalog.to_pandas(table, where="representation_id = ?", parameters=[identity]).rename(
        columns={vector: "vector"}
    )
    wells = catalog.to_pandas("wells", columns=["well_id", "screen", "plate", "batch", "is_negative_control"])
    return rows.merge(wells, on="well_id").sort_values(key, ignore_index=True)


def matrix(rows: pd.DataFrame) -> np.ndarray:
    return np.stack(rows["vector"].to_list())


def in_memory(rows: pd.DataFrame, config: AlignmentConfig, by: str = "plate") -> tuple[FittedAlignment, np.ndarray]:
    """The oracle: all rows at once, fitted and applied."""
    groups = (rows["screen"] + "/" + rows[by]).tolist()
    fitted = fit_alignment(matrix(rows), groups, rows["is_negative_control"].to_numpy(bool), config)
    return fitted, fitted.apply(matrix(rows), groups)


@pytest.mark.usefixtures("in_small_parts")
@pytest.mark.parametrize(
    ("variant", "level"),
    fast_cases(
        [
            ("tvn_vcb", "crop"),
            ("tvn_vcb", "well"),
            ("pca_cs", "crop"),
            ("centre_scale", "well"),
            ("sphering", "crop"),
            ("tvn_efaar_v1", "well"),
        ],
        ("tvn_vcb", "crop"),
        ("tvn_efaar_v1", "well"),
    ),
)
def test_aligned_rows_are_those_of_one_pass_in_memory(planted, variant, level):
    catalog, identity = planted
    config = AlignmentConfig(variant=variant)
    rows = stored(catalog, identity, level)
    fitted, expected = in_memory(rows, config)
    aligned = align_representation(catalog, identity, config, level=level)
    row = catalog.table("representations", where="representation_id = ?", parameters=[aligned]).to_pylist()[0]
    kept = load_alignment(catalog.root, row["alignment_id"])
    assert kept.batches == fitted.batches
    np.testing.assert_allclose(kept.apply(matrix(rows), rows["screen"] + "/" + rows["plate"]), expected, atol=1e-9)
    found = stored(catalog, aligned, level)
    key = KEYS[level][1]
    assert found[key].tolist() == rows[key].tolist()
    assert found["plate_id"].tolist() == rows["plate_id"].tolist()
    np.testing.assert_allclose(matrix(found), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("in_small_parts")
def test_means_of_wells_come_with_the_crops_and_wells_alone_have_no_crops(planted):
    catalog, identity = planted
    crops, wells = (align_representation(catalog, identity, TVN, level=level) for level in LEVELS)
    by_crop = stored(catalog, crops, "crop").groupby("well_id")["vector"]
    means = by_crop.apply(lambda column: np.stack(column).mean(axis=0)).sort_index()
    of_wells = stored(catalog, crops, "well")
    assert of_wells["well_id"].tolist() == means.index.tolist()
    np.testing.assert_allclose(matrix(of_wells), np.stack(means.to_list()), rtol=1e-5, atol=1e-5)
    assert stored(catalog, wells, "crop").empty
    assert stored(catalog, wells, "well")["n_crops"].tolist() == of_wells["n_crops"].tolist()


@pytest.mark.parametrize("by", ["plate", "batch"])
def test_the_number_of_parts_does_not_matter(planted, in_small_parts, monkeypatch, by):
    catalog, identity = planted
    rows = stored(catalog, identity, "crop")
    groups = rows["screen"] + "/" + rows[by]
    reported: list[int] = []
    fits = []
    for n_bytes in (10**9, 600, 100):
        monkeypatch.setattr(module, "BYTES_FOR_TASKS", n_bytes)
        fits.append(
            fit_representation(
                catalog, identity, TVN, level="crop", align_by=by, progress=lambda _, done, n: reported.append(n)
            )
        )
    assert len(set(reported)) == 3
    expected = in_memory(rows, TVN, by)[1]
    for fitted in fits:
        np.testing.assert_allclose(fitted.apply(matrix(rows), groups), expected, atol=1e-9)


def test_ray_tasks_give_the_same_digits(tmp_path, local_ray, monkeypatch):
    take_small_parts(monkeypatch)
    catalog = planted_catalog(tmp_path / "ray", ("S", "T"))
    identity = planted_representation(catalog)
    shutil.copytree(catalog.root, tmp_path / "here")
    here = cytolake.catalog.open(tmp_path / "here")
    aligned = align_representation(catalog, identity, TVN, level="crop")
    monkeypatch.delitem(sys.modules, "ray")
    assert align_representation(here, identity, TVN, level="crop") == aligned  # a hash of all numbers of the fit
    for level in LEVELS:
        with_ray, without = stored(catalog, aligned, level), stored(here, aligned, level)
        np.testing.assert_array_equal(matrix(with_ray), matrix(without))
        assert with_ray[KEYS[level][1]].is_unique


@pytest.mark.parametrize("level", LEVELS)
def test_a_run_that_dies_anywhere_is_gone_on_with_and_doubles_nothing(tmp_path, in_small_parts, monkeypatch, level):
    catalog = planted_catalog(tmp_path / "catalog", ("S", "T"))
    identity = planted_representation(catalog)
    append, commits = Catalog.append, 0

    def dies(self, name, rows, *, transaction):
        nonlocal commits
        if commits == 0:
            pytest.fail("killed")
        commits -= 1
        return append(self, name, rows, transaction=transaction)

    monkeypatch.setattr(Catalog, "append", dies)
    n_runs = 0
    while True:  # each run makes one commit more than the one before had made
        n_runs += 1
        commits = 1
        try:
            aligned = align_representation(catalog, identity, TVN, level=level)
            break
        except pytest.fail.Exception:
            assert catalog.table("representations").num_rows == 1
            # What was fitted is kept: other hardware would fit other last digits, and write other rows.
            monkeypatch.setattr(module, "fit_representation", lambda *_, **__: pytest.fail("fitted again"))
    commits = list(planned_commits(VectorReader(catalog, level), identity, DIM))
    assert n_runs == len(commits) + (2 if level == "crop" else 1)
    rows = stored(catalog, identity, level)
    found = stored(catalog, aligned, level)
    assert found[KEYS[level][1]].tolist() == rows[KEYS[level][1]].tolist()
    np.testing.assert_allclose(matrix(found), in_memory(rows, TVN)[1], rtol=1e-6, atol=1e-6)
    versions = catalog.versions()
    assert align_representation(catalog, identity, TVN, level=level) == aligned
    assert catalog.versions() == versions


def test_rows_of_somebody_else_are_never_shown(tmp_path, in_small_parts, monkeypatch):
    catalog = planted_catalog(tmp_path, ("S", "T"))
    identity = planted_representation(catalog)
    append = Catalog.append

    def dies(self, name, rows, *, transaction):
        append(self, name, rows, transaction=transaction)
        pytest.fail("killed")

    monkeypatch.setattr(Catalog, "append", dies)
    with pytest.raises(pytest.fail.Exception, match="killed"):
        align_representation(catalog, identity, TVN, level="crop")
    monkeypatch.setattr(Catalog, "append", append)
    monkeypatch.setattr(module, "APPEND_BYTES", 4 * DIM * 1000)  # commits of another size: one holds all rows
    n_rows = len(stored(catalog, identity, "crop"))
    with pytest.raises(RuntimeError, match=rf"rows in the table embeddings, expected {n_rows} as of its parent"):
        align_representation(catalog, identity, TVN, level="crop")
    assert catalog.table("representations").num_rows == 1


def test_the_row_says_what_was_made_of_what_and_the_encoder_s_blocks_are_as_before(planted):
    catalog, identity = planted
    aligned = align_representation(catalog, identity, AlignmentConfig(variant="pca_cs", n_components=3), level="well")
    parent, row = (
        catalog.table("representations", where="representation_id = ?", parameters=[each]).to_pylist()[0]
        for each in (identity, aligned)
    )
    same = ("architecture", "block", "pooling", "pack_id", "curation_id")
    assert {name: row[name] for name in same} == {name: parent[name] for name in same}
    assert (row["kind"], row["parent_id"], row["alignment_variant"]) == ("aligned", identity, "pca_cs")
    assert (row["dim"], row["checkpoint"]) == (3, "")
    assert load_alignment(catalog.root, row["alignment_id"]).id == row["alignment_id"]
    assert (parent["parent_id"], parent["alignment_id"], parent["alignment_variant"]) == (None, None, None)
    assert representations_of(catalog, parent["model_id"]) == [identity]
    assert representations_of(catalog, row["model_id"]) == [aligned]


def test_what_was_aligned_can_be_aligned_again(planted):
    catalog, identity = planted
    first = align_representation(catalog, identity, AlignmentConfig(variant="mad_robustize"), level="well")
    over_all = AlignmentConfig(variant="centre_scale", scope="all")
    second = align_representation(catalog, first, over_all, level="well")
    row = catalog.table("representations", where="representation_id = ?", parameters=[second]).to_pylist()[0]
    assert (row["parent_id"], row["alignment_variant"]) == (first, "mad_robustize, centre_scale")
    expected = in_memory(stored(catalog, first, "well"), over_all)[1]
    np.testing.assert_allclose(matrix(stored(catalog, second, "well")), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match=f"no rows in the table embeddings. It was aligned .* representation {identity}"
    ):
        align_representation(catalog, first, AlignmentConfig(variant="sphering"), level="crop")


@pytest.mark.parametrize("variant", ["robustize", "mad_robustize"])
def test_medians_are_fitted_on_wells_and_refused_for_crops(planted, variant):
    catalog, identity = planted
    config = AlignmentConfig(variant=variant)
    aligned = align_representation(catalog, identity, config, level="well")
    expected = in_memory(stored(catalog, identity, "well"), config)[1]
    np.testing.assert_allclose(matrix(stored(catalog, aligned, "well")), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=f"{variant} takes medians.*level of wells, or use centre_scale"):
        align_representation(catalog, identity, config, level="crop")


@pytest.mark.parametrize("level", LEVELS)
def test_a_plate_without_controls_is_refused_or_aligned_on_all_its_wells(tmp_path, in_small_parts, level):
    catalog = planted_catalog(tmp_path, ("S", "T"), without_controls=("P1",))
    identity = planted_representation(catalog)
    with pytest.raises(ValueError, match=r"2 of 4 batches have too few negative controls for tvn_vcb: S/P1 \(0 of "):
        align_representation(catalog, identity, TVN, level=level)
    assert catalog.table("representations").num_rows == 1
    config = dataclasses.replace(TVN, missing_controls="all_wells")
    aligned = align_representation(catalog, identity, config, level=level)
    row = catalog.table("representations", where="representation_id = ?", parameters=[aligned]).to_pylist()[0]
    assert load_alignment(catalog.root, row["alignment_id"]).batches_on_all_wells == ("S/P1", "T/P1")
    expected = in_memory(stored(catalog, identity, level), config)[1]
    np.testing.assert_allclose(matrix(stored(catalog, aligned, level)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_corrected_plate_map_is_another_alignment(tmp_path):
    roots = tmp_path / "one", tmp_path / "other"
    catalogs = planted_catalog(roots[0]), planted_catalog(roots[1], without_controls=("P1",))
    config = dataclasses.replace(TVN, missing_controls="all_wells")
    first, second = (
        align_representation(each, planted_representation(each), config, level="well") for each in catalogs
    )
    assert first != second
    shutil.rmtree(roots[0] / "tables" / "wells")
    shutil.copytree(roots[1] / "tables" / "wells", roots[0] / "tables" / "wells")
    identity = catalogs[0].table("representations", where="kind = 'trained'")["representation_id"][0].as_py()
    assert align_representation(catalogs[0], identity, config, level="well") == second


def test_a_fit_is_kept_whole_or_not_at_all(planted, tmp_path, monkeypatch):
    catalog, identity = planted
    fitted = fit_representation(catalog, identity, TVN, level="well")
    save = FittedAlignment.save

    def dies(self, folder):
        save(self, folder)
        (Path(folder) / "alignment.json").unlink()
        raise OSError("disk full")

    monkeypatch.setattr(FittedAlignment, "save", dies)
    with pytest.raises(OSError, match="disk full"):
        save_alignment(tmp_path, fitted)
    assert not list((tmp_path / ALIGNMENTS_FOLDER).iterdir())
    monkeypatch.setattr(FittedAlignment, "save", save)
    for _ in range(2):
        assert save_alignment(tmp_path, fitted) == fitted.id
    assert [path.name for path in (tmp_path / ALIGNMENTS_FOLDER).iterdir()] == [fitted.id]
    assert load_alignment(tmp_path, fitted.id).id == fitted.id


def test_what_cannot_be_aligned_is_refused_before_it_costs_anything(planted, monkeypatch):
    catalog, identity = planted
    with pytest.raises(ValueError, match="variant none changes nothing"):
        align_representation(catalog, identity, AlignmentConfig(variant="none"), level="well")
    with pytest.raises(ValueError, match="representation nothing: not in the table representations"):
        align_representation(catalog, "nothing", TVN, level="well")
    with pytest.raises(ValueError, match="pinned to old versions"):
        align_representation(catalog.at(catalog.versions()), identity, TVN, level="well")
    bare, _ = plant(catalog, "without profiles")
    with pytest.raises(ValueError, match=f"representation {bare} has no rows in the table profiles"):
        align_representation(catalog, bare, TVN, level="well")
    monkeypatch.setattr(module, "STATISTICS_BYTES", 100)
    with pytest.raises(ValueError, match=r"GB of statistics \(4 plate groups, 5 features\).*level of wells, by batch"):
        fit_representation(catalog, identity, TVN, level="crop")


def test_vectors_too_large_to_store_are_refused_with_their_wells(planted):
    wells = planted[0].table("wells").slice(0, 2)
    name = wells["well_id"][1].as_py()
    with pytest.raises(ValueError, match=f"1 aligned vectors are not finite or too large for float32, such .* {name}"):
        module._as_float32(np.asarray([[1.0], [1e39]]), wells, "made")


def test_a_catalog_from_before_takes_an_aligned_representation(tmp_path):
    catalog = planted_catalog(tmp_path)
    identity = planted_representation(catalog)
    path = str(catalog.root / "tables" / "representations")
    old = DeltaTable(path).to_pyarrow_table().drop_columns(["parent_id", "alignment_id", "alignment_variant"])
    shutil.rmtree(path)
    DeltaTable.create(path, old.schema, name="representations")
    write_deltalake(path, old, mode="append")
    assert catalog.table("representations")["parent_id"].to_pylist() == [None]
    aligned = align_representation(catalog, identity, TVN, level="well")
    rows = {row["representation_id"]: row["parent_id"] for row in catalog.table("representations").to_pylist()}
    assert rows == {identity: None, aligned: identity}


@pytest.mark.slow
def test_aligned_wells_are_exported_and_aggregated_and_their_crops_are_asked_for_in_vain(planted, tmp_path):
    catalog, identity = planted
    aligned = align_representation(catalog, identity, TVN, level="well")
    cells = anndata.read_h5ad(export_anndata(catalog, [identity, aligned], tmp_path / "wells.h5ad"))
    rows = stored(catalog, aligned, "well").set_index("well_id").loc[cells.obs_names]
    np.testing.assert_array_equal(cells.obsm["block_0_mean_tvn_vcb"], matrix(rows))
    table = pd.read_parquet(export_parquet(catalog, aligned, tmp_path / "wells.parquet"))
    assert next(name for name in table if not name.startswith("Metadata_")) == "block_0_mean_tvn_vcb_0000"
    of_both = catalog.to_anndata([identity, aligned], level="well").uns["cytolake"]
    assert None not in {**of_both[identity], **of_both[aligned]}.values()  # AnnData files have no null
    for refuse in (
        lambda: export_anndata(catalog, [aligned], tmp_path / "crops.h5ad", level="crop"),
        lambda: export_parquet(catalog, aligned, tmp_path / "crops.parquet", level="crop"),
    ):
        with pytest.raises(ValueError, match=f"It was aligned at the level of wells: .* representation {identity}"):
            refuse()
    with pytest.raises(CatalogError, match="It was aligned at the level of wells"):
        catalog.to_anndata(aligned, level="crop")
    of_guides = aggregate(catalog, aligned, "guide").to_pandas()
    wells = stored(catalog, aligned, "well").merge(catalog.to_pandas("wells", columns=["well_id", "guide"]))
    for _, guide in of_guides.iterrows():
        of_guide = wells[(wells["screen"] == guide["screen"]) & (wells["guide"] == guide["guide"])]
        np.testing.assert_allclose(guide["vector"], matrix(of_guide).mean(axis=0), rtol=1e-5, atol=1e-6)
        assert guide["n_crops"] == of_guide["n_crops"].sum()


def test_crops_of_a_pack_are_those_of_what_was_embedded_whatever_was_aligned(tmp_path):
    catalog = planted_catalog(tmp_path)
    planted_representation(catalog)
    row = catalog.table("representations").to_pylist()[0] | {"representation_id": "0", "kind": "aligned"}
    add_rows(catalog, "representations", row)
    crops = catalog.table("crops", columns=["crop_id"])["crop_id"]
    assert _check_pack(catalog, None, crops, "pack0") == "curation0"  # type: ignore[arg-type]


def test_the_command_says_what_it_made_and_where_controls_were_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    catalog = planted_catalog(tmp_path, without_controls=("P1",))
    identity = planted_representation(catalog)

    def run(*more: str, code: int = 0) -> str:
        arguments = ["align", identity, "--variant", "tvn_vcb", "--root", str(tmp_path), *more]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output + repr(done.exception)
        return " ".join(done.output.split())

    assert "1 of 2 batches have too few negative controls" in run(code=2)
    said = run("--level", "crop", "--by", "batch", "--set", "missing_controls=all_wells")
    made = catalog.table("representations", where="kind = 'aligned'")["representation_id"][0].as_py()
    assert f"representation {made}: tvn_vcb, 5 features; 2 batch groups, 3 control crops" in said
    assert "too few controls, so aligned on all their crops: S/batch of P1" in said
    assert "has no field 'min_control'" in run("--set", "min_control=1", code=2)
