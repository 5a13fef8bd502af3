"""Fits an alignment of embeddings on the negative controls.

    fitted = fit_alignment(vectors, batches, is_control, AlignmentConfig(variant="tvn_vcb"))
    aligned = fitted.apply(vectors, batches)

Negative controls have the same effect, none, in every batch: what differs between the controls of two batches is the
batches, and what varies among them is not the biology that the screen studies.

Two facts about the published code, which differ here. With fewer controls than features, a PCA of n controls that
keeps n components has a last one without any spread; scaled to variance 1 it blows wells up by 1e16. Components are
kept while the controls vary along them. And with integer vectors EFAAR writes its results into integers; all is float64
here.

Shapes: N rows, B batches, D features, K principal components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytolake.embed.alignment.checked_input import (
    Batches,
    Floats,
    batch_codes,
    checked_controls,
    checked_vectors,
    listed,
    rows_of_each,
)
from cytolake.embed.alignment.control_statistics import ControlStatistics, check_not_robust
from cytolake.embed.alignment.fitted import BatchFit, FittedAlignment, Stage, Whitening
from cytolake.embed.alignment.moments import Moments, merge_moments
from cytolake.embed.alignment.variants import ROBUST, AlignmentConfig

RANK_TOLERANCE = 1e-10
"""Directions with less of the largest spread than this are rounding: values of a mean 1e5 times their spread carry
1e-11 of it."""
CONSTANT_TOLERANCE = 1e-12
"""A spread below this share of the centre is rounding."""
MAD_TO_SD = 1.4826
"""Median absolute deviation to standard deviation, of a normal distribution; pycytominer's digits."""


def fit_alignment(
    vectors: ArrayLike, batches: Batches, is_control: ArrayLike, config: AlignmentConfig
) -> FittedAlignment:
    """Fit on rows in memory.

    Args:
        vectors: (N, D) integers or floats, of any scale; never written to. Rows that are no controls have a say only
            with `missing_controls="all_wells"`.
        batches: (N,) batch of each row: a name or a number.
        is_control: (N,) True where the row is a negative control.

    Raises:
        ValueError: Wrong shapes or types, a row that is not finite, a batch with too few controls, controls that do not
            vary or vary in too few directions for the variant.
    """
    vectors_ND = checked_vectors(vectors)
    names, codes_N = batch_codes(batches, len(vectors_ND))
    is_reference_N = checked_controls(is_control, len(vectors_ND)).copy()
    n_controls_B = np.bincount(codes_N[is_reference_N], minlength=len(names))
    takes_all_B = (n_controls_B < config.min_controls) & _may_take_all_wells(config)
    is_reference_N |= takes_all_B[codes_N]
    wells_of_batch = rows_of_each(codes_N, len(names))
    rows_of_batch = [vectors_ND[wells[is_reference_N[wells]]].astype(np.float64) for wells in wells_of_batch]
    references = [
        _Reference(
            name=name,
            n_controls=int(n_controls_B[b]),
            n_wells=len(wells_of_batch[b]),
            used_all_wells=bool(takes_all_B[b]),
            moments=Moments.of_rows(rows_of_batch[b], full=config.needs_scatter) if len(rows_of_batch[b]) else None,
        )
        for b, name in enumerate(names)
    ]
    _check_references(references, config)
    is_robust = config.variant in ROBUST
    stages = [_robust_stage(rows_of_batch, names, config)] if is_robust else _stages(references, config)
    return _fitted(references, stages, vectors_ND.shape[1], config)


