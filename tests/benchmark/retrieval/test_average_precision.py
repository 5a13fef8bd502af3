"""Average precision against a loop, copairs' published numbers, and itself."""

import pickle
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score
from tests.fast_cases import fast_cases

from cytolake.benchmark.retrieval.average_precision import (
    COUNT_UP_TO,
    average_precision,
    block_ranges,
    score_block,
    scores_table,
    unit_vectors,
)
from cytolake.benchmark.retrieval.pairs import PairRules, find_pairs

RULES = {
    "same label": PairRules(pos_sameby=("label",), neg_diffby=("label",)),
    "other plate, same plate": PairRules(
        pos_sameby=("label",), pos_diffby=("plate",), neg_sameby=("plate",), neg_diffby=("label",)
    ),
    "two columns each": PairRules(
        pos_sameby=("label", "batch"), pos_diffby=("plate",), neg_sameby=("batch",), neg_diffby=("label", "plate")
    ),
    "only diffby, only sameby": PairRules(pos_diffby=("label",), neg_sameby=("label",)),
}


def wells(n: int, seed: int, *, tied: bool = False, n_labels: int = 5) -> tuple[pa.Table, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (n, 3)).astype(float) if tied else rng.normal(size=(n, 6))
    vectors[(vectors == 0).all(axis=1)] = 1.0
    columns = {"label": n_labels, "plate": 3, "batch": 2}
    return pa.table({name: rng.integers(0, k, n) for name, k in columns.items()}), vectors


def by_hand(table: pa.Table, vectors: np.ndarray, rules: PairRules) -> tuple[list[float], list[float], list[int]]:
    """The definition as loops over rows: average precision with positives and negatives first, and positives."""
    rows = table.to_pylist()
    first, last, counts = [], [], []
    for i, row in enumerate(rows):
        ranked = []
        for j, other in enumerate(rows):
            cosine = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
            key = np.float32(1) - np.float32(cosine)
            for sign, same, differ in (
                (0, rules.pos_sameby, rules.pos_diffby),
                (1, rules.neg_sameby, rules.neg_diffby),
            ):
                if i != j and all(row[c] == other[c] for c in same) and all(row[c] != other[c] for c in differ):
                    ranked.append((key, sign))
        n_positives = sum(sign == 0 for _, sign in ranked)
        counts.append(n_positives)
        for values, order in ((first, sorted(ranked)), (last, sorted(ranked, key=lambda each: (each[0], -each[1])))):
            hits, total = 0, 0.0
            for rank, (_, sign) in enumerate(order, start=1):
                hits += sign == 0
                total += hits / rank if sign == 0 else 0
            values.append(total / n_positives if 0 < n_positives < len(ranked) else np.nan)
    return first, last, counts


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_pandas().to_numpy(float)


@pytest.mark.parametrize("tied", fast_cases([False, True], True))
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_every_row_is_as_the_definition_has_it(rules, tied):
    table, vectors = wells(60, seed=3, tied=tied)
    scores = average_precision(table, vectors, rules)
    first, last, counts = by_hand(table, vectors, rules)
    np.testing.assert_allclose(column(scores, "average_precision"), first, atol=1e-12)
    np.testing.assert_allclose(column(scores, "average_precision_ties_last"), last, atol=1e-12)
    assert scores["n_positives"].to_pylist() == counts
    assert (np.nanmax(np.subtract(first, last)) > 0.01) == tied


def test_many_positives_and_few_count_alike():
    """Above COUNT_UP_TO positives ranks come from a sort; scikit-learn knows both without ties."""
    table, vectors = wells(150, seed=4, n_labels=2)
    labels, plates = (np.asarray(table[name]) for name in ("label", "plate"))
    unit = unit_vectors(vectors)
    for rules, is_many in ((RULES["same label"], True), (RULES["other plate, same plate"], False)):
        scores = average_precision(table, vectors, rules)
        assert (column(scores, "n_positives").max() > COUNT_UP_TO) == is_many or not is_many
        for row in range(0, 150, 11):
            other = np.arange(150) != row
            positive = (labels == labels[row]) & (is_many | (plates != plates[row])) & other
            negative = (labels != labels[row]) & (is_many | (plates == plates[row]))
            used = positive | negative
            expected = average_precision_score(positive[used], (unit @ unit[row])[used])
            assert scores["average_precision"][row].as_py() == pytest.approx(expected, abs=1e-12)


