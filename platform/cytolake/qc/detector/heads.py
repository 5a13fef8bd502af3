"""Heads of the artefact detector: classifiers and one-class models fitted to features of labelled channels.

A fitted head is a dict of float64 arrays, so that a detector is one file of numbers without code.

Letters: M channels of labelled sites, D features, K classes, R rank of the features, T trees, V nodes of a tree.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cytolake.qc.detector.detector import DetectorConfig

Numbers = NDArray[np.float64]
Arrays = dict[str, Numbers]
Labels = NDArray[np.intp]

_MIN_SITES_TO_CHOOSE = 5  # with fewer labels of a class the strength is not chosen by cross-validation
_LOG_ODDS_PER_MARGIN = 2.0  # at the edge of the margin of a support vector machine: probability 0.88
_N_TREES = 100


def fit_classes(train_MD: Numbers, label_M: Labels, site_M: Labels, config: DetectorConfig) -> Arrays:
    """Fit a head that separates classes.

    Args:
        label_M: Classes, 0 is normal.
        site_M: Site of each channel: cross-validation leaves out sites, not channels.
    """
    if config.head in _LINEAR:
        return _fit_linear(train_MD, label_M, site_M, config)
    mean, scale = _mean_and_scale(train_MD)
    return {"mean": mean, "scale": scale, "train": (train_MD - mean) / scale, "label": label_M.astype(float)}


def class_logits(channels_MD: Numbers, arrays: Arrays, n_classes: int, config: DetectorConfig) -> Numbers:
    """(M, K) log probabilities up to a constant, for equally frequent classes."""
    values_MD = _both_sides(channels_MD) if config.head in _LINEAR else channels_MD
    scaled = (values_MD - arrays["mean"]) / arrays["scale"]
    if config.head in _LINEAR:
        return np.asarray(scaled @ arrays["weight"].T + arrays["bias"])
    return np.asarray(np.log(_votes(scaled, arrays["train"], arrays["label"].astype(int), n_classes, config)))


def fit_one_class(normal_MD: Numbers, site_M: Labels, config: DetectorConfig) -> Arrays:
    """Fit to all normal channels; in cross-validation the worst channel of 1 normal site in 100 exceeds the limit."""
    n_folds = min(5, len(np.unique(site_M)))
    worst_S = np.zeros(site_M.max() + 1)
    for fold in range(n_folds):
        is_out = site_M % n_folds == fold
        kept = normal_MD[~is_out] if n_folds > 1 else normal_MD
        np.maximum.at(worst_S, site_M[is_out], one_class_distance(normal_MD[is_out], _one_class(kept, config), config))
    return _one_class(normal_MD, config) | {"limit": np.array([max(float(np.quantile(worst_S, 0.99)), 1e-9)])}


def one_class_distance(channels_MD: Numbers, arrays: Arrays, config: DetectorConfig) -> Numbers:
    """(M,) distance of channels from normal ones, 0 or more."""
    if config.head == "isolation_forest":
        return _isolation(channels_MD, arrays)
    if config.head == "knn_distance":
        scaled = (channels_MD - arrays["mean"]) / arrays["scale"]
        return np.asarray(_nearest(scaled, arrays["train"], config.n_neighbours)[0].mean(axis=1))
    centred = channels_MD - arrays["mean"]
    if "precision" in arrays:
        squared = np.einsum("md,de,me->m", centred, arrays["precision"], centred, optimize=True)
    else:
        along_MR, rest = centred @ arrays["axes"].T, float(arrays["rest"][0])
        squared = rest * (centred**2).sum(axis=1) + along_MR**2 @ (arrays["axis_precision"] - rest)
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


def beyond(distance_M: Numbers, limit: float) -> Numbers:
    """(M, 2) pseudo-probabilities: 0.5 at the limit, 0.996 at twice the limit. A common scale, not a frequency."""
    odds = np.minimum(np.maximum(distance_M, 1e-12) / limit, 1e6) ** 8
    return np.stack([1 / (1 + odds), odds / (1 + odds)], axis=1)


def softmax(logits_MK: Numbers) -> Numbers:
    """(M, K) probabilities."""
    shifted = np.exp(logits_MK - logits_MK.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _both_sides(squeezed_MD: Numbers) -> Numbers:
    """Values and absolute values: a linear head can then detect both low and high values."""
    return np.concatenate([squeezed_MD, np.abs(squeezed_MD)], axis=1)


def _mean_and_scale(values_MD: Numbers) -> tuple[Numbers, Numbers]:
    mean, sd = values_MD.mean(axis=0), values_MD.std(axis=0)
    return mean, np.where(sd > 1e-6 * np.abs(mean) + 1e-12, sd, np.inf)  # a constant feature has no weight


def _fit_linear(train_MD: Numbers, label_M: Labels, site_M: Labels, config: DetectorConfig) -> Arrays:
    from sklearn.model_selection import StratifiedGroupKFold

    fit, both = _LINEAR[config.head], _both_sides(train_MD)
    n_sites = min(len(np.unique(site_M[label_M == label])) for label in np.unique(label_M))
    chosen = sorted(config.strengths)[len(config.strengths) // 2]
    if n_sites >= _MIN_SITES_TO_CHOOSE and len(config.strengths) > 1:
        folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
        losses = dict.fromkeys(config.strengths, 0.0)
        for fit_on, score_on in folds.split(both, label_M, site_M):
            if len(np.unique(label_M[fit_on])) < len(np.unique(label_M)):
                continue
            weight_S = 1 / np.bincount(label_M)[label_M[score_on]]
            for strength in config.strengths:
                fitted = _linear(fit, both[fit_on], label_M[fit_on], strength)
                scaled = (both[score_on] - fitted["mean"]) / fitted["scale"]
                probability = softmax(scaled @ fitted["weight"].T + fitted["bias"])
                at_label = np.maximum(probability[np.arange(len(score_on)), label_M[score_on]], 1e-12)
                losses[strength] -= float(weight_S @ np.log(at_label))
        chosen = min(sorted(losses), key=lambda strength: losses[strength])
    return _linear(fit, both, label_M, chosen)


def _linear(
    fit: Callable[[Numbers, Labels, float], tuple[Numbers, Numbers]], both_MD: Numbers, label_M: Labels, strength: float
) -> Arrays:
    mean, scale = _mean_and_scale(both_MD)
    weight, bias = fit((both_MD - mean) / scale, label_M, strength)
    if len(weight) == 1:  # two classes: scikit-learn keeps only the second's log odds
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return {"mean": mean, "scale": scale, "weight": weight, "bias": bias}


def _logistic(scaled_MD: Numbers, label_M: Labels, strength: float) -> tuple[Numbers, Numbers]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=500, class_weight="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fit cut short by the limit is still one with a penalty
        model.fit(scaled_MD, label_M)
    return np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)


def _support_vectors(scaled_MD: Numbers, label_M: Labels, strength: float) -> tuple[Numbers, Numbers]:
    """Margins, as log odds at a fixed rate: too few labels remain to calibrate them (Platt 1999)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=strength, class_weight="balanced", intercept_scaling=10, max_iter=5000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaled_MD, label_M)
    return (
        _LOG_ODDS_PER_MARGIN * np.asarray(model.coef_, np.float64),
        _LOG_ODDS_PER_MARGIN * np.asarray(model.intercept_, np.float64),
    )


