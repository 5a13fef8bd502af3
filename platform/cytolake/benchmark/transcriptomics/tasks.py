"""The six tasks: each a function of `TaskInput` that gives scores.

Shapes: N rows, D dimensions, M test rows, P perturbations, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.batch_mixing import ilisi
from cytolake.benchmark.transcriptomics.config import TranscriptomicsConfig
from cytolake.benchmark.transcriptomics.decoder import train_decoder
from cytolake.benchmark.transcriptomics.embeddings import Vectors
from cytolake.benchmark.transcriptomics.known_relations import HIGH, LOW, known_relation_recall
from cytolake.benchmark.transcriptomics.perturbation_signal import Targets, are_null, consistency, magnitude
from cytolake.benchmark.transcriptomics.perturbation_split import PerturbationSplit, downsample
from cytolake.benchmark.transcriptomics.reconstruction import judge, no_skill
from cytolake.benchmark.transcriptomics.screen import CONTROL, Codes, Screen, group_means, need_features
from cytolake.benchmark.transcriptomics.separability import knn_scores, linear_scores, top_credit
from cytolake.statistics.bootstrap import resampled_means, resampled_pairs, resampled_ratio, widened
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.intervals import MIN_GROUPS
from cytolake.statistics.p_values import p_values_against

Floats = NDArray[np.float64]
Relations = Mapping[str, Iterable[tuple[str, str]]]
NO_EFFECT_INTEGRITY = 0.5
"""Structural integrity of decoded features that show no effect of any perturbation."""
RANDOM_RECALL = LOW + 1 - HIGH


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Score of one metric of one task under one seed."""

    metric: str
    value: float
    n: int
    """Number of rows, pairs, perturbations or features behind the mean."""
    draws: Floats | None
    """(R,) the value of each resample; None where there is nothing to resample."""
    chance: float | None = None
    """Score of an embedding without information: all classes equally likely, no effect. None where not known."""
    chance_majority: float | None = None
    """Score of guessing the most frequent class of the training rows; None without classes."""
    interval_over: str = ""
    """Resampled unit, where batches were held out."""
    targets: Targets | None = None
    """Tests of single perturbations behind a share of significant ones."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Vectors aligned on half of the controls; rows without an effect have the distribution of the other half."""

    vectors: Vectors
    """(N, D)"""
    is_control: NDArray[np.bool_]
    """(N,) the other half."""


@dataclass(frozen=True, slots=True)
class TaskInput:
    """Input of a task: one embedding under one seed."""

    screen: Screen
    vectors: Vectors
    """(N, D) after post-processing."""
    split: PerturbationSplit | None
    """None for tasks without one."""
    seed: int
    config: TranscriptomicsConfig
    relations: Relations
    compared: Compared | None = None
    """Input of perturbation_signal where the vectors were aligned."""

    @property
    def parts(self) -> PerturbationSplit:
        """The split of a task that has one."""
        assert self.split is not None
        return self.split


def run_task(task: str, data: TaskInput) -> list[TaskScore]:
    """Scores of one task, for callers with vectors and splits of their own."""
    return _RUN[task](data)


def _batch_mixing(data: TaskInput) -> list[TaskScore]:
    screen, config = data.screen, data.config
    rows = data.parts.test1 if config.mixing_rows == "test1" else np.arange(screen.n_rows)
    rows = downsample(rows, screen.batch_of_row[rows], config.max_mixing_rows, data.seed)
    mixing = ilisi(data.vectors[rows], screen.batch_of_row[rows], config.perplexity)
    return [
        replace(_mean(data, "ilisi", mixing.lisi, rows), chance=float(mixing.chance.mean())),
        replace(_mean(data, "ilisi_normalised", mixing.normalised, rows), chance=1.0),
    ]


def _linear_separability(data: TaskInput) -> list[TaskScore]:
    screen = data.screen
    train, test = (rows[~screen.is_control[rows]] for rows in (data.parts.train, data.parts.test1))
    scores = []
    for suffix, standardise in (("", False), ("_standardised", True)):
        classes, logits, converged = linear_scores(
            data.vectors[train],
            screen.perturbation_of_row[train],
            data.vectors[test],
            standardise=standardise,
            regularisation=data.config.regularisation,
        )
        scores += _accuracies(data, classes, logits, train, test, suffix)
        scores.append(TaskScore(f"converged{suffix}", float(converged), 1, None))
    return scores


def _nearest_neighbours(data: TaskInput) -> list[TaskScore]:
    screen, config = data.screen, data.config
    train, test = data.parts.train, data.parts.test1
    train = downsample(train, screen.batch_of_row[train], config.max_knn_rows, data.seed)
    classes, votes = knn_scores(
        data.vectors[train],
        screen.perturbation_of_row[train],
        data.vectors[test],
        n_neighbours=config.n_neighbours,
        distance=config.distance,
    )
    return _accuracies(data, classes, votes, train, test, "")