@pytest.mark.real_data
def test_activity_of_632_real_wells_is_what_copairs_gives(real_data):
    profiles = pd.read_csv(
        real_data / "bbbc021_ljosa_profiles" / "morpheus" / "csvs" / "BBBC021_feature_selected_mad_robustize.csv"
    )
    is_control = profiles["Metadata_Compound"] == "DMSO"
    metadata = profiles[["Metadata_Plate", "Metadata_Well"]].assign(
        treatment=profiles["Metadata_Compound"] + "@" + profiles["Metadata_Concentration"].astype(str),
        control=np.where(is_control, np.arange(len(profiles)), -1),
    )
    rules = PairRules(pos_sameby=("treatment", "control"), neg_diffby=("treatment", "control"))
    vectors = profiles.filter(regex="^(?!Metadata_)").to_numpy()
    scores = average_precision(metadata, vectors, rules).to_pandas()
    assert set(scores["reason"][is_control]) == {"no positive"}
    oracle = pd.read_csv(real_data / "oracles" / "bbbc021_activity_ap.csv")
    both = scores.merge(oracle, on=["Metadata_Plate", "Metadata_Well"], suffixes=("", "_copairs"))
    assert len(both) == len(oracle) == (~is_control).sum() == 302
    for ours, theirs in (
        ("average_precision", "average_precision_copairs"),
        ("normalised_average_precision", "normalized_average_precision"),
        ("n_positives", "n_pos_pairs"),
        ("n_total", "n_total_pairs"),
    ):
        np.testing.assert_allclose(both[ours], both[theirs], rtol=0, atol=1e-8)


@pytest.mark.parametrize("block_mb", [1, 128])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_blocks_of_any_size_in_any_order_and_process_give_the_same(rules, block_mb, monkeypatch):
    table, vectors = wells(200, seed=5, tied=True)
    expected = average_precision(table, vectors, rules)
    monkeypatch.setattr("cytolake.benchmark.retrieval.average_precision.MAX_BLOCK_ROWS", 17)
    pairs = pickle.loads(pickle.dumps(find_pairs(table, rules)))  # as a task receives it
    ranges = block_ranges(pairs, block_mb)
    assert len(ranges) == 12
    blocks = [score_block(unit_vectors(vectors), pairs, start, stop) for start, stop in reversed(ranges)]
    assert scores_table(table, blocks).equals(expected)


def test_a_block_of_many_rows_holds_no_more_than_it_may():
    pairs = find_pairs(pa.table({"label": np.arange(100_000) % 7}), RULES["same label"])
    ranges = block_ranges(pairs, block_mb=128)
    assert max(stop - start for start, stop in ranges) == 160  # times 100,000 similarities of 8 bytes: 128 MB
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 100_000
    assert all(before[1] == after[0] for before, after in pairwise(ranges))


def test_the_order_of_rows_and_the_length_of_vectors_change_nothing():
    table, vectors = wells(120, seed=6)
    expected = column(average_precision(table, vectors, RULES["same label"]), "average_precision")
    order = np.random.default_rng(0).permutation(120)
    lengths = np.random.default_rng(1).uniform(0.01, 100, (120, 1))
    shuffled = average_precision(table.take(order), (vectors * lengths)[order], RULES["same label"])
    np.testing.assert_allclose(column(shuffled, "average_precision"), expected[order], atol=1e-12)


def test_names_of_values_change_nothing_and_pandas_gives_what_arrow_gives():
    table, vectors = wells(80, seed=7)
    named = table.to_pandas().astype({"label": str}).assign(label=lambda each: "compound " + each["label"])
    named["label"] = named["label"].astype("category")
    for rules in RULES.values():
        expected = average_precision(table, vectors, rules)["average_precision"]
        assert average_precision(named, vectors, rules)["average_precision"].equals(expected)


def test_separate_clusters_are_perfect_and_equal_vectors_only_seem_so():
    table = pa.table({"label": np.repeat([0, 1, 2], 10)})
    apart = average_precision(table, np.repeat(np.eye(3), 10, axis=0), RULES["same label"])
    assert column(apart, "average_precision_ties_last") == pytest.approx(1)
    collapsed = average_precision(table, np.ones((30, 4)), RULES["same label"])
    assert column(collapsed, "average_precision") == pytest.approx(1)
    assert column(collapsed, "average_precision_ties_last") == pytest.approx(
        np.mean(np.arange(1, 10) / np.arange(21, 30))
    )


def test_similarities_with_one_32_bit_distance_are_tied():
    """copairs 0.5.5 gives the first row 1, though its positive is the less similar: 1e-9 against 2e-9."""
    vectors = np.array([[1, 0], [1e-9, 1], [2e-9, 1]])
    scores = average_precision(pa.table({"label": [0, 0, 1]}), vectors, RULES["same label"])
    assert scores["average_precision"].to_pylist() == [1.0, 0.5, None]
    assert scores["average_precision_ties_last"][0].as_py() == 0.5


