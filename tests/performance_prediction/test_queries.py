from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cytolake.performance_prediction.baselines import BEST, MEAN, PREDICTOR, TFIDF
from cytolake.performance_prediction.queries import queries_of_profiles, realised_performance
from cytolake.performance_prediction.query_map import Map
from cytolake.performance_prediction.query_predictor import (
    LENGTH,
    STRENGTH,
    QueryPredictorConfig,
    fit_query_predictor,
    load_query_predictor,
)

QUICK = QueryPredictorConfig(families=("ridge", "tfidf"), folds=3, outer_folds=3, bootstrap_draws=40)
N_COMPOUNDS, N_DOSES, N_PLATES, WIDTH = 24, 3, 4, 12


@pytest.fixture(scope="module")
def screen():
    """Compounds of two mechanisms, one that does something in proportion to the dose and one that does nothing."""
    random = np.random.default_rng(0)
    vectors, names, family, text, dose, plate, control = [], [], [], [], [], [], []
    directions = random.normal(size=(N_COMPOUNDS, WIDTH))
    for p in range(N_PLATES):
        for _ in range(8):
            vectors.append(3 + random.normal(size=WIDTH))
            for values, value in ((names, ""), (family, ""), (text, ""), (dose, np.nan)):
                values.append(value)
            plate.append(f"p{p}")
            control.append(True)
        for c in range(N_COMPOUNDS):
            mechanism = "kinase inhibitor" if c % 2 else "inert sugar"
            for d in range(N_DOSES):
                effect = (c % 2) * (1 + d) * directions[c]
                vectors.append(3 + effect + random.normal(size=WIDTH))
                names.append(f"c{c} {d}")
                family.append(f"c{c}")
                text.append(f"compound c{c} {mechanism}")
                dose.append(float(10**d))
                plate.append(f"p{p}")
                control.append(False)
    vectors = np.array(vectors)
    return {
        "vectors": vectors - vectors[np.array(control)].mean(axis=0), "perturbation": names, "family": family,
        "description": text, "numbers": np.array(dose)[:, None], "plate": plate, "is_control": np.array(control),
    }  # fmt: skip


@pytest.fixture(scope="module")
def queries(screen):
    return queries_of_profiles(**screen)


@pytest.fixture(scope="module")
def fitted(queries):
    """Predictor and report, before the search and before the screen."""
    return {before: fit_query_predictor(queries, before, QUICK) for before in ("search", "screen")}


def test_performance_is_the_average_precision_of_a_loop(screen):
    from sklearn.metrics import average_precision_score

    found = realised_performance(screen["vectors"], screen["perturbation"], screen["plate"], screen["is_control"])
    unit = screen["vectors"] / np.linalg.norm(screen["vectors"], axis=1, keepdims=True)
    names, plates = np.array(screen["perturbation"]), np.array(screen["plate"])
    for row in (40, 101, 200):
        same = (names == names[row]) & ~screen["is_control"]
        positive, negative = same & (plates != plates[row]), ~same
        taken = positive | negative
        assert found[row] == pytest.approx(average_precision_score(positive[taken], unit[taken] @ unit[row]), abs=1e-6)
    assert np.isnan(found[screen["is_control"]]).all()


@pytest.mark.parametrize("n_plates", [1, 4])
def test_replicate_consistency_is_the_mean_cosine_of_a_loop(screen, n_plates):
    used = np.flatnonzero([int(name[1:]) < n_plates for name in screen["plate"]])
    used = np.r_[used, used] if n_plates == 1 else used  # replicates on the one plate
    vectors, control = screen["vectors"][used], screen["is_control"][used]
    names = [screen["perturbation"][i] for i in used]
    plates = [screen["plate"][i] for i in used]
    found = realised_performance(vectors, names, plates, control, "replicate_consistency")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in np.flatnonzero(~control)[::17]:
        others = [
            i
            for i in range(len(names))
            if i != row and names[i] == names[row] and (n_plates == 1 or plates[i] != plates[row])
        ]
        assert found[row] == pytest.approx(np.mean([unit[i] @ unit[row] for i in others]), abs=1e-9)
    assert np.isnan(found[control]).all()
    alone = realised_performance(
        vectors[:40], [f"only {i}" for i in range(40)], plates[:40], control[:40], "replicate_consistency"
    )
    assert np.isnan(alone).all()


@pytest.mark.parametrize(("before", "baselines"), [("search", {STRENGTH}), ("screen", {LENGTH, TFIDF})])
def test_performance_of_unseen_compounds_is_predicted_before(fitted, before, baselines):
    _, report = fitted[before]
    assert report.scores[PREDICTOR]["spearman"].low > 0.5
    assert report.of_perturbations[PREDICTOR]["pearson"].low > 0.5
    assert set(report.scores) == {PREDICTOR, BEST, MEAN, *baselines}
    assert np.isnan(report.scores[MEAN]["pearson"].value)  # folds differ in their means, which is no skill
    assert report.scores[PREDICTOR]["rmse"].value < report.scores[MEAN]["rmse"].value
    assert report.verdict.gain.value == pytest.approx(
        report.scores[report.verdict.against]["rmse"].value - report.scores[PREDICTOR]["rmse"].value
    )
    assert report.verdict.registered == (PREDICTOR if report.verdict.gain.low > 0 else BEST)
    assert 0.75 < report.coverage <= 1


