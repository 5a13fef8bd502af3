"""Means of wells, guides and perturbations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.catalog.rows import add_rows
from tests.embed.stored_embeddings import DIM, plant, planted_catalog

from cytolake.catalog import Catalog, representations
from cytolake.catalog.ids import content_id
from cytolake.embed import well_sums
from cytolake.embed.aggregate import COLUMNS, aggregate
from cytolake.embed.well_sums import append_profiles


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, str, pd.DataFrame]:
    """A catalog of two screens, a representation of its crops, and the crops with labels and vectors as a frame."""
    catalog = planted_catalog(tmp_path_factory.mktemp("planted"), ("S", "T"))
    identity, vectors = plant(catalog, "whole")
    crops = catalog.to_pandas("crops", columns=["crop_id", "well_id", "screen", "batch", "plate", "well"])
    wells = catalog.to_pandas("wells", columns=["well_id", "guide", "perturbation", "is_negative_control"])
    return (
        catalog,
        identity,
        crops.merge(wells).merge(pd.Series(vectors, name="vector").rename_axis("crop_id").reset_index()),
    )


def mean_vectors(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The oracle: pandas, one group at a time, in float64."""
    return (
        frame.groupby(by)["vector"].apply(lambda column: np.stack(column).astype(np.float64).mean(axis=0)).reset_index()
    )


def expected_vectors(frame: pd.DataFrame, columns: list[str], mean_of: str) -> pd.DataFrame:
    if mean_of == "crops":
        return mean_vectors(frame, columns)
    wells = mean_vectors(frame, [*dict.fromkeys([*columns, "guide", "well_id"])])
    if mean_of == "guides":
        wells = mean_vectors(wells, [*dict.fromkeys([*columns, "guide"])])
    return mean_vectors(wells, columns)


@pytest.mark.parametrize("mean_of", ["crops", "wells", "guides"])
@pytest.mark.parametrize("level", ["well", "guide", "perturbation"])
@pytest.mark.parametrize("within", [(), ("batch",)])
def test_means_are_those_of_a_loop(planted, level, mean_of, within):
    catalog, identity, frame = planted
    if mean_of == "guides" and level != "perturbation":
        with pytest.raises(ValueError, match="only a perturbation has several guides"):
            aggregate(catalog, identity, level, mean_of=mean_of)
        return
    columns = list(dict.fromkeys([*COLUMNS[level], *within]))
    used = frame if level == "well" else frame[frame[level] != ""]
    expected = expected_vectors(used, columns, mean_of).sort_values(columns)
    found = aggregate(catalog, identity, level, mean_of=mean_of, within=within)
    assert found.column_names == [*columns, "n_crops", "n_wells", "vector"]
    frame_found = found.to_pandas()
    pd.testing.assert_frame_equal(frame_found[columns], expected[columns].reset_index(drop=True), check_dtype=False)
    np.testing.assert_allclose(np.stack(frame_found["vector"]), np.stack(expected["vector"]), rtol=1e-6)
    groups = used.groupby(columns)
    assert frame_found["n_crops"].tolist() == groups.size().tolist()
    assert frame_found["n_wells"].tolist() == groups["well_id"].nunique().tolist()


def test_the_three_means_differ_where_wells_and_guides_are_of_different_sizes(planted):
    catalog, identity, _ = planted
    vectors = [
        aggregate(catalog, identity, "perturbation", mean_of=each)["vector"] for each in ("crops", "wells", "guides")
    ]
    assert len({str(each.to_pylist()) for each in vectors}) == 3


def test_ray_tasks_over_parts_give_the_sums_of_one_pass(planted, local_ray, monkeypatch):
    catalog, identity, _ = planted
    whole = aggregate(catalog, identity, "well")
    reported: list[tuple[int, int]] = []
    monkeypatch.setattr(well_sums, "BYTES_FOR_TASKS", 250)
    in_parts = aggregate(catalog, identity, "well", progress=lambda _, done, total: reported.append((done, total)))
    assert reported[-1][0] == reported[-1][1] > 1
    assert in_parts.drop_columns("vector") == whole.drop_columns("vector")
    np.testing.assert_allclose(
        np.stack(in_parts["vector"].to_pylist()), np.stack(whole["vector"].to_pylist()), rtol=1e-6
    )


def test_crops_that_a_curation_excludes_are_left_out(planted):
    catalog, identity, frame = planted
    kept = np.arange(len(frame)) % 3 > 0
    curation = content_id("newer QC")
    rows = [
        {"crop_id": crop, "is_kept": bool(is_kept), "reason": "" if is_kept else "blurred"}
        for crop, is_kept in zip(frame["crop_id"], kept, strict=True)
    ]
    add_rows(catalog, "curations", *rows, curation_id=curation)
    with pytest.raises(ValueError, match=f"curation {curation}: not in the table curation_runs"):
        aggregate(catalog, identity, "well", curation_id=curation)
    empty = content_id("keeps none")
    add_rows(catalog, "curation_runs", {"curation_id": curation}, {"curation_id": empty})
    found = aggregate(catalog, identity, "perturbation", mean_of="crops", curation_id=curation).to_pandas()
    expected = mean_vectors(frame[kept], ["screen", "perturbation"])
    np.testing.assert_allclose(np.stack(found["vector"]), np.stack(expected["vector"]), rtol=1e-6)
    assert found["n_crops"].sum() == kept.sum()
    with pytest.raises(ValueError, match=f"curation {empty} kept none of its crops"):
        aggregate(catalog, identity, "well", curation_id=empty)