def test_rows_that_cannot_be_scored_stay_with_a_reason():
    table = pa.table({"label": ["a", "a", "b", "c", "c"], "plate": [1, 1, 1, 2, 2]})
    rules = PairRules(pos_sameby=("label",), neg_sameby=("plate",), neg_diffby=("label",))
    scores = average_precision(table, np.eye(5) + 0.1, rules)
    assert scores["reason"].to_pylist() == [None, None, "no positive", "no negative", "no negative"]
    assert scores["average_precision"].is_null().to_pylist() == [False, False, True, True, True]
    assert scores["n_positives"].to_pylist() == [1, 1, 0, 1, 1]
    assert scores["n_total"].to_pylist() == [2, 2, 2, 1, 1]


def test_rows_left_out_are_marked_and_change_the_others_as_if_they_were_not_there():
    table, vectors = wells(50, seed=8)
    included = np.arange(50) % 3 > 0
    vectors[0] = np.nan  # not looked at
    scores = average_precision(table, vectors, RULES["same label"], included=included)
    assert set(scores.filter(pa.array(~included))["reason"].to_pylist()) == {"not compared"}
    alone = average_precision(table.filter(pa.array(included)), vectors[included], RULES["same label"])
    assert scores.filter(pa.array(included)).equals(alone)


def test_a_pair_that_is_positive_and_negative_is_refused():
    table = pa.table({"label": ["a", "a", "b"], "well": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"rows 0 and 1 .*positive and a negative.*neg_diffby.*label"):
        average_precision(table, np.eye(3), PairRules(pos_sameby=("label",), neg_diffby=("well",)))
    dose = pa.table({"label": ["a", "a", "b", "b"], "dose": ["a1", "a1", "b1", "b1"]})  # nested: no pair is both
    scores = average_precision(dose, np.eye(4) + 1, PairRules(pos_sameby=("dose",), neg_diffby=("label",)))
    assert scores["average_precision"].null_count == 0


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"pos_sameby": ("a",)}, "neg_sameby and neg_diffby are both empty"),
        ({"neg_diffby": ("a",)}, "pos_sameby and pos_diffby are both empty"),
        (
            {"pos_sameby": ("a", "b"), "pos_diffby": ("b",), "neg_diffby": ("a",)},
            "b is in pos_sameby and in pos_diffby",
        ),
        ({"pos_sameby": "label", "neg_diffby": ("label",)}, "pos_sameby is 'label', expected a tuple"),
    ],
)
def test_rules_that_no_pair_can_follow_are_refused(rules, match):
    with pytest.raises(ValueError, match=match):
        PairRules(**rules)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ({"other": [1, 2, 3]}, "no column 'label'; it has other"),
        ({"label": ["a", None, "b"]}, "column 'label' is null in 1 of 3 rows, first in row 1"),
        ({"label": [1.0, 2.0, float("nan")]}, "column 'label' is null in 1 of 3 rows, first in row 2"),
        ({"label": [["a"], ["a", "b"], []]}, "column 'label' holds values that cannot be compared"),
        ({"label": ["a", "a", "b"], "reason": ["", "", ""]}, "already have the columns reason"),
        ({"label": [1, 2]}, "2 rows of metadata, 3 vectors"),
        ({"label": pa.array([], pa.string())}, "0 rows of metadata"),
    ],
)
def test_metadata_that_cannot_be_used_are_refused_by_name(labels, match):
    with pytest.raises(ValueError, match=match):
        average_precision(pa.table(labels), np.eye(3), RULES["same label"])


@pytest.mark.parametrize(
    ("value", "match"),
    [(np.nan, "row 1 is not finite"), (np.inf, "row 1 is not finite"), (0, "row 1 has the length 0")],
)
def test_vectors_without_a_direction_are_refused(value, match):
    vectors = np.eye(3)
    vectors[1] = value
    with pytest.raises(ValueError, match=match):
        average_precision(pa.table({"label": ["a", "a", "b"]}), vectors, RULES["same label"])
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        average_precision(pa.table({"label": ["a", "a", "b"]}), np.ones(3), RULES["same label"])


def test_a_table_of_mixed_types_and_no_row_left_are_refused():
    with pytest.raises(ValueError, match="mix types"):
        average_precision(pd.DataFrame({"label": ["a", 1, 2.5]}), np.eye(3), RULES["same label"])
    with pytest.raises(ValueError, match="no row"):
        average_precision(
            pa.table({"label": [1, 1, 2]}), np.eye(3), RULES["same label"], included=np.zeros(3, dtype=bool)
        )


def test_blocks_that_leave_rows_out_or_repeat_them_are_refused():
    table, vectors = wells(30, seed=9)
    pairs = find_pairs(table, RULES["same label"])
    half = score_block(unit_vectors(vectors), pairs, 0, 15)
    for blocks in ([half], [half, half]):
        with pytest.raises(ValueError, match=r"in [02] blocks, expected 1"):
            scores_table(table, blocks)