def fit_from_statistics(statistics: ControlStatistics, config: AlignmentConfig) -> FittedAlignment:
    """Fit on statistics collected over chunks of rows: as `fit_alignment` on all of them.

    Args:
        statistics: From `ControlStatistics.for_config` with the same config.
        config: What to fit; not `robustize` or `mad_robustize`, which need all control rows at once.

    Raises:
        ValueError: As `fit_alignment`; or the statistics lack what the config needs.
    """
    check_not_robust(config)
    wanted = ControlStatistics.for_config(config, statistics.n_features)
    if wanted.full > statistics.full or wanted.keep_other_wells > statistics.keep_other_wells:
        raise ValueError(
            f"statistics have full={statistics.full}, keep_other_wells={statistics.keep_other_wells}, but variant "
            f"{config.variant} with missing_controls={config.missing_controls} needs full={wanted.full}, "
            f"keep_other_wells={wanted.keep_other_wells}. Collect them with ControlStatistics.for_config."
        )
    references = []
    for name in sorted(statistics.n_wells):
        controls = statistics.controls.get(name)
        n_controls = controls.n if controls else 0
        takes_all = n_controls < config.min_controls and _may_take_all_wells(config)
        parts = [controls, statistics.other_wells.get(name) if takes_all else None]
        known = [part for part in parts if part is not None]
        references.append(
            _Reference(
                name=name,
                n_controls=n_controls,
                n_wells=statistics.n_wells[name],
                used_all_wells=takes_all,
                moments=merge_moments(known) if known else None,
            )
        )
    _check_references(references, config)
    return _fitted(references, _stages(references, config), statistics.n_features, config)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Reference:
    """The rows of one batch that stand for "no effect"."""

    name: str
    n_controls: int
    n_wells: int
    used_all_wells: bool
    moments: Moments | None
    """None: no such row."""


def _may_take_all_wells(config: AlignmentConfig) -> bool:
    return config.missing_controls == "all_wells" and config.each_batch_needs_controls


def _check_references(references: Sequence[_Reference], config: AlignmentConfig) -> None:
    if not references:
        raise ValueError("no rows to fit an alignment on, expected those of at least one batch. Check the selection.")
    if config.variant == "none":
        return
    if not config.each_batch_needs_controls:
        n = sum(reference.n_controls for reference in references)
        if n < config.min_controls:
            raise ValueError(
                f"{n} negative controls in {len(references)} batches, expected at least {config.min_controls}. Mark "
                "the controls in the plate map."
            )
        return
    poor = [each for each in references if (each.moments.n if each.moments else 0) < config.min_controls]
    if poor:
        found = listed([f"{each.name} ({each.n_controls} of {each.n_wells} wells)" for each in poor])
        remedy = (
            "Their wells together are too few as well: leave these batches out."
            if _may_take_all_wells(config)
            else "Mark their controls in the plate map, leave these batches out, or set "
            'missing_controls="all_wells" to centre them on all their wells.'
        )
        raise ValueError(
            f"{len(poor)} of {len(references)} batches have too few negative controls for {config.variant}: {found}. "
            f"Expected at least {config.min_controls} in each. {remedy}"
        )


def _fitted(
    references: Sequence[_Reference], stages: Sequence[Stage | Whitening], n_features: int, config: AlignmentConfig
) -> FittedAlignment:
    batches = tuple(
        BatchFit(
            name=each.name,
            n_controls=each.n_controls,
            n_reference=each.moments.n if each.moments else 0,
            used_all_wells=each.used_all_wells,
            constant_features=_constant(each.moments) if each.moments and each.moments.n > 1 else (),
        )
        for each in references
    )
    return FittedAlignment(config=config, n_features=n_features, batches=batches, stages=tuple(stages))


class _Chain:
    """Stages fitted so far, and the moments of the reference rows behind them."""

    def __init__(self, references: Sequence[_Reference], config: AlignmentConfig) -> None:
        self.names = [each.name for each in references]
        self.config = config
        self.parts = [each.moments for each in references]
        self.stages: list[Stage | Whitening] = []

    def pooled(self) -> Moments:
        """Moments of the reference rows of all batches together."""
        return merge_moments([part for part in self.parts if part is not None])

    def per_batch(self) -> list[Moments]:
        """Moments of each batch's."""
        return [part for part in self.parts if part is not None]  # all are there: `_check_references`

    def push(self, stage: Stage) -> None:
        self.stages.append(stage)
        self.parts = [
            None if part is None else part.mapped(*stage.of_batch(batch)) for batch, part in enumerate(self.parts)
        ]

    def centre(self, groups: Sequence[Moments]) -> None:
        mean_BD = np.stack([each.mean for each in groups])
        self.push(Stage(mean_BD, np.ones_like(mean_BD)))

    def centre_scale(self, groups: Sequence[Moments]) -> None:
        names = self.names if len(groups) == len(self.names) else ["all batches"]
        scale_BD = [
            _divisor(np.sqrt(each.squares / each.n), each.mean, self.config, name)
            for name, each in zip(names, groups, strict=True)
        ]
        self.push(Stage(np.stack([each.mean for each in groups]), np.stack(scale_BD)))

    def pca(self) -> None:
        pooled = self.pooled()
        _, matrix_DK = _principal_axes(pooled, self.config.n_components)
        self.push(Stage(pooled.mean[None], np.ones((1, len(pooled.mean))), matrix_DK[None]))

    def whiten(self) -> None:
        """The last step, or the last before `colour`: the moments stay those of what comes in."""
        each = [_covariance_power(part, self.config.shrinkage, -0.5) for part in self.per_batch()]
        n_rows = max(len(gain_R) for _, gain_R, _ in each)
        basis_BRK = np.zeros((len(each), n_rows, each[0][0].shape[1]))
        gain_BR = np.zeros((len(each), n_rows))
        for batch, (basis_RK, gain_R, _) in enumerate(each):
            basis_BRK[batch, : len(gain_R)], gain_BR[batch, : len(gain_R)] = basis_RK, gain_R
        self.stages.append(Whitening(basis_BRK, gain_BR, np.array([each[0][2]])))

    def colour(self) -> None:
        """Give all batches the covariance that the controls of all have together."""
        basis_RK, gain_R, rest = _covariance_power(self.pooled(), self.config.shrinkage, 0.5)
        matrix_KK = (basis_RK.T * gain_R) @ basis_RK + rest * np.eye(basis_RK.shape[1])
        nothing_K = np.zeros((1, len(matrix_KK)))
        self.stages.append(Stage(nothing_K, nothing_K + 1, matrix_KK[None]))


