"""The probe on vectors whose answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cytolake.benchmark.cross_validation import check_units, probe_representation
from cytolake.benchmark.linear_probe import CROP_METRIC, WELL_METRIC, ProbeConfig, linear_probe, make_splits, probe_key
from cytolake.benchmark.probe_data import ProbeData

N_PLATES, N_CLASSES, WELLS_EACH, CROPS_EACH = 4, 3, 2, 5


def make_data(n_plates: int = N_PLATES) -> ProbeData:
    """Every plate has two wells of each of three classes and two control wells; five crops a well."""
    plates, labels, controls = [], [], []
    for p in range(n_plates):
        for label in (-1, *range(N_CLASSES)):
            plates += [f"s/P{p}"] * WELLS_EACH
            labels += [label] * WELLS_EACH
            controls += [label < 0] * WELLS_EACH
    n_wells = len(plates)
    return ProbeData(
        crop_ids=tuple(f"c{i:04d}" for i in range(n_wells * CROPS_EACH)),
        well_of_crop=np.repeat(np.arange(n_wells), CROPS_EACH),
        well_ids=tuple(f"w{i:03d}" for i in range(n_wells)),
        plates=tuple(plates),
        batches=tuple(f"s/B{int(plate[-1]) // 2}" for plate in plates),
        is_control=np.asarray(controls),
        classes=("a", "b", "c"),
        label_of_well=np.asarray(labels),
        label="perturbation",
        rows=tuple("ABCDEFGH"[i % 8] for i in range(n_wells)),
        columns=tuple(1 + i % 8 for i in range(n_wells)),
    )


def vectors_of(data: ProbeData, *, signal: float, plate_shift: float = 0.0, dim: int = 12, seed: int = 0) -> np.ndarray:
    """Gaussian crops; a class moves one feature by `signal`, a plate all features by up to `plate_shift`."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(len(data.crop_ids), dim))
    label_N = data.label_of_well[data.well_of_crop]
    for label in range(N_CLASSES):
        vectors[label_N == label, label] += signal
    plate_N = np.asarray(data.plates)[data.well_of_crop]
    for plate in sorted(set(data.plates)):
        vectors[plate_N == plate] += plate_shift * random.normal(size=dim)
    return vectors.astype(np.float32)


def summary(vectors, data, config, metric=CROP_METRIC):
    return probe_representation(vectors, "r", data, config, probe_key(data, config)).summary[metric]


@pytest.fixture
def data() -> ProbeData:
    return make_data()


def test_logits_are_those_of_scikit_learn_on_standardised_features(data):
    label_N = data.label_of_well[data.well_of_crop]
    used = label_N >= 0
    vectors, labels = vectors_of(data, signal=1.0)[used], label_N[used]
    probe = linear_probe(vectors[:60], labels[:60], regularisation=0.1)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
    oracle.fit(vectors[:60].astype(np.float64), labels[:60])
    expected = oracle.decision_function(vectors[60:])
    np.testing.assert_allclose(probe.logits(vectors[60:]), expected, atol=5e-3)
    assert probe.converged


def test_two_classes_get_two_columns_of_logits(data):
    label_N = data.label_of_well[data.well_of_crop]
    vectors = vectors_of(data, signal=3.0)
    two = label_N >= 1
    probe = linear_probe(vectors[two], label_N[two], regularisation=0.1)
    assert probe.classes.tolist() == [1, 2]
    assert (probe.classes[probe.logits(vectors[two]).argmax(axis=1)] == label_N[two]).mean() > 0.8


def test_a_constant_feature_and_a_change_of_scale_do_not_matter(data):
    config = ProbeConfig(regularisation=(0.1,))
    vectors = vectors_of(data, signal=1.5)
    changed = np.concatenate([vectors * 1000 + 7, np.full((len(vectors), 1), 12345.678, np.float32)], axis=1)
    assert summary(changed, data, config).value == pytest.approx(summary(vectors, data, config).value, abs=0.02)


