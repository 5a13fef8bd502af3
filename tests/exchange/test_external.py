"""Tables of other tools in the catalog."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.catalog.rows import add_rows
from tests.embed.stored_embeddings import DIM, plant, planted_catalog, planted_wells

from cytolake.benchmark.cross_validation import probe_representation
from cytolake.benchmark.linear_probe import CROP_METRIC, WELL_METRIC, ProbeConfig, probe_key
from cytolake.benchmark.probe_data import read_probe_data
from cytolake.benchmark.stored_probe import probe_stored
from cytolake.catalog import Catalog
from cytolake.catalog.representations import read_vectors
from cytolake.embed.aggregate import aggregate
from cytolake.embed.well_sums import append_profiles
from cytolake.exchange.deepprofiler import _pickled_labels, read_deepprofiler
from cytolake.exchange.export import export_anndata, export_parquet
from cytolake.exchange.external import import_embeddings, read_external
from cytolake.exchange.vector_tables import ExternalTable, read_anndata_table, read_profiles


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return planted_catalog(tmp_path / "catalog")


def well_table(n_features: int = 3, seed: int = 0) -> pd.DataFrame:
    """One row for each planted well, as a profiling tool writes it."""
    wells = planted_wells()
    values = np.random.default_rng(seed).normal(size=(len(wells), n_features)).astype(np.float32)
    labels = pd.DataFrame({"Metadata_Plate": [w["plate"] for w in wells], "Metadata_Well": [w["well"] for w in wells]})
    return labels.join(pd.DataFrame(values, columns=[f"feature_{i}" for i in range(n_features)]))


def as_parquet(frame: pd.DataFrame, folder: Path, name: str = "table") -> Path:
    frame.to_parquet(folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def representation(catalog: Catalog, identity: str) -> dict[str, object]:
    return dict(catalog.table("representations", where="representation_id = ?", parameters=[identity]).to_pylist()[0])


def test_a_table_of_wells_becomes_a_representation_of_its_own_kind(catalog, tmp_path):
    frame = well_table()
    frame["Metadata_Well"] = frame["Metadata_Well"].str.replace("A0", "a")  # as some tools spell A01
    identity = import_embeddings(catalog, read_profiles(as_parquet(frame, tmp_path)), "their_model")
    row = representation(catalog, identity)
    assert {name: row[name] for name in ("kind", "architecture", "block", "pooling", "dim")} == {
        "kind": "external", "architecture": "their_model", "block": -1, "pooling": "all", "dim": 3,
    }  # fmt: skip
    found = aggregate(catalog, identity, "well").to_pandas()
    assert list(zip(found["plate"], found["well"], strict=True)) == [(w["plate"], w["well"]) for w in planted_wells()]
    np.testing.assert_array_equal(np.stack(found["vector"]), frame[[f"feature_{i}" for i in range(3)]])
    profiles = catalog.table("profiles", where="representation_id = ?", parameters=[identity])
    assert profiles.num_rows == len(frame)


def test_the_same_content_is_there_once_whatever_the_file_and_the_order_of_its_rows(catalog, tmp_path):
    frame = well_table()
    features = [f"feature_{i}" for i in range(3)]
    first = import_embeddings(catalog, read_profiles(as_parquet(frame, tmp_path)), "their_model")
    versions = catalog.versions()
    shuffled = frame.sample(frac=1, random_state=0)
    lists = shuffled[["Metadata_Plate", "Metadata_Well"]].assign(vector=list(shuffled[features].to_numpy()))
    cells = anndata.AnnData(
        obs=shuffled[["Metadata_Plate", "Metadata_Well"]].astype("category").set_index(shuffled.index.astype(str)),
        obsm={"X_theirs": shuffled[features].to_numpy(np.float32)},
    )
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for table in (
        read_profiles(as_parquet(shuffled, tmp_path, "shuffled")),
        read_profiles(as_parquet(lists, tmp_path, "lists")),
        read_anndata_table(tmp_path / "cells.h5ad", "X_theirs"),
    ):
        assert import_embeddings(catalog, table, "their_model") == first
    assert catalog.versions() == versions
    frame.loc[0, "feature_0"] += 1
    assert import_embeddings(catalog, read_profiles(as_parquet(frame, tmp_path)), "their_model") != first
    assert import_embeddings(catalog, read_profiles(as_parquet(shuffled, tmp_path)), "their other") != first


def test_an_import_that_was_cut_short_goes_on_without_a_row_twice(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr("cytolake.exchange.external._APPEND_BYTES", 12 * 5)  # five rows in each commit
    table = read_profiles(as_parquet(well_table(), tmp_path))
    append = Catalog.append
    for n_commits in (1, 2, 3, 4):
        left = iter([True] * n_commits)

        def some(self, name, rows, *, transaction, left=left):
            next(left, None) or pytest.fail("killed")
            return append(self, name, rows, transaction=transaction)

        monkeypatch.setattr(Catalog, "append", some)
        with pytest.raises(pytest.fail.Exception, match="killed"):
            import_embeddings(catalog, table, "their_model")
    assert catalog.table("representations").num_rows == 0
    monkeypatch.setattr(Catalog, "append", append)
    identity = import_embeddings(catalog, table, "their_model")
    stored = catalog.table("embeddings", where="representation_id = ?", parameters=[identity])
    assert stored.num_rows == len(set(stored["crop_id"].to_pylist())) == len(well_table())


def test_what_was_exported_comes_back_the_same(catalog, tmp_path):
    identity, vectors = plant(catalog, "ours")
    export_parquet(catalog, identity, tmp_path / "ours.parquet", level="crop")
    export_anndata(catalog, [identity], tmp_path / "ours.h5ad", level="crop")
    tables = read_profiles(tmp_path / "ours.parquet"), read_anndata_table(tmp_path / "ours.h5ad", "block_0_mean")
    ids = {import_embeddings(catalog, table, "round trip", pack_id="pack0") for table in tables}
    assert len(ids) == 1
    (again,) = ids
    np.testing.assert_array_equal(read_vectors(catalog, again, list(vectors)), list(vectors.values()))
    assert representation(catalog, again)["pack_id"] == "pack0"
    assert representation(catalog, again)["curation_id"] == "curation0"


def test_a_peers_vectors_of_the_packs_crops_are_probed_like_ours(catalog, tmp_path):
    identity, vectors = plant(catalog, "ours")
    labels = catalog.to_pandas("crops", columns=["crop_id", "well_id"]).merge(
        catalog.to_pandas("wells", columns=["well_id", "perturbation"])
    )
    theirs = pd.get_dummies(labels["perturbation"]).astype(np.float32)  # a model that knows the answer
    frame = theirs.assign(crop_id=labels["crop_id"])
    peer = import_embeddings(catalog, read_profiles(as_parquet(frame, tmp_path)), "peer", pack_id="pack0")
    config = ProbeConfig(label="perturbation", regularisation=(1.0,))
    scores = {}
    for each in (identity, peer):
        data = read_probe_data(catalog, each, config.label, include_controls=False)
        matrix = read_vectors(catalog, each, data.crop_ids)
        scores[each] = probe_representation(matrix, each, data, config, probe_key(data, config))
    assert scores[peer].rows[0]["score_id"] != scores[identity].rows[0]["score_id"]
    assert scores[peer].summary[CROP_METRIC].value == 1.0 > scores[identity].summary[CROP_METRIC].value
    with pytest.raises(
        ValueError, match=rf"1 of {len(vectors)} crops of pack pack0 have no row \({frame.crop_id[3]}\)"
    ):
        import_embeddings(catalog, read_profiles(as_parquet(frame.drop(3), tmp_path, "fewer")), "peer", pack_id="pack0")
    with pytest.raises(ValueError, match="pack other: nothing of it was embedded"):
        import_embeddings(catalog, read_profiles(as_parquet(frame, tmp_path)), "peer", pack_id="other")


def test_cells_of_a_well_are_averaged(catalog, tmp_path):
    wells = pd.concat([well_table(seed=seed) for seed in range(3)])
    identity = import_embeddings(catalog, read_profiles(as_parquet(wells, tmp_path)), "cells")
    found = aggregate(catalog, identity, "well").to_pandas()
    assert set(found["n_crops"]) == {3}
    means = wells.groupby(["Metadata_Plate", "Metadata_Well"]).mean().to_numpy()
    np.testing.assert_allclose(np.stack(found["vector"]), means, rtol=1e-5, atol=1e-6)


def test_two_tables_of_the_same_wells_can_be_compared(catalog, tmp_path):
    ids = [
        import_embeddings(catalog, read_profiles(as_parquet(well_table(seed=seed), tmp_path)), "theirs")
        for seed in (0, 1)
    ]
    packs = {representation(catalog, each)["pack_id"] for each in ids}
    assert len(set(ids)) == 2
    assert len(packs) == 1


def test_rows_of_wells_or_crops_that_are_not_there_are_listed(catalog, tmp_path):
    frame = well_table()
    frame.loc[[2, 4], "Metadata_Plate"] = "P9"
    with pytest.raises(
        ValueError, match=r"2 of 14 rows are not in the catalog's wells: row 2 \(plate P9 well A03\), row 4"
    ):
        import_embeddings(catalog, read_profiles(as_parquet(frame, tmp_path)), "theirs")
    crops = pd.DataFrame({"crop_id": ["nobody", "no-one"], "f": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"2 of 2 rows are not in the catalog's crops: row 0 \(crop_id nobody\)"):
        import_embeddings(catalog, read_profiles(as_parquet(crops, tmp_path)), "theirs")
    twice = pd.DataFrame({"crop_id": ["a", "a", "b"], "f": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="1 crop ids are there more than once, such as a"):
        import_embeddings(catalog, read_profiles(as_parquet(twice, tmp_path)), "theirs")
    assert catalog.table("embeddings").num_rows == catalog.table("representations").num_rows == 0


def test_a_plate_name_of_two_screens_needs_the_screen(tmp_path):
    catalog = planted_catalog(tmp_path / "catalog", ("S", "T"))
    table = read_profiles(as_parquet(well_table(), tmp_path))
    with pytest.raises(ValueError, match=r"row 0 \(plate P0 well A01\) is of one of the screens S, T"):
        import_embeddings(catalog, table, "theirs")
    given = import_embeddings(catalog, table, "theirs", screen="T")
    assert set(aggregate(catalog, given, "well")["screen"].to_pylist()) == {"T"}
    column = well_table().assign(Metadata_Screen="T")
    assert import_embeddings(catalog, read_profiles(as_parquet(column, tmp_path)), "theirs") == given


def test_a_name_of_one_of_cytolakes_own_models_is_refused(catalog, tmp_path):
    table = read_profiles(as_parquet(well_table(), tmp_path))
    for name in ("", " ", "chada_vit", "pixel_statistics"):
        with pytest.raises(ValueError, match=r"expected one that names the model"):
            import_embeddings(catalog, table, name)


def test_rows_that_are_not_finite_are_named(tmp_path):
    frame = well_table()
    frame.loc[1, "feature_2"] = np.nan
    frame.loc[9, "feature_0"] = np.inf
    with pytest.raises(
        ValueError, match=r"not finite .* in 2 of 14 rows: row 1 \(plate P0 well A02\), row 9 \(plate P1"
    ):
        read_profiles(as_parquet(frame, tmp_path))
    nulls = pa.table({"plate": ["P0"], "well": ["A01"], "v": pa.array([[1.0, None]], pa.list_(pa.float32()))})
    pq.write_table(nulls, tmp_path / "nulls.parquet")
    with pytest.raises(ValueError, match=r"not finite .* row 0 \(plate P0 well A01\)"):
        read_profiles(tmp_path / "nulls.parquet")


def test_tables_that_do_not_fit_say_what_they_hold(tmp_path):
    ragged = pa.table({"plate": ["P0"] * 3, "well": ["A01", "A02", "A03"], "v": [[1.0, 2.0], [1.0], [3.0, 4.0]]})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    with pytest.raises(ValueError, match=r"column v: vectors of 1 values in rows 1, 2 in the other 2"):
        read_profiles(tmp_path / "ragged.parquet")
    frame = well_table()
    for changed, said in (
        (frame.drop(columns="Metadata_Well"), "found the labels plate, expected crop_id, or plate and well"),
        (frame[["Metadata_Plate", "Metadata_Well"]], r"vectors of shape \(14, 0\)"),
        (frame.assign(Metadata_Well=""), "0 values of well for 14 vectors, none in rows 0, 1, 2, 3, 4 and more"),
        (frame.assign(plate="P0"), "two columns for plate"),
        (frame.assign(a=[[1.0]] * 14, b=[[1.0]] * 14), "several columns of vectors, a, b"),
    ):
        with pytest.raises(ValueError, match=said):
            read_profiles(as_parquet(changed, tmp_path))
    path = as_parquet(frame, tmp_path)
    with pytest.raises(ValueError, match="no column feature_7"):
        read_profiles(path, features=["feature_7"])
    with pytest.raises(ValueError, match="column Metadata_Plate: found string, expected numbers"):
        read_profiles(path, features=["Metadata_Plate"])
    assert read_profiles(path, features=["feature_1"]).vectors.shape == (14, 1)
    anndata.AnnData(obs=frame[["Metadata_Plate"]].set_index(frame.index.astype(str))).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"a.h5ad, obsm\['X_theirs'\]: not there. Name one of obsm: none"):
        read_anndata_table(tmp_path / "a.h5ad", "X_theirs")
    with pytest.raises(ValueError, match=r"a.h5ad, X: not there"):
        read_anndata_table(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"vectors of shape \(3,\)"):
        ExternalTable("memory", np.ones(3, np.float32), {"plate": ("P0",) * 3, "well": ("A01",) * 3})


def write_site(path: Path, features: np.ndarray, metadata: object) -> Path:
    """A file as DeepProfiler writes it: `metadata` pickled into a NumPy array of one object."""
    whole = np.empty((), dtype=object)
    whole[()] = metadata
    np.savez(path, features=features, metadata=whole)
    return path


def test_sites_of_deepprofiler_go_to_their_wells(catalog, tmp_path):
    random = np.random.default_rng(0)
    cells = {("A01", "1"): 4, ("A01", "2"): 2, ("A02", "1"): 0, ("A03", "1"): 3}
    paths, by_well = [], {}
    for (well, site), n in cells.items():
        features = random.normal(size=(n, DIM)).astype(np.float32)
        by_well.setdefault(well, []).append(features)
        metadata = {"Metadata_Plate": "P0", "Metadata_Well": well, "Metadata_Site": site, "area": np.float64(2.5)}
        paths.append(write_site(tmp_path / f"{well}_{site}.npz", features, metadata))
    identity = import_embeddings(catalog, read_deepprofiler(paths), "deepprofiler")
    found = aggregate(catalog, identity, "well").to_pandas()
    assert dict(zip(found["well"], found["n_crops"], strict=True)) == {"A01": 6, "A03": 3}
    for well, vector in zip(found["well"], found["vector"], strict=True):
        np.testing.assert_allclose(vector, np.concatenate(by_well[well]).mean(axis=0), rtol=1e-5, atol=1e-6)
    other = write_site(tmp_path / "other.npz", np.ones((1, DIM + 1), np.float32), metadata)
    with pytest.raises(ValueError, match=f"{DIM + 1} features, {DIM} in"):
        read_deepprofiler([*paths, other])
    with pytest.raises(ValueError, match="no DeepProfiler files given"):
        read_deepprofiler([])


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_labels_are_read_from_every_form_of_pickle(protocol):
    """The oracle is what was pickled; values that are no plain text or number are left out."""
    for value in (
        {"Metadata_Plate": "P0", "Metadata_Well": "A01", "Metadata_Site": 3, "more": {"x": [1, (2, None)]}},
        {"list": [1, 2], "nested": {"a": {"b": 1.5}}, "Plate": "P0", "Well": "A01", "Site": 3, "same": "P0"},
        {"array": np.arange(3), "Metadata_Well": "A01", "Metadata_Plate": "P0", "Metadata_Site": 3, "b": b"x"},
    ):
        whole = np.empty((), dtype=object)
        whole[()] = value
        for pickled in (value, whole):
            found = _pickled_labels(pickle.dumps(pickled, protocol=protocol))
            assert found == {"plate": "P0", "well": "A01", "site": "3"}
    for kind in (np.str_("P0"), Path("P0"), None, ["P0"], ("P0",)):
        found = _pickled_labels(pickle.dumps({"plate": kind, "well": "A01"}, protocol=protocol))
        assert found == {"well": "A01"}


class RunsCode:
    """Calls a function as soon as it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_metadata_that_could_run_code_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_site(
        tmp_path / "evil.npz", np.ones((1, 2), np.float32), {"Metadata_Plate": RunsCode(), "Metadata_Well": "A01"}
    )
    with pytest.raises(ValueError, match=r"evil.npz: metadata without plate; found well of"):
        read_deepprofiler([path])
    assert not (tmp_path / "ran").exists()
    with np.load(path, allow_pickle=True) as file:
        file["metadata"]  # the file does what the test says
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"Metadata_Plate": "P0", "Metadata_Site": "1"}, "metadata without well; found plate, site of"),
        (["P0", "A01"], "metadata without plate, well; found none"),
    ],
)
def test_a_site_without_its_place_is_refused(tmp_path, metadata, said):
    with pytest.raises(ValueError, match=said):
        read_deepprofiler([write_site(tmp_path / "site.npz", np.ones((1, 2), np.float32), metadata)])