def _known_relations(data: TaskInput) -> list[TaskScore]:
    screen, draws = data.screen, data.config.bootstrap_draws
    means_PD = group_means(data.vectors, screen.perturbation_of_row, len(screen.perturbations))
    scores = []
    for source, pairs in data.relations.items():
        found = known_relation_recall(means_PD, screen.perturbations, pairs)
        if not len(found.pairs):
            raise ValueError(
                f"known_relations: of {source}'s pairs none has both ends among the {len(screen.perturbations)} "
                "perturbations. Expected the same names: correct the relations, or leave the source out."
            )
        recalled = found.recalled.astype(np.float64)
        resampled = resampled_pairs(recalled, found.pairs, len(screen.perturbations), draws)
        scores.append(TaskScore(f"recall_{source}", found.value, len(recalled), resampled, chance=RANDOM_RECALL))
    return scores


def _perturbation_signal(data: TaskInput) -> list[TaskScore]:
    screen, config = data.screen, data.config
    compared = data.compared or Compared(data.vectors, screen.is_control)
    found = {
        "consistent": consistency(screen, data.vectors, config.signal_draws, data.seed),
        "distinct": magnitude(
            screen, compared.vectors, config.signal_draws, data.seed, is_compared=compared.is_control
        ),
    }
    scores = []
    n_rows = np.bincount(screen.perturbation_of_row[~screen.is_control], minlength=len(screen.perturbations))
    for name, (values, p_values) in found.items():
        targets = Targets(name, screen.perturbations, values, p_values, n_rows.astype(np.intp))
        share = _share(data, f"{name}_share", p_values)
        scores.append(replace(share, chance=_level(config.significant, config.signal_draws), targets=targets))
        # Without any effect, a low q-value occurs by chance in few screens.
        scores.append(replace(_share(data, f"{name}_share_q", benjamini_hochberg(p_values)), chance=0.0))
        if config.null_perturbations:
            is_null = are_null(screen, config.null_perturbations)
            against = np.where(is_null, np.nan, p_values_against(values, is_null))
            share = _share(data, f"{name}_share_of_named_null", against)
            n_null = int((is_null & ~np.isnan(values)).sum())
            scores.append(replace(share, chance=_level(config.significant, n_null)))
            scores.append(
                replace(_share(data, f"{name}_share_of_named_null_q", benjamini_hochberg(against)), chance=0.0)
            )
    return scores


def _reconstruction(data: TaskInput) -> list[TaskScore]:
    screen, decoder, draws = data.screen, data.config.decoder, data.config.bootstrap_draws
    need_features(screen, "reconstruction")
    predict = train_decoder(screen, data.vectors, data.parts.train, decoder, data.seed)
    found = judge(screen, predict, data.parts.test2, decoder)
    n = len(data.parts.test2)
    groups_J, n_groups = _groups(screen, found.first_row)

    def resampled(numerator: Floats, denominator: Floats) -> Floats:
        return resampled_ratio(numerator, denominator, groups_J, n_groups, draws)

    guess = no_skill(screen, data.parts.train, data.parts.test2, decoder)
    scores = [
        TaskScore("mse", found.mse, n, resampled(found.squared, found.n_rows), chance=guess.mse),
        TaskScore("mae", found.mae, n, resampled(found.absolute, found.n_rows), chance=guess.mae),
        TaskScore("r2", found.r2, n, 1 - resampled(found.squared, found.spread), chance=guess.r2),
    ]
    for name, each_G in (("pearson", found.pearson), ("spearman", found.spearman)):
        scores.append(replace(_over_units(data, name, each_G), chance=0.0))
    n_batches = len(np.unique(screen.batch_of_row[data.parts.test2]))
    for name, value in (
        ("structural_integrity", found.integrity),
        ("structural_integrity_profiles", found.profile_integrity),
    ):
        scores.append(TaskScore(name, value, n_batches, None, chance=NO_EFFECT_INTEGRITY))
    return scores


_RUN: dict[str, Callable[[TaskInput], list[TaskScore]]] = {
    "batch_mixing": _batch_mixing,
    "linear_separability": _linear_separability,
    "nearest_neighbours": _nearest_neighbours,
    "known_relations": _known_relations,
    "perturbation_signal": _perturbation_signal,
    "reconstruction": _reconstruction,
}


