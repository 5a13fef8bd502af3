from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from cytolake.catalog.declared import table_contract
from cytolake.qc.detector import label_efficiency as qc_label_efficiency
from cytolake.qc.detector.detector import ArtefactDetector, DetectorConfig, Example
from cytolake.qc.detector.detector_scores import BINARY_METRICS, KIND_METRICS, binary_scores, kind_scores
from cytolake.qc.detector.label_efficiency import (
    LabelEfficiency,
    LabelEfficiencyConfig,
    detection_task,
    label_efficiency,
    score_rows,
)

FEATURES = tuple(f"f{i}" for i in range(10))
CONFIG = LabelEfficiencyConfig(labels_per_class=(1, 5, 20, 100), seeds=(0, 1, 2), n_resamples=30)


def screen(n_plates: int = 4, n_each: int = 12, size: float = 3.0) -> tuple[list[Example], list[str]]:
    rng = np.random.default_rng(0)
    found, plates = [], []
    for plate in range(n_plates):
        for feature, label in enumerate(("normal", "blur", "noise")):
            for _ in range(n_each):
                deviations = rng.standard_normal((2, len(FEATURES)))
                if label != "normal":
                    deviations[rng.integers(2), feature] += size
                found.append(Example(deviations, label))
                plates.append(f"P{plate}")
    return found, plates


@pytest.fixture(scope="module")
def result() -> LabelEfficiency:
    return label_efficiency(*screen(), FEATURES, CONFIG)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("n_levels", [3, 1000])
def test_the_scores_are_scikit_learns_with_weights_and_ties(seed, n_levels):
    rng = np.random.default_rng(seed)
    is_spoilt = rng.random(300) < 0.2
    probability = np.clip(rng.normal(0.4 + 0.2 * is_spoilt, 0.2), 0, 1)
    probability = np.round(probability * n_levels) / n_levels
    weight = rng.uniform(0.1, 2, 300)
    found = binary_scores(probability, is_spoilt, weight, 0.5)
    assert tuple(found) == BINARY_METRICS
    known = {"sample_weight": weight}
    taken = probability > 0.5
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(is_spoilt, probability, **known))
    assert found["auprc"] == pytest.approx(metrics.average_precision_score(is_spoilt, probability, **known))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(is_spoilt, taken, **known))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(is_spoilt, taken, average="macro", **known))
    false, true, _ = metrics.roc_curve(is_spoilt, probability, drop_intermediate=False, **known)
    assert found["recall_at_1_percent_fpr"] == pytest.approx(true[false <= 0.01].max())


def test_the_scores_of_kinds_are_scikit_learns():
    rng = np.random.default_rng(1)
    label, taken, weight = rng.integers(0, 4, 200), rng.integers(0, 4, 200), rng.uniform(0.1, 1, 200)
    found = kind_scores(taken, label, weight)
    assert tuple(found) == KIND_METRICS
    assert found["balanced_accuracy_of_kinds"] == pytest.approx(
        metrics.balanced_accuracy_score(label, taken, sample_weight=weight)
    )
    assert found["macro_f1_of_kinds"] == pytest.approx(
        metrics.f1_score(label, taken, average="macro", sample_weight=weight)
    )


def test_all_resamples_at_once_score_as_one_after_the_other():
    rng = np.random.default_rng(3)
    probability, is_spoilt, label, taken = (
        rng.random(40),
        rng.random(40) < 0.3,
        rng.integers(0, 3, 40),
        rng.integers(0, 3, 40),
    )
    weight = rng.integers(0, 3, (6, 40)).astype(float)
    weight[4, is_spoilt] = 0
    together = binary_scores(probability, is_spoilt, weight, 0.5) | kind_scores(taken, label, weight)
    for r, row in enumerate(weight):
        for name, value in (binary_scores(probability, is_spoilt, row, 0.5) | kind_scores(taken, label, row)).items():
            np.testing.assert_allclose(together[name][r], value, err_msg=name)
    assert np.isnan(together["auroc"]).tolist() == [False, False, False, False, True, False]


