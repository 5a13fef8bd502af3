from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from cytolake.tune.clusterings import cluster_agreement, terciles


def test_clusters_follow_what_moves_the_vectors_and_nothing_else():
    random = np.random.default_rng(0)
    label, nuisance = random.integers(0, 4, 400), random.integers(0, 4, 400)
    vectors = 5 * random.normal(size=(4, 16))[label] + random.normal(size=(400, 16))
    found = cluster_agreement(vectors, {"label": label, "nuisance": nuisance}, restarts=5, seeds=(0,))
    assert found["label"].ami == pytest.approx(1, abs=0.02)
    assert found["label"].ari == pytest.approx(1, abs=0.02)
    assert abs(found["nuisance"].ami) < 0.03
    assert found["label"].n_clusters == 4


def test_crops_without_a_label_do_not_count_and_one_class_is_left_out():
    random = np.random.default_rng(1)
    label = random.integers(0, 3, 90)
    label[:30] = -1
    found = cluster_agreement(
        random.normal(size=(90, 4)), {"label": label, "one": np.zeros(90, int)}, restarts=2, seeds=(0,)
    )
    assert set(found) == {"label"}
    assert found["label"].n_crops == 60


def test_agreement_is_that_of_scikit_learn_on_its_own_clusters():
    from sklearn.cluster import KMeans

    random = np.random.default_rng(2)
    vectors, label = random.normal(size=(120, 6)), random.integers(0, 5, 120)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    clusters = KMeans(5, n_init=3, random_state=4).fit_predict(unit)
    found = cluster_agreement(vectors, {"label": label}, restarts=3, seeds=(4,))
    assert found["label"].ami == pytest.approx(adjusted_mutual_info_score(label, clusters))


def test_terciles_are_thirds_of_what_is_known():
    values = np.array([np.nan, *range(9)], dtype=float)
    assert terciles(values).tolist() == [-1, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (terciles(np.full(3, np.nan)) == -1).all()
