from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, table_contract
from cytolake.curation.stored_vectors import find_representation, stored_vectors
from cytolake.tracking import ModelCard, TrackingConfig, promote


def add(catalog: Catalog, representation: str, kind: str, curation: str, day: int, n: int = 3) -> None:
    """A representation of crops c0, c1, ... whose vectors are (day, number)."""
    curations, representations, embeddings = (
        table_contract(name) for name in ("curations", "representations", "embeddings")
    )
    kept = dict.fromkeys(curations.schema.names) | {
        "curation_id": f"id of {curation}", "curation": curation, "crop_id": "c0", "is_kept": True,
    }  # fmt: skip
    catalog.append("curations", curations.rows([kept]), transaction=f"curation {curation}")
    row = dict.fromkeys(representations.schema.names) | {
        "representation_id": representation, "kind": kind, "block": 3, "dim": 2,
        "pooling": "all" if kind == "pixel_statistics" else "mean",
        "curation_id": f"id of {curation}", "created_at": datetime(2026, 1, day, tzinfo=UTC),
    }  # fmt: skip
    catalog.append("representations", representations.rows([row]), transaction=representation)
    rows = [
        dict.fromkeys(embeddings.schema.names)
        | {"representation_id": representation, "crop_id": f"c{i}", "embedding": [float(day), float(i)]}
        for i in reversed(range(n))
    ]
    catalog.append("embeddings", embeddings.rows(rows), transaction=representation)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Catalog:
    catalog = cytolake.catalog.open(tmp_path_factory.mktemp("representations") / "catalog", create=True)
    add(catalog, "old", "pixel_statistics", "default", 1)
    add(catalog, "new", "pixel_statistics", "default", 2)
    add(catalog, "other", "pixel_statistics", "strict", 3)
    add(catalog, "encoder", "trained", "default", 4)
    return catalog


def test_an_id_means_itself(catalog):
    assert find_representation(catalog, "encoder") == "encoder"
    assert find_representation(catalog, "old", not_of="default") == "old"


def test_pixel_statistics_means_the_newest_of_that_kind(catalog):
    assert find_representation(catalog, "pixel_statistics") == "other"
    assert find_representation(catalog, "pixel_statistics", of="default") == "new"


def test_a_curation_does_not_read_the_embeddings_of_what_it_kept_itself(catalog):
    assert find_representation(catalog, "pixel_statistics", not_of="strict") == "new"
    assert find_representation(catalog, "pixel_statistics", of="strict", not_of="strict") == "other"


def test_only_embeddings_of_what_the_curation_kept_itself_are_none(tmp_path):
    catalog = cytolake.catalog.open(tmp_path / "catalog", create=True)
    add(catalog, "own", "pixel_statistics", "default", 1)
    with pytest.raises(CatalogError, match="of a curation other than default: not in the table"):
        find_representation(catalog, "pixel_statistics", not_of="default")


def test_champion_is_the_representation_that_was_promoted(catalog, tmp_path):
    with pytest.raises(CatalogError, match="representation champion: "):
        find_representation(catalog, "champion")
    checkpoint = tmp_path / "encoder.safetensors"
    save_file({"weight": np.zeros(1, np.float32)}, checkpoint)
    card = ModelCard(
        representation_id="encoder", model_id="m", architecture="mae_vit", channels=("DNA",), crop_size=8, block=3,
        pooling="mean", dim=2, pack_id="p", curation_id="c", table_versions={}, run_id="", benchmark="linear_probe",
        label="gene", split="plate", metric="balanced_accuracy", score=0.5, ci_low=0.4, ci_high=0.6, baselines=(),
    )  # fmt: skip
    promote(TrackingConfig().at(catalog.root), card, checkpoint)
    assert find_representation(catalog, "champion") == "encoder"


def test_an_unknown_representation_is_refused_with_the_existing_ones(catalog):
    with pytest.raises(CatalogError, match=r"nowhere: not in the table .* encoder \(trained, block 3 mean, curation"):
        find_representation(catalog, "nowhere")


def test_vectors_come_in_the_order_of_the_requested_crops(catalog):
    found = stored_vectors(catalog, "encoder", pa.chunked_array([["c2", "missing"], ["c0", "c1"]]))
    assert found.rows.tolist() == [0, 2, 3]
    assert found.vectors.tolist() == [[4, 2], [4, 0], [4, 1]]
    assert found.vectors.dtype == np.float32


def test_no_vector_of_any_crop_is_an_error(catalog):
    with pytest.raises(CatalogError, match="0 of 1 crops have a vector, 3 others have"):
        stored_vectors(catalog, "encoder", pa.chunked_array([["missing"]]))
