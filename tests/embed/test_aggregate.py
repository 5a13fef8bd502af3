"""Means of wells, guides and perturbations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.catalog.rows import add_rows
from tests.embed.stored_embeddings import DIM, plant, planted_catalog

from cytolake.catalog import Catalog, representations
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


@pytest.mark.parametrize("level", ["well", "guide", "perturbation"])
def test_means_are_those_of_a_loop(planted, level):
    catalog, identity, frame = planted
    columns = list(COLUMNS[level])
    used = frame if level == "well" else frame[frame[level] != ""]
    wells = mean_vectors(used, [*dict.fromkeys([*columns, "well_id"])])
    expected = mean_vectors(wells, columns).sort_values(columns)
    found = aggregate(catalog, identity, level)
    assert found.column_names == [*columns, "n_crops", "n_wells", "vector"]
    frame_found = found.to_pandas()
    pd.testing.assert_frame_equal(frame_found[columns], expected[columns].reset_index(drop=True), check_dtype=False)
    np.testing.assert_allclose(np.stack(frame_found["vector"]), np.stack(expected["vector"]), rtol=1e-6)
    groups = used.groupby(columns)
    assert frame_found["n_crops"].tolist() == groups.size().tolist()
    assert frame_found["n_wells"].tolist() == groups["well_id"].nunique().tolist()


def test_ray_tasks_over_parts_give_the_sums_of_one_pass(planted, local_ray, monkeypatch):
    catalog, identity, _ = planted
    whole = aggregate(catalog, identity, "well")
    parts: list[int] = []
    run = well_sums.run_tasks
    monkeypatch.setattr(
        well_sums, "run_tasks", lambda function, tasks, *args: parts.append(len(tasks)) or run(function, tasks, *args)
    )
    monkeypatch.setattr(well_sums, "BYTES_FOR_TASKS", 250)
    in_parts = aggregate(catalog, identity, "well")
    assert parts[0] > 1
    assert in_parts.drop_columns("vector") == whole.drop_columns("vector")
    np.testing.assert_allclose(
        np.stack(in_parts["vector"].to_pylist()), np.stack(whole["vector"].to_pylist()), rtol=1e-6
    )


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
    with pytest.raises(ValueError, match="level 'plate': expected a level of well, guide, pert"):
        aggregate(catalog, identity, "plate")
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
    whole = well_sums.sum_part(catalog, identity, 0, 1)
    monkeypatch.setattr(representations, "ROWS_AT_ONCE", 2)
    by_twos = well_sums.sum_part(catalog, identity, 0, 1)
    assert (by_twos.wells, by_twos.plates) == (whole.wells, whole.plates)
    np.testing.assert_array_equal(by_twos.counts, whole.counts)
    np.testing.assert_allclose(by_twos.sums, whole.sums, rtol=1e-12)
