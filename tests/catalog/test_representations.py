"""Representations by their names, and their vectors: which rows are read, in which order, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows
from tests.embed.stored_embeddings import DIM, plant, planted_catalog

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, representations
from cytolake.catalog.corrections.retract import restore, retract
from cytolake.catalog.representations import VectorReader, find_representation, read_vectors, stored_vectors, vectors_of
from cytolake.tracking import AliasNotFoundError, TrackingConfig


def add(catalog: Catalog, representation: str, kind: str, curation: str, day: int, n: int = 3) -> None:
    """A representation of crops c0, c1, ... whose vectors are (day, number)."""
    kept = {"curation_id": f"id of {curation}", "curation": curation, "crop_id": "c0", "is_kept": True}
    add_rows(catalog, "curations", kept)
    row = {
        "representation_id": representation, "kind": kind, "block": 3, "dim": 2,
        "architecture": "peer" if kind == "external" else "mae_vit",
        "pooling": "all" if kind == "pixel_statistics" else "mean",
        "curation_id": f"id of {curation}", "created_at": datetime(2026, 1, day, tzinfo=UTC),
    }  # fmt: skip
    add_rows(catalog, "representations", row)
    rows = [{"crop_id": f"c{i}", "embedding": [float(day), float(i)]} for i in reversed(range(n))]
    add_rows(catalog, "embeddings", *rows, representation_id=representation)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    catalog = empty_catalog(tmp_path_factory.mktemp("named"))
    add(catalog, "old", "pixel_statistics", "default", 1)
    add(catalog, "new", "pixel_statistics", "default", 2)
    add(catalog, "other", "pixel_statistics", "strict", 3)
    add(catalog, "encoder", "trained", "default", 4)
    add(catalog, "imported", "external", "", 5)
    return catalog


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, str, dict[str, np.ndarray]]:
    """Crops of two plates, whose rows share files."""
    catalog = planted_catalog(tmp_path_factory.mktemp("planted"))
    return catalog, *plant(catalog, "whole")


@pytest.mark.parametrize(
    ("name", "of", "not_of", "found"),
    [
        ("encoder", "", "", "encoder"),
        ("old", "", "default", "old"),  # an id means itself
        ("peer", "", "", "imported"),
        ("pixel_statistics", "", "", "other"),
        ("pixel_statistics", "default", "", "new"),
        ("pixel_statistics", "", "strict", "new"),
        ("pixel_statistics", "strict", "strict", "other"),
    ],
)
def test_a_name_means_the_newest_representation_of_its_kind(catalog, name, of, not_of, found):
    assert find_representation(catalog, name, of=of, not_of=not_of)["representation_id"] == found


def test_an_unknown_representation_is_listed_with_those_that_are_there(tmp_path, catalog):
    listed = r"nowhere: not in the table representations, which has 5, the newest: .*encoder \(trained, block 3 mean"
    with pytest.raises(CatalogError, match=listed):
        find_representation(catalog, "nowhere")
    with pytest.raises(CatalogError, match="of curation third: not in the table"):
        find_representation(catalog, "pixel_statistics", of="third")
    with pytest.raises(CatalogError, match="not in the table representations"):
        find_representation(catalog, "x' OR true --")
    alone = empty_catalog(tmp_path)
    add(alone, "own", "pixel_statistics", "default", 1)
    with pytest.raises(CatalogError, match="of a curation other than default: not in the table"):
        find_representation(alone, "pixel_statistics", not_of="default")


def test_champion_is_the_representation_that_the_registry_names(catalog, monkeypatch):
    """The registry itself takes seconds to make; tests of promotion and serving use a real one."""
    promoted: list[str] = []

    def resolve_alias(tracking: TrackingConfig, alias: str) -> SimpleNamespace:
        assert (tracking, alias) == (TrackingConfig().at(catalog.root), "champion")
        if not promoted:
            raise AliasNotFoundError("no version has the alias champion")
        return SimpleNamespace(representation_id=promoted[0])

    monkeypatch.setattr("cytolake.tracking.promoted.resolve_alias", resolve_alias)
    with pytest.raises(CatalogError, match="representation champion: no version"):
        find_representation(catalog, "champion")
    promoted.append("encoder")
    assert find_representation(catalog, "champion")["representation_id"] == "encoder"


def test_vectors_are_in_the_order_of_the_ids(planted, catalog, monkeypatch):
    lake, identity, vectors = planted
    monkeypatch.setattr(representations, "ROWS_AT_ONCE", 3)
    ids = [*sorted(vectors, reverse=True), *list(vectors)[:2]]  # two of them twice
    found = read_vectors(lake, identity, ids)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [vectors[each] for each in ids])
    with pytest.raises(CatalogError, match="1 of 2 crops have no row in the table embeddings"):
        read_vectors(lake, identity, ["missing", ids[0]])
    some = stored_vectors(catalog, "encoder", pa.chunked_array([["c2", "missing"], ["c0", "c1"]]))
    assert (some.rows.tolist(), some.vectors.tolist()) == ([0, 2, 3], [[4, 2], [4, 0], [4, 1]])
    with pytest.raises(CatalogError, match="none of 1 crops has a vector, 3 others have"):
        stored_vectors(catalog, "encoder", pa.chunked_array([["missing"]]))


def test_each_row_group_is_in_one_part_and_memory_holds_a_batch_at_a_time(planted, monkeypatch):
    lake, identity, vectors = planted
    reader = VectorReader(lake)
    monkeypatch.setattr(representations, "ROWS_AT_ONCE", 2)
    parts = [rows for part in range(3) for rows in reader.rows(identity, part, 3)]
    assert sorted(each for rows in parts for each in rows["crop_id"].to_pylist()) == sorted(vectors)
    assert max(rows.num_rows for rows in parts) <= 2
    assert max(batch.num_rows for batch in reader.batches(identity)) <= 2


def test_a_retracted_plate_is_left_out_of_files_that_it_shares(planted):
    """Arrow lists no files of a filtered table, so aligning, averaging and exporting failed after a retraction."""
    lake, identity, vectors = planted
    plate_of = {row["crop_id"]: row["plate"] for row in lake.table("crops").to_pylist()}
    before = lake.snapshot()
    retract(lake, "S/P1", "out of focus")
    shown = sorted(crop for crop in vectors if plate_of[crop] == "P0")
    reader = VectorReader(lake)
    assert reader.count(identity) == len(shown) < len(vectors)
    for rows in (reader.rows(identity), reader.batches(identity, ["crop_id"])):
        assert sorted(each for some in rows for each in some["crop_id"].to_pylist()) == shown
    np.testing.assert_array_equal(read_vectors(lake, identity, shown), [vectors[each] for each in shown])
    assert VectorReader(before).count(identity) == len(vectors)
    restore(lake, "S/P1")


def test_rows_of_two_representations_never_become_one_matrix(planted):
    lake, identity, _ = planted
    other, _ = plant(lake, "another model", seed=7)
    rows = lake.table("embeddings", where="representation_id IN $ids", parameters={"ids": [identity, other]})
    with pytest.raises(CatalogError, match=f"{other}.* in one matrix, expected {identity} alone"):
        vectors_of(rows, identity)
    alone = rows.filter(pc.equal(rows["representation_id"], other))
    with pytest.raises(CatalogError, match=f"rows of the representations {other} in one matrix"):
        vectors_of(alone, identity)
    assert vectors_of(alone, other).shape == (alone.num_rows, DIM)


def test_vectors_of_several_lengths_are_refused(planted):
    lake, _, vectors = planted
    identity, _ = plant(lake, "two widths")
    extra = {"representation_id": identity, "crop_id": "more", "well_id": "w", "plate_id": "p"}
    add_rows(lake, "embeddings", extra, embedding=[1.0] * (DIM + 1))
    with pytest.raises(CatalogError, match=f"vectors of {DIM}, {DIM + 1} values, expected one length"):
        read_vectors(lake, identity, [*vectors, "more"])


def test_a_table_that_was_never_written_has_no_vectors(tmp_path: Path):
    (tmp_path / "tables").mkdir()
    for level in ("crop", "well"):
        reader = VectorReader(cytolake.catalog.open(tmp_path), level)
        assert reader.count("any") == reader.dim("any") == len(list(reader.rows("any"))) == 0