def test_profiles_are_written_once_each_and_an_interrupted_job_goes_on(planted, monkeypatch):
    catalog, _, _ = planted
    ids = [plant(catalog, f"block {i}", seed=i, block=i)[0] for i in range(3)]
    assert append_profiles(catalog, ids[:1])
    assert not append_profiles(catalog, ids[:1])
    before = catalog.versions()
    monkeypatch.setattr(well_sums, "SUMS_BYTES", 1)  # one representation in each commit
    assert append_profiles(catalog, ids)
    assert catalog.versions()["profiles"] == before["profiles"] + 2
    assert not append_profiles(catalog, ids)
    for identity in ids:
        rows = catalog.table("profiles", where="representation_id = ?", parameters=[identity]).sort_by("well_id")
        wells = aggregate(catalog, identity, "well").sort_by("well_id")
        assert rows["well_id"] == wells["well_id"]
        assert rows["n_crops"].to_pylist() == wells["n_crops"].to_pylist()
        assert rows["profile"].to_pylist() == wells["vector"].to_pylist()
        known = {row["well_id"]: row["plate_id"] for row in catalog.table("wells").to_pylist()}
        assert rows["plate_id"].to_pylist() == [known[well] for well in rows["well_id"].to_pylist()]


def test_representations_that_fit_share_one_commit(planted):
    catalog, _, _ = planted
    ids = [plant(catalog, f"together {i}", seed=i)[0] for i in range(3)]
    before = catalog.versions()["profiles"]
    assert append_profiles(catalog, ids)
    assert catalog.versions()["profiles"] == before + 1


def test_vectors_that_are_not_finite_or_of_another_width_are_refused_by_name(planted):
    catalog, _, frame = planted
    row = frame.iloc[0]
    for name, extra, said in (
        ("not finite", [1.0, np.inf, 1.0, 1.0, 1.0], "not finite, such as those of crop_id c0new"),
        ("wider", [1.0] * (DIM + 1), rf"vectors of {DIM}, {DIM + 1} values, expected one length"),
    ):
        identity, _ = plant(catalog, name)
        embedding = {"representation_id": identity, "crop_id": "c0new", "well_id": row["well_id"], "plate_id": "p"}
        add_rows(catalog, "embeddings", embedding, embedding=extra)
        for refuse in (
            lambda each=identity: append_profiles(catalog, [each]),
            lambda each=identity: aggregate(catalog, each, "well"),
        ):
            with pytest.raises(ValueError, match=said):
                refuse()
    stale, _ = plant(catalog, "another width than described", described=False)
    add_rows(catalog, "representations", {"representation_id": stale, "dim": 9})
    with pytest.raises(ValueError, match=f"vectors of {DIM} values, expected 9"):
        aggregate(catalog, stale, "well")


def test_what_is_not_there_is_said(planted, tmp_path: Path):
    catalog, identity, _ = planted
    with pytest.raises(ValueError, match="representation none: not in the table representations"):
        aggregate(catalog, "none", "well")
    with pytest.raises(ValueError, match="level 'plate' and mean_of 'wells': expected a level of well, guide, pert"):
        aggregate(catalog, identity, "plate")
    with pytest.raises(ValueError, match="no column dosis"):
        aggregate(catalog, identity, "well", within=("dosis",))
    with pytest.raises(ValueError, match="representation empty has no rows in the table embeddings"):
        append_profiles(catalog, ["empty"])
    elsewhere = planted_catalog(tmp_path)
    stray, _ = plant(elsewhere, "stray")
    row = {"representation_id": stray, "crop_id": "c", "well_id": "gone", "plate_id": "p", "embedding": [0.0] * DIM}
    add_rows(elsewhere, "embeddings", row)
    with pytest.raises(ValueError, match="1 of 15 wells of the embeddings are not in the table wells, such as gone"):
        aggregate(elsewhere, stray, "well")


def test_sums_do_not_depend_on_the_size_of_batches(planted, monkeypatch):
    catalog, identity, _ = planted
    whole = well_sums.sum_part(catalog, identity, 0, 1, "")
    monkeypatch.setattr(representations, "ROWS_AT_ONCE", 2)
    by_twos = well_sums.sum_part(catalog, identity, 0, 1, "")
    assert (by_twos.wells, by_twos.plates) == (whole.wells, whole.plates)
    np.testing.assert_array_equal(by_twos.counts, whole.counts)
    np.testing.assert_allclose(by_twos.sums, whole.sums, rtol=1e-12)
