"""Reading a screen, its split and its alignment."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from scipy import sparse

from cytolake.benchmark.transcriptomics.perturbation_split import downsample, split_screen
from cytolake.benchmark.transcriptomics.post_processing import post_process
from cytolake.benchmark.transcriptomics.screen import (
    CONTROL,
    ScreenSpec,
    group_means,
    load_screen,
    log_normalise,
    need_features,
)


@pytest.mark.slow
def test_counts_become_log_normalised_and_stay_sparse_and_the_data_stay_as_they_were(data, screen):
    before = data.X.copy()
    counts = data.X.toarray().astype(np.float64)
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    assert sparse.issparse(screen.features)
    np.testing.assert_allclose(screen.features.toarray(), expected, rtol=1e-5)
    np.testing.assert_array_equal(screen.counts.toarray(), counts)
    assert (before != data.X).nnz == 0
    np.testing.assert_allclose(screen.dense_rows(np.asarray([5, 3])), expected[[5, 3]], rtol=1e-5)


@pytest.mark.slow
def test_reading_counts_leaves_the_threads_of_torch_as_they_are(data, spec):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    load_screen(data, spec)
    try:
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_file_a_layer_and_dense_values_give_the_same_screen(data, screen, spec, tmp_path):
    path = tmp_path / "screen.h5ad"
    data.write_h5ad(path)
    np.testing.assert_array_equal(load_screen(path, spec).features.toarray(), screen.features.toarray())
    other = data.copy()
    other.layers["counts"], other.X = data.X.toarray(), np.zeros(data.shape, np.float32)
    from_layer = load_screen(other, dataclasses.replace(spec, layer="counts"))
    assert not sparse.issparse(from_layer.features)
    np.testing.assert_allclose(from_layer.features, screen.features.toarray(), rtol=1e-6)


def test_any_control_label_works_and_is_no_perturbation(data, spec):
    for label in ("true", "non-targeting", "Non-targeting control"):
        renamed = data.copy()
        renamed.obs["target"] = renamed.obs["target"].astype(str).replace(spec.control, label)
        screen = load_screen(renamed, dataclasses.replace(spec, control=label))
        assert screen.is_control.sum() == (data.obs["target"] == spec.control).sum()
        assert label not in screen.perturbations
        assert len(screen.perturbations) == 8


def test_features_of_another_modality_are_taken_as_they_are(data, spec):
    images = data.copy()
    images.X = np.random.default_rng(0).normal(size=data.shape).astype(np.float32)
    screen = load_screen(images, dataclasses.replace(spec, values="features"))
    np.testing.assert_array_equal(screen.features, images.X)
    assert screen.counts is None


def test_a_key_of_obsm_can_be_the_matrix_and_features_of_several_units_be_scaled(data, spec):
    units = np.asarray([1e-3, 1.0, 1e6, 1.0])
    images = data.copy()
    images.obsm["pixels"] = np.random.default_rng(0).normal(size=(len(data), 4)) * units + 2 * units
    images.obsm["pixels"][:, 3] = 0.1
    of_images = dataclasses.replace(spec, matrix_key="pixels", values="features")
    screen = load_screen(images, of_images)
    np.testing.assert_allclose(screen.features, images.obsm["pixels"], rtol=1e-6)
    assert screen.feature_names == ("pixels_0", "pixels_1", "pixels_2", "pixels_3")
    scaled = load_screen(images, dataclasses.replace(of_images, values="scaled")).features
    expected = (screen.features - screen.features.mean(axis=0)) / screen.features.std(axis=0)
    np.testing.assert_allclose(scaled[:, :3], expected[:, :3], atol=1e-4)
    assert not scaled[:, 3].any()
    with pytest.raises(ValueError, match=r"spec\.layer is 'a' and spec\.matrix_key is 'pixels', expected one"):
        dataclasses.replace(of_images, layer="a")


def test_embeddings_without_a_matrix_are_a_screen_but_for_what_needs_features(data, spec):
    bare = type(data)(obs=data.obs, obsm={"model": data.obsm["model"]})
    screen = load_screen(bare, dataclasses.replace(spec, values="features"))
    np.testing.assert_array_equal(screen.embeddings["model"], data.obsm["model"])
    with pytest.raises(ValueError, match=r"reconstruction needs features.*--matrix-key"):
        need_features(screen, "reconstruction")
    with pytest.raises(ValueError, match=r"X is empty.*--values features"):
        load_screen(bare, spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbation": "gene"}, r"no column 'gene', found target, gem.*--perturbation"),
        ({"batch": "plate"}, r"no column 'plate'.*--batch"),
        ({"control": "DMSO"}, r"column target: no row is 'DMSO', found .*control \(.* rows\).*--control"),
        ({"layer": "raw"}, r"no layer 'raw', found none.*--layer"),
        ({"gene_name": "symbol"}, r"no column 'symbol'.*spec\.gene_name"),
        ({"embeddings": ("X_uce",)}, r"no obsm 'X_uce', found model.*--obsm"),
    ],
)
def test_what_is_not_in_the_data_is_named(data, spec, change, message):
    with pytest.raises(ValueError, match=message):
        load_screen(data, dataclasses.replace(spec, **change))


def test_a_control_that_is_not_there_is_answered_with_similar_and_frequent_values(data, spec):
    data = data.copy()
    names = data.obs["target"].astype(str).to_numpy()
    names[names == spec.control] = "zz-non-targeting"  # last of the alphabet
    data.obs["target"] = names
    most = data.obs["target"].value_counts()
    with pytest.raises(ValueError, match="no row is 'Non-Targeting', found zz-non-targeting") as failed:
        load_screen(data, dataclasses.replace(spec, control="Non-Targeting"))
    assert f"{most.index[0]} ({most.iloc[0]:,} rows)" in str(failed.value)


def test_bad_values_are_refused_with_their_place(data, spec, tmp_path):
    with pytest.raises(ValueError, match=r"no such file, expected a \.h5ad"):
        load_screen(tmp_path / "missing.h5ad", spec)
    logs = data.copy()
    logs.X = logs.X * 0.5
    with pytest.raises(ValueError, match=r"is no count.*--values features"):
        load_screen(logs, spec)
    empty = data.X.tolil()
    empty[7] = 0
    with pytest.raises(ValueError, match="1 rows have no counts at all, the first is row 7"):
        log_normalise(empty.tocsr())
    wrong = data.copy()
    wrong.obsm["model"] = np.full(wrong.obsm["model"].shape, np.nan, np.float32)
    with pytest.raises(ValueError, match=r"vector of model not finite, the first is row 0.*Compute"):
        load_screen(wrong, spec)
    nan = data.copy()
    nan.X.data[:] = np.nan
    with pytest.raises(ValueError, match="values of the matrix that are not finite"):
        load_screen(nan, spec)
    one = data[np.isin(data.obs["target"], [spec.control, "gene0"])].copy()
    with pytest.raises(ValueError, match="1 perturbations and the control"):
        load_screen(one, spec)


def test_a_cell_that_lacks_something_costs_its_own_row_and_is_reported_by_name(data, spec, screen):
    faulty = data.copy()
    faulty.obs["target"] = faulty.obs["target"].astype(str).where(~np.isin(np.arange(len(data)), [4, 6]), "")
    faulty.obs["gem"] = faulty.obs["gem"].where(np.arange(len(data)) != 2)
    counts = faulty.X.tolil()
    counts[7] = 0
    counts[4] = 0  # lacks two things, and is counted once
    faulty.X = counts.tocsr()
    faulty.X[9, 0] = np.nan
    faulty.obsm["model"] = faulty.obsm["model"].copy()
    faulty.obsm["model"][11, 0] = np.inf
    found = load_screen(faulty, spec)
    lost = [2, 4, 6, 7, 9, 11]
    assert {each.reason: each.names for each in found.excluded} == {
        "no value in target": ("cell4", "cell6"), "no value in gem": ("cell2",), "no counts at all": ("cell7",),
        "values of the matrix that are not finite": ("cell9",), "vector of model not finite": ("cell11",),
    }  # fmt: skip
    assert str(found.excluded[0]) == "2 rows left out, no value in target: cell4, cell6"
    kept = np.setdiff1d(np.arange(len(data)), lost)
    assert found.n_rows == len(data) - 6
    np.testing.assert_array_equal(found.counts.toarray(), data.X[kept].toarray())
    np.testing.assert_array_equal(found.embeddings["model"], screen.embeddings["model"][kept])
    np.testing.assert_array_equal(found.perturbation_of_row, screen.perturbation_of_row[kept])
    np.testing.assert_array_equal(found.batch_of_row, screen.batch_of_row[kept])
    assert screen.excluded == ()


def pairs(data, spec):
    """Rows 0 to 3 have two guides, in either order; row 4 a guide and the control; row 5 one guide twice."""
    changed = data.copy()
    labels = changed.obs["target"].astype(str).to_numpy().copy()
    labels[:6] = ["gene0|gene1", "gene1|gene0", "gene0 | gene1", "gene1|gene2", f"gene3|{spec.control}", "gene4|gene4"]
    changed.obs["target"] = labels
    return changed


def test_rows_of_several_guides_are_left_out_combined_or_counted_for_each_as_declared(data, spec):
    changed = pairs(data, spec)
    found = {
        several: load_screen(changed, dataclasses.replace(spec, separator="|", several=several))
        for several in ("exclude", "combination", "each")
    }
    for screen in found.values():
        names = np.asarray([*screen.perturbations, spec.control])[screen.perturbation_of_row]
        assert {"gene3", "gene4"} <= set(names[:10].tolist())
    assert str(found["exclude"].excluded[0]).startswith("4 rows left out, several perturbations: cell0, cell1, cell2")
    assert found["exclude"].n_rows == len(data) - 4
    combined = found["combination"]
    assert combined.n_rows == len(data)
    assert set(combined.perturbations) - set(found["exclude"].perturbations) == {"gene0|gene1", "gene1|gene2"}
    assert (combined.perturbation_of_row == combined.perturbations.index("gene0|gene1")).sum() == 3
    assert combined.notes == ("4 rows with several perturbations: counted as perturbations of their own",)
    each = found["each"]
    assert each.n_rows == len(data) + 4
    assert each.perturbations == found["exclude"].perturbations
    np.testing.assert_array_equal(each.embeddings["model"][0], each.embeddings["model"][1])


def test_guides_in_several_columns_are_read_as_those_in_one(data, spec):
    changed = pairs(data, spec)
    one = load_screen(changed, dataclasses.replace(spec, separator="|", several="combination"))
    halves = [value.partition("|") for value in changed.obs["target"]]
    changed.obs["target"] = [first.strip() for first, _, _ in halves]
    changed.obs["second"] = [second.strip() or None for _, _, second in halves]
    two = load_screen(changed, dataclasses.replace(spec, more_perturbations=("second",), several="combination"))
    assert [name.replace("+", "|") for name in two.perturbations] == list(one.perturbations)
    np.testing.assert_array_equal(two.perturbation_of_row, one.perturbation_of_row)


def test_labels_that_look_like_several_perturbations_are_reported_where_no_separator_is_declared(data, spec):
    screen = load_screen(pairs(data, spec), spec)
    assert len(screen.notes) == 1
    assert "whose parts are perturbations too" in screen.notes[0]
    assert "set separator='|'" in screen.notes[0]
    assert load_screen(data, spec).notes == ()


@pytest.mark.parametrize(("field", "value"), [("control", ""), ("values", "logs"), ("several", "both")])
def test_a_spec_that_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"spec\.{field}"):
        ScreenSpec(**{"perturbation": "a", "control": "b", "batch": "c", field: value})


def test_without_scanpy_the_error_says_how_to_get_it(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(ImportError, match=r"pip install 'cytolake\[transcriptomics\]'"):
        log_normalise(data.X)


def test_group_means_are_those_of_a_loop_and_nan_for_an_empty_group():
    random = np.random.default_rng(0)
    values, groups = random.normal(size=(40, 3)), random.integers(-1, 4, 40)
    for given in (values, sparse.csr_matrix(values)):
        means = group_means(given, groups, 5)
        for group in range(4):
            np.testing.assert_allclose(means[group], values[groups == group].mean(axis=0))
        assert np.isnan(means[4]).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_split_holds_out_batches_and_perturbations_whole(screen, seed):
    split = split_screen(screen, seed)
    batch, perturbation = screen.batch_of_row, screen.perturbation_of_row
    assert len(split.train_batches) == 3
    assert len(split.train_perturbations) == 6
    for row in range(screen.n_rows):
        seen = batch[row] in split.train_batches
        known, control = perturbation[row] in split.train_perturbations, perturbation[row] == CONTROL
        assert (row in split.train) == (seen and (known or control))
        assert (row in split.test1) == (not seen and (known or control))
        assert (row in split.test2) == (not seen and not known)
    again = split_screen(screen, seed)
    np.testing.assert_array_equal(split.train, again.train)


def test_seeds_give_different_splits(screen):
    assert len({tuple(split_screen(screen, seed).train_perturbations.tolist()) for seed in range(5)}) > 2


def test_a_perturbation_that_training_lacks_is_not_tested(data, spec):
    screen = load_screen(data, spec)
    split = split_screen(screen, 0)
    gone = int(split.train_perturbations[0])
    in_train = np.isin(screen.batch_of_row, split.train_batches)
    kept = ~((screen.perturbation_of_row == gone) & in_train)
    fewer = load_screen(data[kept].copy(), spec)
    assert fewer.perturbations == screen.perturbations
    again = split_screen(fewer, 0)
    assert gone in again.train_perturbations
    for part in (again.train, again.test1, again.test2):
        assert gone not in fewer.perturbation_of_row[part]


def test_one_batch_cannot_be_split(data, spec):
    one = load_screen(data[data.obs["gem"] == "b0"].copy(), spec)
    with pytest.raises(ValueError, match=r"has 1 batch \(b0\), expected 2 or more"):
        split_screen(one, 0)


def test_downsampling_keeps_as_many_as_it_says_by_batch_and_not_the_others():
    rows, strata = np.arange(1000, 2500), np.repeat([0, 1, 2], [1000, 400, 100])
    kept = downsample(rows, strata, 300, seed=1)
    assert len(kept) == len(set(kept.tolist())) == 300
    assert np.bincount(strata[kept - 1000]).tolist() == [200, 80, 20]
    np.testing.assert_array_equal(downsample(rows, strata, 1500, seed=1), rows)
    for size in (1, 7, 1499):
        assert len(downsample(rows, strata, size, seed=2)) == size
    chosen = np.concatenate([downsample(rows, strata, 300, seed=seed) for seed in range(60)])
    assert len(np.unique(chosen)) == 1500  # any row can be drawn


def test_alignment_puts_the_controls_of_each_batch_at_the_origin(screen):
    vectors = screen.embeddings["model"]
    for method, deviation in (("centred", None), ("centre_scaled", 1.0)):
        aligned = post_process(screen, vectors, method).astype(np.float64)
        for batch in range(len(screen.batches)):
            controls = aligned[(screen.batch_of_row == batch) & screen.is_control]
            np.testing.assert_allclose(controls.mean(axis=0), 0, atol=1e-5)
            if deviation:
                np.testing.assert_allclose(controls.std(axis=0), deviation, rtol=1e-5)
    np.testing.assert_array_equal(post_process(screen, vectors, "none"), vectors)
    shifted = vectors + 5 * screen.batch_of_row[:, None].astype(np.float32)
    np.testing.assert_allclose(
        post_process(screen, shifted, "centred"), post_process(screen, vectors, "centred"), atol=1e-4
    )


def test_tvn_of_each_batch_removes_its_mean_and_the_published_one_does_not(screen):
    vectors = screen.embeddings["model"] + 5 * screen.batch_of_row[:, None].astype(np.float32)
    largest = {}
    for method in ("tvn", "tvn_vcb"):
        aligned = post_process(screen, vectors, method).astype(np.float64)
        means = [
            aligned[(screen.batch_of_row == batch) & screen.is_control].mean(axis=0)
            for batch in range(len(screen.batches))
        ]
        largest[method] = np.abs(means).max()
    assert largest["tvn_vcb"] < 1e-4
    assert largest["tvn"] > 0.1


def test_a_constant_dimension_is_not_blown_up(screen):
    vectors = np.full((screen.n_rows, 2), 0.1, np.float32)
    np.testing.assert_allclose(post_process(screen, vectors, "centre_scaled"), 0, atol=1e-6)


def test_another_alignment_is_plugged_in_by_name_and_its_result_checked(screen):
    vectors = screen.embeddings["model"]
    double = {"tvn": lambda vectors, batches, is_control: 2 * vectors}
    np.testing.assert_array_equal(post_process(screen, vectors, "tvn", double), 2 * vectors)
    with pytest.raises(ValueError, match=r"'tvn3' is unknown, expected one of none, centred, centre_scaled, tvn"):
        post_process(screen, vectors, "tvn3")
    with pytest.raises(ValueError, match=r"post-processing tvn: of .* Expected a finite vector"):
        post_process(screen, vectors, "tvn", {"tvn": lambda vectors, batches, is_control: vectors[1:]})


def test_a_batch_without_controls_cannot_be_aligned(data, spec):
    kept = ~((data.obs["gem"] == "b1") & (data.obs["target"] == spec.control)).to_numpy()
    screen = load_screen(data[kept].copy(), spec)
    with pytest.raises(ValueError, match=r"1 of 4 batches have too few negative controls for centre: b1"):
        post_process(screen, screen.embeddings["model"], "centred")
