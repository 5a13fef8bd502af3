from __future__ import annotations

import dataclasses
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.neighbors import NearestNeighbors
from tests.catalog.rows import add_rows
from tests.fast_cases import fast_cases

from cytolake.serving.problems import ServingError
from cytolake.serving.search import CropIndex, read_index
from cytolake.serving.search import approximate as approximate_search
from cytolake.serving.search.approximate import FILE_NAME, Cells, build_cells, build_in_background
from cytolake.serving.search.nearest import inner_products, largest, nearest
from cytolake.serving.search.sites import sites_of


def index_of(vectors, cells=None, perturbations=None) -> CropIndex:
    n = len(vectors)
    text = {name: [f"{name}{i}" for i in range(n)] for name in ("crop_id", "screen", "plate", "well", "site")}
    text |= {name: [""] * n for name in ("gene", "compound", "control", "qc_reasons")}
    place = {name: list(range(n)) for name in ("y", "x", "size")}
    known = {"perturbation": perturbations or [""] * n, "qc_pass": [True] * n}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    crops = pa.table(text | place | known)
    return CropIndex(representation_id="r", versions={}, unit_vectors=unit, crops=crops, cells=cells)


def rows_of(hits):
    return [hit["x"] for hit in hits]


@pytest.mark.parametrize("k", [1, 10, 500])
def test_hits_are_those_of_scikit_learn(k):
    rng = np.random.default_rng(k)
    vectors = rng.normal(size=(500, 16)).astype(np.float32)
    query = rng.normal(size=16)
    hits = index_of(vectors).search(query, k)
    distance, rows = NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors).kneighbors(query[None])
    assert [hit["crop_id"] for hit in hits] == [f"crop_id{i}" for i in rows[0]]
    np.testing.assert_allclose([hit["similarity"] for hit in hits], 1 - distance[0], atol=1e-5)


def test_a_condition_never_costs_hits():
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


@pytest.mark.parametrize(
    ("n_rows", "n_questions", "share"),
    [(1, 4, 1.0), (127, 1, 1.0), (129, 3, 0.3), (8193, 21, 1.0), (8193, 4, 0.3), (30_001, 3, 1.0), (30_001, 21, 0.3)],
)
def test_the_nearest_are_those_of_a_loop_over_all(n_rows, n_questions, share):
    rng = np.random.default_rng(n_rows)
    vectors, questions = (rng.normal(size=(n, 19)).astype(np.float32) for n in (n_rows, n_questions))
    may_answer = np.flatnonzero(rng.random(n_rows) < share) if share < 1 else np.arange(n_rows)
    found = nearest(vectors, questions, 12, None if share == 1 else may_answer)
    assert len(found) == n_questions
    for question, (rows, similarity) in zip(questions, found, strict=True):
        product = vectors[may_answer].astype(float) @ question
        expected = np.argsort(-product)[:12]
        np.testing.assert_array_equal(rows, may_answer[expected])
        np.testing.assert_allclose(similarity, product[expected], atol=1e-5)


@pytest.mark.parametrize("k", [1, 7, 300, 5000, 9000])
def test_of_equal_values_the_first_are_taken(k):
    values = np.random.default_rng(0).integers(0, 40, 9000).astype(np.float32)
    np.testing.assert_array_equal(largest(values, k), np.argsort(-values, kind="stable")[:k])


def test_the_similarity_of_a_row_does_not_depend_on_the_other_rows():
    rng = np.random.default_rng(0)
    vectors, question = rng.normal(size=(20_000, 33)).astype(np.float32), rng.normal(size=(1, 33)).astype(np.float32)
    rows = np.flatnonzero(rng.random(20_000) < 0.1)
    np.testing.assert_array_equal(
        inner_products(vectors, question, rows)[0], inner_products(vectors, question)[0, rows]
    )


def test_concurrent_queries_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    index = index_of(rng.normal(size=(20_000, 16)).astype(np.float32))
    questions = rng.normal(size=(32, 16))
    alone = [rows_of(index.search(question, 5)) for question in questions]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda question: rows_of(index.search(question, 5)), questions))
    assert together == alone


