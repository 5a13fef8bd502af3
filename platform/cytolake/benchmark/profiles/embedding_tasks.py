"""Profile benchmarks from four of the six tasks of the transcriptomics benchmark, on wells instead of cells.

    batch_mixing          T1
    linear_separability   T2
    nearest_neighbours    T3
    reconstruction        T6, of the wells' pixel statistics less those of the controls instead of expression

The other two are the benchmarks `relations` (T4), and `consistency` and `magnitude` (T5). Tasks, splits and intervals
are those of `benchmark/transcriptomics`. A screen has hundreds of wells instead of 100,000 cells, so the settings
differ: neighbours and perplexity depend on the number of wells, mixing is measured for all wells, and the decoder takes
more and smaller steps.

Shapes: W wells, D features of a profile, G pixel statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.profiles.profile_input import BenchmarkInput, ScoreRow, score_row
from cytolake.benchmark.transcriptomics.batch_mixing import PERPLEXITY
from cytolake.benchmark.transcriptomics.benchmark import EmbeddingScores, rows_of
from cytolake.benchmark.transcriptomics.config import FITTED, few_rows
from cytolake.benchmark.transcriptomics.decoder import DecoderConfig
from cytolake.benchmark.transcriptomics.perturbation_split import split_screen
from cytolake.benchmark.transcriptomics.screen import CONTROL, Codes, Screen
from cytolake.benchmark.transcriptomics.tasks import TaskInput, run_task
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.variants import AlignmentConfig

METRICS_OF_TASK = {
    "batch_mixing": ("ilisi", "ilisi_normalised"),
    "linear_separability": ("top1_standardised", "balanced_top1_standardised"),
    "nearest_neighbours": ("top1", "top5", "balanced_top1"),
    "reconstruction": ("r2", "pearson", "structural_integrity_profiles"),
}
"""Metrics of each task that become scores; high values are good."""
WELLS_PER_NEIGHBOUR = 30
"""Wells for each effective neighbour of batch mixing, which has at most the published number of neighbours."""
STEPS_OF_AN_EPOCH = 12
"""Steps of the decoder, where minibatches of 32 to the published 512 wells allow."""


def embedding_task(task: str) -> Callable[[BenchmarkInput], Iterator[ScoreRow]]:
    """The profile benchmark of one task of `METRICS_OF_TASK`."""

    def measure(data: BenchmarkInput) -> Iterator[ScoreRow]:
        screen, rows = _screen(data, needs_features=task == "reconstruction")
        vectors_WD = data.vectors[rows].astype(np.float32)
        usual = few_rows()
        minibatch_size = min(DecoderConfig().minibatch_size, max(32, len(rows) // STEPS_OF_AN_EPOCH))
        config = replace(
            usual,
            decoder=replace(usual.decoder, minibatch_size=minibatch_size),
            perplexity=min(PERPLEXITY, max(2.0, len(rows) / WELLS_PER_NEIGHBOUR)),
            bootstrap_draws=data.config.draws,
        )
        seeds = data.config.seeds[:1] if task == "batch_mixing" else data.config.seeds
        inputs = [TaskInput(screen, vectors_WD, split_screen(screen, seed), seed, config, {}) for seed in seeds]
        for scores in zip(*(run_task(task, each) for each in inputs), strict=True):
            scored = EmbeddingScores("", data.alignment, task, scores[0].metric, seeds, scores)
            if scored.metric in METRICS_OF_TASK[task]:
                yield from _rows(scored, screen, "batch" if task == "batch_mixing" else "perturbation")

    return measure


def _rows(scored: EmbeddingScores, screen: Screen, label: str) -> Iterator[ScoreRow]:
    """One row for each seed, and one for their mean, which the leaderboard reads."""
    n_classes = len(screen.batches if label == "batch" else screen.perturbations)
    for row in rows_of(scored):
        made = score_row(
            scored.task, label, scored.metric, math.nan if row["value"] is None else row["value"], None,
            split="batch" if scored.task in FITTED else "", n_test=row["n"], n_classes=n_classes,
            chance=row["chance"], chance_majority=row["chance_majority"],
        )  # fmt: skip
        yield {**made, "seed": row["seed"], "ci_low": row["ci_low"], "ci_high": row["ci_high"]}


def _screen(data: BenchmarkInput, *, needs_features: bool) -> tuple[Screen, Codes]:
    """The wells with a control or a perturbation as a screen of the tasks, and their numbers among all wells.

    Raises:
        ValueError: No controls, a single perturbation, or no pixel statistics where they are needed.
    """
    wells = data.wells
    rows = np.flatnonzero(
        [bool(name) or bool(control) for name, control in zip(wells.perturbation, wells.is_control, strict=True)]
    )
    is_control = wells.is_control[rows]
    names = sorted({wells.perturbation[row] for row, control in zip(rows, is_control, strict=True) if not control})
    if len(names) < 2 or not is_control.any():
        raise ValueError(
            f"{len(names)} perturbations and {int(is_control.sum())} negative controls, expected 2 or more and 1 or "
            "more. Fill in the columns perturbation and control of the plate map."
        )
    code = {name: i for i, name in enumerate(names)}
    experiments = wells.experiments()
    batch_names, batch_of_row = np.unique([experiments[row] for row in rows], return_inverse=True)
    features_WG = _features(data)[rows] if needs_features else np.zeros((len(rows), 0), np.float32)
    screen = Screen(
        features=features_WG,
        counts=None,
        feature_names=tuple(f"pixel_statistic_{i}" for i in range(features_WG.shape[1])),
        perturbations=tuple(names),
        perturbation_of_row=np.asarray(
            [
                CONTROL if control else code[wells.perturbation[row]]
                for row, control in zip(rows, is_control, strict=True)
            ],
            np.intp,
        ),
        batches=tuple(batch_names.tolist()),
        batch_of_row=batch_of_row.astype(np.intp),
        embeddings={},
    )
    return screen, rows


def _features(data: BenchmarkInput) -> NDArray[np.float32]:
    """(W, G) pixel statistics relative to the controls of the well's plate, each with variance 1.

    Without alignment, most of their variance is between plates, which aligned profiles are not meant to represent.
    """
    if data.pixel_statistics is None:
        raise ValueError(
            "reconstruction decodes the pixel statistics of the wells, and the catalog has none of all of these wells. "
            "Run `cytolake embed` on a pack of them first."
        )
    wells = data.wells
    config = AlignmentConfig(
        variant="centre_scale", missing_controls=data.config.missing_controls, constant_features="zero"
    )
    fitted = fit_alignment(data.pixel_statistics, wells.plate, wells.is_control, config)
    aligned_WG = fitted.apply(data.pixel_statistics, wells.plate)
    spread_G = aligned_WG.std(axis=0)
    varies_G = spread_G > 0
    scaled_WG = (aligned_WG - aligned_WG.mean(axis=0))[:, varies_G] / spread_G[varies_G]
    return np.asarray(scaled_WG, np.float32)
