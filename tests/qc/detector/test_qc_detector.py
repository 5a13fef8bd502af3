from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tests.fast_cases import fast_cases

from cytolake.qc.detector.detector import (
    ARTEFACT,
    HEADS,
    ONE_CLASS,
    ArtefactDetector,
    DetectorConfig,
    DetectorError,
    Example,
    describe,
)

FEATURES = tuple(f"f{i}" for i in range(12))
N_CHANNELS = 4
KINDS = {"blur": (slice(0, 4), 6.0), "bright": (slice(4, 9), 8.0), "dim": (slice(4, 9), -8.0)}
"""Which features a kind moves, and by how much: `bright` and `dim` go opposite ways."""


def example(
    label: str, rng: np.random.Generator, *, with_channels: bool = False, channel: int | None = None
) -> Example:
    """A site of unit normal deviations; one channel of a spoilt site is moved."""
    deviations = rng.standard_normal((N_CHANNELS, len(FEATURES)))
    is_spoilt = np.zeros(N_CHANNELS, bool)
    if label != "normal":
        feature, size = KINDS[label]
        c = int(rng.integers(N_CHANNELS)) if channel is None else channel
        deviations[c, feature] += size
        is_spoilt[c] = True
    return Example(deviations, label, is_spoilt if with_channels else None)


def examples(n: int, seed: int = 0, **how: bool) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [example(label, rng, **how) for label in ("normal", *KINDS) for _ in range(n)]


@cache
def fit(head: str = "logistic", n: int = 12, **settings: object) -> ArtefactDetector:
    return ArtefactDetector.fit(examples(n), FEATURES, DetectorConfig(head=head, **settings), features_key="key")


@pytest.fixture(scope="module")
def held_out() -> list[Example]:
    return examples(60, seed=99, with_channels=True)


@pytest.mark.parametrize("head", fast_cases(HEADS, HEADS[0], ONE_CLASS[0]))
def test_spoilt_sites_of_other_draws_are_separated_from_normal_ones(head, held_out):
    detector = fit(head)
    found = detector.artefact_probabilities([each.deviations for each in held_out])
    assert roc_auc_score([each.label != "normal" for each in held_out], found) > 0.95


@pytest.mark.parametrize("head", fast_cases(HEADS, HEADS[0], ONE_CLASS[0]))
def test_a_detector_of_labels_without_meaning_finds_nothing(head):
    rng = np.random.default_rng(5)
    shuffled = [Example(rng.standard_normal((4, 12)), label) for label in ("normal", "blur") for _ in range(40)]
    tested = [rng.standard_normal((4, 12)) for _ in range(400)]
    found = ArtefactDetector.fit(shuffled, FEATURES, DetectorConfig(head=head)).artefact_probabilities(tested)
    assert abs(roc_auc_score([i % 2 for i in range(400)], found) - 0.5) < 0.1


@pytest.mark.parametrize("head", ["logistic", "svm", "knn"])
def test_it_says_which_channel_failed_though_labels_were_of_whole_sites(head, held_out):
    verdicts = fit(head, n=25).predict([each.deviations for each in held_out])
    spoilt = [(v, each) for v, each in zip(verdicts, held_out, strict=True) if each.label != "normal"]
    right = [v.artefact_of_channels.argmax() == each.is_spoilt.argmax() for v, each in spoilt]
    assert np.mean(right) > 0.95


@pytest.mark.parametrize("head", ["logistic", "svm", "knn"])
def test_it_says_what_is_wrong_and_separates_too_bright_from_too_dim(head, held_out):
    detector = fit(head, n=25)
    assert detector.classes == ("normal", "blur", "bright", "dim")
    verdicts = detector.predict([each.deviations for each in held_out])
    right = [
        detector.classes[1 + v.of_site[1:].argmax()] == each.label
        for v, each in zip(verdicts, held_out, strict=True)
        if each.label != "normal"
    ]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("head", fast_cases(HEADS, HEADS[0], ONE_CLASS[0]))
