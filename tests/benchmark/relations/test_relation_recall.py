"""Recall: the published definition, its edge cases, its interval and its random baseline."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from cytolake.benchmark.relations.recall import RecallConfig, in_tails, relationship_recall, tail_ranks
from cytolake.benchmark.relations.relation_files import Relations, read_relations

DEFAULT = ((0.05, 0.95), (0.1, 0.9))
VALUE_ONLY = RecallConfig(bootstrap_draws=0, random_draws=0)


def recall_by_sorting(null, queries, thresholds) -> list[float]:
    """The definition, word for word."""
    ordered = np.sort(np.ravel(null))
    left = np.searchsorted(ordered, queries, "left") / len(ordered)
    right = np.searchsorted(ordered, queries, "right") / len(ordered)
    return [float(np.mean((right <= low) | (left >= high))) for low, high in thresholds]


def recall_of(null, queries, thresholds) -> list[float]:
    return [float(in_tails(null, queries, each).mean()) for each in thresholds]


def random_pairs(entities: list[str], n_pairs: int, seed: int = 0, source: str = "made up") -> Relations:
    random = np.random.default_rng(seed)
    pairs = set()
    while len(pairs) < n_pairs:
        a, b = (entities[k] for k in random.choice(len(entities), 2, replace=False))
        pairs.add((min(a, b), max(a, b)))
    return Relations(source, tuple(sorted(pairs)), n_pairs)


def named(n: int) -> list[str]:
    return [f"G{k:05d}" for k in range(n)]


def disjoint_pairs(n_pairs: int) -> Relations:
    names = named(2 * n_pairs)
    return Relations("pairs", tuple(zip(names[::2], names[1::2], strict=True)), n_pairs)


@pytest.fixture
def related():
    """300 genes in 8 features, of which 100 pairs share half of their direction."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 8))
    vectors[:200] += np.repeat(random.normal(size=(100, 8)), 2, axis=0)
    return vectors, named(300), disjoint_pairs(100)


def test_six_queries_on_a_hundred_values_recall_four():
    assert recall_of(np.arange(100.0), np.array([0.0, 4, 5, 94, 95, 99]), [(0.05, 0.95)]) == [4 / 6]


@pytest.mark.real_data
def test_recall_of_values_is_the_published_one(real_data):
    known = json.loads((real_data / "oracles" / "efaar_published.json").read_text())["compute_recall"]
    found = recall_of(np.array(known["null"]), np.array(known["query"]), [(0.1, 0.9), (0.2, 0.8)])
    assert found == [known["recall_0.1_0.9"], known["recall_0.2_0.8"]]


THRESHOLD = st.floats(0, 1) | st.integers(0, 100).map(lambda percent: percent / 100)


@given(
    st.lists(st.integers(-4, 4) | st.floats(-2, 2), min_size=1, max_size=120),
    st.lists(st.integers(-5, 5) | st.floats(-2, 2), min_size=1, max_size=30),
    st.lists(
        st.tuples(THRESHOLD, THRESHOLD).map(sorted).filter(lambda each: each[0] < each[1]), min_size=1, max_size=4
    ),
)
@hypothesis_settings(deadline=None)
def test_order_statistics_recall_what_sorting_does(null, queries, thresholds):
    null, queries = np.array(null, float), np.array(queries, float)
    assert recall_of(null, queries, thresholds) == recall_by_sorting(null, queries, thresholds)


@given(st.integers(1, 10**9), THRESHOLD, THRESHOLD)
def test_the_ranks_are_the_outermost_whose_share_fits(n, one, other):
    low, high = min(one, other), max(one, other)
    below, above = tail_ranks(n, (low, high))
    assert below is None or below / n <= low < (below + 1) / n
    assert above is None or above / n < high <= (above + 1) / n


@pytest.mark.parametrize("kind", ["related", "float32", "few values", "near 1"])
def test_recall_of_a_map_is_the_definition_on_the_whole_matrix(related, kind):
    vectors, entities, relations = related
    if kind == "float32":
        vectors = vectors.astype(np.float32)
    elif kind == "few values":
        vectors = np.sign(np.round(vectors))
    elif kind == "near 1":
        vectors = vectors * 1e-3 + 5
    matrix = np.round(cosine_similarity(vectors.astype(np.float64)), 10)
    null = matrix[np.triu_indices(len(matrix), k=1)]
    i, j = np.arange(0, 200, 2), np.arange(1, 200, 2)
    rows = relationship_recall(vectors, entities, [relations], VALUE_ONLY)
    assert [row.recall.value for row in rows] == recall_by_sorting(null, matrix[i, j], DEFAULT)
    assert [row.thresholds for row in rows] == list(DEFAULT)
    assert {(row.n_pairs, row.n_genes, row.n_null_pairs) for row in rows} == {(100, 200, 44850)}