def test_a_perturbation_is_searched_by_the_mean_of_its_crops_which_may_be_left_out():
    rng = np.random.default_rng(0)
    names = [f"gene{i % 7}" for i in range(210)]
    index = index_of(rng.normal(size=(210, 8)).astype(np.float32), perturbations=names)
    of_it = index.rows_of_perturbation("gene3")
    np.testing.assert_array_equal(of_it, np.arange(3, 210, 7))
    vector = index.mean_vector(of_it)
    np.testing.assert_allclose(vector, index.unit_vectors[of_it].mean(axis=0), atol=1e-6)
    ranked = np.argsort(-(index.unit_vectors @ vector))
    assert rows_of(index.search(vector, 20)) == ranked[:20].tolist()
    others = [row for row in ranked if row not in of_it]
    assert rows_of(index.search(vector, 20, leave_out=of_it)) == others[:20]
    high = [row for row in others if row >= 100]
    assert rows_of(index.search(vector, 20, "x >= 100", of_it)) == high[:20]
    with pytest.raises(ServingError, match="has the perturbation 'nobody'") as error:
        index.rows_of_perturbation("nobody")
    assert error.value.status == 404


@pytest.mark.parametrize(
    "condition",
    fast_cases(
        [
            "plate = 'P1'", "gene = 'TP53' OR well = 'B02'", "perturbation LIKE '%-ko' AND NOT is_negative_control",
            "qc_pass = true", "qc_reasons LIKE '%empty%' OR gene = 'KRAS'", "dose IS NULL", "dose > 1", "y >= 16",
            "gene = 'KRAS' AND x < 16",
        ],
        "perturbation LIKE '%-ko' AND NOT is_negative_control",
        "qc_reasons LIKE '%empty%' OR gene = 'KRAS'",
        "dose IS NULL",
        "gene = 'KRAS' AND x < 16",
    ),
)  # fmt: skip
def test_a_condition_on_sites_passes_the_crops_that_it_passes_one_by_one(own_lake, condition):
    sites = sorted(set(own_lake.catalog.table("sites")["site_id"].to_pylist()))
    judge(own_lake, "rules", {sites[0]: ["empty"]})
    index = read_own(own_lake)
    assert index.sites.table.num_rows == len(sites)
    alone = dataclasses.replace(index, sites=None)
    np.testing.assert_array_equal(index._rows_where(condition), alone._rows_where(condition))
    np.testing.assert_array_equal(index.rows_of_perturbation("TP53-ko"), alone.rows_of_perturbation("TP53-ko"))


def test_a_site_in_two_wells_is_not_taken_for_one():
    """Rows from elsewhere may have no site id."""
    wells = pa.array(["a", "a", "b"])
    assert sites_of(pa.table({"site_id": ["1", "1", "2"], "well_id": wells})) is not None
    assert sites_of(pa.table({"site_id": ["", "", ""], "well_id": wells})) is None
    assert sites_of(pa.table({"site_id": pa.nulls(3, pa.string()), "well_id": wells})) is None
    empty = sites_of(pa.table({"site_id": pa.array([], pa.string()), "well_id": pa.array([], pa.string())}))
    assert empty is not None
    assert len(empty.rows(pc.field("well_id") == "a")) == 0


def test_an_unknown_column_is_refused_with_the_known_ones(lake):
    index = read_index(lake.catalog, lake.card.representation_id, lake.card.dim)
    with pytest.raises(ServingError, match=r"no column 'nothing'.*crop_id, .*gene"):
        index.search(np.ones(24), 5, "nothing = 1")


