"""Ridge regression from embeddings of wells to measured features, such as CellProfiler's, on held-out plates.

Embeddings and features are first centred on the mean of each plate. A feature's R2 is 1 less the squared error on
held-out wells over the variance of the feature within their plates: 0 is the mean of each plate, and offsets between
plates have no effect. (Centring on few controls lowers R2: with 6 a plate, the features of BBBC021 were predicted from
themselves with an R2 of .82.) A family's score is the median over its features.

Source: Kraus et al. 2024, arXiv 2404.10242 (linear regression to CellProfiler features, median R2 of each family). The
ridge, the centring and the held-out plates are ours.

Shapes: W wells, D features of an embedding, F measured features, P plates (or batches) held out, S strengths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.ids import content_id
from cytolake.statistics.intervals import Interval, jackknife_pseudo_values, student_quantile

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
Rows = NDArray[np.bool_]

COMPARTMENTS = ("cell", "cells", "cytoplasm", "nuclei", "nucleus", "image")
"""First words of a CellProfiler column that name the compartment; the family of the feature is the next word."""
ALL = "all"
"""The family of all features."""
CONSTANT = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureRegressionConfig:
    """Settings of the regression."""

    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)
    """Penalties of the ridge, in variances of one standardised feature of the embedding. Each measured feature has its
    own, chosen on plates of the training part."""
    max_folds: int = 5
    """Plates are held out one by one, or in this many groups where there are more; also for choosing the strength."""
    seed: int = 0
    """Seed of the folds of wells within a single training plate."""

    def __post_init__(self) -> None:
        if not self.strengths or not all(0 < each < math.inf for each in self.strengths):
            raise ValueError(f"feature_regression.strengths is {self.strengths}, expected finite numbers above 0.")
        if self.max_folds < 2 or self.seed < 0:
            raise ValueError(
                f"feature_regression.max_folds is {self.max_folds} and seed {self.seed}, expected 2 or more and 0 or "
                "more."
            )


@dataclass(frozen=True, slots=True)
class FamilyScore:
    """Score of one family of features."""

    family: str
    n_features: int
    median_r2: Interval
    """Median over the features. The 95 % interval is over plates: Student's t on jackknife pseudo-values; `draws` is
    the score without each plate."""
    of_compartment: dict[str, float]
    """Median over the features of each compartment."""
    of_plate: dict[str, float]
    """Median over the features on each single held-out plate where a feature varies."""


@dataclass(frozen=True, slots=True)
class FeatureRegression:
    """Scores of features on held-out plates."""

    families: tuple[FamilyScore, ...]
    """`ALL`, then each family by name."""
    r2: dict[str, float]
    """R2 of each feature that varies on a held-out plate."""
    strength: dict[str, float]
    """Median over folds of the chosen strength."""
    n_constant: int
    """Features that are constant on every held-out plate, or in the training part."""
    n_plates: int
    """Held-out plates (or batches) on which a feature varies."""


def feature_regression(
    vectors: Floats,
    features: Floats,
    names: Sequence[str],
    plates: Sequence[str],
    *,
    held_out: Sequence[str] | None = None,
    config: FeatureRegressionConfig | None = None,
) -> FeatureRegression:
    """Predict every feature of the wells of each plate from a ridge fitted on the wells of others.

    Args:
        vectors: (W, D) embeddings of wells, finite.
        features: (W, F) measured features of the same wells, finite.
        names: (F,) such as `Cells_AreaShape_Area`.
        plates: (W,) plate of each well, whose mean is subtracted.
        held_out: (W,) held-out unit of each well, such as the batch, which contains whole plates; the plate where None.
        config: Strengths and folds.

    Raises:
        ValueError: Arguments of different lengths, a value that is not finite, fewer than 2 plates (or batches) with
            several wells on a plate, or no feature that varies.
    """
    config = config or FeatureRegressionConfig()
    _check(vectors, features, names, plates, held_out)
    _, centred_on_W = np.unique(np.asarray(plates, dtype=str), return_inverse=True)
    x_WD, y_WF = _centred(vectors, centred_on_W), _centred(features, centred_on_W)
    plate_names, plate_W = np.unique(np.asarray(held_out or plates, dtype=str), return_inverse=True)
    n_plates = len(plate_names)
    error_PF, total_PF = np.zeros((n_plates, y_WF.shape[1])), np.zeros((n_plates, y_WF.shape[1]))
    varies_F = np.ones(y_WF.shape[1], dtype=bool)
    chosen: list[Floats] = []
    for is_test in _folds(plate_W, config.max_folds):
        x, y, of_plate = x_WD[~is_test], y_WF[~is_test], plate_W[~is_test]
        strength_F = _chosen_strengths(x, y, of_plate, config)
        chosen.append(strength_F)
        fit = _Ridge(x, y)
        varies_F &= fit.varies_F
        predicted_WF = np.empty((int(is_test.sum()), y_WF.shape[1]))
        for strength in np.unique(strength_F).tolist():
            columns = np.flatnonzero(strength_F == strength)
            predicted_WF[:, columns] = fit.predict(x_WD[is_test], strength, columns)
        for plate in np.unique(plate_W[is_test]).tolist():
            here = plate_W[is_test] == plate
            error_PF[plate] = np.square(y_WF[is_test][here] - predicted_WF[here]).sum(axis=0)
            total_PF[plate] = np.square(y_WF[is_test][here]).sum(axis=0)
    varies_F &= total_PF.sum(axis=0) > 0
    scored = np.flatnonzero(total_PF.sum(axis=1) > 0)
    if not varies_F.any() or len(scored) < 2:
        raise ValueError(
            f"{int(varies_F.sum())} of {len(names)} features vary, on {len(scored)} of {n_plates} plates, expected 1 "
            "or more on 2 plates or more. Check the table of features."
        )
    used = np.flatnonzero(varies_F)
    error_PF, total_PF = error_PF[np.ix_(scored, used)], total_PF[np.ix_(scored, used)]
    used_names, used_plates = [names[i] for i in used.tolist()], plate_names[scored].tolist()
    r2_F = _r2(error_PF.sum(axis=0), total_PF.sum(axis=0))
    place = [family_of(name) for name in used_names]
    members = {ALL: list(range(len(used)))}
    for i, (_, family) in sorted(enumerate(place), key=lambda each: each[1][1]):
        members.setdefault(family, []).append(i)
    return FeatureRegression(
        families=tuple(
            _family_score(
                family, error_PF[:, columns], total_PF[:, columns], [place[i][0] for i in columns], used_plates
            )
            for family, columns in members.items()
        ),
        r2=dict(zip(used_names, r2_F.tolist(), strict=True)),
        strength=dict(zip(used_names, np.median(chosen, axis=0)[used].tolist(), strict=True)),
        n_constant=int((~varies_F).sum()),
        n_plates=len(scored),
    )


def family_of(name: str) -> tuple[str, str]:
    """Compartment and family: `("Cells", "AreaShape")` for `Cells_AreaShape_Area`, `("", "Texture")` for
    `Texture_3`."""
    words = name.split("_")
    if len(words) > 1 and words[0].lower() in COMPARTMENTS:
        return words[0], words[1]
    return "", words[0]


class _Ridge:
    """Ridge regression on columns of mean 0 and variance 1; one decomposition for all strengths."""

    def __init__(self, x_WD: Floats, y_WF: Floats) -> None:
        spread_D = np.sqrt(np.square(x_WD).mean(axis=0))
        self.scale_D = np.where(spread_D > 0, spread_D, np.inf)
        self.varies_F = y_WF.any(axis=0)
        z_WD = x_WD / self.scale_D
        n_wells = len(z_WD)
        # Eigenvectors of the covariance with non-zero eigenvalues, from the smaller of the two matrices.
        if n_wells > z_WD.shape[1]:
            eigenvalues, self.axes_DK = np.linalg.eigh(z_WD.T @ z_WD / n_wells)
        else:
            _, singular, axes_KD = np.linalg.svd(z_WD, full_matrices=False)
            eigenvalues, self.axes_DK = singular**2 / n_wells, axes_KD.T
        self.eigenvalues_K = np.maximum(eigenvalues, 0.0)
        self.moments_KF = self.axes_DK.T @ (z_WD.T @ y_WF) / n_wells

    def predict(self, x_WD: Floats, strength: float, columns: Codes | slice = slice(None)) -> Floats:
        """Predictions of some columns at one strength."""
        on_axes_WK = (x_WD / self.scale_D) @ self.axes_DK
        weights = self.moments_KF[:, columns] / (self.eigenvalues_K + strength)[:, None]
        return np.asarray(on_axes_WK @ weights)


def _centred(values: NDArray[np.floating], plate_W: Codes) -> Floats:
    """Each column less its mean over the wells of the plate; 0 where it is constant there but for rounding."""
    centred = np.asarray(values, np.float64).copy()
    for plate in np.unique(plate_W).tolist():
        here = plate_W == plate
        size = np.abs(centred[here]).max(axis=0)
        centred[here] -= centred[here].mean(axis=0)
        centred[np.ix_(here, np.abs(centred[here]).max(axis=0) <= CONSTANT * size)] = 0.0
    return centred


def _chosen_strengths(x_WD: Floats, y_WF: Floats, plate_W: Codes, config: FeatureRegressionConfig) -> Floats:
    """(F,) strength with the least squared error on plates held out within the training part; the larger of equals."""
    strengths = sorted(config.strengths, reverse=True)
    error_SF = np.zeros((len(strengths), y_WF.shape[1]))
    if len(np.unique(plate_W)) > 1:
        folds = list(_folds(plate_W, config.max_folds))
    else:  # a single plate: by wells
        n_folds = min(config.max_folds, len(plate_W))
        rng = np.random.default_rng(int(content_id("feature regression", config.seed), 16))
        folds = list(_folds(rng.permutation(len(plate_W)) % n_folds, n_folds))
    for is_test in folds:
        fit = _Ridge(x_WD[~is_test], y_WF[~is_test])
        for i, strength in enumerate(strengths):
            error_SF[i] += np.square(y_WF[is_test] - fit.predict(x_WD[is_test], strength)).sum(axis=0)
    return np.asarray(np.asarray(strengths)[error_SF.argmin(axis=0)], np.float64)


def _folds(plate_W: Codes, max_folds: int) -> Iterator[Rows]:
    """(W,) True in the test part: every plate is in one of at most `max_folds` test parts of about equal size."""
    plates, counts = np.unique(plate_W, return_counts=True)
    sizes = [0] * min(max_folds, len(plates))
    members: list[list[int]] = [[] for _ in sizes]
    for i in np.argsort(-counts, kind="stable").tolist():
        smallest = sizes.index(min(sizes))
        sizes[smallest] += int(counts[i])
        members[smallest].append(int(plates[i]))
    for of_fold in members:
        yield np.isin(plate_W, of_fold)


def _family_score(
    family: str, error_PF: Floats, total_PF: Floats, compartments: Sequence[str], plates: Sequence[str]
) -> FamilyScore:
    r2_F = _r2(error_PF.sum(axis=0), total_PF.sum(axis=0))
    names = sorted(set(compartments))
    is_of = {name: np.asarray([each == name for each in compartments]) for name in names}
    of_plate = {
        plate: _median(_r2(error_F, total_F))
        for plate, error_F, total_F in zip(plates, error_PF, total_PF, strict=True)
    }
    return FamilyScore(
        family=family,
        n_features=len(r2_F),
        median_r2=_over_plates(error_PF, total_PF),
        of_compartment={name or "-": float(np.median(r2_F[is_of[name]])) for name in names},
        of_plate={name: value for name, value in of_plate.items() if math.isfinite(value)},
    )


def _over_plates(error_PF: Floats, total_PF: Floats) -> Interval:
    """Median R2 over features, with Student's interval over plates, from jackknife pseudo-values."""
    n_plates = len(error_PF)
    value = float(np.median(_r2(error_PF.sum(axis=0), total_PF.sum(axis=0))))
    without = np.asarray(
        [
            _median(_r2(*(np.delete(each, plate, axis=0).sum(axis=0) for each in (error_PF, total_PF))))
            for plate in range(n_plates)
        ]
    )
    pseudo = jackknife_pseudo_values(value, without)
    half = float(student_quantile(n_plates - 1) * pseudo.std(ddof=1) / math.sqrt(n_plates))
    return Interval(value, value - half, min(1.0, value + half), without)