_LINEAR = {"logistic": _logistic, "svm": _support_vectors}


def _votes(scaled_MD: Numbers, train_ND: Numbers, label_N: Labels, n_classes: int, config: DetectorConfig) -> Numbers:
    """(M, K) share of the votes, weighted by nearness and for equally frequent classes."""
    distance, nearest = _nearest(scaled_MD, train_ND, config.n_neighbours)
    votes = np.full((len(scaled_MD), n_classes), 0.0)
    weight = 1 / np.maximum(distance, 1e-6) / np.bincount(label_N, minlength=n_classes)[label_N[nearest]]
    for k in range(n_classes):
        votes[:, k] = (weight * (label_N[nearest] == k)).sum(axis=1)
    shares = votes / votes.sum(axis=1, keepdims=True)
    smoothing = 0.1 / (config.n_neighbours + 0.1)  # five of five neighbours are no proof, but more than a rare prior
    return np.asarray((1 - smoothing) * shares + smoothing / n_classes)


def _nearest(scaled_MD: Numbers, train_ND: Numbers, k: int) -> tuple[Numbers, Labels]:
    """Distance over the root of the number of features, and index, of the k nearest."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=min(k, len(train_ND))).fit(train_ND)
    distance, nearest = model.kneighbors(scaled_MD)
    return np.asarray(distance / np.sqrt(train_ND.shape[1]), np.float64), np.asarray(nearest, np.intp)


def _one_class(normal_MD: Numbers, config: DetectorConfig) -> Arrays:
    if config.head == "isolation_forest":
        return _forest(normal_MD)
    if config.head == "knn_distance":
        mean, scale = _mean_and_scale(normal_MD)
        return {"mean": mean, "scale": scale, "train": (normal_MD - mean) / scale}
    return _shrunk_covariance(normal_MD)


def _shrunk_covariance(normal_MD: Numbers) -> Arrays:
    """The inverse of Ledoit and Wolf's covariance; with more features than rows by the axes of the rows, to the same
    distances without a matrix of D x D."""
    from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage

    # Features are deviations of the plate already: their own sd is not taken out, for it is uncertain with few sites.
    mean = normal_MD.mean(axis=0)
    n, n_features = normal_MD.shape
    if n_features <= n:
        covariance, _ = ledoit_wolf(normal_MD)
        floor = 1e-3 * max(float(np.trace(covariance)) / n_features, 1e-9)
        return {"mean": mean, "precision": np.linalg.inv(covariance + floor * np.eye(n_features))}
    shrinkage = float(ledoit_wolf_shrinkage(normal_MD)) if n > 1 else 1.0
    _, size, axes_RD = np.linalg.svd(normal_MD - mean, full_matrices=False)
    average = float((size**2).sum()) / n / n_features
    least = shrinkage * average + 1e-3 * max(average, 1e-9)
    return {
        "mean": mean,
        "axes": axes_RD,
        "axis_precision": 1 / ((1 - shrinkage) * size**2 / n + least),
        "rest": np.array([1 / least]),
    }


def _forest(normal_MD: Numbers) -> Arrays:
    """Trees of random cuts (Liu, Ting and Zhou 2008, doi:10.1109/ICDM.2008.17) as arrays of (T, V)."""
    from sklearn.ensemble import IsolationForest

    model = IsolationForest(n_estimators=_N_TREES, random_state=0).fit(normal_MD)
    trees = [each.tree_ for each in model.estimators_]
    shape = (len(trees), max(tree.node_count for tree in trees))
    arrays = {name: np.full(shape, -1.0) for name in ("cut_feature", "cut", "below", "above", "length")}
    for t, tree in enumerate(trees):
        nodes = slice(tree.node_count)
        arrays["cut_feature"][t, nodes], arrays["cut"][t, nodes] = tree.feature, tree.threshold
        arrays["below"][t, nodes], arrays["above"][t, nodes] = tree.children_left, tree.children_right
        depth = np.zeros(tree.node_count)
        for node in range(tree.node_count):  # parents come before their children
            for child in (tree.children_left[node], tree.children_right[node]):
                if child >= 0:
                    depth[child] = depth[node] + 1
        arrays["length"][t, nodes] = depth + _usual_path(np.asarray(tree.n_node_samples, float))
    usual = float(_usual_path(np.array([float(model.max_samples_)]))[0])
    return arrays | {"usual_length": np.array([max(usual, 1e-9)])}


def _usual_path(n: Numbers) -> Numbers:
    """Mean path of an unsuccessful search in a random tree of n points."""
    harmonic = np.log(np.maximum(n - 1, 1)) + np.euler_gamma
    return np.where(n > 2, 2 * harmonic - 2 * (n - 1) / np.maximum(n, 1), np.where(n == 2, 1.0, 0.0))


def _isolation(channels_MD: Numbers, arrays: Arrays) -> Numbers:
    """(M,) anomaly score, 0..1: 2 to the power of minus the mean path over the expected path."""
    values = channels_MD.astype(np.float32)  # as the trees compared them
    tree_T1 = np.arange(len(arrays["cut"]))[:, None]
    node_TM = np.zeros((len(arrays["cut"]), len(values)), np.intp)
    place_M = np.arange(len(values))
    while True:
        feature_TM = arrays["cut_feature"][tree_T1, node_TM].astype(np.intp)
        is_inner = feature_TM >= 0
        if not is_inner.any():
            break
        is_below = values[place_M, np.maximum(feature_TM, 0)] <= arrays["cut"][tree_T1, node_TM]
        child = np.where(is_below, arrays["below"][tree_T1, node_TM], arrays["above"][tree_T1, node_TM])
        node_TM = np.where(is_inner, child.astype(np.intp), node_TM)
    length_M = arrays["length"][tree_T1, node_TM].mean(axis=0)
    return np.asarray(2.0 ** (-length_M / float(arrays["usual_length"][0])))
