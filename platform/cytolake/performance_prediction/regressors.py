"""Regressors of a score: families, grids of settings, and views of inputs.

A view is one representation of N inputs: a list of texts, or an (N, D) matrix of features. All regressors are those of
scikit-learn, so a fitted one can be stored without pickle. Families of baselines are not part of a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

Family = Literal["tfidf", "ridge", "kernel_ridge", "svr", "knn", "boosting", "mlp"]
BaselineFamily = Literal["mean", "line", "words"]
View = list[str] | NDArray[np.floating]
Views = Mapping[str, View]

FAMILIES: tuple[Family, ...] = get_args(Family)

_GRIDS: dict[Family | BaselineFamily, dict[str, tuple[Any, ...]]] = {
    "mean": {},
    "line": {},
    "words": {"alpha": (1.0, 3.0, 10.0)},
    "tfidf": {"alpha": (1.0, 3.0, 10.0)},
    "ridge": {"alpha": (1.0, 10.0, 100.0, 1000.0, 10000.0)},
    # gamma times the dimension of standardised features, so one grid serves views of any width
    "kernel_ridge": {"alpha": (0.3, 1.0, 3.0), "gamma": (0.2, 0.5)},
    "svr": {"c": (0.3, 1.0), "gamma": (0.5,)},
    "knn": {"n_neighbors": (10, 30, 60)},
    "boosting": {"learning_rate": (0.05,), "max_leaf_nodes": (4, 12)},
    "mlp": {"alpha": (1.0, 10.0, 100.0)},
}


SCORE_ALONE: tuple[Family, ...] = ("svr", "boosting")
"""Families that are fitted on the score only: each further target needs its own fit, and these are slow."""
MOST_COLUMNS: dict[Family, int] = {"boosting": 1000}
"""Widest view of a family: trees search every column at every split."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One regressor with one setting on one view."""

    family: Family | BaselineFamily
    view: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        named = ", ".join(f"{name} {value:g}" for name, value in self.settings)
        return f"{self.family} of {self.view}" + (f" ({named})" if named else "")


def candidates(family: Family, views: Views) -> Iterator[Candidate]:
    """Every setting of a family on every view that it can read: texts for `tfidf`, matrices for all others."""
    for name, view in views.items():
        reads_text = isinstance(view, list)
        is_too_wide = not isinstance(view, list) and view.shape[1] > MOST_COLUMNS.get(family, view.shape[1])
        if reads_text == (family == "tfidf") and not is_too_wide:
            yield from settings_of(family, name)


def settings_of(family: Family | BaselineFamily, view: str) -> Iterator[Candidate]:
    """Every setting of a family on one view."""
    grid = _GRIDS[family]
    for values in product(*grid.values()):
        yield Candidate(family, view, tuple(zip(grid, values, strict=True)))


def build(candidate: Candidate, view: View, seed: int) -> Any:
    """An unfitted scikit-learn regressor of standardised (N, T) targets, or of (N,) for `SCORE_ALONE`; unknown targets
    are 0.

    Args:
        view: View that it will be fitted on; only the shape is used.
    """
    from sklearn.dummy import DummyRegressor
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import LinearRegression, Ridge
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    settings = dict(candidate.settings)
    if candidate.family == "mean":
        return DummyRegressor()
    if candidate.family == "line":
        return LinearRegression()
    if candidate.family == "words":
        return make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True), Ridge(alpha=settings["alpha"])
        )
    if candidate.family == "tfidf":
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=3, sublinear_tf=True)
        # The vectors are unit length, so features are not standardised: rare words must stay small.
        return make_pipeline(make_union(words, pieces), Ridge(alpha=settings["alpha"]))
    gamma = settings.get("gamma", 0.0) / cast(NDArray[np.floating], view).shape[1]
    regressors = {
        "ridge": lambda: Ridge(alpha=settings["alpha"]),
        "kernel_ridge": lambda: KernelRidge(kernel="rbf", alpha=settings["alpha"], gamma=gamma),
        "svr": lambda: SVR(C=settings["c"], epsilon=0.2, gamma=gamma),
        "knn": lambda: KNeighborsRegressor(min(settings["n_neighbors"], len(view)), weights="distance"),
        "boosting": lambda: HistGradientBoostingRegressor(
            learning_rate=settings["learning_rate"],
            max_leaf_nodes=settings["max_leaf_nodes"],
            max_iter=150,
            min_samples_leaf=10,
            early_stopping=False,
            random_state=seed,
        ),
        "mlp": lambda: MLPRegressor(
            hidden_layer_sizes=(256, 64), alpha=settings["alpha"], max_iter=30, random_state=seed, tol=0.0
        ),
    }
    return make_pipeline(StandardScaler(), regressors[candidate.family]())