def test_wells_are_held_out_by_class():
    labels = ["normal"] * 8 + ["defocus"] * 15
    wells = [f"W{i}" for i in [*range(8), *range(7, 22)]]  # W7 is imaged in focus and out of it
    task = detection_task(labels, wells, LabelEfficiencyConfig(detector=DetectorConfig(is_binary=True)), "well")
    assert len(task.splits) == 10
    for split in task.splits:
        train = {wells[i] for order in split.orders for i in order}
        assert not train & set(split.held_out)
        n_normal = sum(labels[i] == "normal" for i in split.test)
        assert n_normal in (4, 5)
        assert task.most_labels(split) in (3, 4)


def test_kinds_and_plates_have_scores_of_their_own_also_where_the_detector_is_binary():
    found, plates = screen(n_each=20)
    config = LabelEfficiencyConfig(
        labels_per_class=(20,), seeds=tuple(range(6)), n_resamples=30, detector=DetectorConfig(is_binary=True)
    )
    curve = label_efficiency(found, plates, FEATURES, config)
    assert set(curve.of_kind) == {"blur", "noise"}
    assert set(curve.of_group) == set(plates)
    assert curve.n_groups == 4
    both = np.mean([point.value for point in curve.of_kind.values()])
    assert curve.curve("auroc")[0].value == pytest.approx(both, abs=0.01)  # kinds are as frequent as each other
    only_noise = [example for example in found if example.label != "blur"]
    where = [plate for plate, example in zip(plates, found, strict=True) if example.label != "blur"]
    assert set(label_efficiency(only_noise, where, FEATURES, config).of_kind) == {"noise"}


def test_calibration_is_0_where_frequencies_are_as_predicted_and_the_gap_elsewhere():
    probability = np.repeat([0.05, 0.55], 100)
    is_spoilt = np.tile(np.arange(100), 2) < np.repeat([5, 55], 100)
    weight = np.ones(200)
    assert binary_scores(probability, is_spoilt, weight, 0.5)["calibration_error"] == pytest.approx(0)
    assert binary_scores(probability + 0.2, is_spoilt, weight, 0.5)["calibration_error"] == pytest.approx(0.2)


def test_scores_without_one_of_the_two_sides_are_nan():
    found = binary_scores(np.array([0.1, 0.9]), np.array([False, True]), np.array([1.0, 0.0]), 0.5)
    assert np.isnan(list(found.values())).all()


def test_more_labels_find_more(result):
    points = {point.n_labels: point for point in result.curve("auroc")}
    assert sorted(points) == [1, 5, 20]  # two training plates have 24 of each class, not 100
    assert points[20].value > points[1].value + 0.05
    assert points[20].value > 0.85
    assert {point.metric for point in result.points} == {*BINARY_METRICS, *KIND_METRICS}
    for point in result.points:
        assert point.low <= point.value <= point.high or point.low <= point.high
        assert point.value == pytest.approx(np.mean(list(point.of_seed.values())))
        assert point.n_train == 3 * point.n_labels
        assert point.n_test == 72


def test_labels_without_meaning_give_a_curve_at_one_half():
    found, plates = screen(n_each=20, size=0.0)
    curve = label_efficiency(found, plates, FEATURES, CONFIG).curve("auroc")
    assert all(abs(point.value - 0.5) < 0.1 for point in curve)