@pytest.mark.real_data
def test_a_real_map_recalls_real_relations_as_the_definition_says(real_data):
    """Counts of features that a knock-out changes, in five compartments: related genes look alike."""
    folder = real_data / "periscope_gene_level"
    screen = pd.concat([pd.read_csv(folder / f"HeLa_DMEM_significant_features_{kind}_genes.csv") for kind in KINDS])
    top = screen.sort_values("Sum", ascending=False, kind="stable").head(2000)
    counts = top[["Mito", "ConA", "DAPI", "WGA", "Phalloidin"]].to_numpy(float)
    vectors, entities = (counts - counts.mean(axis=0)) / counts.std(axis=0), top["Gene"].tolist()
    relations = [read_relations(real_data / "efaar_relationships" / f"{source}.txt") for source in REAL_RECALL]
    rows = relationship_recall(vectors, entities, relations, RecallConfig(thresholds=DEFAULT[:1], bootstrap_draws=200))
    matrix = np.round(cosine_similarity(vectors), 10)
    null = matrix[np.triu_indices(len(matrix), k=1)]
    row_of = {gene: row for row, gene in enumerate(entities)}
    for row, source in zip(rows, relations, strict=True):
        queries = [matrix[row_of[a], row_of[b]] for a, b in source.pairs if a in row_of and b in row_of]
        assert row.recall.value == recall_by_sorting(null, queries, DEFAULT[:1])[0]
        assert row.recall.value == pytest.approx(REAL_RECALL[row.source], abs=5e-4)
        assert row.recall.low > 0.1
        assert abs(row.random - 0.1) < 0.02
        assert row.random_p_value == 1 / 21


KINDS = ("expressed", "0TPM")
REAL_RECALL = {"HuMAP": 0.1978, "Reactome": 0.1431, "StringDB": 0.2300}


def test_a_random_map_recalls_its_tails():
    entities = named(800)
    for seed in range(2):
        vectors = np.random.default_rng(seed).normal(size=(800, 32))
        config = RecallConfig(thresholds=DEFAULT[:1], bootstrap_draws=200)
        (row,) = relationship_recall(vectors, entities, [random_pairs(entities, 4000, seed)], config)
        assert abs(row.recall.value - 0.1) < 3 * math.sqrt(0.09 / 4000)
        assert abs(row.random - 0.1) < 3 * math.sqrt(0.09 / 4000 / 20) + 0.003
        assert row.recall.low < 0.1 < row.recall.high


@pytest.mark.parametrize("vector", [np.ones(5), np.zeros(5), np.random.default_rng(1).normal(size=61)])
def test_a_constant_map_recalls_exactly_nothing(vector):
    entities = named(700)
    rows = relationship_recall(np.tile(vector, (700, 1)), entities, [random_pairs(entities, 500)])
    assert [row.recall.value for row in rows] == [0.0, 0.0]
    assert [row.random for row in rows] == [0.0, 0.0]


def test_opposite_vectors_are_recalled_as_alike_ones_are(related):
    vectors, entities, relations = related
    opposite = vectors.copy()
    opposite[:200:2] *= -1
    before, after = (relationship_recall(each, entities, [relations], VALUE_ONLY)[0] for each in (vectors, opposite))
    assert before.n_high > 40 > before.n_low
    assert after.n_low > 40 > after.n_high
    assert before.recall.value == (before.n_low + before.n_high) / before.n_pairs


def test_the_scale_of_vectors_and_the_order_of_entities_change_nothing(related):
    vectors, entities, relations = related
    order = np.random.default_rng(0).permutation(300)
    scales = 2.0 ** np.random.default_rng(1).integers(-9, 9, size=(300, 1))
    plain = relationship_recall(vectors, entities, [relations], VALUE_ONLY)
    other = relationship_recall((vectors * scales)[order], [entities[k] for k in order], [relations], VALUE_ONLY)
    assert [row.recall.value for row in plain] == [row.recall.value for row in other]


def test_compounds_left_out_of_the_null_no_longer_move_the_tails(related):
    vectors, entities, relations = related
    compound = np.random.default_rng(7).normal(size=8) + 0.1 * np.random.default_rng(8).normal(size=(200, 8))
    both = np.concatenate([vectors, compound])
    names = [*entities, *(f"compound-{k}" for k in range(200))]
    is_gene = np.arange(500) < 300
    genes_only = relationship_recall(vectors, entities, [relations], VALUE_ONLY)
    rows = relationship_recall(both, names, [relations], VALUE_ONLY, in_null=is_gene, with_all=True)
    assert [row.null for row in rows] == ["all", "all", "in_null", "in_null"]
    assert [row.recall.value for row in rows[2:]] == [row.recall.value for row in genes_only]
    assert [row.edges for row in rows[2:]] == [row.edges for row in genes_only]
    assert [row.recall.value for row in rows[:2]] != [row.recall.value for row in genes_only]
    (alone, _) = relationship_recall(both, names, [relations], VALUE_ONLY, in_null=is_gene)
    assert alone.recall.value == genes_only[0].recall.value