def test_a_site_is_as_spoilt_as_its_worst_channel_and_probabilities_add_up(head, held_out):
    for verdict in fit(head).predict([each.deviations for each in held_out]):
        np.testing.assert_allclose(verdict.of_channels.sum(axis=1), 1)
        assert verdict.of_site.sum() == pytest.approx(1)
        assert verdict.artefact == pytest.approx(verdict.artefact_of_channels.max())
        assert (verdict.of_channels >= 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_channels_are_judged_alone_in_any_order_and_number(head, held_out):
    detector, site = fit(head), held_out[70].deviations
    (whole,) = detector.predict([site])
    (turned,) = detector.predict([site[[2, 0, 3, 1]]])
    np.testing.assert_allclose(turned.of_channels, whole.of_channels[[2, 0, 3, 1]])
    np.testing.assert_allclose(turned.of_site, whole.of_site)
    for c, alone in enumerate(detector.predict([site[[c]] for c in range(N_CHANNELS)])):
        np.testing.assert_allclose(alone.of_channels[0], whole.of_channels[c])
    assert detector.predict([]) == []


def test_the_linear_head_is_scikit_learns_on_the_same_numbers():
    rng = np.random.default_rng(2)
    labelled = [example(label, rng, with_channels=True) for label in ("normal", "blur") for _ in range(20)]
    detector = ArtefactDetector.fit(labelled, FEATURES, DetectorConfig(strengths=(0.3,), prevalence=0.5))
    squeezed = [np.arcsinh(each.deviations) for each in labelled]
    rows = np.concatenate(
        [np.concatenate(squeezed[:20])] + [s[e.is_spoilt] for s, e in zip(squeezed[20:], labelled[20:], strict=True)]
    )
    label = np.array([0] * 80 + [1] * 20)
    both = np.concatenate([rows, np.abs(rows)], axis=1)
    mean, sd = both.mean(axis=0), both.std(axis=0)
    oracle = LogisticRegression(C=0.3, class_weight="balanced", max_iter=500).fit((both - mean) / sd, label)
    tested = rng.standard_normal((6, 12)) * 3
    both = np.concatenate([np.arcsinh(tested), np.abs(np.arcsinh(tested))], axis=1)
    (verdict,) = detector.predict([tested])
    np.testing.assert_allclose(verdict.of_channels, oracle.predict_proba((both - mean) / sd), atol=1e-6)


def test_distances_are_mahalanobis_ones():
    detector = fit("mahalanobis")
    arrays = detector._arrays
    tested = np.random.default_rng(0).standard_normal((50, 12)) * 4
    apart = np.arcsinh(tested) - arrays["mean"]
    distance = np.sqrt([row @ arrays["precision"] @ row for row in apart])
    (verdict,) = detector.predict([tested])
    order = np.argsort(distance)
    assert (np.diff(verdict.artefact_of_channels[order]) >= 0).all()
    is_beyond = distance > arrays["limit"][0]
    np.testing.assert_array_equal(verdict.artefact_of_channels > 0.5, is_beyond)


@pytest.mark.parametrize("head", fast_cases(ONE_CLASS, ONE_CLASS[0]))
def test_one_class_heads_never_look_at_a_spoilt_site_and_fail_few_normal_ones(head):
    labelled = examples(60)
    with_spoilt = ArtefactDetector.fit(labelled, FEATURES, DetectorConfig(head=head))
    without = ArtefactDetector.fit(labelled[:60], FEATURES, DetectorConfig(head=head))
    assert with_spoilt.detector_id == without.detector_id
    assert without.classes == ("normal", ARTEFACT)
    normal = [each.deviations for each in examples(150, seed=4)[:150]]
    assert np.mean(without.artefact_probabilities(normal) > 0.5) < 0.08


@pytest.mark.parametrize("head", ["logistic", "svm", "knn"])
def test_prevalence_moves_probabilities_and_not_their_order(head, held_out):
    sites = [each.deviations for each in held_out]
    rare, common = (fit(head, prevalence=p, is_binary=True).artefact_probabilities(sites) for p in (0.01, 0.5))
    assert (rare <= common + 1e-12).all()
    odds = (common / (1 - common)) / (rare / (1 - rare))
    np.testing.assert_allclose(odds, 99, rtol=1e-6)


def test_a_binary_detector_predicts_no_kinds(held_out):
    detector = fit(is_binary=True)
    assert detector.classes == ("normal", ARTEFACT)
    found = detector.artefact_probabilities([each.deviations for each in held_out])
    assert roc_auc_score([each.label != "normal" for each in held_out], found) > 0.95


def test_one_label_of_each_class_is_enough_to_fit(held_out):
    for head in HEADS:
        found = fit(head, n=1).artefact_probabilities([each.deviations for each in held_out])
        assert np.isfinite(found).all()


@pytest.mark.slow
def test_features_that_are_constant_or_huge_do_no_harm():
    labelled = [Example(np.c_[each.deviations[:, :11], np.zeros(4)], each.label) for each in examples(10)]
    for head in HEADS:
        detector = ArtefactDetector.fit(labelled, FEATURES, DetectorConfig(head=head))
        found = detector.artefact_probabilities([np.full((4, 12), 1e4), np.full((4, 12), -1e4), np.zeros((4, 12))])
        assert np.isfinite(found).all()


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_detector_says_the_same_and_has_the_same_id(head, held_out, tmp_path):
    detector, path = fit(head), tmp_path / "there" / "detector.safetensors"
    identity = detector.save(path)
    again = ArtefactDetector.load(path)
    assert again.detector_id == identity == detector.detector_id
    assert (again.config, again.classes, again.features, again.features_key) == (
        detector.config, detector.classes, FEATURES, "key",
    )  # fmt: skip
    sites = [each.deviations for each in held_out]
    np.testing.assert_allclose(again.artefact_probabilities(sites), detector.artefact_probabilities(sites), rtol=1e-9)
    assert [found.name for found in path.parent.iterdir()] == ["detector.safetensors"]
    assert describe(again)["head"] == head


def test_everything_that_decides_a_verdict_is_in_the_id():
    ids = {
        fit().detector_id,
        fit(n=13).detector_id,
        fit(threshold=0.6).detector_id,
        fit(prevalence=0.1).detector_id,
        fit("knn").detector_id,
        ArtefactDetector.fit(examples(12), FEATURES, features_key="other").detector_id,
    }
    assert len(ids) == 6
    assert fit.__wrapped__().detector_id == fit().detector_id  # fitted again


def test_a_file_that_is_not_this_detector_is_refused(tmp_path):
    path = tmp_path / "detector.safetensors"
    with pytest.raises(DetectorError, match="no such file"):
        ArtefactDetector.load(path)
    fit().save(path)
    with safe_open(path, framework="np") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(arrays | {"bias": arrays["bias"] + 1}, path, metadata)
    with pytest.raises(DetectorError, match="changed since it was saved"):
        ArtefactDetector.load(path)
    settings = json.loads(metadata["config"]) | {"threshold": 0.9}
    save_file(arrays, path, metadata | {"config": json.dumps(settings)})
    with pytest.raises(DetectorError, match="changed since it was saved"):
        ArtefactDetector.load(path)
    save_file(arrays, path, {"kind": "something"})
    with pytest.raises(DetectorError, match="kind 'something'"):
        ArtefactDetector.load(path)
    fit().save(path)
    Path(path).write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DetectorError, match="not a whole safetensors file"):
        ArtefactDetector.load(path)


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        (examples(3)[:3], "from 3 normal and 0 spoilt sites"),
        (examples(3)[3:], "from 0 normal and 9 spoilt sites"),
        ([], "from 0 normal and 0 spoilt sites"),
        ([*examples(1), Example(np.zeros((4, 11)), "blur")], r"example 4: features of shape \(4, 11\)"),
        ([*examples(1), Example(np.full((4, 12), np.nan), "blur")], "example 4: a feature is not finite"),
        (
            [examples(1)[0], Example(np.zeros((4, 12)), "blur", np.zeros(4, bool))],
            "1 spoilt sites without a spoilt channel",
        ),
    ],
)
def test_examples_that_no_detector_can_come_from_are_refused(labelled, message):
    with pytest.raises(DetectorError, match=message):
        ArtefactDetector.fit(labelled, FEATURES)


def test_features_of_another_kind_are_refused():
    with pytest.raises(DetectorError, match=r"site 1: features of shape \(4, 5\), expected \(channels, 12\): f0"):
        fit().predict([np.zeros((4, 12)), np.zeros((4, 5))])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"head": "forest"}, "head"),
        ({"strengths": ()}, "strengths"),
        ({"strengths": (0.0,)}, "strengths"),
        ({"n_neighbours": 0}, "n_neighbours"),
        ({"prevalence": 1.0}, "prevalence"),
        ({"threshold": 0.0}, "threshold"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values, field):
    with pytest.raises(ValueError, match=rf"detector\.{field}: found"):
        DetectorConfig(**values)