@pytest.mark.parametrize("condition", ["y < 40 AND crop_id LIKE '%7'", "qc_pass", "x NOT IN (1, 2)", "x < 0"])
def test_a_filtered_search_is_a_search_of_the_filtered_table(condition):
    index = index_of(np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32))
    mask = {
        "y < 40 AND crop_id LIKE '%7'": pc.and_(
            pc.less(index.crops["y"], 40), pc.ends_with(index.crops["crop_id"], "7")
        ),
        "qc_pass": index.crops["qc_pass"],
        "x NOT IN (1, 2)": pc.invert(pc.is_in(index.crops["x"], pa.array([1, 2]))),
        "x < 0": pc.less(index.crops["x"], 0),
    }[condition]
    rows = index.crops.filter(mask)["x"].to_numpy()
    ranked = rows[np.argsort(-(index.unit_vectors[rows] @ np.ones(8)))]
    assert rows_of(index.search(np.ones(8), 30, condition)) == ranked[:30].tolist()


def test_a_second_reader_takes_the_file_that_the_first_one_made(own_lake):
    first = read_own(own_lake)
    second = read_own(own_lake)
    assert isinstance(first.unit_vectors, np.memmap)
    assert first.unit_vectors.filename == second.unit_vectors.filename
    np.testing.assert_allclose(np.linalg.norm(second.unit_vectors, axis=1), 1, atol=1e-6)
    assert second.crops.equals(first.crops)
    assert [path.name for path in (own_lake.root / "search_index").iterdir()] == [folder_of(own_lake).name]


@pytest.mark.slow
def test_an_index_in_memory_and_one_on_the_disk_are_the_same(own_lake):
    on_disk = read_own(own_lake)
    shutil.rmtree(own_lake.root / "search_index")
    (own_lake.root / "search_index").write_text("in the way")
    in_memory = read_own(own_lake)
    assert not isinstance(in_memory.unit_vectors, np.memmap)
    np.testing.assert_array_equal(in_memory.unit_vectors, on_disk.unit_vectors)
    assert in_memory.crops.equals(on_disk.crops)
    assert in_memory.versions == on_disk.versions


