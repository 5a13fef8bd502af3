"""T2 and T3: prediction of perturbations in unseen batches by a linear map, and by nearest neighbours.

Shapes: N training rows, M test rows, D dimensions, K classes.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.neighbours import nearest
from cytolake.benchmark.transcriptomics.screen import Codes
from cytolake.statistics.unit_vectors import unit_vectors

Floats = NDArray[np.float64]
Distance = Literal["euclidean", "cosine"]
NEIGHBOURS = 251
KNN_COMPONENTS = 32
CLOSEST = 1e-5  # added to distances: the weight of an equal vector is 1e5
TEMPERATURE = 0.07


def linear_scores(
    train_ND: NDArray[np.floating],
    labels_N: Codes,
    test_MD: NDArray[np.floating],
    *,
    standardise: bool,
    regularisation: float = 1.0,
    max_iterations: int = 500,
) -> tuple[Codes, Floats, bool]:
    """Multinomial logistic regression on the training rows, and its scores of the test rows.

    Args:
        train_ND: (N, D) rows without controls.
        labels_N: (N,) any integers, two or more different ones.
        test_MD: (M, D)
        standardise: Whether dimensions are standardised by the training rows. Without, the penalty makes the result
            depend on the embedding's scale.
        regularisation: Inverse strength C of the L2 penalty.
        max_iterations: Limit of L-BFGS.

    Returns:
        (K,) classes ascending, (M, K) logits, and whether L-BFGS converged.

    Raises:
        ValueError: A single class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(labels_N)
    if len(classes) < 2:
        raise ValueError(f"linear probe: {len(classes)} perturbations to predict, expected 2 or more.")
    mean_D = train_ND.mean(axis=0, dtype=np.float64)
    scale_D = np.ones(len(mean_D))
    if standardise:
        sd_D = train_ND.std(axis=0, dtype=np.float64)
        scale_D = np.where(sd_D > 1e-6 * np.abs(mean_D) + 1e-30, sd_D, np.inf)  # a constant dimension has no effect
    model = LogisticRegression(C=regularisation, max_iter=max_iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # returned
        # Centred for the solver; the intercept, which has no penalty, compensates.
        model.fit(((train_ND - mean_D) / scale_D).astype(np.float32), labels_N)
    logits = model.decision_function(((test_MD - mean_D) / scale_D).astype(np.float32)).astype(np.float64)
    if logits.ndim == 1:  # two classes: scikit-learn gives the second's log odds
        logits = np.stack([-logits / 2, logits / 2], axis=1)
    return classes, logits, bool(np.max(model.n_iter_) < max_iterations)


def knn_scores(
    train_ND: NDArray[np.floating],
    labels_N: Codes,
    test_MD: NDArray[np.floating],
    *,
    n_neighbours: int | None = NEIGHBOURS,
    n_components: int | None = KNN_COMPONENTS,
    distance: Distance = "euclidean",
) -> tuple[Codes, Floats]:
    """Votes of the nearest training rows, after principal components of the training rows.

    A vote has the weight 1 / (distance + 1e-5), or exp(similarity / 0.07). As published, `cosine` scales vectors to
    length 1 and then takes the inner product of their components, which are centred and no longer of length 1.

    Args:
        train_ND: (N, D) rows, controls included.
        labels_N: (N,) any integers.
        test_MD: (M, D)
        n_neighbours: Rounded down to an odd number, at most N; the square root of N where None.
        n_components: Principal components, fewer where D or N are smaller; None uses the vectors themselves.
        distance: `euclidean`, or `cosine` of the vectors, approximated by their components.

    Returns:
        (K,) classes ascending, and (M, K) shares of the votes.

    Source: Tx-Evaluation's weighted nearest neighbours (Bendidi et al. 2024, arXiv 2410.13956).
    """
    from sklearn.decomposition import PCA

    if distance == "cosine":
        train_ND, test_MD = unit_vectors(train_ND), unit_vectors(test_MD)
    if n_components is not None and n_components < train_ND.shape[1]:
        pca = PCA(min(n_components, len(train_ND)), svd_solver="covariance_eigh").fit(train_ND)
        train_ND, test_MD = pca.transform(train_ND), pca.transform(test_MD)
    if distance == "cosine":
        train_ND, test_MD = _with_inner_products_as_distances(train_ND, test_MD)
    k = min(n_neighbours if n_neighbours is not None else round(len(train_ND) ** 0.5), len(train_ND))
    k = max(1, k - 1 + k % 2)
    classes, codes = np.unique(labels_N, return_inverse=True)
    votes = np.empty((len(test_MD), len(classes)))
    for block, distances, found in nearest(train_ND, test_MD, k):
        # similarity = constant of the query - distance^2 / 2, and the constant cancels in the share of votes.
        weights = 1 / (distances + CLOSEST) if distance == "euclidean" else np.exp(-(distances**2) / 2 / TEMPERATURE)
        place = np.arange(len(found))[:, None] * len(classes) + codes[found]
        of_class = np.bincount(place.ravel(), weights.ravel(), len(found) * len(classes)).reshape(-1, len(classes))
        votes[block] = of_class / of_class.sum(axis=1, keepdims=True)
    return classes, votes


def top_credit(scores_MK: Floats, classes: Codes, labels_M: Codes, top: int) -> Floats:
    """(M,) probability that a row's class is among the `top` best scores, with equal scores in random order.

    0 for a class without training rows. Without the random order, a representation without information would have the
    score of the first class.
    """
    place = np.searchsorted(classes, labels_M)
    is_known = classes[np.minimum(place, len(classes) - 1)] == labels_M
    own = scores_MK[np.arange(len(labels_M)), np.where(is_known, place, 0)][:, None]
    n_better, n_equal = (scores_MK > own).sum(axis=1), (scores_MK == own).sum(axis=1)
    return np.where(is_known, np.clip((top - n_better) / n_equal, 0.0, 1.0), 0.0)


def _with_inner_products_as_distances(
    references_ND: NDArray[np.floating], queries_MD: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Both with one more dimension that gives all references the same length: the nearest then have the greatest inner
    product, and distance^2 = constant of the query - 2 inner products."""
    squares_N = np.square(references_ND.astype(np.float64)).sum(axis=1)
    more_N = np.sqrt(np.maximum(squares_N.max() - squares_N, 0.0))
    return np.column_stack([references_ND, more_N]), np.column_stack([queries_MD, np.zeros(len(queries_MD))])
