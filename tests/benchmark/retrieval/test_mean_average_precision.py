"""Means of groups, their p-values, and the two presets."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cytolake.benchmark.retrieval.average_precision import average_precision
from cytolake.benchmark.retrieval.mean_average_precision import bootstrap_over_groups, mean_average_precision
from cytolake.benchmark.retrieval.null_distribution import exact_null, normalise
from cytolake.benchmark.retrieval.pairs import PairRules
from cytolake.benchmark.retrieval.phenotypic import (
    NullConfig,
    phenotypic_activity,
    phenotypic_consistency,
    phenotypic_match,
)


def screen(
    n_perturbations: int, signal: float, *, seed: int, n_plates: int = 4
) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Each plate holds 16 controls and each perturbation once; two perturbations share a mechanism."""
    rng = np.random.default_rng(seed)
    names = [f"p{i}" for i in range(n_perturbations)] + ["control"] * 16
    effects = np.concatenate([np.repeat(rng.normal(size=(n_perturbations // 2, 20)), 2, axis=0), np.zeros((16, 20))])
    table = pa.table(
        {
            "perturbation": names * n_plates,
            "moa": ([f"m{i // 2}" for i in range(n_perturbations)] + ["none"] * 16) * n_plates,
            "plate": np.repeat([f"P{i}" for i in range(n_plates)], len(names)),
        }
    )
    vectors = np.tile(signal * effects, (n_plates, 1)) + rng.normal(size=(len(names) * n_plates, 20))
    return table, vectors, np.asarray(names * n_plates) == "control"


def scored(rows: list[tuple[str, float | None, int, int]]) -> pa.Table:
    group, value, n_positives, n_total = zip(*rows, strict=True)
    normalised = [
        None if each is None else float(normalise(each, p, t))
        for each, p, t in zip(value, n_positives, n_total, strict=True)
    ]
    return pa.table(
        {
            "group": group,
            "average_precision": pa.array(value, pa.float64()),
            "normalised_average_precision": pa.array(normalised, pa.float64()),
            "n_positives": n_positives,
            "n_total": n_total,
        }
    )


@pytest.fixture(scope="module")
def real(real_data):
    """Rows of the real activity, and copairs' means."""
    folder = real_data / "oracles"
    rows = pd.read_csv(folder / "bbbc021_activity_ap.csv").rename(
        columns={
            "n_pos_pairs": "n_positives",
            "n_total_pairs": "n_total",
            "normalized_average_precision": "normalised_average_precision",
        }
    )
    return rows, pd.read_csv(folder / "bbbc021_activity_map.csv").set_index("Metadata_Treatment")


@pytest.mark.real_data
def test_means_of_the_real_treatments_are_those_of_copairs(real):
    rows, oracle = real
    maps = mean_average_precision(rows, ["Metadata_Treatment"]).to_pandas().set_index("Metadata_Treatment")
    maps = maps.loc[oracle.index]
    for ours, theirs in (
        ("mean_average_precision", "mean_average_precision"),
        ("mean_normalised_average_precision", "mean_normalized_average_precision"),
    ):
        np.testing.assert_allclose(maps[ours], oracle[theirs], rtol=0, atol=1e-8)
    assert maps["mean_average_precision"].mean() == pytest.approx(0.9072692, abs=1e-7)


@pytest.mark.real_data
def test_p_values_counted_as_copairs_counts_differ_from_its_own_by_sampling_only(real):
    rows, oracle = real
    maps = mean_average_precision(rows, ["Metadata_Treatment"], count_ties=False).to_pandas()
    maps = maps.set_index("Metadata_Treatment").loc[oracle.index]
    p = maps["p_value"].to_numpy()
    error = np.sqrt(2 * p * (1 - p) / 10_000)  # both are sampled, 10,000 draws each
    assert (np.abs(p - oracle["p_value"]) <= 4.5 * error + 2e-4).all()
    assert ((maps["adjusted_p_value"] < 0.05) == oracle["below_corrected_p"]).all()


@pytest.mark.real_data
def test_ties_that_copairs_does_not_count_make_perfect_pairs_of_replicates_30_times_less_certain(real):
    rows, oracle = real
    maps = mean_average_precision(rows, ["Metadata_Treatment"]).to_pandas().set_index("Metadata_Treatment")
    assert oracle.loc["bryostatin@0.3", "p_value"] == pytest.approx(1 / 10_001)
    assert maps.loc["bryostatin@0.3", "p_value"] == pytest.approx(1 / 331)
    assert maps.loc["bryostatin@0.3", "null"] == "exact"


def test_a_group_is_its_mean_and_an_exact_share_of_placements():
    maps = mean_average_precision(scored([("a", 1.0, 2, 9), ("b", 0.4, 2, 9), ("a", 0.5, 2, 9)]), ["group"]).to_pandas()
    assert maps["group"].tolist() == ["a", "b"]
    assert maps["mean_average_precision"].tolist() == [0.75, 0.4]
    null = exact_null(2, 9)
    assert maps["p_value"].tolist() == [np.mean(null >= 0.75), np.mean(null >= 0.4)]


def test_groups_of_two_columns_come_in_order_of_their_first_row():
    rows = scored([(name, value, 2, 9) for name, value in (("b", 0.2), ("a", 0.4), ("b", 0.6), ("a", 0.8))])
    maps = mean_average_precision(rows.append_column("dose", pa.array([1, 1, 0, 1])), ["dose", "group"])
    assert maps.select(["group", "dose"]).to_pylist() == [
        {"group": "b", "dose": 1},
        {"group": "a", "dose": 1},
        {"group": "b", "dose": 0},
    ]
    assert maps["mean_average_precision"].to_pylist() == pytest.approx([0.2, 0.6, 0.6])


def test_rows_of_different_sizes_are_judged_by_means_of_draws():
    """By hand: all pairs of placements, as independent as copairs has the draws of different sizes."""
    rows = scored([("a", 0.8, 2, 9), ("a", 0.6, 3, 10)])
    maps = mean_average_precision(rows, ["group"], null_size=50_000).to_pandas()
    means = np.add.outer(exact_null(2, 9), exact_null(3, 10)) / 2
    exact = np.mean(means >= 0.7)
    assert maps["null"].tolist() == ["sampled"]
    assert maps["p_value"][0] == pytest.approx(exact, abs=4 * np.sqrt(exact / 50_000))


def test_a_group_without_scores_stays_with_a_reason_and_counts_in_no_mean():
    maps = mean_average_precision(scored([("a", None, 2, 9), ("b", 0.5, 2, 9), ("b", None, 2, 9)]), ["group"])
    assert maps["reason"].to_pylist() == ["no row with positives and negatives", None]
    assert maps["n_rows"].to_pylist() == [1, 2]
    assert maps["n_scored"].to_pylist() == [0, 1]
    assert maps["mean_average_precision"].to_pylist() == [None, 0.5]
    assert bootstrap_over_groups(maps, n_draws=10).value == 0.5


def test_inert_perturbations_are_rarely_significant_and_active_ones_are():
    table, vectors, is_control = screen(200, signal=0.0, seed=1)
    inert = phenotypic_activity(table, vectors, is_control)
    p = np.asarray(inert.groups["p_value"], float)
    for level in (0.05, 0.2):
        assert np.mean(p <= level) <= level + 3 * np.sqrt(level * (1 - level) / 200)
    assert inert.share_significant().value < 0.05
    assert abs(np.mean(np.asarray(inert.groups["mean_normalised_average_precision"]))) < 0.05
    table, vectors, is_control = screen(20, signal=2.0, seed=2)
    assert phenotypic_activity(table, vectors, is_control).share_significant().value > 0.9


def test_activity_is_the_grammar_on_treated_wells_and_controls():
    table, vectors, is_control = screen(12, signal=0.5, seed=3)
    table = pa.concat_tables([table, table])  # a second well of each perturbation on each plate
    vectors = np.concatenate([vectors, vectors + np.random.default_rng(0).normal(size=vectors.shape)])
    is_control = np.concatenate([is_control, is_control])
    got = phenotypic_activity(table, vectors, is_control, positives_differ=["plate"], negatives_share=["plate"])
    assert got.rows.column_names[:3] == table.column_names  # the helper column is gone
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names, plates = (np.asarray(table[name].to_pylist()) for name in ("perturbation", "plate"))
    for row in np.flatnonzero(~is_control)[::5]:
        positive = (names == names[row]) & (plates != plates[row])
        negative = is_control & (plates == plates[row])
        cosines = unit @ unit[row]
        ranks = [1 + np.sum(cosines[positive | negative] > cosine) for cosine in cosines[positive]]
        expected = np.mean((np.arange(6) + 1) / np.sort(ranks))
        assert got.rows["average_precision"][row].as_py() == pytest.approx(expected)
        assert got.rows["n_total"][row].as_py() == 6 + 32
    assert set(got.rows.filter(pa.array(is_control))["reason"].to_pylist()) == {"no positive"}
    assert got.groups["perturbation"].to_pylist() == [f"p{i}" for i in range(12)]


def test_consistency_leaves_doses_of_one_compound_out_and_finds_mechanisms():
    table, vectors, is_control = screen(20, signal=2.0, seed=4)
    got = phenotypic_consistency(table, vectors, included=~is_control)
    rules = PairRules(pos_sameby=("moa",), pos_diffby=("perturbation",), neg_diffby=("moa", "perturbation"))
    assert got.rules == rules
    treated = table.filter(pa.array(~is_control))
    alone = average_precision(treated, vectors[~is_control], rules)
    assert got.rows.filter(pa.array(~is_control)).equals(alone)
    assert set(alone["n_positives"].to_pylist()) == {4}  # the mechanism's other perturbation, on 4 plates
    assert got.share_significant().value == 1
    assert got.mean.low > 0.8
    random = phenotypic_consistency(table, np.random.default_rng(0).normal(size=vectors.shape), included=~is_control)
    assert random.mean.high < 0.3


def test_the_interval_is_wider_when_doses_of_a_compound_are_kept_together():
    values = np.repeat([0.2, 0.9, 0.4, 0.8, 0.3], 6)
    maps = pa.table({"mean_average_precision": values, "compound": np.repeat(np.arange(5), 6)})
    alone, together = bootstrap_over_groups(maps), bootstrap_over_groups(maps, cluster="compound")
    assert (alone.value, together.value) == pytest.approx((values.mean(), values.mean()))
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    error = values.std() / np.sqrt(30)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert np.array_equal(bootstrap_over_groups(maps).draws, alone.draws)


def test_activity_with_clusters_carries_the_compound_of_each_group():
    table, vectors, is_control = screen(10, signal=1.0, seed=5)
    order = np.concatenate([np.flatnonzero(is_control), np.repeat([9, 8], 4) + np.tile(26 * np.arange(4), 2)])
    table, vectors, is_control = table.take(order), vectors[order], is_control[order]
    table = table.set_column(1, "moa", pa.array([f"of {name}" for name in table["perturbation"].to_pylist()]))
    got = phenotypic_activity(table, vectors, is_control, cluster="moa")
    assert got.groups["perturbation"].to_pylist() == ["p9", "p8"]
    assert got.groups["moa"].to_pylist() == ["of p9", "of p8"]
    with pytest.raises(ValueError, match="perturbation p9 has several values of plate"):
        phenotypic_activity(table, vectors, is_control, cluster="plate")


def test_perturbations_of_two_kinds_find_each_other_by_target_and_their_own_kind_does_not_count():
    rng = np.random.default_rng(8)
    targets = [f"t{i}" for i in range(12)]
    of_target = rng.normal(size=(12, 20))
    table = pa.table(
        {"gene": targets * 4, "kind": ["gene"] * 24 + ["compound"] * 24, "reagent": [f"r{i}" for i in range(48)]}
    )
    vectors = np.tile(of_target, (4, 1)) + 0.5 * rng.normal(size=(48, 20))
    vectors[24:36] = rng.normal(size=(12, 20))  # one of two compounds does nothing
    found = phenotypic_match(table, vectors, null=NullConfig(match_draws=199))
    assert set(found.rows["n_positives"].to_pylist()) == {2}
    assert set(found.rows["n_total"].to_pylist()) == {24}
    assert set(found.groups["null"].to_pylist()) == {"permuted"}
    assert found.share_significant().value > 0.8
    vectors[24:] = rng.normal(size=(24, 20))
    noise = phenotypic_match(table, vectors, null=NullConfig(match_draws=199))
    assert noise.share_significant().value == 0
    assert abs(noise.normalised.value) < 0.15
    with pytest.raises(ValueError, match=r"of 1 kinds \(gene\), expected 2 to match"):
        phenotypic_match(table.slice(0, 24), vectors[:24])


def test_arguments_without_groups_are_refused():
    table, vectors, is_control = screen(4, signal=1.0, seed=6)
    for wrong in (np.zeros_like(is_control), np.ones_like(is_control)):
        with pytest.raises(ValueError, match=r"are negative controls\. Activity is measured against controls"):
            phenotypic_activity(table, vectors, wrong)
    with pytest.raises(ValueError, match="3 marks of controls for"):
        phenotypic_activity(table, vectors, is_control[:3])
    once = np.flatnonzero(is_control | (np.asarray(table["plate"]) == "P0"))
    with pytest.raises(ValueError, match=r"none of 4 rows has an average precision \(no positive\)"):
        phenotypic_activity(table.take(once), vectors[once], is_control[once])
    with pytest.raises(ValueError, match="sameby is 'group'"):
        mean_average_precision(scored([("a", 1.0, 2, 9)]), "group")
    with pytest.raises(ValueError, match="no column 'average_precision'"):
        mean_average_precision(table, ["plate"])
    with pytest.raises(ValueError, match="no group has a mean_average_precision"):
        bootstrap_over_groups(pa.table({"mean_average_precision": pa.array([None], pa.float64())}))
    for field, value in (("null_size", 0), ("exact_up_to", -1), ("seed", -1), ("bootstrap_draws", 0)):
        with pytest.raises(ValueError, match=rf"null\.{field}"):
            NullConfig(**{field: value})
