"""Scores of embeddings of a perturbation screen on the six tasks of `config`, with intervals and differences.

Shapes: N rows, D dimensions, P perturbations, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.config import TASKS, WITHOUT_SPLIT, TranscriptomicsConfig
from cytolake.benchmark.transcriptomics.embeddings import DRAWN_BY_SEED, Vectors, embed
from cytolake.benchmark.transcriptomics.perturbation_split import split_screen
from cytolake.benchmark.transcriptomics.post_processing import Alignment, post_process
from cytolake.benchmark.transcriptomics.screen import Screen, ScreenSpec, load_screen
from cytolake.benchmark.transcriptomics.tasks import Compared, Relations, TaskInput, TaskScore, run_task
from cytolake.embed.alignment.held_out_controls import hold_out_controls
from cytolake.statistics.bootstrap import mean_over_seeds
from cytolake.statistics.intervals import percentile_interval

Floats = NDArray[np.float64]
SEED_DRAWS = 1000
OVER_SEEDS = -1
"""`seed` of the rows that hold the mean over seeds."""
SCHEMA = pa.schema(
    [
        pa.field("embedding", pa.string(), nullable=False),
        pa.field("post_processing", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("chance", pa.float64()),
        pa.field("chance_majority", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class EmbeddingScores:
    """Scores of one embedding on one metric, one for each seed."""

    embedding: str
    post_processing: str
    task: str
    metric: str
    seeds: tuple[int, ...]
    scores: tuple[TaskScore, ...]
    """One for each seed."""

    @property
    def value(self) -> float:
        """Mean over seeds; NaN where a seed has none."""
        return float(np.mean([score.value for score in self.scores]))

    @property
    def chance(self) -> float | None:
        """Mean over seeds of the score of an embedding without information."""
        return _mean_known([score.chance for score in self.scores])

    @property
    def chance_majority(self) -> float | None:
        """Mean over seeds of the score of guessing the most frequent class."""
        return _mean_known([score.chance_majority for score in self.scores])

    @property
    def draws(self) -> Floats | None:
        """(R,) draws of the mean; of the seeds alone where a score has no draws, None for a single such seed."""
        own = [score.draws for score in self.scores if score.draws is not None]
        if len(own) < len(self.scores):
            own = [np.full(SEED_DRAWS, score.value) for score in self.scores] if len(self.scores) > 1 else []
        return mean_over_seeds(own) if own else None


def score_embeddings(
    data: Any,
    spec: ScreenSpec,
    embeddings: Sequence[str],
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    post_processing: Sequence[str] = ("none",),
    relations: Relations | None = None,
    alignments: Mapping[str, Alignment] | None = None,
    config: TranscriptomicsConfig | None = None,
) -> list[EmbeddingScores]:
    """Score embeddings on the tasks, with the resamples from which `difference` compares two embeddings.

    A seed determines the split, the noise embeddings, the decoder's weights and the permutations. Intervals are 95 %
    and over rows: groups of one batch and one perturbation are drawn whole, because their rows are not independent.
    Intervals of a mean over seeds include the split.

    Args:
        data: AnnData, the path of a `.h5ad`, or a `Screen` that was loaded with the spec.
        spec: Names of its perturbations, batches and embeddings.
        embeddings: Built-in ones (`embeddings.BUILT_IN`) and keys of `obsm` in the spec.
        tasks: Names of `TASKS`.
        seeds: Different numbers from 0 up.
        post_processing: `none`, `centred`, `centre_scaled`, `tvn`, a variant of `embed.alignment`, or names of
            `alignments`.
        relations: Pairs of perturbations for each source; `known_relations` needs one or more for each.
        alignments: Further post-processing by name.
        config: Settings; the defaults where None.

    Returns:
        For `scores_table`, in the order of the arguments.

    Raises:
        ImportError: scanpy or scvi-tools is missing and needed.
        ValueError: An unknown name, or data that a task cannot use.
    """
    config = config or TranscriptomicsConfig()
    relations = {source: list(pairs) for source, pairs in (relations or {}).items()}
    check_request(tasks, seeds, relations)
    screen = data if isinstance(data, Screen) else load_screen(data, spec)
    splits = {
        seed: split_screen(screen, seed, config.train_share) if set(tasks) - WITHOUT_SPLIT else None for seed in seeds
    }
    scored: list[EmbeddingScores] = []
    pca: Vectors | None = None
    for name in embeddings:
        if pca is None and name in ("pca", "scrambled_pca", "scrambled_pca_within_batch"):
            pca = embed(screen, "pca", config.embedding)
        drawn = {
            seed: embed(screen, name, config.embedding, seed, pca=pca)
            for seed in (seeds if name in DRAWN_BY_SEED else seeds[:1])
        }
        for method in post_processing:
            vectors = {seed: post_process(screen, each, method, alignments) for seed, each in drawn.items()}
            compared: dict[int, Compared] = {}
            if method != "none" and "perturbation_signal" in tasks:
                held_out = hold_out_controls(screen.is_control, screen.batch_of_row)
                fitted = screen.is_control & ~held_out
                compared = {
                    seed: Compared(post_process(screen, each, method, alignments, is_fitted=fitted), held_out)
                    for seed, each in drawn.items()
                }
            inputs = [
                TaskInput(
                    screen,
                    vectors.get(seed, vectors[seeds[0]]),
                    splits[seed],
                    seed,
                    config,
                    relations,
                    compared.get(seed, compared.get(seeds[0])),
                )
                for seed in seeds
            ]
            for task in tasks:
                for scores in zip(*(run_task(task, each) for each in inputs), strict=True):
                    scored.append(EmbeddingScores(name, method, task, scores[0].metric, tuple(seeds), scores))
    return scored


def scores_table(scored: Sequence[EmbeddingScores]) -> pa.Table:
    """Rows of `SCHEMA`; `seed` -1 is the mean over seeds.

    `value` is null where a metric is not defined, the interval where there is nothing to resample. `chance` is the
    score of an embedding without information, `chance_majority` that of guessing the most frequent class; null where
    not known.
    """
    return pa.Table.from_pylist([row for each in scored for row in rows_of(each)], schema=SCHEMA)


def difference(better: EmbeddingScores, worse: EmbeddingScores) -> tuple[float, float | None, float | None]:
    """Difference between the scores of two embeddings on one metric, and its 95 % interval.

    Both use the same resamples, so what is hard for both, such as a perturbation without an effect, does not widen the
    interval.

    Raises:
        ValueError: Scores of different tasks, metrics or seeds, or of different numbers of rows.
    """
    one, other = (
        (each.task, each.metric, each.seeds, tuple(score.n for score in each.scores)) for each in (better, worse)
    )
    if one != other:
        raise ValueError(f"{one} and {other} are different measurements. Score both embeddings in one call.")
    low, high = None, None
    if better.draws is not None and worse.draws is not None:
        low, high = _interval(better.draws - worse.draws)
    return better.value - worse.value, low, high


def rows_of(scored: EmbeddingScores) -> list[dict[str, Any]]:
    """Rows of `SCHEMA` of one metric: each seed, and the mean."""
    seeds = zip(scored.seeds, scored.scores, strict=True)
    rows = [_row(scored, seed, score, score.n) for seed, score in seeds]
    n = round(float(np.mean([score.n for score in scored.scores])))
    return [*rows, _row(scored, OVER_SEEDS, scored, n)]


def check_request(tasks: Sequence[str], seeds: Sequence[int], relations: Relations) -> None:
    """Check the arguments before the screen is read.

    Raises:
        ValueError: An unknown task, seeds that are not different numbers from 0 up, or `known_relations` without any.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"tasks {', '.join(unknown) or '(none)'}: expected some of {', '.join(TASKS)}.")
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are {tuple(seeds)}, expected different numbers from 0 up, such as (0, 1, 2).")
    if "known_relations" in tasks and not relations:
        raise ValueError(
            "the task known_relations has no relations. Give pairs of perturbations as relations={'source': pairs}, or "
            "leave the task out."
        )


def _row(scored: EmbeddingScores, seed: int, of: TaskScore | EmbeddingScores, n: int) -> dict[str, Any]:
    is_known = bool(np.isfinite(of.value))
    low, high = _interval(of.draws) if is_known and of.draws is not None else (None, None)
    return {
        "embedding": scored.embedding,
        "post_processing": scored.post_processing,
        "task": scored.task,
        "metric": scored.metric,
        "seed": seed,
        "value": of.value if is_known else None,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "chance": of.chance,
        "chance_majority": of.chance_majority,
    }


def _interval(draws: Floats) -> tuple[float | None, float | None]:
    low, high = percentile_interval(draws)
    return (None, None) if np.isnan(low) else (low, high)


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
