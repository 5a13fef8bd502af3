"""Four of the six tasks of the transcriptomics benchmark, asked of profiles of wells instead of cells.

    batch_mixing          T1
    linear_separability   T2
    nearest_neighbours    T3
    reconstruction        T6, of the wells' pixel statistics less those of the controls, in expression's place

The other two are the benchmarks `relations` (T4), and `consistency` and `magnitude` (T5). The tasks themselves, their
splits and their intervals are those of `benchmark/transcriptomics`; what differs is told here: a screen has hundreds of
wells where it would have 100,000 cells, so neighbours and perplexity follow the number of wells, the mixing of all
wells is judged, and the decoder takes more and smaller steps.

Shapes: W wells, D features of a profile, G pixel statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.profiles.asked import Asked, Score, score
from cytolake.benchmark.transcriptomics.batch_mixing import PERPLEXITY
from cytolake.benchmark.transcriptomics.benchmark import FITTED, Scored, Trial, few_rows, rows_of, run_task
from cytolake.benchmark.transcriptomics.perturbation_split import split_screen
from cytolake.benchmark.transcriptomics.reconstruction import DecoderConfig
from cytolake.benchmark.transcriptomics.screen import CONTROL, Codes, Screen
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.variants import AlignmentConfig

METRICS = {
    "batch_mixing": ("ilisi", "ilisi_normalised"),
    "linear_separability": ("top1_standardised", "balanced_top1_standardised"),
    "nearest_neighbours": ("top1", "top5", "balanced_top1"),
    "reconstruction": ("r2", "pearson", "structural_integrity_profiles"),
}
"""What is kept of each task; of all of these more is better."""
WELLS_PER_NEIGHBOUR = 30
"""Effective neighbours of batch mixing are one in so many wells, and at most the published number."""
STEPS_OF_AN_EPOCH = 12
"""Of the decoder, where minibatches of 32 to the published 512 wells allow."""


def embedding_task(task: str) -> Callable[[Asked], Iterator[Score]]:
    """The benchmark of profiles that asks one of `METRICS`."""

    def measure(asked: Asked) -> Iterator[Score]:
        screen, rows = _screen(asked, needs_features=task == "reconstruction")
        vectors_WD = asked.vectors[rows].astype(np.float32)
        usual = few_rows()
        minibatch_size = min(DecoderConfig().minibatch_size, max(32, len(rows) // STEPS_OF_AN_EPOCH))
        config = replace(
            usual,
            decoder=replace(usual.decoder, minibatch_size=minibatch_size),
            perplexity=min(PERPLEXITY, max(2.0, len(rows) / WELLS_PER_NEIGHBOUR)),
            bootstrap_draws=asked.config.draws,
        )
        seeds = asked.config.seeds[:1] if task == "batch_mixing" else asked.config.seeds
        trials = [Trial(screen, vectors_WD, split_screen(screen, seed), seed, config, {}) for seed in seeds]
        for scores in zip(*(run_task(task, trial) for trial in trials), strict=True):
            scored = Scored("", asked.alignment, task, scores[0].metric, seeds, scores)
            if scored.metric in METRICS[task]:
                yield from _rows(scored, screen, "batch" if task == "batch_mixing" else "perturbation")

    return measure


def _rows(scored: Scored, screen: Screen, label: str) -> Iterator[Score]:
    """One row for each seed, and one for their mean, which rankings read."""
    n_classes = len(screen.batches if label == "batch" else screen.perturbations)
    for row in rows_of(scored):
        made = score(
            scored.task, label, scored.metric, math.nan if row["value"] is None else row["value"], None,
            split="batch" if scored.task in FITTED else "", n_test=row["n"], n_classes=n_classes,
            chance=row["chance"], chance_majority=row["chance_majority"],
        )  # fmt: skip
        yield {**made, "seed": row["seed"], "ci_low": row["ci_low"], "ci_high": row["ci_high"]}


def _screen(asked: Asked, *, needs_features: bool) -> tuple[Screen, Codes]:
    """The wells that are controls or have a perturbation, as the tasks read a screen, and which of all wells they are.

    Raises:
        ValueError: No controls, a single perturbation, or no pixel statistics where they are needed.
    """
    wells = asked.wells
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
    features_WG = _features(asked)[rows] if needs_features else np.zeros((len(rows), 0), np.float32)
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


def _features(asked: Asked) -> NDArray[np.float32]:
    """(W, G) pixel statistics as they differ from the controls of the well's plate, each of variance 1.

    Not aligned, most of their variance is the plates', which aligned profiles are meant to have lost.
    """
    if asked.pixel_statistics is None:
        raise ValueError(
            "reconstruction decodes the pixel statistics of the wells, and the catalog has none of all of these wells. "
            "Run jobs/embed.py on a pack of them first."
        )
    wells = asked.wells
    config = AlignmentConfig(
        variant="centre_scale", missing_controls=asked.config.missing_controls, constant_features="zero"
    )
    fitted = fit_alignment(asked.pixel_statistics, wells.plate, wells.is_control, config)
    aligned_WG = fitted.apply(asked.pixel_statistics, wells.plate)
    spread_G = aligned_WG.std(axis=0)
    varies_G = spread_G > 0
    scaled_WG = (aligned_WG - aligned_WG.mean(axis=0))[:, varies_G] / spread_G[varies_G]
    return np.asarray(scaled_WG, np.float32)