def test_scores_follow_the_signal_and_noise_scores_as_guessing_does(data):
    config = ProbeConfig(regularisation=(0.1,))
    noise, weak, strong = (
        np.mean([summary(vectors_of(data, signal=signal, seed=seed), data, config).value for seed in range(4)])
        for signal in (0.0, 1.5, 6.0)
    )
    assert noise == pytest.approx(1 / N_CLASSES, abs=0.06)  # sd of such a mean: 0.024
    assert noise < weak < strong
    assert strong > 0.97


def test_a_well_is_predicted_better_than_a_crop(data):
    config = ProbeConfig(regularisation=(0.1,))
    vectors = vectors_of(data, signal=1.5)
    assert summary(vectors, data, config, WELL_METRIC).value > summary(vectors, data, config, CROP_METRIC).value


def test_the_score_of_a_plate_is_an_independent_fit_without_it(data):
    config = ProbeConfig(regularisation=(0.1,))
    vectors = vectors_of(data, signal=1.5)
    result = probe_representation(vectors, "r", data, config, "key")
    label_N = data.label_of_well[data.well_of_crop]
    plate_N = np.asarray(data.plates)[data.well_of_crop]
    used, expected = label_N >= 0, {}
    for plate in sorted(set(data.plates)):
        test = plate_N == plate
        oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
        oracle.fit(vectors[used & ~test], label_N[used & ~test])
        expected[plate] = balanced_accuracy_score(label_N[used & test], oracle.predict(vectors[used & test]))
        row = next(row for row in result.rows if row["held_out"] == plate and row["metric"] == CROP_METRIC)
        assert row["value"] == pytest.approx(expected[plate])
        assert row["n_train"] == (used & ~test).sum()
        assert row["n_test"] == (used & test).sum()
    scores = result.candidates[CROP_METRIC].scores
    assert dict(zip(scores.names, scores.score, strict=True)) == pytest.approx(expected)
    n_scored = {row["metric"]: row["n_test"] for row in result.rows if row["seed"] == -1}
    assert n_scored[CROP_METRIC] == used.sum()  # all crops once, not those of a mean fold
    assert n_scored[WELL_METRIC] == (data.label_of_well >= 0).sum()
    assert result.summary[CROP_METRIC].value == pytest.approx(np.mean(list(expected.values())))


def test_inner_scores_are_of_fits_that_saw_neither_plate(data):
    """Row p, column q is what a probe without plates p and q scores on q."""
    config = ProbeConfig(regularisation=(0.1,))
    vectors = vectors_of(data, signal=1.5)
    found = probe_representation(vectors, "r", data, config, "key").candidates[CROP_METRIC]
    label_N, plate_N = data.label_of_well[data.well_of_crop], np.asarray(data.plates)[data.well_of_crop]
    used = label_N >= 0
    for p, one in enumerate(found.scores.names):
        for q, other in enumerate(found.scores.names):
            if p == q:
                assert np.isnan(found.inner[p, q])
                continue
            train, test = used & (plate_N != one) & (plate_N != other), used & (plate_N == other)
            probe = linear_probe(vectors[train], label_N[train], regularisation=0.1)
            predicted = probe.classes[probe.logits(vectors[test]).argmax(axis=1)]
            assert found.inner[p, q] == pytest.approx(balanced_accuracy_score(label_N[test], predicted))


def test_the_strength_for_a_plate_is_chosen_without_it():
    """On one plate the labels are permuted; what the other plates choose for it does not change."""
    data = make_data(n_plates=5)
    vectors = vectors_of(data, signal=1.5)
    config = ProbeConfig(regularisation=(0.001, 1.0))
    here = (np.asarray(data.plates) == "s/P0") & (data.label_of_well >= 0)
    wrong = data.label_of_well.copy()
    wrong[here] = (wrong[here] + 1) % N_CLASSES
    right, permuted = (
        probe_representation(vectors, "r", each, config, "key").candidates[CROP_METRIC]
        for each in (data, dataclasses.replace(data, label_of_well=wrong))
    )
    place = right.scores.names.index("s/P0")
    np.testing.assert_array_equal(right.inner[place], permuted.inner[place])