def test_no_plate_is_on_both_sides_and_more_labels_keep_the_fewer(monkeypatch):
    found, plates = screen()
    place = {id(example): i for i, example in enumerate(found)}
    fitted: list[list[int]] = []
    fit = ArtefactDetector.fit

    def spied(examples, *rest, **named):
        fitted.append([place[id(example)] for example in examples])
        return fit(examples, *rest, **named)

    monkeypatch.setattr(qc_label_efficiency.ArtefactDetector, "fit", spied)
    measured = label_efficiency(found, plates, FEATURES, replace(CONFIG, n_resamples=0))
    assert len(fitted) == 9
    for seed in range(3):
        few, some, many = map(set, fitted[3 * seed : 3 * seed + 3])
        assert few < some < many
        assert not {plates[i] for i in many} & set(measured.held_out[seed])
        assert Counter(found[i].label for i in some) == {"normal": 5, "blur": 5, "noise": 5}
    assert len({measured.held_out[seed] for seed in range(3)}) > 1


def test_prevalence_moves_precision_and_not_the_order():
    found, plates = screen(n_each=8)
    rare, common = (
        label_efficiency(found, plates, FEATURES, LabelEfficiencyConfig(
            labels_per_class=(5,), seeds=(0, 1), prevalence=p, n_resamples=0
        )) for p in (0.02, 0.5)
    )  # fmt: skip
    for metric in ("auroc", "recall_at_1_percent_fpr"):
        assert rare.curve(metric)[0].value == pytest.approx(common.curve(metric)[0].value)
    assert rare.curve("auprc")[0].value < common.curve("auprc")[0].value
    assert np.isnan(rare.points[0].low)


def test_the_confusion_of_kinds_is_shares_of_each_class(result):
    assert result.classes == ("normal", "blur", "noise")
    for matrix in result.confusion.values():
        np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert np.diag(result.confusion[20])[1:].min() > np.diag(result.confusion[1])[1:].min()


@pytest.mark.parametrize("settings", [{"head": "mahalanobis"}, {"is_binary": True}, {"head": "knn_distance"}])
def test_detectors_that_predict_no_kinds_are_scored_on_spoilt_or_not(settings):
    measured = label_efficiency(
        *screen(), FEATURES, LabelEfficiencyConfig(labels_per_class=(5, 20), seeds=(0, 1), n_resamples=0,
                                                   detector=DetectorConfig(**settings))
    )  # fmt: skip
    assert measured.classes == ("normal", "artefact")
    assert {point.metric for point in measured.points} == set(BINARY_METRICS)
    assert measured.confusion == {}
    assert measured.curve("auroc")[-1].value > 0.75


def test_the_same_config_gives_the_same_curve(result):
    first, *_ = CONFIG.seeds
    again = label_efficiency(*screen(), FEATURES, replace(CONFIG, seeds=(first,), n_resamples=0))
    assert [p.of_seed[first] for p in again.points] == [p.of_seed[first] for p in result.points]


def test_rows_fit_the_table_of_scores_and_have_ids_of_their_own(result):
    rows = score_rows(result, "statistics", "key")
    table = table_contract("scores").rows(rows)
    assert table.num_rows == len(result.points) * 4
    assert len({row["score_id"] for row in rows}) == len(rows)
    assert [row["score_id"] for row in score_rows(result, "statistics", "key")] == [row["score_id"] for row in rows]
    means = [row for row in rows if row["seed"] == -1 and row["metric"] == "auroc"]
    assert [row["n_train"] for row in means] == [3, 15, 60]
    assert all(row["ci_low"] <= row["ci_high"] for row in means)


def test_what_cannot_be_measured_is_refused():
    found, plates = screen()
    with pytest.raises(ValueError, match=r"sites of 1 plate \(P\)"):
        label_efficiency(found, ["P"] * len(found), FEATURES)
    with pytest.raises(ValueError, match="leaves 100 labelled sites of every class"):
        label_efficiency(found, plates, FEATURES, LabelEfficiencyConfig(labels_per_class=(100,)))


@pytest.mark.parametrize(
    "values",
    [
        {"labels_per_class": (5, 1)},
        {"labels_per_class": ()},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (-1,)},
        {"held_out_share": 1.0},
        {"prevalence": 0.0},
        {"n_resamples": -1},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}: found"):
        LabelEfficiencyConfig(**values)