def test_a_file_that_is_no_site_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("nothing")
    np.savez(tmp_path / "no_metadata.npz", features=np.ones((1, 2)))
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
        archive.writestr("features.npy", b"\x93NUMPY")
    write_site(tmp_path / "flat.npz", np.ones(2), {"plate": "P", "well": "A01", "site": "1"})
    for name, said in (
        ("text", "not a DeepProfiler file"),
        ("no_metadata", "not a DeepProfiler file"),
        ("cut", "not a DeepProfiler file"),
        ("flat", r"features of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.npz: {said}"):
            read_deepprofiler([tmp_path / f"{name}.npz"])


@pytest.mark.slow
@pytest.mark.real_data
def test_a_real_deepprofiler_file_is_the_profile_of_its_well(catalog, real_data):
    path = real_data / "deepprofiler_embeddings" / "Week1_22123_B02_s1.npz"
    (well,) = [
        row | {"plate": "Week1_22123", "well": "B02", "well_id": "real", "plate_id": "real"}
        for row in planted_wells()[:1]
    ]
    add_rows(catalog, "wells", well)
    add_rows(catalog, "plates", {"plate_id": "real", "plate": "Week1_22123"})
    table = read_deepprofiler([path])
    assert table.vectors.shape == (206, 50)
    assert {name: set(values) for name, values in table.labels.items()} == {
        "plate": {"Week1_22123"}, "well": {"B02"}, "site": {"s1"},
    }  # fmt: skip
    identity = import_embeddings(catalog, table, "deepprofiler_cnn")
    found = aggregate(catalog, identity, "well")
    with np.load(path) as file:
        np.testing.assert_allclose(
            found["vector"][0].as_py(), file["features"].mean(axis=0, dtype=np.float64), rtol=1e-6
        )
    assert found["n_crops"].to_pylist() == [206]
    assert not append_profiles(catalog, [identity])


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "parquet", "semicolon.csv"])
def test_a_table_of_profiles_is_read_from_every_kind_of_file(catalog, tmp_path, kind):
    frame = well_table()
    path = tmp_path / f"profiles.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep={"tsv": "\t", "semicolon.csv": ";"}.get(kind, ","))
    found = read_external([path])
    whole = read_profiles(as_parquet(frame, tmp_path, "whole"))
    assert found.labels == whole.labels
    np.testing.assert_allclose(found.vectors, whole.vectors, rtol=1e-6)
    assert import_embeddings(catalog, found, "their_model")