def _accuracies(
    data: TaskInput, classes: Codes, scores_MK: Floats, train: Codes, rows: Codes, suffix: str
) -> list[TaskScore]:
    """Top-1 and top-5 accuracy over rows and as the mean over classes, each with its chance: equal scores of all
    classes, and scores by training rows."""
    n_codes = len(data.screen.perturbations) + 1
    batches = data.screen.batch_of_row[rows]
    labels = data.screen.perturbation_of_row[rows]
    frequent_K = np.bincount(np.searchsorted(classes, data.screen.perturbation_of_row[train]), minlength=len(classes))
    guesses = {"chance": np.zeros(len(classes)), "chance_majority": frequent_K.astype(np.float64)}
    of_rows, of_classes = [], []
    for top in (1, 5):
        credit = top_credit(scores_MK, classes, labels, top)
        guessed = {
            name: top_credit(np.broadcast_to(guess, scores_MK.shape), classes, labels, top)
            for name, guess in guesses.items()
        }
        score = _mean(data, f"top{top}{suffix}", credit, rows)
        chance, majority = (float(guessed[name].mean()) for name in ("chance", "chance_majority"))
        of_rows.append(replace(score, chance=chance, chance_majority=majority))
        balanced = {
            name: group_means(each[:, None], labels - CONTROL, n_codes)[:, 0]
            for name, each in {"value": credit, **guessed}.items()
        }
        score = _over_units(data, f"balanced_top{top}{suffix}", balanced["value"])
        classes_of_rows = np.unique(labels, return_inverse=True)[1]
        score = _over_batches(data, score, credit, batches, classes_of_rows)
        chance, majority = (float(np.nanmean(balanced[name])) for name in ("chance", "chance_majority"))
        of_classes.append(replace(score, chance=chance, chance_majority=majority))
    return [*of_rows, *of_classes]


def _mean(data: TaskInput, metric: str, values: Floats, rows: Codes) -> TaskScore:
    """Mean over rows, with resamples of batches, or of groups of one batch and one perturbation where batches are
    few."""
    groups_N, n_groups = _groups(data.screen, rows)
    units, place = np.unique(groups_N, return_inverse=True)
    sums, counts = (np.bincount(place, each).astype(np.float64) for each in (values, np.ones(len(place))))
    draws = resampled_ratio(sums, counts, units, n_groups, data.config.bootstrap_draws)
    score = TaskScore(metric, float(values.mean()), len(values), draws)
    return _over_batches(data, score, values, data.screen.batch_of_row[rows], np.zeros(len(values), np.intp))


def _over_batches(data: TaskInput, score: TaskScore, values: Floats, batches: Codes, classes: Codes) -> TaskScore:
    """A mean over classes of their rows' mean, with draws from resampled batches where there are three or more.

    Batches were held out, and rows of one batch share its effects.
    """
    held_out, of_row = np.unique(batches, return_inverse=True)
    n, n_classes = len(held_out), int(classes.max(initial=-1)) + 1
    if n < MIN_GROUPS:
        return replace(score, interval_over=f"perturbations and rows; {n} batches are too few to resample")
    sums_UK, counts_UK = (
        np.bincount(of_row * n_classes + classes, each, n * n_classes).reshape(n, n_classes).astype(np.float64)
        for each in (values, np.ones(len(values)))
    )
    draws = resampled_means(sums_UK, counts_UK, held_out, len(data.screen.batches), data.config.bootstrap_draws)
    return replace(score, draws=widened(draws, score.value, n), interval_over=f"{n} batches")


def _over_units(data: TaskInput, metric: str, values_U: Floats) -> TaskScore:
    """Mean over perturbations or features, with resamples of these; NaN do not count."""
    units = np.flatnonzero(~np.isnan(values_U))
    known = values_U[units]
    draws = resampled_ratio(known, np.ones(len(units)), units, len(values_U), data.config.bootstrap_draws)
    return TaskScore(metric, float(known.mean()) if len(units) else float("nan"), len(units), draws)


def _share(data: TaskInput, metric: str, p_values: Floats) -> TaskScore:
    """Share of significant perturbations among those with a p-value."""
    hits = np.where(np.isnan(p_values), np.nan, p_values <= data.config.significant)
    return _over_units(data, metric, hits)


def _level(significant: float, n_draws: int) -> float:
    """Expected share of significant p-values, in steps of 1 / (1 + draws), without any effect."""
    return float(np.floor(significant * (1 + n_draws) + 1e-9) / (1 + n_draws))


def _groups(screen: Screen, rows: Codes) -> tuple[Codes, int]:
    """Group of each row, of one batch and one perturbation, and the number of possible groups."""
    n_labels = len(screen.perturbations) + 1
    groups = screen.batch_of_row[rows] * n_labels + screen.perturbation_of_row[rows] - CONTROL
    return groups, n_labels * len(screen.batches)