def _stages(references: Sequence[_Reference], config: AlignmentConfig) -> list[Stage | Whitening]:
    chain = _Chain(references, config)
    groups = chain.per_batch if config.each_batch_needs_controls else lambda: [chain.pooled()]
    match config.variant:
        case "none":
            pass
        case "centre":
            chain.centre(groups())
        case "centre_scale" | "standardize":
            chain.centre_scale(groups())
        case "sphering":
            names = chain.names if config.each_batch_needs_controls else ["all batches"]
            each = [_sphering(part, config, name) for name, part in zip(names, groups(), strict=True)]
            shift, scale, matrix = (np.stack(arrays) for arrays in zip(*each, strict=True))
            chain.stages.append(Stage(shift, scale, matrix))
        case "pca_cs":
            chain.pca()
            chain.centre_scale(chain.per_batch())
        case "tvn_efaar_v1":
            chain.centre_scale([chain.pooled()])
            chain.pca()
            chain.centre_scale([chain.pooled()])
            chain.whiten()
        case "tvn_vcb":
            chain.centre_scale(chain.per_batch())
            chain.pca()
            chain.centre_scale(chain.per_batch())
            chain.whiten()
            chain.colour()
        case _:
            raise AssertionError(config.variant)
    return chain.stages


def _principal_axes(moments: Moments, n_components: int | None) -> tuple[Floats, Floats]:
    """Singular values (K,) of the centred rows and (D, K) directions, largest first, while the rows vary along them.

    The largest entry of each direction is positive, as in scikit-learn's PCA.
    """
    _, singular_R, directions_RD = np.linalg.svd(moments.full_root, full_matrices=False)
    n_kept = min(moments.n - 1, _rank(singular_R))
    if n_kept == 0:
        raise ValueError(
            f"the {moments.n} negative controls are all alike, expected some spread for a PCA. Check that their "
            "vectors are those of different wells."
        )
    if n_components is not None:
        if n_components > n_kept:
            raise ValueError(
                f"alignment.n_components is {n_components}, but the {moments.n} negative controls vary in {n_kept} "
                "directions only. Set it to this or less, or leave it out."
            )
        n_kept = n_components
    directions_KD = directions_RD[:n_kept]
    largest_K = directions_KD[np.arange(n_kept), np.abs(directions_KD).argmax(axis=1)]
    return singular_R[:n_kept], np.ascontiguousarray((directions_KD * np.sign(largest_K)[:, None]).T)


def _covariance_power(moments: Moments, shrinkage: float, exponent: float) -> tuple[Floats, Floats, float]:
    """(C + shrinkage I)^exponent, C the covariance with ddof 1, as basis (R, K), gain (R,) and rest, see `Whitening`.

    Directions along which the rows do not vary need no basis: there the power is that of the shrinkage.
    """
    _, singular_R, directions_RK = np.linalg.svd(moments.full_root, full_matrices=False)
    n_features = len(moments.mean)
    variance_R = np.square(singular_R) / (moments.n - 1)
    if shrinkage == 0 and exponent < 0 and (moments.n <= n_features or _rank(singular_R) < n_features):
        raise ValueError(
            f"{moments.n} negative controls of one batch do not vary in all {n_features} directions, and without "
            "shrinkage these cannot be whitened. Set alignment.shrinkage above 0, as 0.5, or n_components lower."
        )
    rest = shrinkage**exponent if shrinkage else 0.0
    return directions_RK, np.power(variance_R + shrinkage, exponent) - rest, rest


