"""The six tasks together, on a simulated screen whose embeddings can be ranked."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest

from cytolake.benchmark.transcriptomics import (
    SCHEMA,
    TASKS,
    DecoderConfig,
    EmbeddingConfig,
    ScviConfig,
    TranscriptomicsConfig,
    difference,
    score_embeddings,
    scores_table,
)
from cytolake.benchmark.transcriptomics.embeddings import embed, principal_components, variable_genes
from cytolake.benchmark.transcriptomics.perturbation_signal import targets_of
from cytolake.benchmark.transcriptomics.screen import load_screen
from cytolake.statistics.false_discovery import benjamini_hochberg

CONFIG = TranscriptomicsConfig(
    embedding=EmbeddingConfig(n_components=10, random_width=16),
    decoder=DecoderConfig(epochs=10, warm_up_epochs=2, learning_rate=3e-3, minibatch_size=64),
    perplexity=12,
    mixing_rows="all",
    n_neighbours=21,
    signal_draws=39,
    bootstrap_draws=100,
)
RELATIONS = {"programmes": [(f"gene{2 * i}", f"gene{2 * i + 1}") for i in range(4)]}


def benchmark_embeddings(*args, **kwargs):
    return scores_table(score_embeddings(*args, **kwargs))


@pytest.fixture(scope="module")
def table(data, spec):
    names = ["pca", "random", "scrambled_pca", "scrambled_pca_within_batch", "model"]
    return benchmark_embeddings(data, spec, names, seeds=(0, 1), relations=RELATIONS, config=CONFIG)


def value(table, embedding, metric, seed=-1, task=None):
    """Of one row; `top1` is a metric of two tasks."""
    found = [
        row["value"]
        for row in table.to_pylist()
        if (row["embedding"], row["metric"], row["seed"]) == (embedding, metric, seed) and task in (None, row["task"])
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
def test_the_table_has_every_embedding_task_and_seed_and_their_mean(table):
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    assert {row["task"] for row in rows} == set(TASKS)
    keys = [(row["embedding"], row["post_processing"], row["task"], row["metric"], row["seed"]) for row in rows]
    assert len(keys) == len(set(keys))
    for row in rows:
        of_seeds = [value(table, row["embedding"], row["metric"], seed, row["task"]) for seed in (0, 1)]
        if row["seed"] == -1:
            assert row["value"] == pytest.approx(np.mean(of_seeds))
        if row["ci_low"] is not None:
            assert row["ci_low"] <= row["value"] + 0.05
            assert row["ci_high"] >= row["value"] - 0.05
        assert row["n"] >= 1


@pytest.mark.parametrize("noise", ["random", "scrambled_pca", "scrambled_pca_within_batch"])
@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("linear_separability", "top1"),
        ("linear_separability", "top1_standardised"),
        ("nearest_neighbours", "top1"),
        ("known_relations", "recall_programmes"),
        ("perturbation_signal", "consistent_share"),
        ("perturbation_signal", "distinct_share"),
        ("reconstruction", "r2"),
        ("reconstruction", "pearson"),
        ("reconstruction", "structural_integrity_profiles"),
    ],
)
def test_principal_components_beat_noise_where_biology_is_scored(table, task, metric, noise):
    assert value(table, "pca", metric, task=task) > value(table, noise, metric, task=task)


def test_noise_scores_as_guessing_does(table):
    for noise in ("random", "scrambled_pca", "scrambled_pca_within_batch"):
        assert value(table, noise, "balanced_top1_standardised") == pytest.approx(1 / 6, abs=0.09)
        assert value(table, noise, "pearson") == pytest.approx(0, abs=0.1)
        assert value(table, noise, "consistent_share") <= 0.25


def dominated(data):
    """A screen whose rows are mostly controls: 9 of 10."""
    import anndata

    is_control = (data.obs["target"] == "Non-targeting control").to_numpy()
    controls = data[np.flatnonzero(is_control)]
    more = anndata.concat([data, *[controls] * 35], index_unique="-")
    random = np.random.default_rng(0)
    more.obsm["noise"] = random.normal(size=(len(more), 8)).astype(np.float32)
    return more


def test_where_most_rows_are_controls_chance_stands_with_every_score_and_the_balanced_one_shows_no_skill(data, spec):
    """top1 of noise is what guessing the control gives; only with its chance can anyone see that."""
    more = dominated(data)
    spec = dataclasses.replace(spec, embeddings=("noise",))
    rows = benchmark_embeddings(more, spec, ["noise"], ["nearest_neighbours"], (0, 1, 2), config=CONFIG).to_pylist()
    of = {row["metric"]: row for row in rows if row["seed"] == -1}
    assert of["top1"]["value"] > 0.85
    assert of["top1"]["chance_majority"] == pytest.approx(of["top1"]["value"], abs=0.02)
    n_classes = 7  # 6 of the 8 perturbations are seen, and the control
    assert of["top1"]["chance"] == pytest.approx(1 / n_classes)
    assert of["top5"]["chance"] == pytest.approx(5 / n_classes)
    for name in ("chance", "chance_majority"):
        assert of["balanced_top1"][name] == pytest.approx(1 / n_classes)
    assert of["balanced_top1"]["ci_low"] <= 1 / n_classes <= of["balanced_top1"]["ci_high"] + 0.02
    assert of["balanced_top5"]["chance"] == pytest.approx(5 / n_classes)


def test_noise_scores_the_chance_that_stands_in_its_row(table):
    rows = [row for row in table.to_pylist() if row["embedding"] == "random" and row["seed"] == -1]
    compared = {
        "balanced_top1_standardised": 0.09, "balanced_top1": 0.09, "top1_standardised": 0.09, "pearson": 0.1,
        "r2": 0.1, "mse": 0.5, "ilisi_normalised": 0.15, "ilisi": 0.2, "consistent_share": 0.2, "distinct_share": 0.2,
    }  # fmt: skip
    for row in rows:
        if row["metric"] in compared:
            assert row["value"] == pytest.approx(row["chance"], abs=compared[row["metric"]]), row["metric"]
    known = {row["metric"] for row in rows if row["chance"] is not None}
    assert {row["metric"] for row in rows} - known <= {"converged", "converged_standardised"}


def test_chance_of_shares_is_the_level_that_permutations_can_reach(data, spec):
    for draws, chance in ((39, 0.05), (49, 0.04), (99, 0.05)):
        config = dataclasses.replace(CONFIG, signal_draws=draws)
        table = benchmark_embeddings(data, spec, ["model"], ["perturbation_signal"], (0,), config=config)
        row = next(row for row in table.to_pylist() if row["metric"] == "distinct_share")
        assert row["chance"] == pytest.approx(chance)


def test_each_perturbation_has_its_test_with_p_q_and_rows(data, spec):
    scored = score_embeddings(data, spec, ["model"], ["perturbation_signal"], (0,), config=CONFIG)
    for each in scored:
        if each.metric not in ("consistent_share", "distinct_share"):
            continue
        targets = each.scores[0].targets
        assert targets.perturbations == tuple(f"gene{i}" for i in range(8))
        assert targets.n_rows.tolist() == [48] * 8
        assert (targets.p_values <= CONFIG.significant).mean() == pytest.approx(each.value)
        np.testing.assert_allclose(targets.q_values, benjamini_hochberg(targets.p_values))
        again = targets_of(json.loads(json.dumps(targets.details())))
        assert again.test == targets.test
        assert again.perturbations == targets.perturbations
        np.testing.assert_allclose(again.values, targets.values, rtol=1e-5)
        np.testing.assert_allclose(again.p_values, targets.p_values, rtol=1e-5)
        np.testing.assert_array_equal(again.n_rows, targets.n_rows)


def test_noise_mixes_batches_best_so_mixing_alone_is_no_merit(table):
    assert value(table, "random", "ilisi_normalised") > value(table, "pca", "ilisi_normalised")
    assert value(table, "scrambled_pca", "ilisi_normalised") == pytest.approx(1, abs=0.1)


def test_the_same_call_gives_the_same_table_and_another_seed_other_noise(data, spec, table):
    again = benchmark_embeddings(
        data, spec, ["random"], ["nearest_neighbours", "perturbation_signal"], (1, 0), config=CONFIG
    )
    for task, metric in (("nearest_neighbours", "top1"), ("perturbation_signal", "consistent_share")):
        for seed in (0, 1):
            assert value(again, "random", metric, seed) == value(table, "random", metric, seed, task)
    assert value(table, "random", "pearson", 0) != value(table, "random", "pearson", 1)


def test_controls_never_enter_relations(data, spec):
    changed = data.copy()
    controls = (changed.obs["target"] == spec.control).to_numpy()
    changed.obsm["model"] = changed.obsm["model"].copy()
    expected, found = (
        benchmark_embeddings(given, spec, ["model"], ["known_relations"], (0,), relations=RELATIONS, config=CONFIG)
        for given in (data, changed)
    )
    changed.obsm["model"][controls] *= -50
    found = benchmark_embeddings(changed, spec, ["model"], ["known_relations"], (0,), relations=RELATIONS)
    assert value(found, "model", "recall_programmes") == value(expected, "model", "recall_programmes")


@pytest.mark.slow
def test_the_same_tasks_run_on_features_of_images(data, spec):
    images = data.copy()
    counts = data.X.toarray()
    images.X = (np.log1p(counts) * 10 - 5).astype(np.float32)  # not counts, and below 0
    images.obsm["model"] = np.log1p(data.obsm["model"])
    of_images = dataclasses.replace(spec, values="features")
    quick = dataclasses.replace(CONFIG, signal_draws=19, decoder=DecoderConfig(epochs=2, warm_up_epochs=1))
    table = benchmark_embeddings(
        images, of_images, ["pca", "model", "random"], seeds=(0,), relations=RELATIONS, config=quick,
        post_processing=("none", "tvn"),
        alignments={"tvn": lambda vectors, batches, is_control: vectors - vectors[is_control].mean(axis=0)},
    )  # fmt: skip
    assert set(table["post_processing"].to_pylist()) == {"none", "tvn"}
    top1 = {
        (row["embedding"], row["post_processing"]): row["value"]
        for row in table.to_pylist()
        if row["metric"] == "top1_standardised" and row["seed"] == 0
    }
    for method in ("none", "tvn"):
        assert min(top1["pca", method], top1["model", method]) > top1["random", method]
    with pytest.raises(ValueError, match=r"embedding scvi needs counts, and spec\.values is 'features'"):
        benchmark_embeddings(images, of_images, ["scvi"], ["perturbation_signal"], config=CONFIG)


def test_named_null_perturbations_add_their_shares(data, spec):
    config = dataclasses.replace(CONFIG, null_perturbations=("gene0", "gene1"))
    table = benchmark_embeddings(data, spec, ["pca"], ["perturbation_signal"], (0,), config=config)
    rows = {row["metric"]: row for row in table.to_pylist() if row["seed"] == 0}
    assert rows["consistent_share"]["n"] == 8
    assert rows["consistent_share_of_named_null"]["n"] == 6


def test_scrambled_rows_leave_their_batch_unless_scrambled_within_it(screen):
    config = EmbeddingConfig(n_components=5)
    pca, whole, within = (
        embed(screen, name, config) for name in ("pca", "scrambled_pca", "scrambled_pca_within_batch")
    )
    batch_of = {tuple(vector): batch for vector, batch in zip(pca.tolist(), screen.batch_of_row, strict=True)}
    for scrambled, keeps in ((whole, False), (within, True)):
        np.testing.assert_array_equal(np.sort(scrambled, axis=0), np.sort(pca, axis=0))
        stays = [batch_of[tuple(v)] == b for v, b in zip(scrambled.tolist(), screen.batch_of_row, strict=True)]
        assert np.mean(stays) == pytest.approx(1 if keeps else 0.25, abs=0.08 * (not keeps))
        assert (scrambled != pca).any(axis=1).mean() > 0.9


def test_principal_components_of_sparse_features_are_those_of_the_dense_ones(screen):
    dense = screen.features.toarray().astype(np.float64)
    scores = principal_components(screen.features, 6)
    centred = dense - dense.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:6].T
    np.testing.assert_allclose(np.abs(scores), np.abs(expected), atol=1e-3 * singular[0])
    assert principal_components(screen.features, 1000).shape == (screen.n_rows, 59)
    with pytest.raises(ValueError, match="have no principal components"):
        principal_components(screen.features[:, :1], 3)


def test_variable_genes_are_selected_and_not_only_named(data, spec):
    noisy = data.copy()
    counts = noisy.X.toarray()
    counts[:, :20] = 10  # as constant as counts can be
    noisy.X = counts
    screen = load_screen(noisy, spec)
    chosen = variable_genes(screen, 25)
    assert len(chosen) == 25
    assert (chosen >= 20).sum() >= 20
    np.testing.assert_array_equal(variable_genes(screen, 60), np.arange(60))
    config = EmbeddingConfig(n_components=5, n_variable=25)
    expected = principal_components(screen.features[:, chosen], 5)
    np.testing.assert_allclose(np.abs(embed(screen, "hvg_pca", config)), np.abs(expected), atol=1e-4)


def test_scvi_widths_follow_the_number_of_genes_to_the_published_ones():
    assert ScviConfig().widths(8000) == ScviConfig().widths(30_000) == (256, 512)
    assert ScviConfig().widths(2000) == (128, 256)
    assert ScviConfig().widths(1) == (8, 8)
    assert ScviConfig(n_latent=5, n_hidden=7).widths(8000) == (5, 7)


def test_without_scvi_the_error_says_how_to_get_it(screen, monkeypatch):
    monkeypatch.setitem(sys.modules, "scvi", None)
    with pytest.raises(ImportError, match=r"pip install 'cytolake\[scvi\]'"):
        embed(screen, "scvi", EmbeddingConfig())


@pytest.mark.filterwarnings("ignore")  # scvi-tools and Lightning warn of what they import
def test_scvi_is_trained_on_counts_and_separates_perturbations(data, spec):
    pytest.importorskip("scvi", reason="the extra cytolake[scvi]", exc_type=ImportError)
    config = dataclasses.replace(
        CONFIG, embedding=EmbeddingConfig(scvi=ScviConfig(n_latent=8, n_hidden=32, epochs=30, minibatch_size=64))
    )
    table = benchmark_embeddings(data, spec, ["scvi", "random"], ["linear_separability"], (0, 1), config=config)
    assert value(table, "scvi", "top1_standardised") > value(table, "random", "top1_standardised") + 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": ["uce"]}, r"embedding 'uce' is unknown.*--obsm"),
        ({"tasks": ["sorting"]}, "tasks sorting: expected some of batch_mixing"),
        ({"tasks": []}, r"tasks \(none\)"),
        ({"seeds": (1, 1)}, r"seeds are \(1, 1\)"),
        ({"tasks": ["known_relations"]}, "has no relations"),
        ({"tasks": ["known_relations"], "relations": {"corum": [("a", "b")]}}, "of corum's pairs none has both ends"),
        ({"post_processing": ("tvn3",)}, "post-processing 'tvn3' is unknown"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(data, spec, change, message):
    arguments = {"embeddings": ["model"], "tasks": ["perturbation_signal"], "seeds": (0,), "config": CONFIG, **change}
    with pytest.raises(ValueError, match=message):
        benchmark_embeddings(data, spec, **arguments)


@pytest.mark.parametrize(
    ("field", "changed"),
    [("mixing_rows", "some"), ("distance", "l1"), ("significant", 1.0), ("signal_draws", 5), ("bootstrap_draws", 0)],
)
def test_a_setting_that_cannot_work_is_refused_by_name(field, changed):
    with pytest.raises(ValueError, match=rf"config\.{field}"):
        TranscriptomicsConfig(**{field: changed})


def test_a_difference_is_resampled_in_pairs(data, spec):
    names = ["pca", "random", "scrambled_pca"]
    pca, noise, other = (
        each
        for each in score_embeddings(data, spec, names, ["linear_separability"], (0, 1), config=CONFIG)
        if each.metric == "balanced_top1_standardised"
    )
    value, low, high = difference(pca, noise)
    assert value == pytest.approx(pca.value - noise.value)
    assert 0 < low < value < high
    assert difference(pca, pca) == (0, 0, 0)
    assert difference(noise, pca)[0] == -value
    value, low, high = difference(noise, other)
    assert low < 0 < high
    elsewhere = dataclasses.replace(noise, seeds=(0, 2))
    with pytest.raises(ValueError, match="are different measurements"):
        difference(pca, elsewhere)
