"""Compound-gene activity on maps whose targets are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cytolake.benchmark.compound_gene import (
    CompoundGeneConfig,
    CompoundGeneResult,
    auroc,
    average_precision,
    compound_gene_activity,
)

CONFIG = CompoundGeneConfig(n_seeds=20, bootstrap_draws=200)
N_GENES, N_COMPOUNDS, DIM = 60, 12, 32
CONCENTRATIONS = (0.1, 1.0, 10.0)


def make_map(strength=0.0, seed=0):
    """Compound i acts on genes 2 i and 2 i + 1, at the middle concentration and against their direction."""
    random = np.random.default_rng(seed)
    genes = random.normal(size=(N_GENES, DIM))
    compounds, concentrations, vectors = [], [], []
    for i in range(N_COMPOUNDS):
        for at in CONCENTRATIONS:
            compounds.append(f"compound {i:02d}")
            concentrations.append(at)
            effect = -strength * (genes[2 * i] + genes[2 * i + 1]) if at == 1.0 else 0.0
            vectors.append(random.normal(size=DIM) + effect)
    return np.asarray(vectors), compounds, concentrations, genes, [f"G{i:02d}" for i in range(N_GENES)]


def make_truth(*more: tuple[str, str, float]) -> pa.Table:
    """Each compound has two targets; every gene is in the truth, of compounds that the map does not hold."""
    rows = [(f"compound {i:02d}", f"G{2 * i + k:02d}", 0.5) for i in range(N_COMPOUNDS) for k in range(2)]
    rows += [("elsewhere", f"G{i:02d}", 0.01) for i in range(N_GENES)]
    rows += more
    return pa.table(dict(zip(("compound", "gene", "activity_um"), map(list, zip(*rows, strict=True)), strict=True)))


def score(strength=0.0, truth=None, config=CONFIG, seed=0) -> CompoundGeneResult:
    return compound_gene_activity(*make_map(strength, seed), make_truth() if truth is None else truth, config)


def of_compound(result, compound, concentration="max"):
    rows = result.compounds.to_pylist()
    return next(r for r in rows if (r["compound"], r["concentration"]) == (compound, concentration))


@pytest.mark.parametrize("n_levels", [3, 1000])
def test_the_metrics_are_those_of_scikit_learn_with_ties_and_without(n_levels):
    random = np.random.default_rng(0)
    is_active = random.random(30) < 0.3
    scores = random.integers(0, n_levels, size=(15, 30)) / n_levels
    expected = [(average_precision_score(is_active, row), roc_auc_score(is_active, row)) for row in scores]
    found = np.stack([average_precision(scores, is_active), auroc(scores, is_active)], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_known_small_answers():
    """Of the published tests: .75 and .5 for a target first and last, .5 and .5 for ties."""
    is_active = np.asarray([True, False, False, True])
    scores = np.asarray([[0.9, 0.8, 0.3, 0.2], [0.8, 0.8, 0.8, 0.8]])
    assert average_precision(scores, is_active).tolist() == [0.75, 0.5]
    assert auroc(scores, is_active).tolist() == [0.5, 0.5]


def test_planted_targets_rank_first_at_the_concentration_that_acts_and_in_the_maximum():
    result = score(strength=5.0)
    mean_ap = {
        row["concentration"]: row["value"]
        for row in result.summary.to_pylist()
        if row["metric"] == "average_precision" and row["average"] == "mean"
    }
    assert list(mean_ap) == ["max", "0.1", "1", "10"]
    assert mean_ap["1"] > 0.9
    assert mean_ap["max"] == result.average_precision.value > 0.75
    assert mean_ap["0.1"] < 0.4
    assert result.z_score > 10
    assert result.auroc.value == 1.0
    assert result.auroc.low > 0.7  # Wilson's bound of a dozen compounds that all rank their targets first


def test_noise_scores_as_the_random_baseline_does():
    results = [score(seed=seed) for seed in range(5)]
    baseline = [row for r in results for row in r.summary.to_pylist() if row["metric"] == "auroc"]
    assert np.mean([row["baseline"] for row in baseline]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([r.auroc.value for r in results]) == pytest.approx(0.5, abs=0.07)
    assert results[0].average_precision.low < results[0].average_precision.value < results[0].average_precision.high


def test_the_score_of_one_compound_by_hand():
    """All that is no target is drawn, so that nothing is left to chance."""
    truth = make_truth()
    config = dataclasses.replace(CONFIG, min_negatives=N_GENES - 2)
    vectors, compounds, concentrations, genes, names = make_map(strength=1.0)
    result = compound_gene_activity(vectors, compounds, concentrations, genes, names, truth, config)
    own = [i for i, compound in enumerate(compounds) if compound == "compound 03"]
    unit = genes / np.linalg.norm(genes, axis=1, keepdims=True)
    cosines = np.abs(vectors[own] @ unit.T / np.linalg.norm(vectors[own], axis=1, keepdims=True)).max(axis=0)
    is_target = np.isin(names, ["G06", "G07"])
    row = of_compound(result, "compound 03")
    assert row["average_precision"] == pytest.approx(average_precision_score(is_target, cosines), abs=1e-12)
    assert row["auroc"] == pytest.approx(roc_auc_score(is_target, cosines), abs=1e-12)
    assert (row["n_active"], row["n_negative"]) == (2, N_GENES - 2)


def test_activities_between_the_thresholds_are_neither_and_the_best_entry_counts():
    base = of_compound(score(), "compound 00")
    assert (base["n_active"], base["n_negative"]) == (2, 20)
    more = [
        ("compound 00", "G30", 1.0),  # at the threshold: a target
        ("compound 00", "G31", 5.0),
        ("compound 00", "G32", 10.0),
        ("compound 00", "G33", 10.1),  # no target
        ("compound 00", "G34", 500.0),
        ("compound 00", "G34", 0.2),  # the better of two
        ("compound 00", "G00", 5.0),  # a target stays one
    ]
    config = dataclasses.replace(CONFIG, min_negatives=N_GENES - 4 - 2)
    row = of_compound(score(truth=make_truth(*more), config=config), "compound 00")
    assert row["n_active"] == 4
    assert row["average_precision"] is not None
    short = dataclasses.replace(CONFIG, min_negatives=N_GENES - 4 - 1)
    assert (
        "54 genes are no targets, expected at least 55"
        in (of_compound(score(truth=make_truth(*more), config=short), "compound 00")["reason"])
    )


def test_more_targets_take_more_negatives():
    many = [("compound 00", f"G{i:02d}", 0.1) for i in range(15)]
    row = of_compound(score(truth=make_truth(*many)), "compound 00")
    assert (row["n_active"], row["n_negative"]) == (15, 30)


def test_replicate_rows_count_as_their_mean():
    vectors, compounds, concentrations, genes, names = make_map(strength=1.0)
    noise = np.random.default_rng(1).normal(size=vectors.shape)
    twice = compound_gene_activity(
        np.concatenate([vectors + noise, vectors - noise]),
        compounds * 2,
        concentrations * 2,
        np.concatenate([genes, genes]),
        names * 2,
        make_truth(),
        CONFIG,
    )
    once = compound_gene_activity(vectors, compounds, concentrations, genes, names, make_truth(), CONFIG)
    assert twice.average_precision.value == pytest.approx(once.average_precision.value, abs=1e-12)


def test_sign_scale_and_row_order_do_not_matter_nor_do_other_compounds():
    vectors, compounds, concentrations, genes, names = make_map(strength=1.0)
    expected = of_compound(score(strength=1.0), "compound 05")
    order = np.random.default_rng(2).permutation(len(vectors))
    order = [i for i in order if compounds[i] in ("compound 05", "compound 06")]
    result = compound_gene_activity(
        -3 * vectors[order],
        [compounds[i] for i in order],
        [concentrations[i] for i in order],
        genes,
        names,
        make_truth(),
        CONFIG,
    )
    row = of_compound(result, "compound 05")
    assert row["average_precision"] == pytest.approx(expected["average_precision"], abs=1e-12)
    assert row["baseline_auroc"] == expected["baseline_auroc"]
    assert result.n_not_in_map == {"compounds": N_COMPOUNDS - 2 + 1, "genes": 0}


def test_a_seed_repeats_a_run_and_another_draws_other_negatives():
    first, again, other = score(), score(), score(config=dataclasses.replace(CONFIG, seed=1))
    assert first.compounds.equals(again.compounds)
    assert first.average_precision.value != other.average_precision.value


def test_genes_and_compounds_that_the_map_lacks_are_counted_and_never_drawn():
    result = score(truth=make_truth(("compound 00", "ABSENT", 0.1), ("nobody", "G00", 0.1)))
    assert result.n_not_in_map == {"compounds": 2, "genes": 1}
    assert of_compound(result, "compound 00")["n_active"] == 2


def test_a_compound_without_targets_says_so_and_is_not_counted():
    truth = make_truth(("compound 11", "G00", 20.0))
    columns = truth.to_pylist()
    truth = pa.Table.from_pylist(
        [r for r in columns if not (r["compound"] == "compound 11" and r["activity_um"] < 1)], schema=truth.schema
    )
    result = score(truth=truth)
    assert of_compound(result, "compound 11")["reason"] == "no gene of the map with an activity up to 1 uM"
    assert of_compound(result, "compound 11")["average_precision"] is None
    assert result.summary["n_compounds"][0].as_py() == N_COMPOUNDS - 1


def test_constant_vectors_score_what_ties_score_and_integers_work():
    vectors, compounds, concentrations, genes, names = make_map()
    flat = compound_gene_activity(
        np.ones(vectors.shape, np.int8),
        compounds,
        concentrations,
        np.ones(genes.shape, int),
        names,
        make_truth(),
        CONFIG,
    )
    assert flat.auroc.value == 0.5
    assert flat.average_precision.value == pytest.approx(2 / 22)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("compound 00", "G00", math.nan), "activity nan uM"),
        (("compound 00", "G00", 0.0), "activity 0.0 uM"),
        (("compound 00", None, 1.0), "gene None"),
    ],
)
def test_a_truth_that_cannot_be_read_names_its_row(row, message):
    with pytest.raises(ValueError, match=rf"row {2 * N_COMPOUNDS + N_GENES} of the truth: .*{message}"):
        score(truth=make_truth(row))


def test_inputs_that_do_not_fit_are_refused():
    vectors, compounds, concentrations, genes, names = make_map()
    with pytest.raises(ValueError, match=r"expected compound, gene, activity_um\. Rename"):
        score(truth=make_truth().drop_columns(["activity_um"]))
    with pytest.raises(ValueError, match="concentration nan uM"):
        compound_gene_activity(vectors, compounds, [math.nan] * 36, genes, names, make_truth(), CONFIG)
    with pytest.raises(ValueError, match="36 compounds and 35 concentrations"):
        compound_gene_activity(vectors, compounds, concentrations[:35], genes, names, make_truth(), CONFIG)
    with pytest.raises(ValueError, match="gene vectors of shape"):
        compound_gene_activity(vectors, compounds, concentrations, genes[:7], names, make_truth(), CONFIG)
    with pytest.raises(ValueError, match="32 features and gene vectors of 5"):
        compound_gene_activity(vectors, compounds, concentrations, genes[:, :5], names, make_truth(), CONFIG)
    broken = vectors.copy()
    broken[4, 1] = np.inf
    with pytest.raises(ValueError, match="compound vector 4 of 36 is not finite"):
        compound_gene_activity(broken, compounds, concentrations, genes, names, make_truth(), CONFIG)
    with pytest.raises(ValueError, match=r"no compound of 13 in the truth can be scored: 13 are not in the map"):
        compound_gene_activity(vectors, ["x"] * 36, concentrations, genes, names, make_truth(), CONFIG)


@pytest.mark.parametrize(
    ("field", "value"), [("active_up_to_um", 0.0), ("inactive_above_um", 0.5), ("n_seeds", 1), ("min_negatives", 0)]
)
def test_a_compound_gene_setting_that_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        CompoundGeneConfig(**{field: value})