def test_cellprofilers_numbers_of_objects_and_images_are_no_features(tmp_path):
    frame = pd.DataFrame(
        {
            "Image_Metadata_Plate": ["0012"], "Image_Metadata_Well": ["A01"], "ImageNumber": [1], "ObjectNumber": [2],
            "Cells_Number_Object_Number": [3], "Cells_Parent_Nuclei": [4], "Cells_AreaShape_Area": [5.0],
            "Nuclei_Texture_1": [6.0], "Image_Quality": [7.0],
        }
    )  # fmt: skip
    path = tmp_path / "cells.csv"
    frame.to_csv(path, index=False)
    found = read_profiles(path)
    assert found.labels == {"plate": ("0012",), "well": ("A01",)}
    np.testing.assert_array_equal(found.vectors, [[5.0, 6.0]])


def test_barcodes_and_positions_are_found_by_their_usual_names(tmp_path):
    frame = pd.DataFrame({"Metadata_Assay_Plate_Barcode": ["P"], "Metadata_well_position": ["A01"], "f": [1.0]})
    assert read_profiles(as_parquet(frame, tmp_path)).labels == {"plate": ("P",), "well": ("A01",)}


def test_features_that_lack_values_are_left_out_only_on_request(tmp_path):
    frame = well_table()
    frame["gap"] = [np.nan, *range(1, len(frame))]
    path = as_parquet(frame, tmp_path)
    with pytest.raises(ValueError, match="--leave-out-missing"):
        read_external([path])
    found = read_external([path], leave_out_missing=True)
    assert found.n_left_out == 1
    np.testing.assert_array_equal(found.vectors, read_profiles(as_parquet(well_table(), tmp_path, "whole")).vectors)


def test_an_imported_profile_of_wells_is_probed_and_its_scores_are_there_once(catalog, tmp_path):
    wells = planted_wells()
    frame = well_table().join(pd.get_dummies(pd.Series([well["perturbation"] for well in wells])).astype(np.float32))
    identity = import_embeddings(catalog, read_profiles(as_parquet(frame, tmp_path)), "knows_the_answer")
    config = ProbeConfig(label="perturbation", regularisation=(10.0,))
    result = probe_stored(catalog, identity, config)
    assert result.summary[WELL_METRIC].value == 1.0
    n_rows = catalog.table("scores").num_rows
    assert n_rows == len(result.rows) > 0
    probe_stored(catalog, identity, config)
    assert catalog.table("scores").num_rows == n_rows