def test_labels_of_the_test_part_never_reach_the_fit(data):
    """With the labels of one plate permuted, its predictions stay and are wrong."""
    vectors = vectors_of(data, signal=4.0)
    label_W = data.label_of_well.copy()
    here = (np.asarray(data.plates) == "s/P1") & (label_W >= 0)
    label_W[here] = (label_W[here] + 1) % N_CLASSES
    wrong = dataclasses.replace(data, label_of_well=label_W)
    right, permuted = (
        probe_representation(vectors, "r", each, ProbeConfig(), "key").candidates[CROP_METRIC].scores
        for each in (data, wrong)
    )
    place = right.names.index("s/P1")
    assert right.score[place] > 0.9
    assert permuted.score[place] < 0.1


def test_plate_shifts_hurt_and_alignment_on_controls_mends_them(data):
    config = ProbeConfig(regularisation=(0.1,))
    aligned = dataclasses.replace(config, align="plate_controls")
    clean, shifted = (vectors_of(data, signal=3.0, plate_shift=shift) for shift in (0.0, 4.0))
    assert summary(shifted, data, config).value < summary(clean, data, config).value - 0.1
    assert summary(shifted, data, aligned).value > summary(shifted, data, config).value + 0.1
    assert aligned.benchmark != config.benchmark


def test_a_class_of_one_plate_is_dropped_and_reported(data):
    label_W = data.label_of_well.copy()
    label_W[(label_W == 2) & (np.asarray(data.plates) != "s/P0")] = -1
    result = probe_representation(
        vectors_of(data, signal=3.0), "r", dataclasses.replace(data, label_of_well=label_W), ProbeConfig(), "key"
    )
    assert result.dropped_classes == ("c",)
    assert result.n_classes == 2


def test_a_label_that_no_train_plate_has_is_an_error():
    data = make_data()
    plates = sorted(set(data.plates))
    by_plate = dataclasses.replace(
        data, label="plate", classes=tuple(plates), label_of_well=np.asarray([plates.index(p) for p in data.plates])
    )
    for refused in (make_splits, check_units):
        with pytest.raises(ValueError, match=r"fewer than 2 classes .*probe\.split=well"):
            refused(by_plate, ProbeConfig(label="plate"))
    by_well = ProbeConfig(label="plate", split="well", seeds=(0,))
    assert summary(vectors_of(by_plate, signal=0, plate_shift=4.0), by_plate, by_well).value > 0.9


def test_one_training_plate_still_chooses_its_regularisation():
    data = make_data(n_plates=2)
    assert summary(vectors_of(data, signal=6.0), data, ProbeConfig()).value > 0.9


def test_fits_that_do_not_converge_are_counted(data):
    config = ProbeConfig(max_iterations=1, regularisation=(1.0,))
    result = probe_representation(vectors_of(data, signal=1.0), "r", data, config, "key")
    assert result.n_not_converged == N_PLATES


def test_a_vector_that_is_not_finite_is_an_error(data):
    vectors = vectors_of(data, signal=1.0)
    vectors[4, 2] = np.nan
    label_N = data.label_of_well[data.well_of_crop]
    with pytest.raises(ValueError, match="training vector 4 of"):
        linear_probe(vectors, label_N, regularisation=1.0)


def test_the_key_changes_with_labels_and_settings_and_not_with_how_many_trials_run(data):
    config = ProbeConfig()
    key = probe_key(data, config)
    assert probe_key(data, dataclasses.replace(config, concurrent_trials=7)) == key
    assert probe_key(data, dataclasses.replace(config, choose_by="crops")) == key
    assert probe_key(data, dataclasses.replace(config, seeds=(3,))) != key
    label_W = data.label_of_well.copy()
    label_W[-1] = 0
    assert probe_key(dataclasses.replace(data, label_of_well=label_W), config) != key


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", "colour"), ("split", "site"), ("align", "zscore"), ("seeds", ()), ("seeds", (-1,)), ("seeds", (1, 1)),
        ("held_out_share", 1.0), ("regularisation", (0.0,)), ("choose_by", "sites"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"probe\.{field}"):
        ProbeConfig(**{field: value})