def test_known_pairs_are_scored_also_where_their_genes_are_not_in_the_null(related):
    vectors, entities, relations = related
    in_null = np.arange(300) >= 150
    matrix = np.round(cosine_similarity(vectors), 10)
    null = matrix[150:, 150:][np.triu_indices(150, k=1)]
    rows = relationship_recall(vectors, entities, [relations], VALUE_ONLY, in_null=in_null)
    queries = matrix[np.arange(0, 200, 2), np.arange(1, 200, 2)]
    assert [row.recall.value for row in rows] == recall_by_sorting(null, queries, DEFAULT)


def test_genes_that_are_alike_whatever_their_partner_are_no_merit_of_the_pairs():
    """Genes of the source share one direction: recall is high, and so is that of the same genes paired at random."""
    vectors = np.random.default_rng(0).normal(size=(400, 16))
    vectors[:60] += 3
    entities = named(400)
    row = relationship_recall(vectors, entities, [random_pairs(entities[:60], 300)])[0]
    assert row.recall.value > 0.5
    assert row.random == pytest.approx(row.recall.value, abs=0.05)
    assert row.random_p_value > 0.05


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    entities = named(300)
    covered = 0
    for seed in range(40):
        vectors = np.random.default_rng(100 + seed).normal(size=(300, 24))
        config = RecallConfig(thresholds=((0.05, 0.95),), bootstrap_draws=100, random_draws=0, seed=seed)
        row = relationship_recall(vectors, entities, [random_pairs(entities[:200], 600, seed)], config)[0]
        covered += row.recall.low <= 0.1 <= row.recall.high
    assert covered >= 35  # 38 of 40 at 95 %; fewer than 35 once in 20


def test_a_gene_with_many_partners_widens_the_interval(related):
    vectors, entities, _ = related
    star = Relations("star", tuple((entities[0], other) for other in entities[200:]), 100)
    spread = disjoint_pairs(100)
    rows = relationship_recall(vectors, entities, [star, spread], RecallConfig(thresholds=DEFAULT[:1]))
    assert [row.n_genes for row in rows] == [101, 200]
    assert all(row.recall.low <= row.recall.value <= row.recall.high for row in rows)


def test_equal_seeds_give_equal_numbers(related):
    vectors, entities, relations = related
    one, same, other = (
        relationship_recall(vectors, entities, [relations], RecallConfig(seed=seed))[0] for seed in (1, 1, 2)
    )
    assert (one.recall.low, one.random) == (same.recall.low, same.random)
    assert (one.recall.draws != other.recall.draws).any()
    assert one.recall.value == other.recall.value


def test_a_source_without_a_pair_in_the_map_is_listed_and_not_scored(related):
    vectors, entities, relations = related
    elsewhere = Relations("elsewhere", (("X", "Y"),), 1)
    rows = relationship_recall(vectors, entities, [elsewhere, relations])
    assert [row.source for row in rows] == ["elsewhere", "elsewhere", "pairs", "pairs"]
    assert rows[0].n_pairs == 0
    assert math.isnan(rows[0].recall.value)
    assert math.isnan(rows[0].random)
    assert rows[2].recall.value > 0.2


def test_a_map_that_cannot_be_scored_is_refused(related):
    vectors, entities, relations = related
    with pytest.raises(ValueError, match=r"1 entities come more than once: G00000 \(2 times\).*aggregate"):
        relationship_recall(vectors, [entities[0], *entities[:-1]], [relations])
    with_nan = vectors.copy()
    with_nan[7, 3] = np.nan
    with pytest.raises(ValueError, match="1 of 300 vectors are not finite: G00007"):
        relationship_recall(with_nan, entities, [relations])
    with pytest.raises(ValueError, match="19 entities, expected 20 or more"):
        relationship_recall(vectors[:19], entities[:19], [relations])
    with pytest.raises(ValueError, match=r"shape \(300, 8\), expected \(299, D\)"):
        relationship_recall(vectors, entities[:-1], [relations])
    with pytest.raises(ValueError, match="2 sources, pairs more than once"):
        relationship_recall(vectors, entities, [relations, relations])
    with pytest.raises(ValueError, match="in_null names 3 of 300"):
        relationship_recall(vectors, entities, [relations], in_null=np.arange(300) < 3)
    with pytest.raises(ValueError, match=r"in_null has shape \(3,\)"):
        relationship_recall(vectors, entities, [relations], in_null=np.ones(3, bool))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("thresholds", ()), ("thresholds", ((0.9, 0.1),)), ("thresholds", ((0.5, 1.5),)), ("min_entities", 1),
        ("bootstrap_draws", -1), ("random_draws", -1), ("seed", -1),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"recall\.{field}"):
        RecallConfig(**{field: value})