@pytest.mark.slow
def test_replicate_consistency_is_predicted_below_0_too(screen, tmp_path):
    queries = queries_of_profiles(**screen, measure="replicate_consistency")
    assert queries.performance.min() < 0
    predictor, report = fit_query_predictor(queries, "search", replace(QUICK, outer_folds=2))
    assert report.scores[PREDICTOR]["spearman"].low > 0.5
    predictor.save(tmp_path)
    found = load_query_predictor(tmp_path).predict(queries.vectors, family=queries.family)
    assert found.low.min() < 0
    assert found.high.max() <= 1


@pytest.mark.parametrize("before", ["search", "screen"])
def test_where_nothing_predicts_the_performance_of_unseen_compounds_a_baseline_is_registered(queries, before, tmp_path):
    """Each compound has a performance of its own that nothing else predicts: only a leak could know it."""
    random = np.random.default_rng(3)
    of_family = {name: random.random() for name in sorted(set(queries.family))}
    secret = replace(queries, performance=np.array([of_family[name] for name in queries.family]))
    predictor, report = fit_query_predictor(secret, before, replace(QUICK, outer_folds=2))
    assert not report.scores[PREDICTOR]["spearman"].low > 0.3
    assert report.verdict.registered == BEST
    assert len(predictor.stack.members) == 1
    assert predictor.stack.members[0].family in ("mean", "line", "words")
    error = np.sqrt(np.mean((report.predicted.score - secret.performance) ** 2))
    assert error == pytest.approx(report.scores[BEST]["rmse"].value)
    predictor.save(tmp_path)
    known = secret.vectors, secret.description, secret.numbers
    np.testing.assert_allclose(load_query_predictor(tmp_path).predict(*known).low, predictor.predict(*known).low)


def test_a_stored_predictor_predicts_the_same(fitted, queries, tmp_path):
    for before in ("search", "screen"):
        predictor, _ = fitted[before]
        predictor.save(tmp_path / before)
        again = load_query_predictor(tmp_path / before)
        one, other = (
            each.predict(queries.vectors, queries.description, queries.numbers) for each in (predictor, again)
        )
        np.testing.assert_allclose(one.score, other.score)
        assert (one.low >= 0).all()
        assert (one.high <= 1).all()
    with pytest.raises(ValueError, match="no readable predictor"):
        load_query_predictor(tmp_path)


def test_a_vector_of_another_encoder_is_refused(fitted):
    predictor, _ = fitted["search"]
    with pytest.raises(ValueError, match=r"shape \(2, 7\): this predictor was fitted on \(queries, 12\)"):
        predictor.predict(np.ones((2, 7)))


def test_by_direction_the_length_of_a_vector_does_not_matter(queries):
    for by_direction in (True, False):
        place = Map.fit(queries.vectors, queries.family, queries.controls, by_direction)
        one, other = place.features(queries.vectors), place.features(5 * queries.vectors)
        assert np.allclose(one, other) == by_direction


def test_a_feature_that_no_control_varies_in_does_not_drown_the_others(queries):
    flat = queries.controls.copy()
    flat[:, 2] = 5.0
    place = Map.fit(queries.vectors, queries.family, flat)
    nudge = np.zeros(WIDTH)
    nudge[2] = 1e-7
    np.testing.assert_allclose(place.features(flat + nudge), place.features(flat), atol=1e-5)


def test_what_is_of_the_querys_own_compound_does_not_crowd_it(queries):
    place = Map.fit(queries.vectors, queries.family, queries.controls)
    crowd = slice(5, 8)
    known = place.features(queries.vectors, queries.family)[:, crowd]
    unknown = place.features(queries.vectors)[:, crowd]
    np.testing.assert_allclose(unknown[:, 0], 1.0)  # every query is a landmark here, and nearest to itself
    assert (known <= unknown + 1e-12).all()
    own = np.array(queries.family)[:, None] == np.array(queries.family)[None]
    unit = queries.vectors / np.linalg.norm(queries.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(known[:, 0], np.where(own, -1, unit @ unit.T).max(axis=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_control": lambda s: np.zeros_like(s["is_control"])}, "0 negative controls"),
        ({"perturbation": lambda s: [f"only {i}" for i in range(len(s["plate"]))]}, "none of|0 queries of 0"),
        ({"family": lambda s: ["one"] * len(s["plate"])}, "queries of 1 compounds"),
    ],
)
def test_a_screen_that_cannot_be_learnt_from_is_an_error(screen, change, message):
    changed = screen | {name: make(screen) for name, make in change.items()}
    with pytest.raises(ValueError, match=message):
        queries_of_profiles(**changed)


def test_the_number_of_queries_can_be_limited(screen):
    drawn = queries_of_profiles(**screen, most=100)
    assert len(drawn) == 100
    assert drawn.notes == ("100 of 288 queries drawn",)