def _median(r2_F: Floats) -> float:
    """Over the features that vary; NaN where none does."""
    finite = r2_F[np.isfinite(r2_F)]
    return float(np.median(finite)) if len(finite) else math.nan


def _r2(error_F: Floats, total_F: Floats) -> Floats:
    """(F,) NaN where the feature does not vary."""
    found = np.full(len(total_F), np.nan)
    np.divide(error_F, total_F, out=found, where=total_F > 0)
    return 1 - found


def _check(
    vectors: NDArray[np.floating],
    features: NDArray[np.floating],
    names: Sequence[str],
    plates: Sequence[str],
    held_out: Sequence[str] | None,
) -> None:
    lengths = {len(vectors), len(features), len(plates), len(plates if held_out is None else held_out)}
    if vectors.ndim != 2 or features.ndim != 2 or len(lengths) > 1 or features.shape[1] != len(names):
        raise ValueError(
            f"vectors of shape {vectors.shape}, features of shape {features.shape}, {len(names)} names and "
            f"{len(plates)} plates, expected (W, D), (W, F), F and W. Take all from the same wells."
        )
    if not np.isfinite(vectors).all() or not np.isfinite(features).all():
        raise ValueError(
            "a vector or a feature is not finite. Leave out the wells that failed, and features with missing values."
        )
    plate_names, counts = np.unique(np.asarray(plates, dtype=str), return_counts=True)
    large = set(plate_names[counts > 1].tolist())
    groups = {group for plate, group in zip(plates, held_out or plates, strict=True) if plate in large}
    if len(groups) < 2:
        raise ValueError(
            f"{len(groups)} {'plates' if held_out is None else 'batches'} with 2 wells or more on a plate have "
            "features, expected 2 or more, to hold one out."
        )