def _sphering(moments: Moments, config: AlignmentConfig, where: str) -> tuple[Floats, Floats, Floats]:
    """Shift (D,), scale (D,) and matrix (D, D) that give the rows identity covariance.

    As pycytominer's Spherize: n <= D rows leave D - n + 1 directions without spread, which take the smallest singular
    value that there is. The axes among those are any, so only distances and cosines mean something there.
    """
    n, n_features = moments.n, len(moments.mean)
    scale_D = np.ones(n_features)
    constant = _constant(moments)
    if constant:
        raise ValueError(
            f"{where}: {len(constant)} of {n_features} features have no spread among the {n} negative controls: "
            f"features {listed(constant)}. Sphering divides by it: leave these features out."
        )
    if config.sphering_method.endswith("-cor"):
        scale_D = np.sqrt(moments.squares / n)
    _, singular_R, directions_DD = np.linalg.svd(moments.full_root / scale_D, full_matrices=True)
    rank = min(n - 1, _rank(singular_R))
    if rank < min(n - 1, n_features):
        raise ValueError(
            f"{where}: the {n} negative controls vary in {rank} directions, expected {min(n - 1, n_features)}. Leave "
            "out features that depend on others linearly, and wells that are listed twice."
        )
    if config.sphering_method.startswith("ZCA") and rank < n_features:
        raise ValueError(
            f"{where}: {n} negative controls for {n_features} features. {config.sphering_method} needs at least one "
            f"more control than features. Use {config.sphering_method.replace('ZCA', 'PCA')}, more controls or fewer "
            "features."
        )
    spread_D = np.concatenate([singular_R[:rank], np.full(n_features - rank, singular_R[rank - 1])]) + config.epsilon
    matrix_DD = directions_DD.T / spread_D * np.sqrt(n - 1)
    if config.sphering_method.startswith("ZCA"):
        matrix_DD = matrix_DD @ directions_DD
    return moments.mean, scale_D, matrix_DD


def _robust_stage(rows_of_batch: Sequence[Floats], names: Sequence[str], config: AlignmentConfig) -> Stage:
    if not config.each_batch_needs_controls:
        rows_of_batch, names = [np.concatenate(rows_of_batch)], ["all batches"]
    median_BD, scale_BD = [], []
    for name, rows_ND in zip(names, rows_of_batch, strict=True):
        low_D, median_D, high_D = np.percentile(rows_ND, [25, 50, 75], axis=0)
        spread_D = high_D - low_D
        if config.variant == "mad_robustize":
            spread_D = MAD_TO_SD * np.median(np.abs(rows_ND - median_D), axis=0)
        median_BD.append(median_D)
        scale_BD.append(_divisor(spread_D, median_D, config, name))
    return Stage(np.stack(median_BD), np.stack(scale_BD))


def _divisor(spread_D: Floats, centre_D: Floats, config: AlignmentConfig, where: str) -> Floats:
    """The spread, and for a feature without one what the config says."""
    is_constant_D = _is_constant(spread_D, centre_D)
    if config.constant_features == "error" and is_constant_D.any():
        found = np.flatnonzero(is_constant_D).tolist()
        raise ValueError(
            f"{where}: {len(found)} of {len(spread_D)} features have no spread among the negative controls: features "
            f'{listed(found)}. Leave them out, or set constant_features to "unscaled" or "zero".'
        )
    return np.where(is_constant_D, np.inf if config.constant_features == "zero" else 1.0, spread_D)


def _constant(moments: Moments) -> tuple[int, ...]:
    return tuple(np.flatnonzero(_is_constant(np.sqrt(moments.squares / moments.n), moments.mean)).tolist())


def _is_constant(spread_D: Floats, centre_D: Floats) -> NDArray[np.bool_]:
    return np.asarray(~(spread_D > CONSTANT_TOLERANCE * np.abs(centre_D)))


def _rank(singular: Floats) -> int:
    return int((singular > RANK_TOLERANCE * singular.max(initial=0.0)).sum())
