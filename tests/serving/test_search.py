from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.neighbors import NearestNeighbors

from cytolake.catalog import table_contract
from cytolake.serving.search import CropIndex, read_index


def index_of(vectors) -> CropIndex:
    n = len(vectors)
    text = {name: [f"{name}{i}" for i in range(n)] for name in ("crop_id", "screen", "plate", "well", "site")}
    text |= {name: [""] * n for name in ("perturbation", "gene", "compound", "control")}
    place = {name: list(range(n)) for name in ("y", "x", "size")}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return CropIndex(representation_id="r", versions={}, unit_vectors=unit, crops=pa.table(text | place))


@pytest.mark.parametrize("k", [1, 10, 500])
def test_hits_are_those_of_scikit_learn(k):
    rng = np.random.default_rng(k)
    vectors = rng.normal(size=(500, 16)).astype(np.float32)
    query = rng.normal(size=16)
    hits = index_of(vectors).search(query, k)
    distance, rows = NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors).kneighbors(query[None])
    assert [hit["crop_id"] for hit in hits] == [f"crop_id{i}" for i in rows[0]]
    np.testing.assert_allclose([hit["similarity"] for hit in hits], 1 - distance[0], atol=1e-5)


def test_a_filter_never_costs_hits():
    """As many hits as pass the condition, however far down the unfiltered ranking they are."""
    index = index_of(np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32))
    for x in (0, 150, 299):
        (hit,) = index.search(np.ones(8), 10, f"x = {x}")
        assert hit["x"] == x


def test_wells_are_joined_to_their_own_crops(lake):
    index = read_index(lake.catalog, lake.card.representation_id, lake.card.dim)
    wells = {row["well_id"]: row for row in lake.catalog.table("wells").to_pylist()}
    rows = index.crops.to_pylist()
    assert [row["crop_id"] for row in rows] == lake.crop_ids
    for row in rows:
        assert row["perturbation"] == wells[row["well_id"]]["perturbation"]
        assert row["plate"] == wells[row["well_id"]]["plate"]


def test_a_representation_without_embeddings_has_an_index_without_hits(lake):
    index = read_index(lake.catalog, "nothing-yet", 24)
    assert index.search(np.ones(24), 5) == []


def test_an_embedding_of_zeros_is_like_nothing(own_lake):
    _append(own_lake, "zeros", own_lake.crop_ids[:2], [[0.0] * 24, [1.0] * 24])
    hits = read_index(own_lake.catalog, "zeros", 24).search(np.ones(24), 5)
    assert [round(hit["similarity"], 6) for hit in hits] == [1.0, 0.0]


def test_embeddings_that_cannot_be_of_this_model_are_refused(own_lake):
    _append(own_lake, "short", own_lake.crop_ids[:2], [[1.0] * 24, [1.0] * 23])
    with pytest.raises(ValueError, match="23 to 24 values in the table, the model gives 24"):
        read_index(own_lake.catalog, "short", 24)
    _append(own_lake, "orphan", ["nobody"], [[1.0] * 24])
    with pytest.raises(ValueError, match=r"1 embeddings of representation orphan .* first nobody"):
        read_index(own_lake.catalog, "orphan", 24)


def test_a_representation_id_never_becomes_sql(lake):
    with pytest.raises(ValueError, match="letters, digits"):
        read_index(lake.catalog, "x' OR '1'='1", 24)


def _append(lake, representation_id, crop_ids, embeddings) -> None:
    rows = [
        {
            "representation_id": representation_id,
            "crop_id": crop_id,
            "well_id": "w",
            "plate_id": "p",
            "embedding": vector,
        }
        for crop_id, vector in zip(crop_ids, embeddings, strict=True)
    ]
    lake.catalog.append("embeddings", table_contract("embeddings").rows(rows), transaction=representation_id)