@pytest.mark.parametrize(
    "what",
    fast_cases(
        ["cut vectors", "changed header", "no header", "cut crops", "other crops", "empty"],
        "cut vectors",
        "other crops",
    ),
)
def test_a_damaged_file_is_made_again(own_lake, what, caplog):
    before = read_own(own_lake)
    expected, crops = np.array(before.unit_vectors), before.crops.to_pylist()
    del before
    folder = folder_of(own_lake)
    (crops_file,) = folder.glob("crops-*.arrow")
    match what:
        case "cut vectors":
            os.truncate(folder / "vectors.npy", 1000)
        case "changed header":
            text = (folder / "header.json").read_text()
            (folder / "header.json").write_text(text.replace('"n_rows": 27', '"n_rows": 26'))
        case "no header":
            (folder / "header.json").unlink()
        case "cut crops":
            content = crops_file.read_bytes()
            crops_file.unlink()
            crops_file.write_bytes(content[:-9])
        case "other crops":
            crops_file.unlink()
            with pa.ipc.new_file(crops_file, pa.schema([("x", pa.int32())])):
                pass
        case "empty":
            shutil.rmtree(folder)
            folder.mkdir()
    after = read_own(own_lake)
    assert "is built again" in caplog.text
    np.testing.assert_array_equal(after.unit_vectors, expected)
    assert after.crops.to_pylist() == crops
    assert not [path for path in (own_lake.root / "search_index").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_tables_that_were_made_anew_are_not_taken_for_the_old_ones(own_lake, lake):
    """Their versions count from 0 again, so that the folder's name is the same."""
    read_own(own_lake)
    source = own_lake.catalog.table("embeddings")
    n_versions = own_lake.catalog.versions()["embeddings"]
    shutil.rmtree(own_lake.root / "tables" / "embeddings")
    rows = [row | {"embedding": [-x for x in row["embedding"]]} for row in source.slice(0, 5).to_pylist()]
    add_rows(own_lake.catalog, "embeddings", *rows)
    assert own_lake.catalog.versions()["embeddings"] == n_versions
    assert len(read_own(own_lake).unit_vectors) == 5


@pytest.mark.slow
def test_only_the_newest_indices_of_a_representation_stay_and_the_last_one_stays_readable(own_lake):
    first = read_own(own_lake)
    expected = np.array(first.unit_vectors)
    _append(own_lake, "another", own_lake.crop_ids[:2], [[1.0] * 24] * 2)
    read_index(own_lake.catalog, "another", 24)
    for number in range(3):
        table = own_lake.catalog.table("embeddings", where=f"crop_id = '{own_lake.crop_ids[number]}'")
        own_lake.catalog.append("embeddings", table, transaction=f"again-{number}")
        index = read_own(own_lake)
    assert len(index.unit_vectors) > len(expected)
    names = [path.name for path in (own_lake.root / "search_index").iterdir()]
    ours = [name for name in names if name.startswith(own_lake.card.representation_id)]
    assert len(ours) == 2
    assert folder_of(own_lake).name in ours
    assert len(names) == 3
    np.testing.assert_array_equal(first.unit_vectors, expected)


def test_new_verdicts_leave_the_vectors_alone(own_lake):
    before = read_own(own_lake)
    judge(own_lake, "rules", {})
    after = read_own(own_lake)
    assert before.versions != after.versions
    assert after.unit_vectors.filename == before.unit_vectors.filename
    assert before.crops["qc_pass"].null_count == before.crops.num_rows
    assert after.crops["qc_pass"].to_pylist() == [True] * after.crops.num_rows


def test_readers_that_make_an_index_at_once_all_succeed(own_lake):
    with ThreadPoolExecutor(6) as threads:
        indices = list(threads.map(lambda _: read_own(own_lake), range(6)))
    for index in indices:
        np.testing.assert_array_equal(index.unit_vectors, indices[0].unit_vectors)
        assert index.crops.equals(indices[0].crops)
    assert [path.name for path in (own_lake.root / "search_index").iterdir()] == [folder_of(own_lake).name]


def test_the_newest_verdicts_say_whether_a_site_passed(own_lake):
    sites = sorted(set(own_lake.catalog.table("sites")["site_id"].to_pylist()))
    judge(own_lake, "older", {sites[0]: ["defocus"], sites[1]: ["empty"]}, day=1)
    judge(own_lake, "newer", {sites[1]: ["noise", "defocus"]}, day=2, channels=("DNA", "ER"))
    index = read_own(own_lake)
    for row in index.crops.to_pylist():
        assert row["qc_pass"] == (row["site_id"] != sites[1])
        assert row["qc_reasons"] == ("defocus (DNA, ER); noise (DNA, ER)" if row["site_id"] == sites[1] else "")
    hits = index.search(np.ones(24), 100, "qc_pass = true")
    assert len(hits) == sum(row["site_id"] != sites[1] for row in index.crops.to_pylist())
    assert all(hit["qc_pass"] and hit["qc_reasons"] == "" for hit in hits)
    assert len(index.search(np.ones(24), 100, "qc_reasons LIKE '%noise%'")) == index.crops.num_rows - len(hits)


def test_a_site_without_verdicts_has_neither_passed_nor_failed(lake):
    index = read_index(lake.catalog, lake.card.representation_id, lake.card.dim)
    assert {(hit["qc_pass"], hit["qc_reasons"]) for hit in index.search(np.ones(24), 100)} == {(None, None)}
    assert index.search(np.ones(24), 100, "qc_pass = true") == []
    assert len(index.search(np.ones(24), 100, "qc_pass IS NULL")) == index.crops.num_rows


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """40 bundles of crops, and their cells."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(40, 16))[rng.integers(0, 40, 6000)] + rng.normal(0, 0.3, (6000, 16))).astype(np.float32)
    index = index_of(vectors)
    path = tmp_path_factory.mktemp("cells") / FILE_NAME
    build_cells(index.unit_vectors, path)
    return index_of(vectors, cells=Cells(path, 6000, 16)), path


def test_an_approximate_search_finds_nearly_all_with_their_exact_similarity(clustered, monkeypatch):
    monkeypatch.setattr(approximate_search, "CELLS_SEARCHED", 12)
    index, _ = clustered
    assert index.cells.is_ready()
    for condition in ("", "x >= 3000"):
        found, exact = (
            [index.search(vector, 50, condition, approximate=is_approximate) for vector in index.unit_vectors[::600]]
            for is_approximate in (True, False)
        )
        shares = []
        for mine, theirs in zip(found, exact, strict=True):
            assert len(mine) == 50
            similarity = {hit["crop_id"]: hit["similarity"] for hit in theirs}
            shares.append(np.mean([hit["crop_id"] in similarity for hit in mine]))
            for hit in mine:
                assert hit["similarity"] == pytest.approx(similarity.get(hit["crop_id"], hit["similarity"]), abs=1e-6)
            assert not condition or min(rows_of(mine)) >= 3000
        assert np.mean(shares) > 0.95


def test_an_approximate_search_never_brings_fewer_hits(clustered):
    """A condition that few crops pass, and more hits than the cells hold: all rows are compared."""
    index, _ = clustered
    for k, condition in ((50, "x < 60"), (6000, "")):
        assert index.search(np.ones(16), k, condition, approximate=True) == index.search(np.ones(16), k, condition)
    assert len(index.search(np.ones(16), 2900, "x >= 3000", approximate=True)) == 2900


def test_without_cells_or_with_damaged_ones_a_search_is_exact(clustered, tmp_path, caplog):
    index, path = clustered
    (tmp_path / FILE_NAME).write_bytes(path.read_bytes()[:5000])
    for cells in (None, Cells(tmp_path / "none", 6000, 16), Cells(tmp_path / FILE_NAME, 6000, 16), Cells(path, 5, 16)):
        other = index_of(np.array(index.unit_vectors), cells=cells)
        assert rows_of(other.search(np.ones(16), 9, approximate=True)) == rows_of(index.search(np.ones(16), 9))
    assert caplog.text.count("every search is exact") == 2


def test_cells_are_built_by_one_and_then_there_for_all(clustered, tmp_path):
    index, _ = clustered
    cells = Cells(tmp_path / FILE_NAME, 6000, 16)
    assert not cells.is_ready()
    threads = [build_in_background(index.unit_vectors, tmp_path / FILE_NAME) for _ in range(3)]
    for thread in threads:
        thread.join(timeout=60)
    assert cells.is_ready()
    assert not list(tmp_path.glob(".building-*"))


def read_own(lake) -> CropIndex:
    return read_index(lake.catalog, lake.card.representation_id, lake.card.dim)


def folder_of(lake):
    versions = lake.catalog.versions()
    name = f"{lake.card.representation_id}-{versions['embeddings']}-{versions['plates']}"
    assert json.loads((lake.root / "search_index" / name / "header.json").read_text())["dim"] == lake.card.dim
    return lake.root / "search_index" / name


def judge(lake, qc_id, failed, day=1, channels=("DNA",)) -> None:
    """Verdicts of every site: those named fail these rules, all others pass."""
    rows = [
        {key: site[key] for key in ("site_id", "well_id", "plate_id")}
        | {"channel": channel, "channel_index": index, "rule": rule}
        | {"is_pass": rule not in failed.get(site["site_id"], ())}
        for site in lake.catalog.table("sites").to_pylist()
        for index, channel in enumerate(channels)
        for rule in ("defocus", "empty", "noise")
    ]
    of_all = {"qc_id": qc_id, "level": "site", "metric": "sd", "value": 1.0, "threshold": 0.0}
    add_rows(lake.catalog, "qc_verdicts", *rows, **of_all, judged_at=datetime(2026, 1, day, tzinfo=UTC))


def _append(lake, representation_id, crop_ids, embeddings) -> None:
    rows = [{"crop_id": crop, "embedding": vector} for crop, vector in zip(crop_ids, embeddings, strict=True)]
    add_rows(lake.catalog, "embeddings", *rows, representation_id=representation_id, well_id="w", plate_id="p")
